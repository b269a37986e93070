"""Turns vectors to their principal axes, softly whitened."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEAST_DEVIATION = 0.1  # of the mean one; axes below it hold noise
WITHIN = 0.3  # what sets translations apart weighs its deviation to this power less


def principal_axes(
    vectors: NDArray[np.float32], whitening: float, weight: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """(C, C) to multiply centred vectors (n, C) by.

    The strongest axis comes first, so that the first numbers are the best short vector; each axis is divided by
    its deviation to the power `whitening` (0: as it is, 1: all alike).

    `weight` (n,) says what each vector counts; all alike without it.
    """
    counted = vectors / len(vectors) if weight is None else vectors * (weight / weight.sum())[:, None]
    axes = _scaled(*np.linalg.eigh(counted.T @ vectors), whitening)
    return np.ascontiguousarray(axes[:, ::-1]).astype(np.float32)


class Pairings(NamedTuple):
    """Vectors of texts (n, C) of all kinds, and of texts (m, C) and their translations (m, C)."""

    texts: Tensor
    left: Tensor
    right: Tensor


def telling_apart(vectors: Pairings) -> Tensor:
    """(C, C) to multiply vectors by: axes on which texts differ, but not translations of one text.

    Within-class covariance normalisation (Hatch, Kajarekar and Stolcke, Interspeech 2006), softly: the axes of
    the differences between translations are divided by their deviations to the power `WITHIN`; then come the
    principal axes of what is left, the strongest first.
    """
    differences = (vectors.left - vectors.right).numpy()
    differences -= differences.mean(0)
    within = _scaled(*np.linalg.eigh(differences.T @ differences / (2 * len(differences))), WITHIN)
    texts = (vectors.texts - vectors.texts.mean(0)).numpy()
    return torch.from_numpy((within @ principal_axes(texts @ within, 0.0)).astype(np.float32))


def _scaled(
    variances: NDArray[np.float32], axes: NDArray[np.float32], power: float
) -> NDArray[np.float32]:
    deviations = np.sqrt(np.maximum(variances, 0))
    scaled: NDArray[np.float32] = axes * np.maximum(deviations, LEAST_DEVIATION * deviations.mean()) ** -power
    return scaled
