"""Approximate search with FAISS, for collections too large to compare with every vector.

    ivf    clusters of product codes, 2 bits a number; the choice above `EXACT_VALUES`
    hnsw   a graph over 8-bit codes; only when asked for

The codes of a cluster are compared 32 at a time by table look-ups in registers (FAISS's fast scan): of 100,000
vectors that are hard to cluster all are seen in 2.1 ms on one core, where 8-bit codes take 9.8 ms. They are
coarse, but the true neighbours are among the candidates, which are scored again: of 40 neighbours 0.99 among
200 candidates from 100,000 vectors, 0.97 from a million, which is why there are 400. (With 768 numbers all are.
With codes of three or four numbers less is found, and more lists have to be searched.) Clusters suit filters and
deletions, too: every vector can still be reached. HNSW took 90 s to build over 100,000 vectors where IVF took
2.5 s.

Both work on row numbers of a `View`; dead and filtered rows are left out by a bitmap. How hard to search
(`effort`: efSearch or nprobe) is measured when the index is built: about the least that finds TARGET_RECALL of
the true neighbours.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from indexer.snapshots import DamagedSnapshot

log = logging.getLogger(__name__)

Kind = Literal["exact", "hnsw", "ivf"]
IndexKind = Literal["auto", "exact", "hnsw", "ivf"]
Progress = Callable[[int, int | None], None]  # (done, total)
Parts = Callable[[], Iterator[NDArray[np.float32]]]  # all vectors in row order, in parts

EXACT_VALUES = 24_000_000  # 62,500 vectors of 384: NumPy multiplies them in about 10 ms on one core
HNSW_LINKS = 32
HNSW_BUILD_EFFORT = 80
IVF_TRAINING_ROWS_PER_LIST = 40
CODE_BITS = 4  # of the code of two numbers: what fast scan looks up
CALIBRATION_K = 40  # deep enough for a filter that leaves a quarter
TARGET_RECALL = 0.975  # of them; then it is about 0.967 of the first 10 of real queries, and 0.95 is promised
CALIBRATION_QUERIES = 200
CANDIDATES = 400  # asked for at least and scored again, because codes are coarse
_ADD_ROWS = 20_000
_SEED = 1


class BuildStopped(Exception):
    """The store was closed while an index was being built."""


@dataclass(frozen=True, slots=True)
class IndexChoice:
    """Which index, and why, in words for `stats`."""

    kind: Kind
    reason: str


def is_small(rows: int, dim: int) -> bool:
    """Whether exact search is fast."""
    return rows * dim <= EXACT_VALUES


def choose_index(rows: int, dim: int, memory_bytes: int, wanted: IndexKind = "auto") -> IndexChoice:
    """Exact while it is fast, or while there is no memory for more than that; then IVF."""
    what = f"{rows:,} vectors of {dim}"
    if wanted != "auto":
        return IndexChoice(wanted, f"{wanted}, as asked for, over {what}")
    if is_small(rows, dim):
        return IndexChoice("exact", f"exact search over {what} takes about {rows * dim / 2.4e6:.1f} ms")
    needed = rows * (dim // 4 + 8)  # 2 bits a number, and the row number
    if 2 * needed > memory_bytes:  # while it is saved, there are two of it
        return IndexChoice("exact", f"no memory for an index over {what} ({2 * needed / 1e6:,.0f} MB)")
    return IndexChoice("ivf", f"IVF with {lists_for(rows):,} lists over {what}, {needed / 1e6:,.0f} MB")


def _faiss() -> Any:
    """FAISS, imported when first needed: that takes longer than an exact search."""
    import faiss

    return faiss


def free_memory() -> int:
    """Bytes that can be allocated without swapping."""
    import psutil

    return psutil.virtual_memory().available


def lists_for(rows: int) -> int:
    """The number of IVF lists: 2 sqrt(n), as a power of two."""
    return 1 << max(4, round(np.log2(2 * np.sqrt(max(rows, 1)))))


@dataclass(frozen=True, slots=True)
class ApproximateIndex:
    """A FAISS index over rows 0 to `count` - 1."""

    kind: Kind
    count: int
    effort: int
    reason: str
    index: Any

    def search(
        self, query: NDArray[np.float32], k: int, permitted: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Up to k row numbers, near the query; `permitted` (count,) leaves rows out."""
        if k == 0:
            return np.empty(0, np.int64)
        selector, effort = None, max(self.effort, k if self.kind == "hnsw" else 1)
        if permitted is not None:
            bitmap = np.packbits(permitted, bitorder="little")
            selector = _faiss().IDSelectorBitmap(bitmap)
            # the rarer the permitted rows, the wider the search: as many of them are seen as without a filter
            effort = int(effort * self.count / max(int(np.count_nonzero(permitted)), 1))
        _, rows = self.index.search(query[np.newaxis], k, params=self._parameters(effort, selector))
        return rows[0][rows[0] >= 0]

    def _parameters(self, effort: int, selector: Any) -> Any:
        if self.kind == "ivf":
            return _faiss().SearchParametersIVF(nprobe=min(effort, self.index.nlist), sel=selector)
        return _faiss().SearchParametersHNSW(efSearch=min(effort, 4_096), sel=selector)

    def packed(self) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The index as bytes, and what else `read_ann` needs."""
        facts = {"kind": self.kind, "count": self.count, "effort": self.effort, "reason": self.reason}
        return _faiss().serialize_index(self.index), facts


def read_ann(data: NDArray[np.uint8], facts: dict[str, Any]) -> ApproximateIndex:
    """An index from a snapshot whose checksum was right. DamagedSnapshot when FAISS cannot read it."""
    try:
        kind, count, effort, reason = facts["kind"], facts["count"], facts["effort"], facts["reason"]
        index = _faiss().deserialize_index(data)
    except (RuntimeError, KeyError) as error:
        raise DamagedSnapshot(f"the FAISS index cannot be read: {error}") from error
    if kind not in get_args(Kind) or index.ntotal != count:
        raise DamagedSnapshot(
            f"the FAISS index holds {index.ntotal} rows ({kind}), its manifest says {count}"
        )
    return ApproximateIndex(kind, count, effort, reason, index)


def build(
    parts: Parts, count: int, dim: int, choice: IndexChoice, progress: Progress | None, stop: threading.Event
) -> ApproximateIndex:
    """Build the chosen index and find out how hard it has to be searched. BuildStopped when `stop` is set."""
    index = _empty_hnsw(dim) if choice.kind == "hnsw" else _empty_ivf(dim, count)
    wanted = 20_000 if choice.kind == "hnsw" else index.nlist * IVF_TRAINING_ROWS_PER_LIST
    index.train(_sample(parts, count, dim, wanted))
    done = 0
    for part in _resized(parts(), _ADD_ROWS):
        if stop.is_set():
            raise BuildStopped
        index.add(part)
        done += len(part)
        if progress:
            progress(done, count)
    effort = _calibrated(ApproximateIndex(choice.kind, count, 1, choice.reason, index), parts, dim)
    return ApproximateIndex(choice.kind, count, effort, choice.reason, index)


def _empty_hnsw(dim: int) -> Any:
    index = _faiss().IndexHNSWSQ(
        dim, _faiss().ScalarQuantizer.QT_8bit, HNSW_LINKS, _faiss().METRIC_INNER_PRODUCT
    )
    index.hnsw.efConstruction = HNSW_BUILD_EFFORT
    return index


def _empty_ivf(dim: int, count: int) -> Any:
    quantizer = _faiss().IndexFlatIP(dim)
    parts = dim // 2 if dim % 2 == 0 else dim  # numbers are coded in pairs
    index = _faiss().IndexIVFPQFastScan(
        quantizer, dim, lists_for(count), parts, CODE_BITS, _faiss().METRIC_INNER_PRODUCT
    )
    index.by_residual = False  # codes then do not depend on the list, and all lists share one table
    index.cp.niter = 8
    index.cp.seed = _SEED
    index.cp.min_points_per_centroid = 1  # a warning on stderr otherwise
    index.pq.cp.min_points_per_centroid = 1
    return index


def _sample(parts: Parts, count: int, dim: int, wanted: int) -> NDArray[np.float32]:
    """An even sample of the rows, in row order."""
    step = max(1, count // wanted)
    sample = np.empty((-(-count // step), dim), np.float32)
    seen = filled = 0
    for part in parts():
        chosen = part[(-seen) % step :: step]
        sample[filled : filled + len(chosen)] = chosen
        seen, filled = seen + len(part), filled + len(chosen)
    return sample[:filled]


def _resized(parts: Iterator[NDArray[np.float32]], rows: int) -> Iterator[NDArray[np.float32]]:
    """The same rows in parts of at most `rows`."""
    for part in parts:
        for i in range(0, len(part), rows):
            yield part[i : i + rows]


def _calibrated(index: ApproximateIndex, parts: Parts, dim: int) -> int:
    """About the smallest effort that reaches TARGET_RECALL: doubled until it does, then halved towards it.

    Stored vectors would be too easy as queries: a real query lies between the passages that answer it, and
    between clusters. So sums of two stored vectors are searched for. Queries far from all that is stored, in
    another language perhaps, are harder still: an eighth of the lists is looked at in any case.
    """
    sample = _sample(parts, index.count, dim, 2 * CALIBRATION_QUERIES)
    queries = sample + np.random.default_rng(_SEED).permutation(sample)
    queries = queries[:CALIBRATION_QUERIES] / np.linalg.norm(
        queries[:CALIBRATION_QUERIES], axis=1, keepdims=True
    )
    k, candidates = min(CALIBRATION_K, index.count), min(CANDIDATES, index.count)
    truth = _exact_neighbours(queries, parts, k)

    def recall(effort: int) -> float:
        _, found = index.index.search(queries, candidates, params=index._parameters(effort, None))
        return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, truth, strict=True)]))

    enough = least = 16 if index.kind == "hnsw" else index.index.nlist // 8
    limit = 2_048 if index.kind == "hnsw" else index.index.nlist
    while enough < limit and recall(enough) < TARGET_RECALL:
        enough *= 2
    step = enough // 4 if enough > least else 0
    while step >= max(1, enough // 16):
        if recall(enough - step) >= TARGET_RECALL:
            enough -= step
        step //= 2
    log.info("the vector index finds %.3f of the true neighbours with effort %d", recall(enough), enough)
    return enough


def _exact_neighbours(queries: NDArray[np.float32], parts: Parts, k: int) -> NDArray[np.int64]:
    """(n, k) row numbers of the true neighbours."""
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    best_rows = np.full((len(queries), k), -1, np.int64)
    start = 0
    for part in parts():
        scores = np.concatenate([best_scores, queries @ part.T], axis=1)
        numbers = np.broadcast_to(np.arange(start, start + len(part)), (len(queries), len(part)))
        rows = np.concatenate([best_rows, numbers], axis=1)
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best_scores = np.take_along_axis(scores, top, axis=1)
        best_rows = np.take_along_axis(rows, top, axis=1)
        start += len(part)
    return best_rows
