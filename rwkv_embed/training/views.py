"""What teachers make of whole texts, learned for every token, and the views joined into one table.

Most tokens are words that were read alone and drawn to their translations (words.py, align.py). Here the sum of a
text's tokens is to lie where a teacher puts the text, or its English side, so that a token learns what it adds to
the others. Each teacher gives a view of all tokens; what the views and the rows before say is laid side by side,
and the axes are kept that tell texts apart and their translations not.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rwkv_embed.training.align import OF_WORDS
from rwkv_embed.training.axes import Pairings, telling_apart
from rwkv_embed.training.contrast import Tokens
from rwkv_embed.training.loss import NEIGHBOUR_WEIGHT, TEMPERATURE

TEXTS = 2_048  # of a step
RATE, LEAST_RATE = 3e-3, 0.05
FITTED_TEXTS, RIDGE = 30_000, 1e-3
ROWS_AT_ONCE = 50_000
# A token that an English teacher has read counts 1 in its first view, one that it has not, UNREAD, and its
# translations as follows.
UNREAD, TRANSLATED, ENGLISH_TRANSLATED = 0.3, 2.0, 0.5

Draw = Callable[[int], tuple[Sequence[Tokens], NDArray[np.int64]]]  # texts, and the numbers of their targets

log = logging.getLogger("rwkv_embed.training")


@dataclass(frozen=True)
class Counted:
    """Vectors of tokens (V, C), and what each counts in a text (V,)."""

    vectors: Tensor
    importance: Tensor

    def sums(self, texts: Sequence[Tokens]) -> Tensor:
        """(n, C) what the tokens of each text add up to."""
        flat, first = _flat(texts)
        distinct, index = torch.unique(flat, return_inverse=True)
        rows = self.vectors[distinct].float() * self.importance[distinct, None]
        return F.embedding_bag(index, rows, first, mode="sum")


def fitted(tokens: Counted, draw: Draw, targets: Tensor) -> Tensor:
    """(V, D) the tokens, mapped so that the texts' vectors come near their targets; of length 1 on average."""
    drawn = [draw(TEXTS) for _ in range(-(-FITTED_TEXTS // TEXTS))]
    x = F.normalize(torch.cat([tokens.sums(texts) for texts, _ in drawn]), dim=1)
    y = targets[torch.from_numpy(np.concatenate([numbers for _, numbers in drawn]))].float()
    ridge = RIDGE * len(x) / x.shape[1] * torch.eye(x.shape[1])
    mapping = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    table = torch.cat([part.float() @ mapping for part in tokens.vectors.split(ROWS_AT_ONCE)])
    return table.div_(table.norm(dim=1).mean())


def in_english(start: Tensor, used: Tensor, read: Tensor, translations: Tensor) -> Tensor:
    """(V, D) a first view of an English teacher: what it reads tokens with, drawn to their translations.

    `used` (V,): whether English text has the token, and `read` (used, D) what the teacher makes of it alone; the
    others begin at `start` (V, D). `translations` as `translation_table` finds them.
    """
    rows = F.normalize(start, dim=1) * UNREAD
    rows[used] = F.normalize(read, dim=1)
    counted = torch.sparse.sum(translations, 1).to_dense()[:, None]
    goal = F.normalize(torch.sparse.mm(translations, rows), dim=1)
    share = torch.where(used, ENGLISH_TRANSLATED, TRANSLATED)[:, None]
    return F.normalize(rows + share * counted / (counted + OF_WORDS.certain) * goal, dim=1)


@torch.enable_grad()
def learn(start: Tensor, importance: Tensor, draw: Draw, targets: Tensor, minutes: float) -> Tensor:
    """(V, D) a view of the tokens in the space of `targets` (n, D), of unit length, from a first one on.

    Of the loss: two parts the distance to the target, half a part which targets of the batch are near.
    """
    table = start.requires_grad_()
    counts = importance.clamp(min=0)
    optimizer = torch.optim.SparseAdam([table], lr=RATE)
    started, step = time.monotonic(), 0
    while (spent := (time.monotonic() - started) / 60) < minutes:
        for group in optimizer.param_groups:
            group["lr"] = RATE * max(LEAST_RATE, 1 - spent / minutes)
        texts, numbers = draw(TEXTS)
        goal = targets[torch.from_numpy(numbers)].float()
        flat, first = _flat(texts)
        weights = counts[flat]
        summed = F.embedding_bag(flat, table, first, mode="sum", per_sample_weights=weights, sparse=True)
        vectors = F.normalize(summed, dim=1)
        near = torch.softmax(goal @ goal.T / TEMPERATURE, 1)
        cosine = (vectors * goal).sum(1).mean()
        loss = 2 * (1 - cosine) + NEIGHBOUR_WEIGHT * F.cross_entropy(vectors @ goal.T / TEMPERATURE, near)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 200 == 0:
            log.info("view: step %d, %.1f minutes, cosine %.3f", step, spent, float(cosine.detach()))
    return table.detach()


def join(
    tokens: Counted, views: Sequence[tuple[Tensor, float]], sample: Sequence[Tokens],
    pairs: tuple[Sequence[Tokens], Sequence[Tokens]], width: int,
) -> Counted:  # fmt: skip
    """The tokens' vectors and views (V, any) of them, each with its weight beside the vectors, in `width` numbers.

    `sample` are texts, `pairs` translations of each other: the axes kept are those that tell texts apart
    (`telling_apart`). What a token counts grows with the length that the views give it.
    """
    parts = [(tokens.vectors, 1.0), *views]
    spoken = [Counted(part, tokens.importance) for part, _ in parts]
    lengths = [float(part.sums(sample).norm(dim=1).mean()) for part in spoken]
    scales = [share / length for (_, share), length in zip(parts, lengths, strict=True)]

    def side_by_side(texts: Sequence[Tokens]) -> Tensor:
        summed = [part.sums(texts) * scale for part, scale in zip(spoken, scales, strict=True)]
        return F.normalize(torch.cat(summed, 1), dim=1)

    measured = Pairings(side_by_side(sample), side_by_side(pairs[0]), side_by_side(pairs[1]))
    axes = telling_apart(measured)[:, :width].split([part.shape[1] for part, _ in parts])
    joined = torch.zeros(len(tokens.vectors), width)
    for (part, _), scale, turned in zip(parts, scales, axes, strict=True):
        for rows, into in zip(part.split(ROWS_AT_ONCE), joined.split(ROWS_AT_ONCE), strict=True):
            into += rows.float() @ (turned * scale)
    size = joined.norm(dim=1)
    return Counted(F.normalize(joined, dim=1), tokens.importance * size / size.mean())


def _flat(texts: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """All tokens, one text after the other, and where each begins."""
    lengths = torch.tensor([len(text) for text in texts])
    return torch.from_numpy(np.concatenate(texts)).long(), torch.cumsum(lengths, 0) - lengths
