"""Merge two rankings by their scores and spread results (maximal marginal relevance). Plain numbers.

Why scores and not ranks: the two arms are rarely equally sure. The word arm is nearly always right when the
query's rare words stand in a passage, and says nothing when query and passages share no language; its score
knows the difference (a sum of the weights of the words found), its ranks do not. On XQuAD reciprocal rank
fusion loses 0.05 to 0.10 MRR@10 to the words alone within a language, the sum of scores below nothing.
`python -m benchmarks.tune_fusion` measures both; docs/retrieval.md has the table.

Why only the best words count (`SHARPNESS`): in a collection of many languages every passage in the query's
own language shares "of the" with it. Added as it is, that buries the right passages in other languages: 34 of
the 233 articles that benchmarks.sample_table looks for were found, with the third power 67 (an early model; see
docs/retrieval.md for today).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ranking = Sequence[tuple[int, float]]  # (id, score), best first

# Chosen with benchmarks/tune_fusion.py and benchmarks/sample_table.py.
LEXICAL_WEIGHT = 0.7
SHARPNESS = 3
SPREAD_DEPTH = 200  # cosines that set the scale


def fuse(
    dense: Ranking,
    lexical: Ranking,
    terms: int,
    weight: float = LEXICAL_WEIGHT,
    sharpness: float = SHARPNESS,
) -> list[tuple[int, float]]:
    """Ids of both rankings with fused scores, best first, ties by id.

    score = (cosine - mean) / deviation + weight * best / sqrt(terms) * (BM25 / best) ** sharpness

    Mean and deviation are those of the first `SPREAD_DEPTH` cosines, so that a model's scale of cosines does
    not matter; an id that the dense arm does not know counts as its last one. `best` is the highest BM25, a
    sum over the query's `terms` that varies with the root of their number; an id without any of them gets 0.
    """
    cosines = np.array([score for _, score in dense], np.float64)
    first = cosines[:SPREAD_DEPTH]
    spread = float(first.std()) if len(first) else 0.0
    near = (cosines - first.mean()) / spread if spread > 0 else np.zeros(len(cosines))
    floor = float(near[-1]) if len(near) else 0.0
    bm25 = np.array([score for _, score in lexical], np.float64)
    best = float(bm25.max(initial=0.0))
    evidence = best / max(1, terms) ** 0.5 * (bm25 / best) ** sharpness if best > 0 else np.zeros(len(bm25))
    scores = dict(zip((item for item, _ in dense), near.tolist(), strict=True))
    for (item, _), more in zip(lexical, (weight * evidence).tolist(), strict=True):
        scores[item] = scores.get(item, floor) + more
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
