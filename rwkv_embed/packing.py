"""Packed matrices: a matrix X (rows, columns) stored as small integers and float scales.

    X.int8   (rows, columns) int8       X.scale  (rows, 1)              one scale a row
    X.int4   (rows, columns/2) uint8    X.scale  (rows, columns/32)     one scale for 32 columns

A value is its integer times its scale. Four-bit columns 2j and 2j + 1 lie in the low and the high half of a
byte, each plus 8. The bundled model's table has the same few wide steps in every row: its 250,000 vectors are
then full of equal codes and of equal scales, which the wheel compresses to little more than half.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.errors import CheckpointError

Packing = Literal["int8", "int4"]
PACKINGS: tuple[Packing, ...] = ("int8", "int4")
GROUP = 32  # columns that share a scale in four bits
LEVELS = 7  # four-bit values are -7 … 7


def packed_shapes(
    name: str, packing: Packing, values: tuple[int, ...], scale: tuple[int, ...] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of a packed matrix and of its scales, from those of the stored tensors.

    Raises CheckpointError when the two do not belong together.
    """
    if len(values) != 2:
        raise CheckpointError(f"{name}.{packing} has shape {values}, expected two dimensions")
    rows, columns = values[0], values[1] * (2 if packing == "int4" else 1)
    if packing == "int4" and columns % GROUP:
        raise CheckpointError(f"{name}.int4 has {columns} columns, expected a multiple of {GROUP}")
    wanted = (rows, columns // GROUP if packing == "int4" else 1)
    if scale != wanted and not (wanted[1] == 1 and scale == (rows,)):
        found = "but it is missing" if scale is None else f"not {scale}"
        raise CheckpointError(f"{name}.{packing} {values} needs {name}.scale of shape {wanted}, {found}")
    return (rows, columns), wanted


def pack_int4(
    table: NDArray[np.float32], steps: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """(V, C) -> packed (V, C/2) and scales (V, C/32).

    Every value is kept within half a step of its group: a seventh of the largest, or the one in `steps` (V, C/32)
    where the value lies within seven of them.
    """
    groups = table.reshape(len(table), table.shape[1] // GROUP, GROUP)
    widths = np.abs(groups).max(-1) / LEVELS if steps is None else steps
    scale: NDArray[np.float16] = widths.astype(np.float16)
    step = np.maximum(scale.astype(np.float32), 1e-8)[..., None]
    codes = (np.clip(np.rint(groups / step), -LEVELS, LEVELS) + 8).astype(np.uint8).reshape(table.shape)
    return np.bitwise_or(codes[:, 0::2], codes[:, 1::2] << 4, dtype=np.uint8), scale


def unpack_int4(packed: NDArray[np.uint8], scale: NDArray[np.floating]) -> NDArray[np.float32]:
    """The inverse, (V, C) float32; also of some rows of both."""
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(*scale.shape, GROUP)
    values = (codes.astype(np.float32) - 8) * scale.astype(np.float32)[..., None]
    return values.reshape(len(packed), 2 * packed.shape[1])
