"""The conditions of a filter as PostgreSQL writes them; see `sql`.

Everything that is converted is converted within CASE, which alone keeps PostgreSQL from converting a value before
its type is known. Lists of values are one parameter each, because a statement may have 65,535.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    DateTime,
    Double,
    Numeric,
    Text,
    any_,
    case,
    cast,
    exists,
    false,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.types import TypeEngine

from indexer.db.tables import DocumentRow
from indexer.filters.tree import ORDER, by_type

_FLOAT = "[.eE]"  # what a JSON number has that Python reads as a float
_ITSELF: ColumnElement[Any] = literal_column("'{}'")  # the empty path


def relation(column: Any, op: str, values: Sequence[Any]) -> ColumnElement[bool]:
    """The SQL of one relation. Written with left, right and strpos, because LIKE has wildcards."""
    kind = Text() if isinstance(values[0], str) else DateTime(timezone=True)
    if op not in ("startswith", "endswith", "contains"):
        return _ordered(column, op, values, kind)
    value = literal(values[0], kind)
    if op == "contains":
        return func.strpos(column, value) > 0
    part = func.left if op == "startswith" else func.right
    return part(column, len(values[0])) == value


def metadata_exists(path: Sequence[str]) -> ColumnElement[bool]:
    return func.coalesce(func.json_typeof(_field(path)), "null") != "null"


def metadata_relation(path: Sequence[str], op: str, values: Sequence[Any]) -> ColumnElement[bool]:
    """OFFSET 0 keeps the subquery, and so the field is looked for once: that takes longer than all the rest."""
    field = select(_field(path).label("value")).correlate(DocumentRow).offset(0).subquery("field")
    element = func.json_array_elements(field.c.value).table_valued("value")
    some = exists(select(literal(1)).select_from(element).where(_holds(element.c.value, op, values)))
    held = case((func.json_typeof(field.c.value) == "array", some), else_=_holds(field.c.value, op, values))
    return func.coalesce(select(held).select_from(field).scalar_subquery(), false())


def _field(path: Sequence[str]) -> ColumnElement[Any]:
    """The JSON at `path`, NULL when it is missing."""
    value: ColumnElement[Any] = DocumentRow.meta.expression
    for key in path:
        value = value.op("->")(literal(key, Text()))  # a key that is text is never the position in a list
    return value


def _holds(value: ColumnElement[Any], op: str, values: Sequence[Any]) -> ColumnElement[bool]:
    """One JSON value, no list, stands in the relation; values of different types never do."""
    content = value.op("#>>", return_type=Text())(_ITSELF)
    booleans, numbers, texts = by_type(values)
    tests: dict[str, ColumnElement[bool]] = {}
    if booleans:
        tests["boolean"] = _ordered(cast(content, Boolean), op, booleans, Boolean())
    if numbers:
        tests["number"] = _number_relation(content, op, numbers)
    if texts:
        tests["string"] = relation(content.collate("C"), op, texts)
    return case(tests, value=func.json_typeof(value), else_=false())


def _number_relation(content: ColumnElement[str], op: str, numbers: Sequence[int | float]) -> ColumnElement[bool]:
    """Integers are compared as numeric and floats as floats, so that nothing is rounded, as in Python."""
    nearest_op, nearest = op, [float(number) for number in numbers if float(number) == number]
    if op in ORDER and not nearest:  # an integer between two floats; no float lies between it and the nearest
        nearest = [float(numbers[0])]
        beyond = (nearest[0] > numbers[0]) == (op[0] == "<")
        nearest_op = op[0] if beyond else f"{op[0]}="
    of_floats = _ordered(cast(content, Double), nearest_op, nearest, Double())
    of_integers = _ordered(cast(content, Numeric), op, [Decimal(number) for number in numbers], Numeric())
    return case((content.regexp_match(_FLOAT), of_floats), else_=of_integers)


def _ordered(
    column: ColumnElement[Any], op: str, values: Sequence[Any], kind: TypeEngine[Any]
) -> ColumnElement[bool]:
    if op == "in":
        return column == any_(literal(list(values), ARRAY(kind)))
    return ORDER[op](column, literal(values[0], kind))
