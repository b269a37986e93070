"""A store in a PostgreSQL database with pgvector: rows, vectors and terms in one transaction.

Any number of processes on any number of machines share it. Readers see one moment (REPEATABLE READ, read only)
and never wait. Writers hold an advisory lock for the length of their transaction: ids of chunks are then given in
the order in which they are committed, so that whoever knows a chunk knows all older ones. What takes time, reading
and embedding documents, happens outside of it.

What changes indexes or drops tables waits for readers, so it is done after the transaction, by one process at a
time (`maintaining`).
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from indexer.db.database import postgresql_url, reason, without_password
from indexer.db.types import HalfvecBytes
from indexer.errors import StoreError, StoreLocked
from rwkv_embed.errors import MissingDependency

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10
_LOCK = 0x72776B76  # "rwkv": the key of the advisory lock; a database holds one store
_MAINTENANCE_LOCK = 0x72776B69  # "rwki": one process at a time changes indexes
_LOCK_TIMED_OUT = "55P03"  # lock_not_available
_NOT_OURS = "42501"  # insufficient_privilege
_LOST = "5min"  # a writer that says nothing for so long is not there any more
_TIDY_LOCK_TIMEOUT = "500ms"  # half of PostgreSQL's deadlock_timeout: whoever reads is not kept waiting
_HOLDER = text(
    "SELECT application_name, coalesce(xact_start, query_start) AS since"
    " FROM pg_stat_activity JOIN pg_locks USING (pid)"
    " WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = :lock AND objsubid = 1"
    " AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_MAINTAINED = text(
    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = 0 AND objsubid = 1"
    f" AND objid = {_MAINTENANCE_LOCK}"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
)
_NOT_COMPLETE = text(
    "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE NOT indisvalid AND relnamespace = current_schema()::regnamespace"
)
_LEFT = text(  # vectors_1_ccnew is of a REINDEX CONCURRENTLY that was stopped
    """
    SELECT 'DROP INDEX CONCURRENTLY ' || indexrelid::regclass
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = 'chunks'::regclass AND relname ~ '^vectors_[0-9]+' AND NOT (
        indisvalid AND EXISTS (SELECT FROM collections WHERE id = substring(relname, '[0-9]+')::bigint)
    )
    UNION ALL
    SELECT 'DROP TABLE ' || oid::regclass
    FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relname ~ '^terms_[0-9]+(_totals)?$'
        AND NOT EXISTS (SELECT FROM collections WHERE id = substring(relname, '[0-9]+')::bigint)
    """
)

_SIZE = text(
    "SELECT pg_database_size(current_database()) - coalesce(sum(pg_relation_size(oid)), 0) FROM pg_class"
    " WHERE relkind = 'i' AND relname ~ '^vectors_[0-9]+$'"
)


class PostgresDatabase:
    """`Database` at a URL such as postgresql://user:password@host:5432/name. StoreError: it is no such URL."""

    takes_nul = False
    remedy = (
        "check that the server runs, the name of the database, user and password; whoever administers it may have "
        "to install pgvector and run CREATE EXTENSION vector"
    )
    checkup = "try again, and check that the server runs"

    def __init__(self, url: str, lock_wait_s: float) -> None:
        self.name, self._lock_wait_s = without_password(url), lock_wait_s
        self.engine = _engine(postgresql_url(url))

    @contextmanager
    def writing(self, purpose: str) -> Iterator[Connection]:
        options = {"isolation_level": "READ COMMITTED", "postgresql_readonly": False}
        with self.engine.connect().execution_options(**options) as connection, connection.begin():
            self._lock(connection, purpose)
            yield connection

    def _lock(self, connection: Connection, purpose: str) -> None:
        """Wait for the writers before us. READ COMMITTED: what they wrote is seen by the next statement."""
        who = f"{os.getpid()} on {socket.gethostname()} ({purpose})"[:63]  # all that PostgreSQL keeps
        wait = f"{max(int(self._lock_wait_s * 1_000), 1)}ms"  # 0 would be forever
        settings = {"application_name": who, "lock_timeout": wait, "idle_in_transaction_session_timeout": _LOST}
        connection.execute(select(*(func.set_config(name, value, True) for name, value in settings.items())))
        try:
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_TIMED_OUT:
                raise
            raise StoreLocked(
                f"{self.name} is being written by {self._holder()}; gave up after {self._lock_wait_s:g} s, try "
                "again later"
            ) from None
        connection.execute(select(func.set_config("lock_timeout", "0", True)))

    def _holder(self) -> str:
        with self.engine.connect() as connection:
            row = connection.execute(_HOLDER, {"lock": _LOCK}).first()
        if row is None:
            return "another process"
        since = f" since {row.since:%Y-%m-%d %H:%M:%S} UTC" if row.since else ""  # another role's
        return f"process {row.application_name}{since}"

    @contextmanager
    def maintaining(self) -> Iterator[Connection | None]:
        """A connection outside of transactions, for what changes indexes; None while another process has it.

        One process at a time: who waits for a lock holds a snapshot, and CREATE INDEX CONCURRENTLY waits for old
        snapshots, so that two of them would wait for each other. For the same reason nobody waits for this lock.
        StoreError: the database refused something.
        """
        with self._outside_of_transactions() as connection:
            free = connection.scalar(select(func.pg_try_advisory_lock(_MAINTENANCE_LOCK)))
            yield connection if free else None

    @contextmanager
    def _outside_of_transactions(self) -> Iterator[Connection]:
        options = {"isolation_level": "AUTOCOMMIT", "postgresql_readonly": False}
        try:
            with self.engine.connect().execution_options(**options) as connection:
                try:
                    yield connection
                finally:
                    connection.detach()  # closing it frees its locks, and what was set goes with it
        except DBAPIError as error:
            raise StoreError(f"{self.name} could not be maintained ({reason(error)}); {self.checkup}") from error

    def tidy(self, connection: Connection) -> None:
        """Drop tables and indexes of deleted collections, and indexes that were not finished; of `maintaining`.

        What is being read stays for the next time. Each has a transaction of its own: whoever holds several locks
        and waits for another may be waited for.
        """
        connection.execute(select(func.set_config("lock_timeout", _TIDY_LOCK_TIMEOUT, False)))
        for drop in connection.scalars(_LEFT).all():
            try:
                connection.exec_driver_sql(drop)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in (_LOCK_TIMED_OUT, _NOT_OURS):
                    raise
                log.info("%s has to wait: %s", drop, reason(error))
        connection.execute(select(func.set_config("lock_timeout", "0", False)))

    def last_chunk_id(self, session: Session) -> int:
        return session.scalar(text("SELECT coalesce(pg_sequence_last_value('chunks_id_seq'), 0)")) or 0

    def took_chunk_ids(self, session: Session, last: int) -> None:
        later = text("SELECT setval('chunks_id_seq', greatest(:last, pg_sequence_last_value('chunks_id_seq'), 1))")
        session.execute(later, {"last": last})

    def problems(self, session: Session, most: int) -> Iterator[str]:
        """PostgreSQL keeps its pages and references itself; an index may have been left half made."""
        if session.scalar(_MAINTAINED):
            return
        for (index,) in session.execute(_NOT_COMPLETE).fetchmany(most):
            yield f"the index {index} is not complete; nothing is lost, `rwkv-embed compact` makes it again"

    def shrink(self) -> None:
        """Beside writers; only a build of an index is waited for."""
        with self.maintaining() as connection:
            if connection is not None:
                self.tidy(connection)
        with self._outside_of_transactions() as connection:
            connection.exec_driver_sql("VACUUM (ANALYZE)")

    def size(self) -> int:
        with self.engine.connect() as connection:
            return int(connection.scalar(_SIZE) or 0)


def _engine(url: URL) -> Engine:
    try:
        from psycopg import adapters
        from psycopg.adapt import Dumper
        from psycopg.pq import Format
    except ImportError as error:
        raise MissingDependency("PostgreSQL needs psycopg: pip install 'rwkv-embed[postgresql]'") from error

    class HalfvecDumper(Dumper):
        """The bytes as they are; the cast beside the parameter says that they are a halfvec."""

        format = Format.BINARY

        def dump(self, value: Any) -> bytes:
            return bytes(value)

    adapters.register_dumper(HalfvecBytes, HalfvecDumper)
    engine = create_engine(
        url,
        isolation_level="REPEATABLE READ",
        execution_options={"postgresql_readonly": True},
        pool_pre_ping=True,  # a server that was started again is no error
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
    )
    event.listen(engine, "connect", _prepare)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    connection.execute("SET jit = off")  # it compiles for longer than our statements run
    connection.execute("SET timezone = 'UTC'")
    connection.execute("SET tcp_keepalives_idle = 60")  # a machine that lost its power holds no lock for hours
    connection.commit()
