"""The conditions of a filter as SQLite writes them; see `sql`."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, false, func, literal, or_, select

from indexer.db.tables import DocumentRow
from indexer.filters.tree import ORDER, by_type


def relation(column: Any, op: str, values: Sequence[Any]) -> ColumnElement[bool]:
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


def metadata_exists(path: Sequence[str]) -> ColumnElement[bool]:
    return func.coalesce(func.json_type(DocumentRow.meta, _json_path(path)), "null") != "null"


def metadata_relation(path: Sequence[str], op: str, values: Sequence[Any]) -> ColumnElement[bool]:
    """`json_each` for lists only: it takes twice as long as the rest of the condition."""
    where = _json_path(path)
    kind, value = func.json_type(DocumentRow.meta, where), func.json_extract(DocumentRow.meta, where)
    element = func.json_each(DocumentRow.meta, where).table_valued("value", "type")
    groups = _by_type(values)
    tests = [and_(element.c.type.in_(kinds), relation(element.c.value, op, group)) for kinds, group in groups]
    return case(
        (kind == "array", exists(select(literal(1)).select_from(element).where(or_(*tests)))),
        *((kind.in_(kinds), relation(value, op, group)) for kinds, group in groups),
        else_=false(),
    )


def _by_type(values: Sequence[Any]) -> list[tuple[list[str], list[Any]]]:
    """Values grouped by type, with the names SQLite's json_each has for that type."""
    booleans, numbers, texts = by_type(values)
    numbers.sort(key=lambda number: isinstance(number, float))  # after a float SQLAlchemy makes floats of integers
    groups: list[tuple[list[str], list[Any]]] = [
        (["true", "false"], [int(value) for value in booleans]),
        (["integer", "real"], numbers),
        (["text"], texts),
    ]
    return [(kinds, group) for kinds, group in groups if group]


def _json_path(path: Sequence[str]) -> str:
    """`a.b` -> `$."a"."b"`, escaped as SQLAlchemy writes JSON: older SQLites compare that form."""
    return "$" + "".join(f".{json.dumps(key)}" for key in path)
