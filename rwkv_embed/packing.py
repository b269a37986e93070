"""Packed matrices: a matrix X (rows, columns) stored as other tensors, X and an ending.

    int8    X.int8 (rows, columns) int8 and X.scale (rows, 1): a value is its integer times its row's scale
    coded   X.coded and five more: few different values, in as many bits as they tell; see coding.py
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.coding import DTYPES, Shape, coded_shape
from rwkv_embed.errors import CheckpointError

Packing = Literal["int8", "coded"]
PACKINGS: tuple[Packing, ...] = ("int8", "coded")
PARTS: dict[Packing, tuple[str, ...]] = {"int8": ("int8", "scale"), "coded": tuple(DTYPES)}  # endings
GROUP = 32  # columns that share a scale in four bits
LEVELS = 7  # four-bit values are -7 … 7


def packed_shape(name: str, packing: Packing, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Rows and columns of a packed matrix, from the shapes of its tensors by their endings.

    Raises CheckpointError when they do not belong together.
    """
    if packing == "coded":
        return coded_shape(name, shapes)
    values, scale = shapes["int8"], shapes.get("scale")
    if len(values) != 2:
        raise CheckpointError(f"{name}.int8 has shape {values}, expected two dimensions")
    rows, columns = values
    if scale not in ((rows, 1), (rows,)):
        found = "but it is missing" if scale is None else f"not {scale}"
        raise CheckpointError(f"{name}.int8 {values} needs {name}.scale of shape {(rows, 1)}, {found}")
    return rows, columns


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
