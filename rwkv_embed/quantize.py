"""Fewer bytes a vector: float16, int8, uint8, binary, ubinary.

    float32   4 d bytes   as computed
    float16   2 d         error below 2^-11 of each component
    int8        d         255 steps between a fitted low and high of each component, stored as -128 … 127
    uint8       d         the same steps, stored as 0 … 255
    ubinary   d/8         one bit a component, set where it is positive; numpy.packbits order
    binary    d/8         the same bytes minus 128, as sentence-transformers has them

The ranges of int8 are *fitted once and saved*: sentence-transformers takes them from the texts of each call,
so that equal texts get unequal codes. A component outside its range is clipped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.errors import CheckpointError

Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Floats = NDArray[np.float32]

STEPS = 255  # between low and high
TAIL = 0.0005  # share of values cut off at either end, so that one outlier does not widen every step


@dataclass(frozen=True)
class Int8Ranges:
    """Low and high of every component, for each dimension that vectors may be truncated to.

    Truncated vectors are normalised again, which widens them: each dimension has ranges of its own.
    """

    low: Mapping[int, Floats]
    high: Mapping[int, Floats]

    @classmethod
    def fit(cls, vectors: Floats, dims: Sequence[int] = ()) -> "Int8Ranges":
        """Fit on normalised `vectors` (n, d) of typical texts; 1,000 are enough. `dims` adds truncations."""
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) < 2:
            raise ValueError(f"int8 ranges need at least two vectors, got an array of shape {vectors.shape}")
        low, high = {}, {}
        for dim in {vectors.shape[1], *dims}:
            low[dim], high[dim] = _limits(truncate(vectors, dim))
        return cls(low, high)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with tensors `low.<dim>` and `high.<dim>`."""
        from safetensors.numpy import save

        tensors = {f"low.{dim}": low for dim, low in self.low.items()}
        Path(path).write_bytes(save(tensors | {f"high.{dim}": high for dim, high in self.high.items()}))

    @classmethod
    def load(cls, path: str | Path) -> "Int8Ranges":
        """Read what `save` wrote. Raises CheckpointError when the file holds no such ranges."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
            dims = [int(name.removeprefix("low.")) for name in tensors if name.startswith("low.")]
            low = {dim: tensors[f"low.{dim}"] for dim in dims}
            high = {dim: tensors[f"high.{dim}"] for dim in dims}
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path} holds no int8 ranges ({error}); fit and save them again"
            ) from error
        return cls(low, high)

    def of(self, dim: int) -> tuple[Floats, Floats]:
        if dim not in self.low:
            raise ValueError(
                f"int8 ranges were fitted for {sorted(self.low)} dimensions, not for {dim}; "
                "choose one of these with truncate_dim or fit them again"
            )
        return self.low[dim], self.high[dim]


def _limits(vectors: Floats) -> tuple[Floats, Floats]:
    low, high = np.quantile(vectors, [TAIL, 1 - TAIL], axis=0).astype(np.float32)
    return low, np.maximum(high, low + 1e-6)  # a component that never changes still needs a width


def truncate(vectors: Floats, dim: int | None, normalize: bool = True) -> Floats:
    """Keep the first `dim` components (n, d) -> (n, dim), then normalise to length 1: in this order."""
    check_truncation(dim, vectors.shape[-1])
    vectors = vectors[..., :dim]
    if not normalize:
        return vectors
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return cast(Floats, vectors / np.maximum(lengths, 1e-12))


def check_truncation(dim: int | None, full_dim: int) -> None:
    """Raise ValueError unless vectors of `full_dim` components can be cut to `dim`."""
    if dim is not None and not 1 <= dim <= full_dim:
        raise ValueError(f"truncate_dim is {dim}, the model has {full_dim} dimensions")


def check_ranges(precision: Precision, dim: int, ranges: Int8Ranges | None) -> None:
    """Raise ValueError when vectors of `dim` components would need ranges that were not fitted."""
    if precision not in ("int8", "uint8"):
        return
    if ranges is None:
        raise ValueError(
            f"precision {precision!r} needs fitted ranges, so that equal texts always get equal codes; "
            "call embedder.fit_int8(texts) once, or open the embedder with int8_ranges=PATH"
        )
    ranges.of(dim)


def check_precision(precision: str) -> Precision:
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(get_args(Precision))}")
    return cast(Precision, precision)


def quantize(vectors: Floats, precision: Precision, ranges: Int8Ranges | None = None) -> NDArray[Any]:
    """(n, d) float32 -> (n, d), or (n, ceil(d / 8)) for the binary forms."""
    if precision == "float32":
        return vectors
    if precision == "float16":
        return vectors.astype(np.float16)
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    check_ranges(precision, vectors.shape[-1], ranges)
    assert ranges is not None
    low, high = ranges.of(vectors.shape[-1])
    codes = np.clip(np.rint((vectors - low) / (high - low) * STEPS), 0, STEPS)
    return codes.astype(np.uint8) if precision == "uint8" else (codes - 128).astype(np.int8)


def dequantize(codes: NDArray[Any], precision: Precision, ranges: Int8Ranges | None = None) -> Floats:
    """The nearest float32 vectors, (n, d): for the binary forms, d = 8 x bytes of +1 and -1."""
    if precision in ("float32", "float16"):
        return codes.astype(np.float32)
    if precision in ("binary", "ubinary"):
        bits = codes if precision == "ubinary" else (codes.astype(np.int16) + 128).astype(np.uint8)
        return np.unpackbits(bits, axis=-1).astype(np.float32) * 2 - 1
    if ranges is None:
        raise ValueError(f"reading {precision!r} codes needs the ranges they were made with")
    low, high = ranges.of(codes.shape[-1])
    steps = codes.astype(np.float32) + (128 if precision == "int8" else 0)
    return cast(Floats, (low + steps / STEPS * (high - low)).astype(np.float32))
