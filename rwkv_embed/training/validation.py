"""How well the queries of pairs find their positives among all of their texts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.embedder import Embedder
from rwkv_embed.errors import TrainingDataError
from rwkv_embed.quantize import truncate
from rwkv_embed.training.pairs import Pair

Floats = NDArray[np.float32]
BLOCK = 1024  # queries that are compared at once


# mrr@10: mean of 1 / rank of the first right text, 0 beyond the tenth; recall@1: share of queries whose best
# text is right
Scores = dict[str, float]


class Validation:
    """Distinct queries, distinct texts (positives and negatives), and which texts are right for a query.

    A query for which all texts are right is left out: it finds one whatever the model.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.documents = list(
            dict.fromkeys(text for pair in pairs for text in (pair.positive, *pair.negatives))
        )
        number = {text: i for i, text in enumerate(self.documents)}
        right: dict[str, set[int]] = {}
        for pair in pairs:
            right.setdefault(pair.query, set()).add(number[pair.positive])
        asked = {query: sorted(texts) for query, texts in right.items() if len(texts) < len(number)}
        if not asked:
            raise TrainingDataError(
                "in the validation pairs every text is right for every query, so that no model can fail; "
                "validate on pairs with different queries and positives, or with negatives"
            )
        self.queries, self._right = list(asked), list(asked.values())

    def score(self, queries: Floats, documents: Floats) -> tuple[Scores, float]:
        """Scores of unit vectors (n, d) and (m, d), and the mean lead: by how much the cosine of the best
        right text exceeds that of the best wrong one. The lead still tells models apart when ranks do not.
        """
        ranks, leads = [], []
        for start in range(0, len(queries), BLOCK):
            cosines = queries[start : start + BLOCK] @ documents.T
            for row, right in zip(cosines, self._right[start : start + BLOCK], strict=True):
                best = row[right].max()
                row[right] = -np.inf
                ranks.append(int(np.count_nonzero(~(row < best))) + 1)  # neither a tie nor NaN is a find
                leads.append(float(best - row.max()))
        found = np.array(ranks)
        mrr = float(np.where(found <= 10, 1 / found, 0).mean())
        return {"mrr@10": mrr, "recall@1": float((found == 1).mean())}, float(np.mean(leads))


def evaluate(embedder: Embedder, validation: Validation, dims: Sequence[int]) -> dict[int, Scores]:
    """Scores of an embedder, for vectors cut to each of `dims`."""
    queries = embedder.encode_query(validation.queries)
    documents = embedder.encode_document(validation.documents)
    return {dim: validation.score(truncate(queries, dim), truncate(documents, dim))[0] for dim in dims}
