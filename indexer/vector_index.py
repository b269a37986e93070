"""The vector index of a collection, and what searches remember beside it.

SQLite: FAISS or NumPy over vectors kept in memory (`indexer.vectors`). PostgreSQL: pgvector, in the database
itself (`indexer.pgvector`).
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.orm import Session

from indexer.best_sentence import SentenceReader
from indexer.languages import Leanings, leanings
from indexer.view import Ids, VectorIndex

if TYPE_CHECKING:
    from indexer.store import Store

LISTED_BYTES = 32_000_000


class VersionedIndex(VectorIndex, Protocol):
    """The vectors of one version of a collection."""

    @property
    def version(self) -> int: ...

    def sample(self, size: int) -> "tuple[Ids, Any]":
        """Ids and float32 vectors (n, dim) of up to `size` chunks, the same ones in every process."""


class CollectionIndex(Protocol):
    """The vector index of one collection in this process."""

    memory: "SearchMemory"

    def synchronised(self, session: Session | None = None) -> VersionedIndex:
        """The newest committed version, or the one that `session` sees."""

    def maintain(self) -> None:
        """After a write: bring in the background what makes searches fast up to date, if enough has changed."""

    def compact(self) -> None:
        """Make it anew without what was deleted."""

    def describe(self) -> dict[str, Any]:
        """Its "kind", the "reason" for it and how many chunks it covers."""

    def recall(self, sample: int = 100, k: int = 10) -> float:
        """Recall@k against exact search, with stored vectors as queries; 1.0 when the search is exact."""

    def check(self) -> tuple[int, list[str]]:
        """How many of its files are sound, and what is wrong with others, in sentences."""

    def size(self) -> int:
        """Bytes on disk."""

    def remove(self) -> None:
        """Remove it with its collection."""

    def close(self, wait: bool = True) -> None:
        """End background work: finish it, or give it up at the next step."""


class SearchMemory:
    """What searches of one collection have found out and need again. Safe to share between threads."""

    def __init__(self) -> None:
        self.sentences = SentenceReader()
        self._listed: OrderedDict[Hashable, Ids] = OrderedDict()  # least recently used first
        self._leanings: Leanings | None = None  # of the version that was last asked for
        self._lock = threading.Lock()

    def listed(self, key: Hashable, make: Callable[[], Ids]) -> Ids:
        """The chunk ids that pass a filter, remembered; `key` says which filter, and in which version."""
        with self._lock:
            if key in self._listed:
                self._listed.move_to_end(key)
                return self._listed[key]
        ids = make()
        with self._lock:
            self._listed[key] = ids
            while len(self._listed) > 1 and sum(one.nbytes for one in self._listed.values()) > LISTED_BYTES:
                self._listed.popitem(last=False)
        return ids

    def leanings(self, session: Session, view: VersionedIndex) -> Leanings:
        """What the languages of a view's passages do to cosines, remembered."""
        known = self._leanings
        if known is None or known.version != view.version:
            known = self._leanings = leanings(session, view)
        return known


def index_for(store: "Store", collection_id: int, dim: int, recipe: str) -> CollectionIndex:
    """The implementation for the store's database."""
    if store.engine.dialect.name == "postgresql":
        from indexer.pgvector import PgVectorIndex

        return PgVectorIndex(store, collection_id, dim)
    from indexer.vectors import CollectionVectors

    return CollectionVectors(store, collection_id, dim, recipe)
