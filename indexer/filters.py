"""Filters on documents: `year >= 2020 and lang in (de, fr) and not draft and path startswith "a/"`, or the
same as JSON.

Fields are `id`, `title`, `uri` (or `path`), `language` (or `lang`), `created_at` and `updated_at`; every
other name is metadata, with dots for nested objects. `metadata.title` reaches a metadata field that a
document field hides.

Tests are either true or false, never unknown, so that `not` means what it says:
- a missing or null field fails every test; `x != 1` is `not x = 1` and so is true of documents without x;
- numbers are compared with numbers, text with text (by code point), booleans with booleans; nothing is
  converted;
- a list passes when one of its elements does; `x` alone means `x = true`, `x = null` means `not exists(x)`.

JSON: {"and": [...]}, {"or": [...]}, {"not": {...}}, {"field": "year", "op": ">=", "value": 2020}; `exists`
has no value. The same tree is turned into SQL (`to_sql`) and evaluated in Python (`matches`); a property test
holds them together.
"""

import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import regex
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
from indexer.limits import MAX_FILTER_NODES

Scalar = str | int | float | bool | datetime | None
Record = Mapping[str, Any]  # "id", "title", "uri", "language", "created_at", "updated_at", "metadata"

MAX_VALUES = 1_000  # of one `in`
MAX_DEPTH = 64

_ALIASES = {"lang": "language", "path": "uri"}
_TEXT_COLUMNS = {
    "id": DocumentRow.external_id,
    "title": DocumentRow.title,
    "uri": DocumentRow.uri,
    "language": DocumentRow.language,
}
_TIME_COLUMNS = {"created_at": DocumentRow.created_at, "updated_at": DocumentRow.updated_at}
_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TEXT_OPS = ("startswith", "endswith", "contains")
_OPS = ("=", "==", "!=", *_ORDER, "in", "not in", *_TEXT_OPS, "exists")


class Filter:
    """A condition on documents."""

    def to_sql(self, dialect: Dialect) -> ColumnElement[bool]:
        """The condition over `DocumentRow`. Only SQLite has an implementation."""
        if dialect.name != "sqlite":
            raise InvalidFilter(
                f"filters are not implemented for {dialect.name!r} databases; expected sqlite"
            )
        return self._sql()

    def matches(self, record: Record) -> bool:
        """Whether a document passes; the slow and obvious form of `to_sql`."""
        raise NotImplementedError

    def _sql(self) -> ColumnElement[bool]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class And(Filter):
    """All of the parts; true without parts."""

    parts: tuple[Filter, ...]

    def matches(self, record: Record) -> bool:
        return all(part.matches(record) for part in self.parts)

    def _sql(self) -> ColumnElement[bool]:
        return and_(true(), *(part._sql() for part in self.parts))


@dataclass(frozen=True, slots=True)
class Or(Filter):
    """At least one of the parts; false without parts."""

    parts: tuple[Filter, ...]

    def matches(self, record: Record) -> bool:
        return any(part.matches(record) for part in self.parts)

    def _sql(self) -> ColumnElement[bool]:
        return or_(false(), *(part._sql() for part in self.parts))


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """The opposite of the part."""

    part: Filter

    def matches(self, record: Record) -> bool:
        return not self.part.matches(record)

    def _sql(self) -> ColumnElement[bool]:
        return not_(self.part._sql())


@dataclass(frozen=True, slots=True)
class Exists(Filter):
    """The field is there and not null."""

    field: str

    def matches(self, record: Record) -> bool:
        return _value(record, self.field) is not None

    def _sql(self) -> ColumnElement[bool]:
        column = _TEXT_COLUMNS.get(self.field) or _TIME_COLUMNS.get(self.field)
        if column is not None:
            return column.is_not(None)
        return func.coalesce(func.json_type(DocumentRow.meta, _json_path(self.field)), "null") != "null"


@dataclass(frozen=True, slots=True)
class Compare(Filter):
    """One element of the field stands in relation `op` to one of `values`; only `in` has more than one."""

    field: str
    op: str
    values: tuple[Scalar, ...]

    def matches(self, record: Record) -> bool:
        value = _value(record, self.field)
        elements = value if isinstance(value, list) else [value]
        return any(_holds(element, self.op, wanted) for element in elements for wanted in self.values)

    def _sql(self) -> ColumnElement[bool]:
        column = _TEXT_COLUMNS.get(self.field) or _TIME_COLUMNS.get(self.field)
        if column is not None:
            comparable = [value for value in self.values if isinstance(value, (str, datetime))]
            return func.coalesce(_relation(column, self.op, comparable), false()) if comparable else false()
        return self._metadata_sql(_json_path(self.field))

    def _metadata_sql(self, path: str) -> ColumnElement[bool]:
        """`json_each` for lists only: it takes twice as long as the rest of the condition."""
        kind, value = func.json_type(DocumentRow.meta, path), func.json_extract(DocumentRow.meta, path)
        element = func.json_each(DocumentRow.meta, path).table_valued("value", "type")
        groups = _by_type(self.values)
        tests = [
            and_(element.c.type.in_(kinds), _relation(element.c.value, self.op, values))
            for kinds, values in groups
        ]
        return case(
            (kind == "array", exists(select(literal(1)).select_from(element).where(or_(*tests)))),
            *((kind.in_(kinds), _relation(value, self.op, values)) for kinds, values in groups),
            else_=false(),
        )


def parse(where: Any) -> Filter:
    """A filter from its text or JSON form; None gives one that everything passes. Raises InvalidFilter."""
    if where is None:
        return And(())
    if isinstance(where, Filter):
        return where
    if isinstance(where, str):
        parsed = _Parser(where).parse() if where.strip() else And(())
    else:
        parsed = _from_json(where, "filter", 0)
    nodes = sum(1 for _ in _walk(parsed))
    if nodes > MAX_FILTER_NODES:
        raise InvalidFilter(f"the filter has {nodes} conditions; at most {MAX_FILTER_NODES} are allowed")
    return parsed


def _walk(node: Filter) -> Iterator[Filter]:
    yield node
    for part in getattr(node, "parts", ()):
        yield from _walk(part)
    if isinstance(node, Not):
        yield from _walk(node.part)


# --- building a checked node ----------------------------------------------------------------------------


def _test(field: str, op: str, value: Any, where: str) -> Filter:
    """The node for `field op value`; `where` says in errors which part of the filter is meant."""
    field = _field(field, where)
    if op not in _OPS:
        raise InvalidFilter(f"{where}: unknown operator {op!r}; expected one of {', '.join(_OPS)}")
    if op == "exists":
        return Exists(field)
    if op in ("!=", "not in"):
        return Not(_test(field, "=" if op == "!=" else "in", value, where))
    values = list(value) if op == "in" and isinstance(value, (list, tuple)) else [value]
    if len(values) > MAX_VALUES:
        raise InvalidFilter(f"{where}: {len(values)} values; at most {MAX_VALUES} are allowed")
    if op in _TEXT_OPS and field in _TIME_COLUMNS:
        raise InvalidFilter(f"{where}: {field} is a time; compare it with = < <= > >=")
    checked = tuple(_scalar(field, item, where) for item in values)
    if op in _TEXT_OPS and not all(isinstance(item, str) for item in checked):
        raise InvalidFilter(f"{where}: {op} needs text, not {value!r}; put it in quotes")
    if op in _ORDER and (isinstance(checked[0], bool) or checked[0] is None):
        raise InvalidFilter(
            f"{where}: {value!r} has no order; expected a number, a text or a date after {op}"
        )
    if op not in ("=", "==", "in"):
        return Compare(field, op, checked)
    present = tuple(item for item in checked if item is not None)
    if not checked:
        return Or(())
    if len(present) == len(checked):
        return Compare(field, "in", present)
    return Or((Not(Exists(field)), Compare(field, "in", present))) if present else Not(Exists(field))


def _field(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name or len(name) > 256:
        raise InvalidFilter(f"{where}: a field is a name of 1 to 256 characters, not {str(name)[:50]!r}")
    if regex.search(r'["\\\p{C}]', name) or "" in name.split("."):
        raise InvalidFilter(f"{where}: the field {name!r} has a quote, a backslash or an empty part")
    return _ALIASES.get(name, name)


def _scalar(field: str, value: Any, where: str) -> Scalar:
    if value is None:
        return None
    if field in _TIME_COLUMNS:
        return _time(value, where)
    if field in _TEXT_COLUMNS and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidFilter(f"{where}: {value} is not a number JSON can hold")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        raise InvalidFilter(f"{where}: {value} is over 64 bits")
    if isinstance(value, str):
        if regex.search("[\x00\ud800-\udfff]", value):
            raise InvalidFilter(
                f"{where}: the text {value[:50]!r} has a NUL or a lone surrogate, as no document has"
            )
        return value
    if isinstance(value, (bool, int, float)):
        return value
    raise InvalidFilter(f"{where}: expected a number, a text, true, false or null, not {str(value)[:50]!r}")


def _time(value: Any, where: str) -> datetime:
    """A date or time in ISO 8601, as UTC when it has no offset."""
    try:
        parsed = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        return _utc(parsed)
    except (ValueError, OverflowError):
        raise InvalidFilter(
            f"{where}: {str(value)[:50]!r} is no date; expected one like 2026-11-25"
        ) from None


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)


# --- the JSON form --------------------------------------------------------------------------------------


def _from_json(node: Any, where: str, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise InvalidFilter(f"the filter is nested more than {MAX_DEPTH} deep")
    if not isinstance(node, Mapping):
        raise InvalidFilter(
            f"{where}: expected an object such as {{'field': 'year', 'op': '>=', 'value': 2020}}"
        )
    if len(node) == 1 and (set(node) & {"and", "or"}):
        key, parts = next(iter(node.items()))
        if not isinstance(parts, list):
            raise InvalidFilter(f"{where}.{key}: expected a list of conditions")
        children = tuple(_from_json(part, f"{where}.{key}[{n}]", depth + 1) for n, part in enumerate(parts))
        return And(children) if key == "and" else Or(children)
    if set(node) == {"not"}:
        return Not(_from_json(node["not"], f"{where}.not", depth + 1))
    unknown = sorted(set(map(str, node)) - {"field", "op", "value"})
    if unknown or "field" not in node:
        problem = f"unknown key {unknown[0][:50]!r}" if unknown else "'field' is missing"
        raise InvalidFilter(f"{where}: {problem}; expected 'and', 'or', 'not', or 'field', 'op' and 'value'")
    op = node.get("op", "=")
    if op != "exists" and "value" not in node:
        raise InvalidFilter(f"{where}: 'value' is missing")
    if op in ("in", "not in") and not isinstance(node["value"], list):
        raise InvalidFilter(f"{where}: {op!r} needs a list of values")
    return _test(node["field"], str(op), node.get("value"), where)


# --- the text form --------------------------------------------------------------------------------------

_TOKEN = regex.compile(
    r"""\s*+(?:
      (?P<quoted> "(?:[^"\\]|\\.)*+" | '(?:[^'\\]|\\.)*+' )
    | (?P<symbol> <= | >= | != | == | [=<>(),] )
    | (?P<word>   [^\s"'=<>!(),]++ )
    )""",
    regex.VERBOSE | regex.DOTALL,
)
_NUMBER = regex.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_KEYWORDS = {"and", "or", "not", "in", "exists"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # quoted | symbol | word | end
    text: str
    position: int


class _Parser:
    """Recursive descent: or = and ("or" and)*; and = not ("and" not)*; not = "not" not, "(" or ")", test."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = self._tokens()
        self.next = 0
        self.depth = 0

    def parse(self) -> Filter:
        parsed = self._or()
        if self._peek.kind != "end":
            raise self._error("expected 'and', 'or' or the end")
        return parsed

    def _tokens(self) -> list[_Token]:
        tokens, position = [], 0
        end = len(self.source.rstrip())
        while position < end:
            match = _TOKEN.match(self.source, position)
            if match is None or match.lastgroup is None:
                raise InvalidFilter(
                    self._located("this is neither a name, a value nor an operator", position)
                )
            kind = match.lastgroup
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            position = match.end()
        return [*tokens, _Token("end", "", end)]

    @property
    def _peek(self) -> _Token:
        return self.tokens[self.next]

    def _take(self) -> _Token:
        token = self._peek
        self.next = min(self.next + 1, len(self.tokens) - 1)
        return token

    def _accept(self, text: str) -> bool:
        """Take the next token if it is this symbol or keyword."""
        token = self._peek
        found = token.kind in ("word", "symbol") and token.text.lower() == text
        if found:
            self._take()
        return found

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._error(f"expected {text!r}")

    def _or(self) -> Filter:
        parts = [self._and()]
        while self._accept("or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _and(self) -> Filter:
        parts = [self._not()]
        while self._accept("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _not(self) -> Filter:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} deep")
        if self._accept("not"):
            inner: Filter = Not(self._not())
        elif self._accept("("):
            inner = self._or()
            self._expect(")")
        else:
            inner = self._condition()
        self.depth -= 1
        return inner

    def _condition(self) -> Filter:
        start = self._peek.position
        if self._accept("exists"):
            self._expect("(")
            field = self._name()
            self._expect(")")
            return self._build(field, "exists", None, start)
        field = self._name()
        if self._accept("not"):
            self._expect("in")
            return self._build(field, "not in", self._list(), start)
        if self._accept("in"):
            return self._build(field, "in", self._list(), start)
        op = self._peek.text.lower()
        if (self._peek.kind == "symbol" and op in _OPS) or (self._peek.kind == "word" and op in _TEXT_OPS):
            self._take()
            return self._build(field, op, self._value(), start)
        return self._build(field, "=", True, start)

    def _build(self, field: str, op: str, value: Any, start: int) -> Filter:
        return _test(field, op, value, f"filter at character {start + 1}")

    def _name(self) -> str:
        if self._peek.kind != "word" or self._peek.text.lower() in _KEYWORDS:
            raise self._error("expected a field name")
        return self._take().text

    def _list(self) -> list[Scalar]:
        self._expect("(")
        values = [self._value()]
        while self._accept(","):
            values.append(self._value())
        self._expect(")")
        return values

    def _value(self) -> Scalar:
        token = self._peek
        if token.kind not in ("quoted", "word"):
            raise self._error("expected a value")
        self._take()
        if token.kind == "quoted":
            return regex.sub(r"\\(.)", r"\1", token.text[1:-1], flags=regex.DOTALL)
        if _NUMBER.fullmatch(token.text):
            return float(token.text) if any(mark in token.text for mark in ".eE") else int(token.text)
        named: dict[str, Scalar] = {"true": True, "false": False, "null": None}
        return named.get(token.text.lower(), token.text)

    def _error(self, problem: str) -> InvalidFilter:
        found = self._peek
        seen = f"found {found.text[:50]!r}" if found.kind != "end" else "the filter ends here"
        return InvalidFilter(self._located(f"{problem}, {seen}", found.position))

    def _located(self, problem: str, position: int) -> str:
        around = self.source[max(0, position - 20) :][:60]
        return f"filter at character {position + 1}: {problem} (in {around!r})"


# --- meaning --------------------------------------------------------------------------------------------


def _value(record: Record, field: str) -> Any:
    """The field's value; None when it is missing."""
    if field in _TEXT_COLUMNS or field in _TIME_COLUMNS:
        return record.get(field)
    value: Any = record.get("metadata") or {}
    for key in field.removeprefix("metadata.").split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _holds(element: Any, op: str, wanted: Scalar) -> bool:
    """Whether one element stands in the relation; values of different types never do."""
    if isinstance(element, datetime) and isinstance(wanted, datetime):
        element = _utc(element)
    elif _type(element) is None or _type(element) != _type(wanted):
        return False
    if op == "in":
        return bool(element == wanted)
    if op in _ORDER:
        return bool(_ORDER[op](element, wanted))
    if op == "contains":
        return wanted in element
    return bool(element.startswith(wanted) if op == "startswith" else element.endswith(wanted))


def _type(value: Any) -> str | None:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) else None


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
    if op in _ORDER:
        return _ORDER[op](column, value)
    if not value:  # every text starts with, ends with and contains nothing
        return column.is_not(None)
    if op == "contains":
        return func.instr(column, value) > 0
    part = func.substr(column, 1, len(value)) if op == "startswith" else func.substr(column, -len(value))
    return part == value


def _json_path(field: str) -> str:
    """`a.b` -> `$."a"."b"`, escaped as SQLAlchemy writes JSON: older SQLites compare that form."""
    return "$" + "".join(f".{json.dumps(key)}" for key in field.removeprefix("metadata.").split("."))
