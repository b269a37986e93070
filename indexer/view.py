"""One version of a collection's vectors, and searching it.

A `View` is an immutable picture: searches hold one and need no lock. Rows are in ascending order of chunk id.
It is searched exactly, with NumPy alone, or by a FAISS index whose candidates are scored again with the stored
float16 vectors, so that scores do not depend on the kind of index.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.ann import CANDIDATES, ApproximateIndex

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]

SUBSET_ROWS = 4_096  # a filter that leaves no more than this is searched exactly, in about 5 ms,
SUBSET_SHARE = 1 / 64  # or no more than this share of all: an index would look at every code
RESCORED = 2  # candidates taken from an approximate index per result
_BLOCK_ROWS = 4_096
_GATHERED_ROWS = 512  # of 768 numbers stay in the CPU's cache until they are multiplied


class VectorIndex(Protocol):
    """Search by inner product. Scores are cosines, because all vectors are L2-normalised."""

    def search(
        self, query: NDArray[np.float32], k: int, *, allowed: Ids | None = None, exact: bool = False
    ) -> tuple[Ids, Scores]:
        """Ids and scores of the k best (fewer only when there are fewer), best first, ties by id.

        `query` is (dim,). `allowed` are the only chunk ids that may be returned, in any order.
        """
        ...

    def get(self, ids: Ids) -> NDArray[np.float32]:
        """The (n, dim) vectors of chunks; zeros for a chunk that is not there (any more)."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class View:
    """The vectors of one version of a collection. Row i is `ids[i]`; `blocks` are its rows in order."""

    version: int
    ids: Ids  # (n,), ascending
    alive: NDArray[np.bool_]  # (n,)
    blocks: tuple[NDArray[Any], ...]  # (n_b, dim), float16 or float32
    dim: int
    ann: ApproximateIndex | None = None  # over the first `ann.count` rows

    def __len__(self) -> int:
        return int(np.count_nonzero(self.alive))

    def search(
        self, query: NDArray[np.float32], k: int, *, allowed: Ids | None = None, exact: bool = False
    ) -> tuple[Ids, Scores]:
        query = np.asarray(query, np.float32)
        if query.shape != (self.dim,):
            raise ValueError(f"the query vector has shape {query.shape}, the collection needs ({self.dim},)")
        rows = None if allowed is None else self.rows(np.asarray(allowed, np.int64))
        if k <= 0 or not len(self.ids) or (rows is not None and not len(rows)):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        if rows is not None and len(rows) <= max(SUBSET_ROWS, SUBSET_SHARE * len(self.ids)):
            return self._best(rows, self._scores(query, rows), k)
        if exact or self.ann is None:
            return self._search_exactly(query, k, rows)
        return self._search_approximately(self.ann, query, k, rows)

    def get(self, ids: Ids) -> NDArray[np.float32]:
        ids = np.asarray(ids, np.int64)
        vectors = np.zeros((len(ids), self.dim), np.float32)
        if len(self.ids):
            rows = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
            found = (self.ids[rows] == ids) & self.alive[rows]
            vectors[found] = self.gather(rows[found])
        return vectors

    def sample(self, size: int) -> tuple[Ids, NDArray[np.float32]]:
        """Ids and vectors of up to `size` chunks: drawn, because every n-th row may be in the same language."""
        rows = np.flatnonzero(self.alive)
        if len(rows) > size:
            rows = np.sort(np.random.default_rng(0).choice(rows, size, replace=False))
        return self.ids[rows], self.gather(rows)

    def rows(self, ids: Ids) -> Ids:
        """The live rows of those ids that are there, ascending."""
        if not len(self.ids):
            return np.empty(0, np.int64)
        if not (ids[1:] > ids[:-1]).all():  # they come sorted from SQL, and np.unique is slow
            ids = np.unique(ids)
        rows = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        return rows[(self.ids[rows] == ids) & self.alive[rows]]

    def gather(self, rows: Ids) -> NDArray[np.float32]:
        """The vectors of some rows, as float32."""
        vectors = np.empty((len(rows), self.dim), np.float32)
        start = 0
        for block in self.blocks:
            here = (rows >= start) & (rows < start + len(block))
            if here.all():  # as after each snapshot
                return to_float32(block[rows - start])
            if here.any():
                vectors[here] = to_float32(block[rows[here] - start])
            start += len(block)
        return vectors

    def _search_exactly(self, query: NDArray[np.float32], k: int, rows: Ids | None) -> tuple[Ids, Scores]:
        scores = self._scores_from(query, 0)
        if rows is None:
            rows = np.flatnonzero(self.alive)
        return self._best(rows, scores[rows], k)

    def _search_approximately(
        self, ann: ApproximateIndex, query: NDArray[np.float32], k: int, rows: Ids | None
    ) -> tuple[Ids, Scores]:
        """FAISS for the rows it covers, exact for newer ones; exact for all when FAISS finds too few."""
        permitted = self.alive
        if rows is not None:
            permitted = np.zeros(len(self.ids), np.bool_)
            permitted[rows] = True
        covered = permitted[: ann.count]
        wanted = min(max(k * RESCORED, CANDIDATES), int(np.count_nonzero(covered)))
        near = ann.search(query, wanted, None if covered.all() else covered)
        if len(near) < min(k, wanted):
            return self._search_exactly(query, k, rows)
        newer = np.flatnonzero(permitted[ann.count :]) + ann.count
        newer_scores = self._scores_from(query, ann.count)[newer - ann.count]
        scores = np.concatenate([self._scores(query, near), newer_scores])
        return self._best(np.concatenate([near, newer]), scores, k)

    def _scores(self, query: NDArray[np.float32], rows: Ids) -> Scores:
        parts = [
            self.gather(rows[i : i + _GATHERED_ROWS]) @ query for i in range(0, len(rows), _GATHERED_ROWS)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def _scores_from(self, query: NDArray[np.float32], first: int) -> Scores:
        """Scores of all rows from number `first` on."""
        scores = np.empty(len(self.ids) - first, np.float32)
        start = 0
        for block in self.blocks:
            skipped = min(max(first - start, 0), len(block))
            for part in float32_parts(block[skipped:]):
                at = start + skipped - first
                scores[at : at + len(part)] = part @ query
                skipped += len(part)
            start += len(block)
        return scores

    def _best(self, rows: Ids, scores: Scores, k: int) -> tuple[Ids, Scores]:
        if len(rows) > k:
            threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
            kept = np.flatnonzero(scores >= threshold)  # with all ties, so that ids can decide
            rows, scores = rows[kept], scores[kept]
        order = np.lexsort((rows, -scores))[:k]
        return self.ids[rows[order]], scores[order]


def to_float32(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Exact conversion of finite float16, three times as fast as `astype`: the bits are moved into place.

    A float16 is sign, 5 bits of exponent, 10 of fraction; shifted by 13 these are a float32's fields but for
    the exponent's bias, which one multiplication by 2^(127-15) corrects, for subnormal numbers as well.
    """
    if vectors.dtype == np.float32:
        return vectors
    result = np.empty(vectors.shape, np.float32)
    bits = np.ascontiguousarray(vectors).view(np.int16)
    for i in range(0, len(result), 256):  # blocks that stay in the CPU's cache
        block = result[i : i + 256]
        words = block.view(np.int32)
        words[:] = bits[i : i + 256]  # the sign is spread over the upper half
        words <<= 13
        words &= -0x70002000  # sign, exponent and fraction only
        block *= np.float32(2.0**112)
    return result


def float32_parts(block: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """A block as float32, in parts that are small when they have to be made."""
    if block.dtype == np.float32:
        yield block
        return
    for i in range(0, len(block), _BLOCK_ROWS):
        yield to_float32(block[i : i + _BLOCK_ROWS])


def live_parts(view: View) -> Iterator[NDArray[np.float32]]:
    start = 0
    for block in view.blocks:
        for part in float32_parts(block):
            alive = view.alive[start : start + len(part)]
            yield part if alive.all() else part[alive]
            start += len(part)


def merged(blocks: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """Join the last blocks while one is not twice as long as the next, so that there are only a few."""
    merged: list[NDArray[Any]] = []
    for block in blocks:
        merged.append(block)
        while len(merged) > 1 and merged[-2].dtype == np.float32 and len(merged[-2]) < 2 * len(merged[-1]):
            last = merged.pop()
            merged[-1] = np.concatenate([merged[-1], last])
    return tuple(merged)


def empty_view(dim: int) -> View:
    return View(0, np.empty(0, np.int64), np.empty(0, np.bool_), (), dim)
