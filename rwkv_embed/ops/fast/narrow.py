"""Numbers of products narrower than float32, as `products.c` makes them."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def round_bfloat16(x: Array) -> NDArray[np.uint16]:
    """The upper halves of float32 numbers, rounded to nearest even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def as_float32(rounded: NDArray[np.uint16]) -> Array:
    """The inverse of `round_bfloat16`."""
    return (rounded.astype(np.uint32) << 16).view(np.float32)


def quantize_columns(matrix: Array) -> tuple[NDArray[np.int8], Array]:
    """Whole numbers in -127 ... 127 (K, N) and a scale (N,) for each column: a matrix is about their product."""
    largest = np.abs(matrix).max(0, initial=0)
    return np.rint(matrix * _inverse(largest, 127)).astype(np.int8), largest / np.float32(127)


def quantize_rows(x: Array) -> tuple[Array, Array]:
    """Whole numbers (..., K), 254 apart from the least to the largest, and a scale (..., 1) for each row.

    They are what bytes of products.c mean: a byte less the row's zero.
    """
    least, largest = x.min(-1, keepdims=True, initial=0), x.max(-1, keepdims=True, initial=0)
    inverse = _inverse(largest - least, 254)
    zero = np.ceil(-least * inverse)
    return np.rint(x * inverse + zero) - zero, (largest - least) / np.float32(254)


def _inverse(size: Array, steps: int) -> Array:
    """Steps a unit; 0 where all is 0."""
    return np.divide(np.float32(steps), size, out=np.zeros_like(size), where=size > 0)
