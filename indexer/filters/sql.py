"""A filter as SQL over `DocumentRow`: what SQLite and PostgreSQL share."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Dialect, and_, false, func, not_, or_, true

from indexer.db.tables import DocumentRow
from indexer.errors import InvalidFilter
from indexer.filters import postgresql, sqlite
from indexer.filters.tree import And, Compare, Exists, Filter, Not, Or, path_of

_COLUMNS = {
    "id": DocumentRow.external_id,
    "title": DocumentRow.title,
    "uri": DocumentRow.uri,
    "language": DocumentRow.language,
    "created_at": DocumentRow.created_at,
    "updated_at": DocumentRow.updated_at,
}


class _Conditions(Protocol):
    """What each database writes in its own way."""

    def relation(self, column: Any, op: str, values: Sequence[Any]) -> ColumnElement[bool]:
        """A column of texts or times stands in relation `op` to one of `values`, which are of its type."""

    def metadata_exists(self, path: Sequence[str]) -> ColumnElement[bool]:
        """There is a metadata field at `path`, and it is not null."""

    def metadata_relation(self, path: Sequence[str], op: str, values: Sequence[Any]) -> ColumnElement[bool]:
        """The metadata field at `path`, or an element of that list, stands in relation `op` to one of `values`."""


_DATABASES: dict[str, _Conditions] = {"sqlite": sqlite, "postgresql": postgresql}


def to_sql(node: Filter, dialect: Dialect) -> ColumnElement[bool]:
    """The condition that a document passes; InvalidFilter for a database of another kind."""
    if dialect.name not in _DATABASES:
        raise InvalidFilter(
            f"filters are not implemented for {dialect.name!r} databases; expected {' or '.join(_DATABASES)}"
        )
    return _sql(node, _DATABASES[dialect.name])


def _sql(node: Filter, write: _Conditions) -> ColumnElement[bool]:
    match node:
        case And(parts):
            return and_(true(), *(_sql(part, write) for part in parts))
        case Or(parts):
            return or_(false(), *(_sql(part, write) for part in parts))
        case Not(part):
            return not_(_sql(part, write))
        case Exists(field) if field in _COLUMNS:
            return _COLUMNS[field].is_not(None)
        case Exists(field):
            return write.metadata_exists(path_of(field))
        case Compare(field, op, values) if field in _COLUMNS:
            comparable = [value for value in values if isinstance(value, (str, datetime))]
            if not comparable:
                return false()
            return func.coalesce(write.relation(_COLUMNS[field], op, comparable), false())
        case Compare(field, op, values):
            return write.metadata_relation(path_of(field), op, values)
