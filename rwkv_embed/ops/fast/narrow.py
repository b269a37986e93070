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


def quantize(x: Array, axis: int) -> tuple[NDArray[np.int8], Array]:
    """Whole numbers in -127 ... 127 and the scale, of which there is one along `axis`: x is about their product."""
    largest = np.abs(x).max(axis, keepdims=True, initial=0)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(x * inverse).astype(np.int8), largest / np.float32(127)
