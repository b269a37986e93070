"""A store in a directory: one SQLite file, and beside it the writer lock and snapshots of vectors.

SQLite is opened in WAL mode, so readers never wait, and with `synchronous=FULL`, so what was committed
survives a power cut. Python's sqlite3 begins transactions late and in the wrong mode; following SQLAlchemy's
recipe (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable) we begin them ourselves:
`BEGIN IMMEDIATE` for a writer, because a deferred transaction that turns into a writer ignores the busy
timeout and fails with "database is locked".
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.orm import Session

from indexer.db.engine import no_store
from indexer.errors import StoreError
from indexer.locks import WriterLock

DATABASE = "store.sqlite3"
BUSY_TIMEOUT_MS = 30_000
WRITER = {"writer": True}  # execution option of a connection that will write


class SqliteDatabase:
    """`Database` of a directory. It is made when it is missing, unless `create` is false (StoreError)."""

    takes_nul = True
    remedy = "check its permissions and the free space, or restore a backup with `rwkv-embed restore`"
    checkup = "check it with `rwkv-embed verify`"

    def __init__(self, directory: Path, create: bool, lock_wait_s: float) -> None:
        self.directory, self.name = directory, str(directory)
        if directory.exists() and not directory.is_dir():
            raise StoreError(f"{directory} is a file, but a store is a directory; give --store a directory")
        if not create and not (directory / DATABASE).exists():
            raise StoreError(no_store(self.name))
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the store directory {directory} cannot be made: {error.strerror}") from error
        self._check_not_emptied()
        self.engine: Engine = create_engine(URL.create("sqlite", database=str(directory / DATABASE)))
        event.listen(self.engine, "connect", _prepare)
        event.listen(self.engine, "begin", _begin)
        self._writer = WriterLock(directory / "writer.lock", lock_wait_s)

    @property
    def snapshots(self) -> Path:
        """The directory of the vectors' snapshots."""
        return self.directory / "faiss"

    def _check_not_emptied(self) -> None:
        """A store whose database lost all its bytes must not be taken for a new one."""
        database = self.directory / DATABASE
        emptied = not database.exists() or (
            database.stat().st_size == 0 and not database.with_name(f"{DATABASE}-wal").exists()
        )
        if emptied and any(self.snapshots.glob("*.json")):
            raise StoreError(
                f"the database of the store at {self.directory} is empty or gone, but its vector index is there; "
                "restore a backup with `rwkv-embed restore`, or remove the directory"
            )

    @contextmanager
    def writing(self, purpose: str) -> Iterator[Connection]:
        with (
            self.exclusive(purpose),
            self.engine.connect().execution_options(**WRITER) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def exclusive(self, purpose: str) -> Iterator[None]:
        """The writer lock alone, for what cannot run inside a transaction."""
        with self._writer.hold(purpose):
            yield

    def last_chunk_id(self, session: Session) -> int:
        return session.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'")) or 0

    def took_chunk_ids(self, session: Session, last: int) -> None:
        """SQLite has seen to it."""

    def problems(self, session: Session, most: int) -> Iterator[str]:
        for (message,) in session.execute(text(f"PRAGMA integrity_check({most})")):
            if message != "ok":
                yield f"the database file is damaged: {message}; restore a backup"
        for table, row, parent, _ in session.execute(text("PRAGMA foreign_key_check")).fetchmany(most):
            yield f"row {row} of {table} belongs to a row of {parent} that is not there"

    def shrink(self) -> None:
        """VACUUM outside a transaction; then move the log into the database, as far as readers let us."""
        with self.exclusive("compacting"):
            self._vacuum()

    def _vacuum(self) -> None:
        connection: Any = self.engine.raw_connection()
        try:
            connection.cursor().execute("VACUUM")
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"{self.name} could not be shrunk ({error}); nothing is lost, but it needs as much free disk as "
                "the database is large"
            ) from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.name} could not be shrunk ({error}); check it with `rwkv-embed verify`"
            ) from error
        finally:
            connection.close()

    def size(self) -> int:
        return total_size(self.directory.glob(f"{DATABASE}*"))


def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # no implicit BEGIN: `_begin` does it
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -65536")  # 64 MiB


def _begin(connection: Connection) -> None:
    writer = connection.get_execution_options().get("writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")


def total_size(paths: Iterable[Path]) -> int:
    """Bytes of those of some files that still exist."""
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
