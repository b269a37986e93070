"""Vectors as weighted sums of a few others: orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad, 1993).

Whatever row is most like what is still missing joins the sum; then the weights of all are found anew by least
squares. Of a sum only the direction counts, since the model's first norm takes away its length.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_embed.models.weights import MULTIPLIES_BFLOAT16
from rwkv_embed.sums import ONE, Sums

CANDIDATES = 32  # rows that are looked at for a sum: the nearest of its goal
MOST = 6  # parts of a sum
LEAST_GAIN = 0.01  # of the squared cosine; a part that gains less is left out
STEPS = 15  # shares are whole numbers up to this one
AT_ONCE = 2_048


def pursue(goals: Tensor, rows: Tensor, most: int = MOST) -> tuple[Tensor, Tensor, Tensor]:
    """Parts (n, most), their weights (n, most), zero where a part gains too little, and the cosine (n,) reached.

    `goals` (n, C) and `rows` (R, C) of unit length.
    """
    lookup = rows.bfloat16() if MULTIPLIES_BFLOAT16 else rows  # to find candidates only
    found = [_pursue(part, rows, lookup, most) for part in goals.split(AT_ONCE)]
    parts, weights, cosines = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    return parts, weights, cosines


def _pursue(goals: Tensor, rows: Tensor, lookup: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    goals = goals.float()
    candidates = (goals.to(lookup.dtype) @ lookup.T).topk(min(CANDIDATES, len(rows)), dim=1).indices
    near = rows[candidates]
    n = len(goals)
    chosen = torch.zeros(n, 0, dtype=torch.long)
    weights, cosine = torch.zeros(n, most), torch.zeros(n)
    missing, goes_on = goals, torch.ones(n, dtype=torch.bool)
    for size in range(1, most + 1):
        likeness = torch.einsum("nkc,nc->nk", near, missing).scatter(1, chosen, -1.0)
        chosen = torch.cat([chosen, likeness.argmax(1, keepdim=True)], 1)
        parts = near.gather(1, chosen[:, :, None].expand(-1, -1, near.shape[2]))
        products = parts @ parts.mT + 1e-4 * torch.eye(size)
        solved = torch.linalg.solve(products, (parts @ goals[:, :, None])).clamp(min=0)
        reached = (parts * solved).sum(1)
        better = (F.normalize(reached, dim=1) * goals).sum(1)
        goes_on &= better.square() - cosine.square() >= LEAST_GAIN
        weights[goes_on, :size] = solved[goes_on, :, 0]
        cosine = torch.where(goes_on, better, cosine)
        missing = goals - reached
    return candidates.gather(1, chosen), weights, cosine


def as_sums(parts: Tensor, weights: Tensor, table: Tensor) -> Sums:
    """What `pursue` found, rounded, for a stored `table` (R, C) whose rows have any length."""
    shares = weights / table.norm(dim=1)[parts]
    shares = (shares * (STEPS / shares.amax(1, keepdim=True).clamp(min=1e-9))).round()
    shares[:, 0].clamp_(min=1)  # of a goal that is like no row
    kept = shares > 0
    assert STEPS < ONE
    return Sums.of(
        len(table),
        parts[kept].numpy().astype(np.uint16),
        shares[kept].numpy().astype(np.uint8),
        kept.sum(1).numpy().astype(np.uint8),
    )
