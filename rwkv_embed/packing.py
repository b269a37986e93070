"""Four-bit token tables: how the bundled model keeps 110,000 token vectors in 24 MB.

X.int4   (V, C/2) uint8: columns 2j and 2j + 1 in the low and the high four bits, each plus 8
X.scale  (V, C/32) float16: what the values of 32 columns, -7 .. 7, are multiplied with
"""

import numpy as np
from numpy.typing import NDArray

GROUP = 32
LEVELS = 7


def pack_int4(table: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """(V, C) -> packed (V, C/2) and scales (V, C/32); every value within half a step of its group."""
    groups = table.reshape(len(table), -1, GROUP)
    scale = (np.abs(groups).max(-1) / LEVELS).astype(np.float16)
    step = np.maximum(scale.astype(np.float32), 1e-8)[..., None]
    codes = (np.clip(np.rint(groups / step), -LEVELS, LEVELS) + 8).astype(np.uint8).reshape(len(table), -1)
    return codes[:, 0::2] | codes[:, 1::2] << 4, scale


def unpack_int4(packed: NDArray[np.uint8], scale: NDArray[np.float16]) -> NDArray[np.float32]:
    """The inverse, (V, C) float32; also of some rows of both."""
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1, GROUP)
    values = (codes.astype(np.float32) - 8) * scale.astype(np.float32)[..., None]
    return values.reshape(len(packed), -1)
