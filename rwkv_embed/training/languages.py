"""Takes from the first token vectors what only says which language a text is in.

The teacher's vectors of a language's pieces share a direction. In a sum over a text it tells the languages apart,
which nobody asks for: questions to English paragraphs 0.273 with it and 0.410 without, before any training
(docs/log.md). Training removes it from the frequent pieces and leaves it in the rare ones, so it has to go first.
"""

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.training.contrast import Rows

LEAST_TOKENS = 20_000  # of a language whose mean is believed
RIDGE = 0.02  # languages that share most of their tokens are not told apart by large opposite vectors


def usage_by_language(rows: Rows, vocabulary: int) -> NDArray[np.float32]:
    """(V, L) how often each token is used in the texts of each language that has `LEAST_TOKENS`."""
    language = np.repeat(rows.language.astype(np.int64), np.diff(rows.offsets))
    sizes = np.bincount(language, minlength=len(rows.names["languages"]))
    kept = np.flatnonzero(sizes >= LEAST_TOKENS)
    number = np.full(len(sizes), -1)
    number[kept] = np.arange(len(kept))
    column = number[language]
    cell = (rows.tokens.astype(np.int64) * len(kept) + column)[column >= 0]
    counts = np.bincount(cell, minlength=vocabulary * len(kept))
    return counts.reshape(vocabulary, len(kept)).astype(np.float32)


def centre_by_language(
    vectors: NDArray[np.float32], usage: NDArray[np.float32], rarity: NDArray[np.float32]
) -> None:
    """Change `vectors` (V, C) so that in every language their mean, by use and `rarity` (V,), is near zero.

    A token gives up the offsets of the languages that use it, by their shares in it; a token that is in no text
    stays. The offsets are fitted to all languages at once, since tokens are shared.
    """
    share = usage / np.sqrt(usage.sum(0))  # large languages do not claim every token
    share /= np.maximum(share.sum(1, keepdims=True), 1e-12)
    weight = usage * rarity[:, None]
    weight /= weight.sum(0)
    means, overlap = weight.T @ vectors, weight.T @ share
    ridge = RIDGE * np.eye(len(overlap), dtype=np.float32)
    vectors -= share @ np.linalg.solve(overlap.T @ overlap + ridge, overlap.T @ means)
