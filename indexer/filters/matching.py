"""What a filter means, in Python: the slow and obvious form of `sql`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from indexer.filters.tree import (
    ORDER,
    TEXT_FIELDS,
    TIME_FIELDS,
    And,
    Compare,
    Exists,
    Filter,
    Not,
    Or,
    Scalar,
    path_of,
    utc,
)

Record = Mapping[str, Any]  # "id", "title", "uri", "language", "created_at", "updated_at", "metadata"


def matches(node: Filter, record: Record) -> bool:
    """Whether a document passes."""
    match node:
        case And(parts):
            return all(matches(part, record) for part in parts)
        case Or(parts):
            return any(matches(part, record) for part in parts)
        case Not(part):
            return not matches(part, record)
        case Exists(field):
            return _value(record, field) is not None
        case Compare(field, op, values):
            value = _value(record, field)
            elements = value if isinstance(value, list) else [value]
            return any(_holds(element, op, wanted) for element in elements for wanted in values)


def _value(record: Record, field: str) -> Any:
    """The field's value; None when it is missing."""
    if field in TEXT_FIELDS or field in TIME_FIELDS:
        return record.get(field)
    value: Any = record.get("metadata") or {}
    for key in path_of(field):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _holds(element: Any, op: str, wanted: Scalar) -> bool:
    """Whether one element stands in the relation; values of different types never do."""
    if isinstance(element, datetime) and isinstance(wanted, datetime):
        element = utc(element)
    elif _type(element) is None or _type(element) != _type(wanted):
        return False
    if op == "in":
        return bool(element == wanted)
    if op in ORDER:
        return bool(ORDER[op](element, wanted))
    if op == "contains":
        return wanted in element
    return bool(element.startswith(wanted) if op == "startswith" else element.endswith(wanted))


def _type(value: Any) -> str | None:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) else None
