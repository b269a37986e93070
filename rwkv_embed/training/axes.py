"""Turns vectors to their principal axes, softly whitened."""

import numpy as np
from numpy.typing import NDArray

LEAST_DEVIATION = 0.1  # of the mean one; axes below it hold noise


def principal_axes(
    vectors: NDArray[np.float32], whitening: float, weight: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """(C, C) to multiply centred vectors (n, C) by.

    The strongest axis comes first, so that the first numbers are the best short vector; each axis is divided by
    its deviation to the power `whitening` (0: as it is, 1: all alike).

    `weight` (n,) says what each vector counts; all alike without it.
    """
    counted = vectors / len(vectors) if weight is None else vectors * (weight / weight.sum())[:, None]
    variances, axes = np.linalg.eigh(counted.T @ vectors)
    deviations = np.sqrt(np.maximum(variances, 0))
    deviations = np.maximum(deviations, LEAST_DEVIATION * deviations.mean())
    return np.ascontiguousarray((axes * deviations**-whitening)[:, ::-1]).astype(np.float32)
