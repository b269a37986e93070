"""Where a token's translations are: tokens of parallel texts, aligned by their vectors.

Training moves a row a little each time that one of its texts is drawn, which leaves half of the vocabulary where
the teacher had put it. Parallel text says more, and says it at once: a token that stands again and again in texts
whose English has a word of a similar vector, and no better claimant for it, is a translation of that word. As in
IBM's first model (Brown et al., 1993) each token shares itself out among the tokens of the English text; here by
the vectors' similarity, and in both directions, so that a common word does not attract everything.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_embed.training.contrast import TRANSLATIONS, Rows

TEMPERATURE = 0.1
ROWS_AT_ONCE = 40_000


class Belief(NamedTuple):
    """How readily tokens are taken for translations, and how far these move them.

    `nothing`: the similarity at which a token has no translation as likely as this one. `least`: shares below it
    are dropped. `certain`: translations that move a token half as far as countless ones.
    """

    nothing: float
    least: float
    certain: float


OF_PIECES = Belief(nothing=0.3, least=0.05, certain=3.0)
OF_WORDS = Belief(nothing=0.1, least=0.0008, certain=0.02)  # most of them are translated a few times only


def translation_table(rows: Rows, vectors: Tensor, importance: Tensor, belief: Belief) -> Tensor:
    """(V, V) sparse: how often a token (row) was translated by a token of an English text (column).

    `vectors` (V, any) tell how similar tokens are; `importance` (V,) is what a translation by a token counts.
    """
    unit = F.normalize(vectors, dim=1)
    V = len(unit)
    total, parts = _sparse([], V), list[Tensor]()
    for tokens, english, lengths in _parallel(rows):
        parts.append(_shares(unit, importance, tokens, english, lengths, belief))
        if len(parts) == ROWS_AT_ONCE:
            total = (total + _sparse(parts, V)).coalesce()
            parts.clear()
    return (total + _sparse(parts, V)).coalesce()


def moved(rows: Tensor, table: Tensor, belief: Belief, share: Tensor | float = 1.0) -> Tensor:
    """Rows (V, C), of unit length, drawn to the mean of their translations'.

    Where these are many, their mean counts `share`, of each row (V, 1) or of all, to the row's own 1.
    """
    unit = F.normalize(rows, dim=1)
    counted = torch.sparse.sum(table, 1).to_dense()[:, None]
    goal = F.normalize(torch.sparse.mm(table, unit), dim=1)
    return F.normalize(unit + share * counted / (counted + belief.certain) * goal, dim=1)


def _parallel(rows: Rows) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Of each row that has English: the tokens of its other texts, of the English one, and the others' lengths."""
    english = rows.names["languages"].index("en")
    first = np.searchsorted(rows.row, np.arange(len(rows.source) + 1))
    for row in np.flatnonzero(rows.source < len(TRANSLATIONS)):
        texts = range(first[row], first[row + 1])
        told = [text for text in texts if rows.language[text] == english]
        others = [rows.text(text) for text in texts if rows.language[text] != english]
        if told and others:
            tokens = torch.from_numpy(np.concatenate(others)).long()
            yield tokens, torch.from_numpy(rows.text(told[0])).long(), [len(text) for text in others]


def _shares(
    unit: Tensor, importance: Tensor, tokens: Tensor, english: Tensor, lengths: list[int], belief: Belief
) -> Tensor:
    """(n, 3) token, English token and what the one is the other's translation, of one row."""
    likely = torch.exp(unit[tokens] @ unit[english].T / TEMPERATURE)
    nothing = float(np.exp(belief.nothing / TEMPERATURE))
    claimed = torch.cat([part / (part.sum(0) + nothing) for part in likely.split(lengths)])
    share = likely / (likely.sum(1, keepdim=True) + nothing) * claimed * importance[english]
    i, j = (share > belief.least).nonzero(as_tuple=True)
    return torch.stack([tokens[i].double(), english[j].double(), share[i, j].double()], 1)


def _sparse(parts: list[Tensor], V: int) -> Tensor:
    """(V, V) with the sums of the shares of `parts`."""
    token, english, share = torch.cat([torch.empty(0, 3, dtype=torch.float64), *parts]).unbind(1)
    at = torch.stack([token, english]).long()
    return torch.sparse_coo_tensor(at, share.float(), (V, V), check_invariants=True)
