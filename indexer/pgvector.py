"""The vectors of a collection in PostgreSQL, searched there by pgvector: a process that searches keeps nothing.

    chunks.vector  halfvec, every collection's; up to EXACT_ROWS of a collection they are all compared
    vectors_<id>   an HNSW index of one collection's vectors (Malkov & Yashunin 2016), made in the background when
                   there are more, while everybody reads and writes; PostgreSQL keeps it up to date

pgvector compares with a query rounded to float16; the candidates' scores are computed again with the query as it
is, so that scores are those of every other kind of index.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from indexer.db.ids import among, as_json
from indexer.db.postgresql import PostgresDatabase
from indexer.db.tables import ChunkRow
from indexer.errors import CollectionNotFound, IndexerError, StoreError
from indexer.vector_index import SearchMemory
from indexer.view import Ids, Scores, to_float32

if TYPE_CHECKING:
    from indexer.store import Store

log = logging.getLogger(__name__)

EXACT_ROWS = 20_000  # of 512 numbers are compared in about 25 ms; the index takes 5 ms and a minute for 100,000
MOST_DIMENSIONS = 4_000  # of a halfvec that HNSW indexes
MOST_CANDIDATES = 1_000  # that HNSW looks for at a time; deeper searches compare all
RESERVE = 64  # candidates beyond the wanted ones, because they were found with a rounded query
BUILD_POLL_S = 2.0  # while another process is at an index
BUILD_WAIT = "10min"  # for the end of transactions that are older than an index; then the next write begins again
_LEAST_BUILD_BYTES, _MOST_BUILD_BYTES = 64_000_000, 2_000_000_000  # PostgreSQL's own setting; what we dare take


class PgView:
    """One version of a collection's vectors, as `session` sees it, or, without one, as each call finds it."""

    def __init__(self, index: "PgVectorIndex", session: Session | None, version: int, indexed: bool) -> None:
        self.version, self.indexed = version, indexed
        self._index, self._session = index, session
        self._mine = ChunkRow.collection_id == index.collection_id

    def search(
        self, query: NDArray[np.float32], k: int, *, allowed: Ids | None = None, exact: bool = False
    ) -> tuple[Ids, Scores]:
        query = np.asarray(query, np.float32)
        if query.shape != (self._index.dim,):
            raise ValueError(
                f"the query vector has shape {query.shape}, the collection needs ({self._index.dim},)"
            )
        if k <= 0 or (allowed is not None and not len(allowed)):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        near = k + RESERVE
        approximate = self.indexed and not exact and allowed is None and near <= MOST_CANDIDATES
        written = _as_text(query)
        values = {"query": written, "rounded": written, "near": near, "k": k, "ef": str(near)}
        if allowed is not None:
            values["ids"] = as_json(allowed)
        with self._reading() as session:
            if approximate:
                session.execute(_EFFORT, values)
            rows = session.execute(self._index.statement(approximate, allowed is not None), values).all()
            if approximate and len(rows) < k:  # until VACUUM, HNSW finds deleted vectors too, and leaves them out
                rows = session.execute(self._index.statement(False, False), values).all()
        return np.array([row.id for row in rows], np.int64), np.array([row.score for row in rows], np.float32)

    def get(self, ids: Ids) -> NDArray[np.float32]:
        known, found = self._vectors(among(ChunkRow.id, ids))
        vectors = np.zeros((len(ids), self._index.dim), np.float32)
        if len(known):
            rows = np.searchsorted(known, ids).clip(max=len(known) - 1)
            there = known[rows] == ids
            vectors[there] = found[rows[there]]
        return vectors

    def sample(self, size: int) -> tuple[Ids, NDArray[np.float32]]:
        """Ids and vectors of about `size` chunks: those whose ids have certain hashes."""
        every = max(round(len(self) / size), 1)
        drawn = func.hashint8extended(ChunkRow.id, 0).op("&")(0x7FFFFFFF) % every == 0
        return self._vectors(drawn)

    def _vectors(self, condition: Any) -> tuple[Ids, NDArray[np.float32]]:
        """Ids, ascending, and vectors of the chunks that fulfil a condition."""
        statement = select(ChunkRow.id, ChunkRow.vector).where(self._mine, condition).order_by(ChunkRow.id)
        with self._reading() as session:
            rows = session.execute(statement).all()
        data = np.frombuffer(b"".join(row.vector for row in rows), "<f2").reshape(len(rows), self._index.dim)
        return np.array([row.id for row in rows], np.int64), to_float32(data)

    def __len__(self) -> int:
        with self._reading() as session:
            return session.scalar(select(func.count()).where(self._mine)) or 0

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        if self._session is not None:
            yield self._session
        else:
            with self._index.store.read() as session:
                yield session


class PgVectorIndex:
    """`CollectionIndex` of a collection in PostgreSQL."""

    def __init__(self, store: "Store", collection_id: int, dim: int) -> None:
        if store.index_kind == "ivf":
            raise StoreError("PostgreSQL has no ivf index; expected auto, exact or hnsw")
        self.store, self.collection_id, self.dim = store, collection_id, dim
        self.memory = SearchMemory()
        self._database = cast(PostgresDatabase, store.database)
        self._name = f"vectors_{collection_id}"
        self._builder: threading.Thread | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._statements = {
            (approximate, allowed): text(self._sql(approximate, allowed))
            for approximate in (False, True)
            for allowed in (False, True)
        }

    def statement(self, approximate: bool, allowed: bool) -> Any:
        """The best :k chunks (of :ids) for :query, by way of the :near ones that :rounded finds.

        Both are the same text: one parameter has one type, and would be rounded everywhere.
        """
        return self._statements[approximate, allowed]

    def _sql(self, approximate: bool, allowed: bool) -> str:
        """The collection's number is written out: an index of a part of the table is taken for no parameter."""
        rounded = f"halfvec({self.dim})"
        vector = f"(vector::{rounded})" if approximate else "vector"
        some = (
            "AND id IN (SELECT value::bigint FROM json_array_elements_text(CAST(:ids AS json)))"
            if allowed
            else ""
        )
        return (
            f"WITH near AS MATERIALIZED (SELECT id, vector FROM chunks WHERE collection_id = {self.collection_id} "
            f"{some} ORDER BY {vector} <#> CAST(:rounded AS {rounded}) LIMIT :near)"
            f" SELECT id, -(vector::vector <#> CAST(:query AS vector)) AS score FROM near"
            " ORDER BY score DESC, id LIMIT :k"
        )

    def synchronised(self, session: Session | None = None) -> PgView:
        if session is None:
            with self.store.read() as own:
                view = self.synchronised(own)
            return PgView(self, None, view.version, view.indexed)
        row = session.execute(_STATE, {"id": self.collection_id, "index": self._name}).one_or_none()
        if row is None:
            raise CollectionNotFound(f"the collection with id {self.collection_id} was deleted")
        return PgView(self, session, row.version, bool(row.indexed))

    def maintain(self) -> None:
        if not self._is_due():
            return
        with self._lock:
            if self._builder is None or not self._builder.is_alive():
                self._stop.clear()
                self._builder = threading.Thread(target=self._maintain, name="vector-index", daemon=True)
                self._builder.start()

    def _is_due(self) -> bool:
        if self.store.index_kind == "exact" or self.dim > MOST_DIMENSIONS:
            return False
        view = self.synchronised()
        return not view.indexed and (self.store.index_kind == "hnsw" or len(view) > EXACT_ROWS)

    def _maintain(self) -> None:
        try:
            while not self._build() and not self._stop.wait(BUILD_POLL_S):
                pass
        except (SQLAlchemyError, IndexerError) as error:
            log.warning("the vector index was not built: %s; searches compare all vectors", error)

    def _build(self) -> bool:
        """Make the index if it is due, while everybody reads and writes; False: another process is at one."""
        with self._database.maintaining() as connection:
            if connection is None:
                log.info("another process is building a vector index")
                return False
            self._database.tidy(connection)
            if self._is_due():
                size = len(self.synchronised()) * (3 * self.dim + 500)
                memory = min(max(size, _LEAST_BUILD_BYTES), _MOST_BUILD_BYTES)
                connection.exec_driver_sql(f"SET maintenance_work_mem = '{memory // 1_000}kB'")
                connection.exec_driver_sql(f"SET lock_timeout = '{BUILD_WAIT}'")
                connection.exec_driver_sql(
                    f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {self._name} ON chunks"
                    f" USING hnsw ((vector::halfvec({self.dim})) halfvec_ip_ops)"
                    f" WHERE collection_id = {self.collection_id}"
                )
                self._database.tidy(connection)  # the collection may have been deleted meanwhile
        return True

    def compact(self) -> None:
        indexed = self.synchronised().indexed
        self._build()
        with self._database.maintaining() as connection:
            if connection is not None and indexed:
                connection.exec_driver_sql(f"SET lock_timeout = '{BUILD_WAIT}'")
                connection.exec_driver_sql(f"REINDEX INDEX CONCURRENTLY {self._name}")

    def remove(self) -> None:
        """With all that is left of other collections; what another process is at is dropped when it is done."""
        with self._database.maintaining() as connection:
            if connection is not None:
                self._database.tidy(connection)

    def describe(self) -> dict[str, Any]:
        view = self.synchronised()
        if view.indexed:
            reason = f"pgvector's HNSW is faster than comparing all vectors from {EXACT_ROWS:,} on"
            return {"kind": "hnsw", "reason": reason, "indexed": len(view), "newer": 0, "dead": 0}
        if self._is_due():
            reason = "hnsw is due; the next write or `compact` builds it"
        elif self.dim > MOST_DIMENSIONS:
            reason = f"pgvector indexes vectors of up to {MOST_DIMENSIONS:,} numbers, these have {self.dim:,}"
        elif self.store.index_kind == "exact":
            reason = "exact, as asked for"
        else:
            reason = f"up to {EXACT_ROWS:,} vectors are compared in no time"
        return {"kind": "exact", "reason": reason, "indexed": 0, "newer": len(view), "dead": 0}

    def recall(self, sample: int = 100, k: int = 10) -> float:
        view = self.synchronised()
        _, queries = view.sample(sample)
        if not view.indexed or not len(queries):
            return 1.0
        found = 0
        for query in queries[:sample]:
            exact, _ = view.search(query, k, exact=True)
            near, _ = view.search(query, k)
            found += len(np.intersect1d(exact, near))
        return found / (len(queries[:sample]) * min(k, len(view)))

    def check(self) -> tuple[int, list[str]]:
        """Nothing: the database's own checks tell of an index that is not complete."""
        return 0, []

    def size(self) -> int:
        with self.store.read() as session:
            return session.scalar(_SIZE, {"index": self._name}) or 0

    def close(self, wait: bool = True) -> None:
        self._stop.set()
        builder = self._builder
        if wait and builder is not None and builder.is_alive() and builder is not threading.current_thread():
            builder.join()


_STATE = text(
    "SELECT version, (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)) AS indexed"
    " FROM collections WHERE id = :id"
)
_SIZE = text("SELECT pg_relation_size(to_regclass(:index))")
_EFFORT = text("SELECT set_config('hnsw.ef_search', :ef, true)")


def _as_text(query: NDArray[np.float32]) -> str:
    """A vector as pgvector reads it; 9 digits tell every float32 from the next."""
    return f"[{','.join(format(value, '.9g') for value in query.tolist())}]"
