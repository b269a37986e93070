"""The schema's version: what a database has, and bringing it up to date."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DatabaseError, OperationalError, ProgrammingError

from indexer.db.database import Database, reason
from indexer.errors import StoreError

_NOT_PERMITTED = "42501"  # insufficient_privilege
SCHEMA_VERSION = "0002"  # the newest file in migrations/versions; a test compares the two


def open_schema(database: Database, create: bool) -> None:
    """Create or upgrade the tables, one process at a time.

    StoreError: there are none and `create` is false, they are another program's or a newer version's, or the
    database cannot be read.
    """
    try:
        found = schema_version(database.engine)
        if found is None and not create:
            raise StoreError(no_store(database.name))
        if found != SCHEMA_VERSION:
            with database.writing("creating or upgrading the store") as connection:
                upgrade(connection)
    except DatabaseError as error:
        raise StoreError(
            f"{database.name} cannot be read as a store ({reason(error)}); {database.remedy}"
        ) from error


def no_store(name: str) -> str:
    return f"there is no store at {name}; make one with `rwkv-embed index` or check --store"


def schema_version(engine: Engine) -> str | None:
    """The schema version in the database, None when it is empty.

    StoreError: it is another program's database. SQLAlchemy's DatabaseError: it cannot be read at all.
    """
    with engine.connect() as connection:
        return _version(connection)


def upgrade(connection: Connection) -> None:
    """Bring the schema up to date in the caller's transaction.

    The check is one SELECT; Alembic is imported only when there is work.
    """
    found = _version(connection)
    if found == SCHEMA_VERSION:
        return
    if found is not None and found > SCHEMA_VERSION:
        raise StoreError(
            f"{connection.engine.url.database} was written by a newer version of rwkv-embed (schema {found}; this "
            f"one knows {SCHEMA_VERSION}); upgrade rwkv-embed to open it"
        )
    from alembic import command

    command.upgrade(alembic_config(connection), "head")


def _version(connection: Connection) -> str | None:
    try:
        with connection.begin_nested():  # after a failed statement PostgreSQL answers no other in a transaction
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except (OperationalError, ProgrammingError) as error:  # no such table, in SQLite's words and in PostgreSQL's
        if getattr(error.orig, "sqlstate", None) == _NOT_PERMITTED:
            raise
    tables = inspect(connection).get_table_names()
    if tables:
        raise StoreError(
            f"{connection.engine.url.database} is a database of something else (it has a table {tables[0]!r}); "
            "give --store another place"
        )
    return None


def alembic_config(connection: Connection) -> Any:
    """Alembic's configuration; there is no alembic.ini, because the connection is always handed over."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
