"""Axes whose first numbers are a good vector by themselves; whole vectors are turned, and stay what they are.

Matryoshka representation learning (Kusupati et al., NeurIPS 2022) trains a model on its first numbers as well.
Here the model is given and only an orthogonal matrix is learned: cosines of whole vectors do not change, and those
of the first numbers come near them where it matters, among a text's neighbours. It begins at the principal axes,
which keep as much as can be of all products, near or far (docs/log.md, 2026-11-27).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_embed.training.axes import principal_axes
from rwkv_embed.training.loss import log_neighbours

SHORT = {128: 1.0, 256: 0.7}  # first numbers that are asked, and how much they count
TEMPERATURE = 0.2  # of whom a text is near: a lower one looks at its translation alone, which training has seen
STEPS, RATE, LEAST_RATE = 250, 1.2e-4, 0.02  # few: what fits these texts best fits others less
PAIRS = 512  # of a kind in a step


def nested_axes(kinds: Sequence[tuple[Tensor, Tensor]], seed: int = 0) -> Tensor:
    """(C, C) orthogonal, to multiply vectors by.

    `kinds`: unit vectors (n, C) of texts and of those that belong to them (n, C), such as translations; texts of
    one kind are compared.
    """
    everything = torch.cat([vectors for pair in kinds for vectors in pair])
    start = torch.from_numpy(principal_axes(everything.numpy(), 0.0))
    C, random = len(start), torch.Generator().manual_seed(seed)
    skew = torch.zeros(C, C, requires_grad=True)
    optimizer = torch.optim.Adam([skew], lr=RATE)
    with torch.enable_grad():
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = RATE * max(LEAST_RATE, 1 - step / STEPS)
            axes = start @ _turned(skew)
            loss = torch.zeros(())
            for left, right in kinds:
                drawn = torch.randint(len(left), (PAIRS,), generator=random)
                loss = loss + _divergence(torch.cat([left[drawn], right[drawn]]), axes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    axes = (start @ _turned(skew)).detach()
    # What is asked of the first numbers says nothing about the last ones' order.
    last = axes[:, max(SHORT) :]
    if last.shape[1]:
        others = principal_axes((everything @ last).numpy(), 0.0)
        axes = torch.cat([axes[:, : max(SHORT)], last @ torch.from_numpy(others)], 1)
    return axes


def _turned(skew: Tensor) -> Tensor:
    """Cayley's transform: an orthogonal matrix for any (C, C)."""
    antisymmetric, one = skew - skew.T, torch.eye(len(skew))
    return torch.linalg.solve(one + antisymmetric, one - antisymmetric)


def _divergence(vectors: Tensor, axes: Tensor) -> Tensor:
    """Of the neighbours by the first numbers from those by all; `vectors` (n, C) of unit length."""
    itself = torch.eye(len(vectors), dtype=torch.bool)
    wanted = log_neighbours(vectors, itself, TEMPERATURE)
    total = vectors.new_zeros(())
    for dim, weight in SHORT.items():
        found = log_neighbours(vectors @ axes[:, :dim], itself, TEMPERATURE)
        total = total + weight * F.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return total
