"""What is done to a trained bag before it is shipped; both cost nothing at run time (figures in docs/log.md)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_embed.training.model import Head

KEPT = 0.2  # of the untrained table in the trained one: rows seen in a few texts have learned these texts
WHITENING = 0.35
LEAST_DEVIATION = 0.1  # of the mean one; axes below it hold noise


def mix(start: Tensor, trained: Tensor) -> Tensor:
    """Rows (V, C) between those that training began with and those it ended with, all of unit length."""
    return F.normalize(start, dim=1) * KEPT + F.normalize(trained, dim=1) * (1 - KEPT)


def whiten(head: Head, vectors: Tensor) -> None:
    """Fold into the head's norm: the mean of `vectors` (n, C) becomes 0, and each axis is divided by its
    deviation to the power `WHITENING`, so that the strong ones drown the others less."""
    deviations = F.normalize(vectors, dim=1).std(0)
    scale = (deviations / deviations.mean()).clamp(min=LEAST_DEVIATION) ** -WHITENING
    with torch.no_grad():
        head.norm.weight.mul_(scale)
        head.norm.bias.sub_(vectors.mean(0)).mul_(scale)
