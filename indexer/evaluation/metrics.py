"""Retrieval metrics as trec_eval and BEIR define them, for one query each. Larger is better, 1.0 is perfect.

`ranking` is document ids, best first; `relevance` maps the judged ids to grades, of which those above 0 are
relevant. A query without relevant documents scores 0 and should not be averaged.
"""

from collections.abc import Mapping, Sequence
from math import log2

import numpy as np
from numpy.typing import ArrayLike


def ndcg_at_k(ranking: Sequence[str], relevance: Mapping[str, float], k: int) -> float:
    """Discounted cumulative gain, `sum(grade / log2(rank + 1))`, over that of the best possible ranking."""
    best = _discounted(sorted((grade for grade in relevance.values() if grade > 0), reverse=True)[:k])
    return _discounted([max(0.0, relevance.get(item, 0)) for item in ranking[:k]]) / best if best else 0.0


def recall_at_k(ranking: Sequence[str], relevance: Mapping[str, float], k: int) -> float:
    """The share of the relevant documents that is among the first k."""
    relevant = {item for item, grade in relevance.items() if grade > 0}
    return len(relevant.intersection(ranking[:k])) / len(relevant) if relevant else 0.0


def mrr_at_k(ranking: Sequence[str], relevance: Mapping[str, float], k: int) -> float:
    """1 / the rank of the first relevant document; 0 when none is among the first k."""
    return next(
        (1 / rank for rank, item in enumerate(ranking[:k], start=1) if relevance.get(item, 0) > 0), 0.0
    )


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Rank correlation of two series, ties at their mean rank; 0 when one of them is constant."""
    a, b = _ranks(np.asarray(first, float)), _ranks(np.asarray(second, float))
    if len(a) != len(b):
        raise ValueError(f"the series have {len(a)} and {len(b)} values; expected equally many")
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def _discounted(grades: Sequence[float]) -> float:
    return sum(grade / log2(rank + 1) for rank, grade in enumerate(grades, start=1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
