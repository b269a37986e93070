"""Packed matrices: a matrix X (rows, columns) stored as other tensors, X and an ending.

    int8    X.int8 (rows, columns) int8 and X.scale (rows, 1): a value is its integer times its row's scale
    coded   X.coded and five more: few different values, in as many bits as they tell; see coding.py
"""

from collections.abc import Mapping
from typing import Literal

from rwkv_embed.coding import DTYPES, Shape, coded_shape
from rwkv_embed.errors import CheckpointError

Packing = Literal["int8", "coded"]
PACKINGS: tuple[Packing, ...] = ("int8", "coded")
PARTS: dict[Packing, tuple[str, ...]] = {"int8": ("int8", "scale"), "coded": tuple(DTYPES)}  # endings


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
