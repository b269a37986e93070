"""The tree of a filter, and the checks that every node goes through, whatever form it was written in."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import regex

from indexer.errors import InvalidFilter

Scalar = str | int | float | bool | datetime | None

MAX_VALUES = 1_000  # of one `in`
MAX_DEPTH = 64  # of either form

TEXT_FIELDS = frozenset({"id", "title", "uri", "language"})
TIME_FIELDS = frozenset({"created_at", "updated_at"})
ALIASES = {"lang": "language", "path": "uri"}
ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TEXT_OPS = ("startswith", "endswith", "contains")
OPS = ("=", "==", "!=", *ORDER, "in", "not in", *TEXT_OPS, "exists")


@dataclass(frozen=True, slots=True)
class And:
    """All of the parts; true without parts."""

    parts: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of the parts; false without parts."""

    parts: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of the part."""

    part: "Filter"


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is there and not null."""

    field: str


@dataclass(frozen=True, slots=True)
class Compare:
    """One element of the field stands in relation `op` to one of `values`; only `in` has more than one."""

    field: str
    op: str
    values: tuple[Scalar, ...]


Filter = And | Or | Not | Exists | Compare


def path_of(field: str) -> list[str]:
    """Where a metadata field is, from the outermost object inwards."""
    return field.removeprefix("metadata.").split(".")


def by_type(values: Sequence[Scalar]) -> tuple[list[bool], list[int | float], list[str]]:
    """The booleans, numbers and texts among the values; no two of different types are ever equal."""
    booleans = [value for value in values if isinstance(value, bool)]
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return booleans, numbers, [value for value in values if isinstance(value, str)]


def checked(field: str, op: str, value: Any, where: str) -> Filter:
    """The node for `field op value`; `where` says in errors which part of the filter is meant."""
    field = _field(field, where)
    if op not in OPS:
        raise InvalidFilter(f"{where}: unknown operator {op!r}; expected one of {', '.join(OPS)}")
    if op == "exists":
        return Exists(field)
    if op in ("!=", "not in"):
        return Not(checked(field, "=" if op == "!=" else "in", value, where))
    values = list(value) if op == "in" and isinstance(value, (list, tuple)) else [value]
    if len(values) > MAX_VALUES:
        raise InvalidFilter(f"{where}: {len(values)} values; at most {MAX_VALUES} are allowed")
    if op in TEXT_OPS and field in TIME_FIELDS:
        raise InvalidFilter(f"{where}: {field} is a time; compare it with = < <= > >=")
    scalars = tuple(_scalar(field, item, where) for item in values)
    if op in TEXT_OPS and not all(isinstance(item, str) for item in scalars):
        raise InvalidFilter(f"{where}: {op} needs text, not {value!r}; put it in quotes")
    if op in ORDER and (isinstance(scalars[0], bool) or scalars[0] is None):
        raise InvalidFilter(
            f"{where}: {value!r} has no order; expected a number, a text or a date after {op}"
        )
    if op not in ("=", "==", "in"):
        return Compare(field, op, scalars)
    present = tuple(item for item in scalars if item is not None)
    if not scalars:
        return Or(())
    if len(present) == len(scalars):
        return Compare(field, "in", present)
    return Or((Not(Exists(field)), Compare(field, "in", present))) if present else Not(Exists(field))


def _field(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name or len(name) > 256:
        raise InvalidFilter(f"{where}: a field is a name of 1 to 256 characters, not {str(name)[:50]!r}")
    if regex.search(r'["\\\p{C}]', name) or "" in name.split("."):
        raise InvalidFilter(f"{where}: the field {name!r} has a quote, a backslash or an empty part")
    return ALIASES.get(name, name)


def _scalar(field: str, value: Any, where: str) -> Scalar:
    if value is None:
        return None
    if field in TIME_FIELDS:
        return _time(value, where)
    if field in TEXT_FIELDS and isinstance(value, (int, float)) and not isinstance(value, bool):
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
        return utc(parsed)
    except (ValueError, OverflowError):
        raise InvalidFilter(
            f"{where}: {str(value)[:50]!r} is no date; expected one like 2026-11-25"
        ) from None


def utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)
