"""A filter as SQL over `DocumentRow`. Only SQLite has an implementation."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Dialect,
    and_,
    case,
    exists,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
)

from indexer.db.tables import DocumentRow
from indexer.errors import InvalidFilter
from indexer.filters.tree import ORDER, And, Compare, Exists, Filter, Not, Or, Scalar, path_of

_COLUMNS = {
    "id": DocumentRow.external_id,
    "title": DocumentRow.title,
    "uri": DocumentRow.uri,
    "language": DocumentRow.language,
    "created_at": DocumentRow.created_at,
    "updated_at": DocumentRow.updated_at,
}


def to_sql(node: Filter, dialect: Dialect) -> ColumnElement[bool]:
    """The condition that a document passes."""
    if dialect.name != "sqlite":
        raise InvalidFilter(f"filters are not implemented for {dialect.name!r} databases; expected sqlite")
    return _sql(node)


def _sql(node: Filter) -> ColumnElement[bool]:
    match node:
        case And(parts):
            return and_(true(), *map(_sql, parts))
        case Or(parts):
            return or_(false(), *map(_sql, parts))
        case Not(part):
            return not_(_sql(part))
        case Exists(field):
            return _existence(field)
        case Compare(field) if field in _COLUMNS:
            comparable = [value for value in node.values if isinstance(value, (str, datetime))]
            if not comparable:
                return false()
            return func.coalesce(_relation(_COLUMNS[field], node.op, comparable), false())
        case Compare():
            return _of_metadata(node)


def _existence(field: str) -> ColumnElement[bool]:
    if field in _COLUMNS:
        return _COLUMNS[field].is_not(None)
    return func.coalesce(func.json_type(DocumentRow.meta, _json_path(field)), "null") != "null"


def _of_metadata(test: Compare) -> ColumnElement[bool]:
    """`json_each` for lists only: it takes twice as long as the rest of the condition."""
    path = _json_path(test.field)
    kind, value = func.json_type(DocumentRow.meta, path), func.json_extract(DocumentRow.meta, path)
    element = func.json_each(DocumentRow.meta, path).table_valued("value", "type")
    groups = _by_type(test.values)
    tests = [
        and_(element.c.type.in_(kinds), _relation(element.c.value, test.op, values))
        for kinds, values in groups
    ]
    return case(
        (kind == "array", exists(select(literal(1)).select_from(element).where(or_(*tests)))),
        *((kind.in_(kinds), _relation(value, test.op, values)) for kinds, values in groups),
        else_=false(),
    )


def _by_type(values: Sequence[Scalar]) -> list[tuple[list[str], list[Any]]]:
    """Values grouped by type, with the names SQLite's json_each has for that type."""
    booleans = [value for value in values if isinstance(value, bool)]
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    texts = [value for value in values if isinstance(value, str)]
    groups: list[tuple[list[str], list[Any]]] = [
        (["true", "false"], [int(value) for value in booleans]),
        (["integer", "real"], numbers),
        (["text"], texts),
    ]
    return [(kinds, group) for kinds, group in groups if group]


def _relation(column: Any, op: str, values: Sequence[Any]) -> ColumnElement[bool]:
    """The SQL of one relation. Written with substr and instr, because LIKE ignores case and has wildcards."""
    if op == "in":
        return column.in_(values)
    value = values[0]
    if op in ORDER:
        return ORDER[op](column, value)
    if not value:  # every text starts with, ends with and contains nothing
        return column.is_not(None)
    if op == "contains":
        return func.instr(column, value) > 0
    part = func.substr(column, 1, len(value)) if op == "startswith" else func.substr(column, -len(value))
    return part == value


def _json_path(field: str) -> str:
    """`a.b` -> `$."a"."b"`, escaped as SQLAlchemy writes JSON: older SQLites compare that form."""
    return "$" + "".join(f".{json.dumps(key)}" for key in path_of(field))
