"""Merge rankings (reciprocal rank fusion) and spread results (maximal marginal relevance). Plain numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def reciprocal_rank_fusion(
    rankings: Mapping[str, Sequence[int]], weights: Mapping[str, float], k: float
) -> list[tuple[int, float]]:
    """Ids with fused scores, best first, ties by id; 1.0 is "first everywhere".

    Each arm gives `weight * (k + 1) / (k + rank)`, ranks from 1 (Cormack, Clarke, Büttcher 2009, scaled). An
    arm that does not know an id gives nothing.
    """
    total = sum(weights[arm] for arm in rankings) or 1.0
    scores: dict[int, float] = {}
    for arm, ids in rankings.items():
        for rank, item in enumerate(ids, start=1):
            scores[item] = scores.get(item, 0.0) + weights[arm] * (k + 1) / (k + rank) / total
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def maximal_marginal_relevance(
    relevance: Sequence[float], vectors: NDArray[np.float32], trade_off: float, count: int
) -> list[int]:
    """Positions of `count` items, each chosen for being relevant and unlike those before it.

    `vectors` is (n, dim), L2-normalised. `trade_off` is lambda: 1 keeps the order of relevance, 0 asks only
    for variety (Carbonell & Goldstein 1998). Relevance is stretched to 0…1 so that it can be weighed against
    cosines.
    """
    values = np.asarray(relevance, np.float32)
    if not len(values):
        return []
    spread = float(np.ptp(values))
    values = (values - values.min()) / spread if spread > 0 else np.ones_like(values)
    nearest = np.zeros(len(values), np.float32)  # similarity to the most similar item chosen so far
    free = np.ones(len(values), bool)
    chosen: list[int] = []
    while len(chosen) < min(count, len(values)):
        gain = np.where(free, trade_off * values - (1 - trade_off) * nearest, -np.inf)
        best = int(np.argmax(gain))
        chosen.append(best)
        free[best] = False
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return chosen
