"""What is done to a trained bag before it is shipped, without training (figures in docs/log.md)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_embed.training.axes import Pairings, principal_axes, telling_apart
from rwkv_embed.training.loss import SHORTEST
from rwkv_embed.training.matryoshka import nested_axes
from rwkv_embed.training.model import Bag, Head, importance_of

KEPT = 0.35  # of the untrained table in the trained one: rows seen in a few texts have learned these texts
TRAINED_WHITENING = 0.35
LEAST_DEVIATION = 0.1  # of the mean one; axes below it hold noise
READ_SHARE = 0.55  # of the length that the trained numbers of a row have


def mix(start: Tensor, trained: Tensor) -> Tensor:
    """Rows (V, C) between those that training began with and those it ended with, all of unit length."""
    return F.normalize(start, dim=1) * KEPT + F.normalize(trained, dim=1) * (1 - KEPT)


def whiten(head: Head, vectors: Tensor, power: float) -> None:
    """Fold into the head's norm: the mean of `vectors` (n, C) becomes 0, and each axis is divided by its
    deviation to the power `power`, so that the strong ones drown the others less."""
    deviations = F.normalize(vectors, dim=1).std(0)
    scale = (deviations / deviations.mean()).clamp(min=LEAST_DEVIATION) ** -power
    with torch.no_grad():
        head.norm.weight.mul_(scale)
        head.norm.bias.sub_(vectors.mean(0)).mul_(scale)


@torch.no_grad()
def centre(head: Head, vectors: Tensor) -> None:
    """Take the mean of `vectors` (n, C), which the head gave, away in its norm."""
    head.norm.bias.sub_(vectors.mean(0))


@torch.no_grad()
def turn(bag: Bag, measure: Callable[[], Pairings]) -> None:
    """Turn what the layer puts out to the axes that tell texts apart, the strongest first, and centre it.

    `measure` gives the vectors of texts and translations, as the bag makes them. Its head must be the identity.
    """
    bag.head.fc1.weight.zero_()  # nothing hears it, and zeros take no room
    bag.head.norm.bias.zero_()
    axes = telling_apart(Pairings(*(F.normalize(vectors, dim=1) for vectors in measure())))
    bag.output.copy_(axes.T @ bag.output * (len(axes) ** 0.5 / axes.norm()))
    centre(bag.head, measure().texts)


@torch.no_grad()
def nest(bag: Bag, kinds: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Turn what the layer puts out, so that its first numbers are the best short vectors. It has to be centred
    anew: what EOS adds to all texts does not turn with them.

    `kinds`: vectors of texts and of those that belong to them, see `nested_axes`.
    """
    axes = nested_axes([(F.normalize(left, dim=1), F.normalize(right, dim=1)) for left, right in kinds])
    bag.output.copy_(axes.T @ bag.output)


def widen(bag: Bag, rows: Tensor, read: Tensor, usage: Tensor, width: int) -> Bag:
    """A wider bag whose rows hold the trained ones (V, C) and what the teacher reads tokens with.

    `read` (V, any) tells the words of a language apart, where the trained numbers look for meaning alone. Both are
    laid side by side, as the head's norm weighs them. The first trained numbers stay, which were trained to be a
    vector by themselves; of the others the strongest axes are kept, `usage` (V,) counting the tokens; the last
    number carries the importance. The head is turned along.
    """
    C, own, kept = rows.shape[1], rows.shape[1] - 1, width - 1
    weight = bag.head.norm.weight.detach()[:own]
    weight = weight / weight.square().mean().sqrt()
    trained = F.normalize(F.normalize(rows[:, :own], dim=1) * weight, dim=1)
    both = torch.cat([trained, F.normalize(read, dim=1) * READ_SHARE], 1)
    others = torch.from_numpy(principal_axes(both[:, SHORTEST:].numpy(), 0.0, usage.numpy()))
    axes = torch.block_diag(torch.eye(SHORTEST), others)[:, :kept]
    wide = Bag(torch.cat([both @ axes, rows.new_zeros(len(rows), 1)], 1), importance_of(bag, rows))
    old, new = bag.head, wide.head
    with torch.no_grad():
        new.fc1.weight.zero_()
        new.fc1.weight[:C, :kept] = old.fc1.weight[:, :own] / weight @ axes[:own]
        new.fc2.weight[:kept, :C] = axes[:own].T @ (weight[:, None] * old.fc2.weight[:own])
    return wide
