"""What a store needs of its database besides SQL: where SQLite and PostgreSQL differ."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from sqlalchemy import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from indexer.errors import StoreError


class Database(Protocol):
    """The database of one store. `indexer.db.sqlite` and `indexer.db.postgresql` have the implementations."""

    name: str  # in messages; without a password
    engine: Engine  # its connections are for reading, and see one moment for as long as a transaction lasts
    takes_nul: bool  # whether a text may have the character NUL
    remedy: str  # the next step when the database cannot be opened
    checkup: str  # and when one that was opened cannot be read

    def writing(self, purpose: str) -> AbstractContextManager[Connection]:
        """The writer lock and one transaction: committed on success, rolled back on any error.

        Writers come one after the other, so that a chunk with a larger id was always committed later.
        StoreLocked: somebody else keeps writing.
        """

    def last_chunk_id(self, session: Session) -> int:
        """The largest chunk id that was ever given; in a writer's transaction."""

    def took_chunk_ids(self, session: Session, last: int) -> None:
        """Chunks with ids up to `last` were written by number: the next one gets a larger id."""

    def problems(self, session: Session, most: int) -> Iterator[str]:
        """What the database's own checks find, in sentences, up to `most` of each kind."""

    def shrink(self) -> None:
        """Give back the room of deleted rows, for `compact`. StoreError: it could not be done."""

    def size(self) -> int:
        """Its bytes on disk, without those of vector indexes."""


def open_database(location: str | Path, create: bool, lock_wait_s: float) -> Database:
    """The database of the store at a directory or at a PostgreSQL URL. Its schema may be missing or old.

    StoreError: it cannot be one, or is not there and `create` is false.
    """
    if "://" not in str(location):
        from indexer.db.sqlite import SqliteDatabase

        return SqliteDatabase(Path(location).expanduser().absolute(), create, lock_wait_s)
    from indexer.db.postgresql import PostgresDatabase

    return PostgresDatabase(str(location), lock_wait_s)


def postgresql_url(url: str) -> URL:
    """A URL of a PostgreSQL database with the driver that we use; StoreError: it is none."""
    shown = without_password(url)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError(
            f"{shown} is no URL of a database; expected postgresql://user:password@host/name, or a directory"
        ) from None
    if parsed.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise StoreError(
            f"{shown} is a URL of {parsed.drivername!r}; expected postgresql://user:password@host/name, or a "
            "directory"
        )
    host = unquote(parsed.host) if parsed.host else None  # a socket's folder, written %2Fvar%2Frun%2Fpostgresql
    return parsed.set(drivername="postgresql+psycopg", host=host)


def without_password(url: str) -> str:
    """A URL as it may be shown and logged."""
    scheme, separator, rest = url.partition("://")
    address, _, parameters = rest.partition("?")
    if "@" in parameters:  # the rest of a password with a "?", or a parameter: who can tell?
        return f"{scheme}{separator}..."
    return f"{scheme}{separator}{address.rpartition('@')[2]}"


def reason(error: DBAPIError) -> str:
    """What the database says, without the details that PostgreSQL adds in further lines."""
    return str(error.orig).partition("\n")[0]
