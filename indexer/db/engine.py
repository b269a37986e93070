"""Opening the database: connections, transactions and schema versions.

SQLite is opened in WAL mode, so readers never wait, and with `synchronous=FULL`, so what was committed
survives a power cut. Python's sqlite3 begins transactions late and in the wrong mode; following SQLAlchemy's
recipe (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable) we begin them ourselves:
`BEGIN IMMEDIATE` for a writer, because a deferred transaction that turns into a writer ignores the busy
timeout and fails with "database is locked".
"""

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from indexer.errors import StoreError

SCHEMA_VERSION = "0002"  # the newest file in migrations/versions; a test compares the two
BUSY_TIMEOUT_MS = 30_000
WRITER = {"writer": True}  # execution option of a connection that will write


def connect(url: URL) -> Engine:
    """An engine for `url` whose SQLite connections have the settings described above."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # no implicit BEGIN: `_begin_sqlite` does it
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -65536")  # 64 MiB


def _begin_sqlite(connection: Connection) -> None:
    writer = connection.get_execution_options().get("writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")


def schema_version(engine: Engine) -> str | None:
    """The schema version in the database, None when it is empty.

    StoreError: it is another program's database. SQLAlchemy's DatabaseError: it cannot be read at all.
    """
    with engine.connect() as connection:
        try:
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        except (
            OperationalError,
            ProgrammingError,
        ):  # no such table, in the words of SQLite and of PostgreSQL
            connection.rollback()
        tables = inspect(connection).get_table_names()
    if tables:
        raise StoreError(
            f"{engine.url.database} is a database of something else (it has a table {tables[0]!r}); "
            "give --store another directory"
        )
    return None


def upgrade(engine: Engine) -> None:
    """Bring the schema up to date. The check is one SELECT; Alembic is imported only when there is work."""
    found = schema_version(engine)
    if found == SCHEMA_VERSION:
        return
    if found is not None and found > SCHEMA_VERSION:
        raise StoreError(
            f"{engine.url.database} was written by a newer version of rwkv-embed (schema {found}; this one "
            f"knows {SCHEMA_VERSION}); upgrade rwkv-embed to open it"
        )
    from alembic import command

    with engine.connect().execution_options(**WRITER) as connection:
        command.upgrade(alembic_config(connection), "head")
        connection.commit()


def alembic_config(connection: Connection) -> Any:
    """Alembic's configuration; there is no alembic.ini, because the connection is always handed over."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
