"""The vectors of a collection in this process: a cache of those in SQL, brought up to date before it answers.

Chunk ids are never reused, so what is new has larger ids and is found by one range query. Deleted rows are marked
dead, and learned of by their tombstones. `CollectionVectors` makes views (`indexer.view`):

    newest sound snapshot -> replay of newer chunks from SQL -> View
    no snapshot, or a damaged one -> everything from SQL -> View

Up to `ann.EXACT_VALUES` numbers a view is searched exactly: importing FAISS takes longer than such a search.
Above, a FAISS index is built in the background.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from indexer import snapshots
from indexer.ann import (
    ApproximateIndex,
    BuildStopped,
    IndexChoice,
    Progress,
    build,
    choose_index,
    free_memory,
    is_small,
    read_ann,
)
from indexer.db.sqlite import SqliteDatabase, total_size
from indexer.db.tables import ChunkRow, CollectionRow, TombstoneRow
from indexer.errors import CollectionNotFound, IndexerError, StoreError, StoreLocked
from indexer.locks import WriterLock
from indexer.snapshots import DamagedSnapshot
from indexer.vector_index import SearchMemory
from indexer.view import Ids, View, empty_view, live_parts, merged, to_float32

if TYPE_CHECKING:
    from indexer.store import Store

log = logging.getLogger(__name__)


SNAPSHOT_ROWS = 5_000  # fewer new rows than this are replayed from SQL in no time
SNAPSHOT_SHARE = 0.1
SAVE_WAIT_S = 600.0  # a million vectors are indexed and written in less
SAMPLE_ROWS = 32  # rows of a snapshot that are compared with SQL when it is loaded
_FETCH_ROWS = 10_000
_VERSION = select(CollectionRow.version, CollectionRow.tombstones_since).where(
    CollectionRow.id == bindparam("id")
)


class CollectionVectors:
    """The view of one collection in this process: made, caught up, saved and, when large, indexed."""

    def __init__(self, store: "Store", collection_id: int, dim: int, recipe: str) -> None:
        self._store, self._collection_id, self._dim = store, collection_id, dim
        self._recipe = f"{recipe}:{dim}:float16"
        self._view: View | None = None
        self._lock = threading.Lock()  # of replacing the view
        self._builder: threading.Thread | None = None
        self._stop = threading.Event()
        self.directory = cast(SqliteDatabase, store.database).snapshots
        self.memory = SearchMemory()

    def synchronised(self, session: Session | None = None) -> View:
        """The newest committed version, or the one `session` sees if that is newer than what is in memory.

        Costs one SELECT when nothing has changed. Whoever holds a session hands it in: were searches to ask for a
        second connection each, as many as the pool has could wait for each other.
        """
        if session is None:
            with self._store.read() as own:
                return self.synchronised(own)
        row = session.execute(_VERSION, {"id": self._collection_id}).one_or_none()
        if row is None:
            raise CollectionNotFound(f"the collection with id {self._collection_id} was deleted")
        view = self._view
        if view is not None and view.version >= row.version:
            return view
        with self._lock:
            view = self._view
            if view is None or self._behind(session, view):
                view = self._loaded(session, view, row.version) or view
            if view is None:
                view = empty_view(self._dim)
            if view.version < row.version:
                view = self._caught_up(session, view, row.version, row.tombstones_since)
            self._view = view
            return view

    def _behind(self, session: Session, view: View) -> bool:
        """Whether so much is new that a snapshot another process wrote would be quicker than a replay."""
        newest = int(view.ids[-1]) if len(view.ids) else 0
        new = select(func.count()).where(ChunkRow.collection_id == self._collection_id, ChunkRow.id > newest)
        return (session.scalar(new) or 0) > SNAPSHOT_ROWS

    def _loaded(self, session: Session, view: View | None, version: int) -> View | None:
        """The newest sound snapshot that is newer than `view` and no newer than SQL."""
        for manifest in snapshots.manifests(self.directory, self._collection_id):
            if manifest.version > version or (view is not None and manifest.version <= view.version):
                continue
            if (manifest.recipe, manifest.dim) != (self._recipe, self._dim):
                log.warning("vector snapshot %d has another recipe; it is rebuilt", manifest.version)
                continue
            try:
                return self._read(session, manifest)
            except DamagedSnapshot as damage:
                log.warning("%s; the vector index is rebuilt from SQL", damage)
        return None

    def _read(self, session: Session, manifest: snapshots.Manifest) -> View:
        snapshots.check(self.directory, manifest)
        ids = snapshots.read_ids(self.directory, manifest)
        vectors: NDArray[Any] = snapshots.map_vectors(self.directory, manifest)
        self._compare_with_sql(session, ids, vectors)
        ann = None
        if manifest.ann is not None:
            ann = read_ann(snapshots.read_index(self.directory, manifest), manifest.ann)
        elif is_small(len(ids), self._dim):
            vectors = to_float32(vectors)
        return View(manifest.version, ids, np.ones(len(ids), np.bool_), (vectors,), self._dim, ann)

    def _compare_with_sql(self, session: Session, ids: Ids, vectors: NDArray[Any]) -> None:
        """A snapshot of another history (an older database put back by hand) has other vectors."""
        if not len(ids):
            return
        rows = np.unique(np.linspace(0, len(ids) - 1, SAMPLE_ROWS).astype(int))
        wanted = {int(ids[row]): vectors[row].tobytes() for row in rows}
        found = session.execute(select(ChunkRow.id, ChunkRow.vector).where(ChunkRow.id.in_(wanted)))
        if any(wanted[id] != vector for id, vector in found):
            raise DamagedSnapshot(f"the vector snapshot in {self.directory} is of another store")

    def _caught_up(self, session: Session, view: View, version: int, tombstones_since: int) -> View:
        newest = int(view.ids[-1]) if len(view.ids) else 0
        ids, vectors = self._fetch(session, newest)
        alive = np.concatenate([view.alive, np.ones(len(ids), np.bool_)])
        all_ids = np.concatenate([view.ids, ids])
        if len(view.ids):
            alive[: len(view.ids)] &= self._still_there(session, view, tombstones_since)
        blocks = merged([*view.blocks, vectors] if len(ids) else list(view.blocks))
        return replace(view, version=version, ids=all_ids, alive=alive, blocks=blocks)

    def _fetch(self, session: Session, after: int) -> tuple[Ids, NDArray[Any]]:
        """Ids and vectors of the chunks with a larger id than `after`; float32 unless there are very many."""
        new = (ChunkRow.collection_id == self._collection_id, ChunkRow.id > after)
        total = session.scalar(select(func.count()).where(*new)) or 0  # of the version that is read below, too
        ids, vectors = np.empty(total, np.int64), np.empty((total, self._dim), np.float16)
        statement = (
            select(ChunkRow.id, ChunkRow.vector)
            .where(*new)
            .order_by(ChunkRow.id)
            .execution_options(yield_per=_FETCH_ROWS)
        )
        done = 0
        for page in session.execute(statement).partitions():
            data = b"".join(row.vector for row in page)
            if len(data) != 2 * self._dim * len(page):
                raise StoreError(f"a stored vector does not have {self._dim} values; run `rwkv-embed verify`")
            here = slice(done, done + len(page))
            ids[here] = [row.id for row in page]
            vectors[here] = np.frombuffer(data, "<f2").reshape(len(page), self._dim)
            done += len(page)
            if done > 10 * _FETCH_ROWS and done % (10 * _FETCH_ROWS) < len(page):
                log.warning("rebuilding the vector index from SQL: %s chunks read", f"{done:,}")
        return ids, to_float32(vectors) if is_small(total, self._dim) else vectors

    def _still_there(self, session: Session, view: View, tombstones_since: int) -> NDArray[np.bool_]:
        """Which rows of a view are still in SQL: by tombstones, or by all ids when those are forgotten."""
        if view.version >= tombstones_since:
            dead = session.scalars(
                select(TombstoneRow.chunk_id).where(
                    TombstoneRow.collection_id == self._collection_id, TombstoneRow.version > view.version
                )
            ).all()
            return ~np.isin(view.ids, np.array(dead, np.int64)) if dead else np.ones(len(view.ids), np.bool_)
        live = session.scalars(select(ChunkRow.id).where(ChunkRow.collection_id == self._collection_id)).all()
        return np.isin(view.ids, np.array(live, np.int64))

    # saving and indexing

    def maintain(self) -> None:
        """After a write: if enough has changed, save a snapshot, with its index, in the background."""
        if not self._is_due():  # asked without the lock: those who wait for it may have all connections
            return
        with self._lock:
            if self._builder is not None and self._builder.is_alive():
                return
            self._builder = threading.Thread(target=self._maintain, name="vector-index")
            self._builder.start()

    def saved(self) -> snapshots.Manifest | None:
        """The manifest of the newest snapshot."""
        return next(iter(snapshots.manifests(self.directory, self._collection_id)), None)

    def _is_due(self) -> bool:
        saved = self.saved()
        since_id, since_version = (saved.max_id, saved.version) if saved else (0, 0)
        mine = ChunkRow.collection_id == self._collection_id
        with self._store.read() as session:
            new = session.scalar(select(func.count()).where(mine, ChunkRow.id > since_id)) or 0
            dead = session.scalar(
                select(func.count()).where(
                    TombstoneRow.collection_id == self._collection_id, TombstoneRow.version > since_version
                )
            )
        if saved is None:
            return new > SNAPSHOT_ROWS
        if saved.ann is None and self._choice(saved.count + new).kind != "exact":
            return True
        return new + (dead or 0) > max(SNAPSHOT_ROWS, SNAPSHOT_SHARE * saved.count)

    def _maintain(self) -> None:
        try:
            self.save(wait_s=0)
        except StoreLocked:
            log.info("another process is saving the vector index")
        except BuildStopped:
            log.info("the vector index was not finished; the next write builds it")
        except (OSError, RuntimeError, SQLAlchemyError, IndexerError) as error:
            log.warning("the vector index was not saved: %s", error)

    def save(self, progress: Progress | None = None, wait_s: float = SAVE_WAIT_S) -> View:
        """Write a snapshot without dead rows, with the approximate index that `choose_index` wants, now.

        StoreLocked: another process or thread is still doing it after `wait_s` seconds. StoreError: the disk is
        full or failed; what was there before is still good.
        """
        try:
            with self._writing("saving the vector index", wait_s):
                return self._save(progress)
        except OSError as error:
            raise StoreError(
                f"the vector snapshot could not be written ({error}); nothing is lost, vectors are read from SQL"
            ) from error

    @contextmanager
    def _writing(self, doing: str, wait_s: float) -> Iterator[None]:
        """Alone with the snapshot's files, among all threads and processes."""
        self.directory.mkdir(exist_ok=True)
        with WriterLock(self.directory / f"{self._collection_id}.lock").hold(doing, wait_s):
            yield

    def _save(self, progress: Progress | None) -> View:
        view = self.synchronised()
        ids = view.ids[view.alive]
        ann = self._built(view, len(ids), progress)
        manifest = snapshots.write_snapshot(
            self.directory,
            self._collection_id,
            view.version,
            self._recipe,
            ids,
            (part.astype("<f2") for part in live_parts(view)),
            self._dim,
            *(ann.packed() if ann is not None else (None, None)),
        )
        with self._lock:
            blocks: Sequence[NDArray[Any]] = [snapshots.map_vectors(self.directory, manifest)]
            if is_small(len(ids), self._dim):
                blocks = list(live_parts(view))
            alive = np.ones(len(ids), np.bool_)
            self._view = View(view.version, ids, alive, merged(blocks), self._dim, ann)
        return self._view

    def _built(self, view: View, count: int, progress: Progress | None) -> ApproximateIndex | None:
        choice = self._choice(count)
        if choice.kind == "exact":
            return None
        log.info("building the vector index: %s", choice.reason)
        return build(lambda: live_parts(view), count, self._dim, choice, progress, self._stop)

    def _choice(self, rows: int) -> IndexChoice:
        return choose_index(rows, self._dim, free_memory(), self._store.index_kind)

    def compact(self) -> None:
        """Drop dead rows from memory and disk and rebuild the index; a small collection needs no snapshot."""
        if len(self.synchronised()) > SNAPSHOT_ROWS:
            self.save()
            return
        with self._writing("compacting the vector index", SAVE_WAIT_S):  # not under the hands of a save
            snapshots.remove_snapshots(self.directory, self._collection_id)
        with self._lock:
            self._view = None

    def close(self, wait: bool = True) -> None:
        if not wait:
            self._stop.set()
        builder = self._builder
        if builder is not None and builder.is_alive() and builder is not threading.current_thread():
            builder.join()

    def remove(self) -> None:
        snapshots.remove_snapshots(self.directory, self._collection_id)

    def size(self) -> int:
        return total_size(self.directory.glob(f"{self._collection_id}-*"))

    def check(self) -> tuple[int, list[str]]:
        sound, problems = 0, []
        for manifest in snapshots.manifests(self.directory, self._collection_id):
            try:
                snapshots.check(self.directory, manifest)
                sound += 1
            except DamagedSnapshot as damage:
                problems.append(f"{damage}; nothing is lost, `rwkv-embed compact` rebuilds it")
        return sound, problems

    def describe(self) -> dict[str, Any]:
        """The kind of the vector index, why it was chosen, and how much of the collection it covers."""
        view = self.synchronised()
        dead = len(view.ids) - len(view)
        if view.ann is not None:
            return {
                "kind": view.ann.kind,
                "reason": view.ann.reason,
                "effort": view.ann.effort,
                "indexed": view.ann.count,
                "newer": len(view.ids) - view.ann.count,
                "dead": dead,
            }
        due = self._choice(len(view))
        reason = (
            due.reason if due.kind == "exact" else f"{due.kind} is due; the next write or `compact` builds it"
        )
        return {"kind": "exact", "reason": reason, "indexed": 0, "newer": len(view), "dead": dead}

    def recall(self, sample: int = 100, k: int = 10) -> float:
        view = self.synchronised()
        if view.ann is None or not len(view):
            return 1.0
        live = np.flatnonzero(view.alive)
        rows = np.random.default_rng(0).choice(live, min(sample, len(live)), replace=False)
        found = 0
        for query in view.gather(np.sort(rows)):
            exact, _ = view.search(query, k, exact=True)
            near, _ = view.search(query, k)
            found += len(np.intersect1d(exact, near))
        return found / (len(rows) * min(k, len(view)))
