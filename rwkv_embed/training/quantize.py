"""The trained token table in few different values, as it is shipped (coding.py): about 3.4 bits a value.

A row's step grows with its rank by use, since a frequent token is in more texts than a rare one: for one size of
file, NTREX is 0.02 higher than with one step for all rows. Neighbouring columns share their statistics. Figures:
docs/log.md, 2026-11-26.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.coding import SYMBOLS

FIRST_RANK = 257  # the token before the first piece; those up to it, EOS and bytes, have the finest step
RANK, STEP, POWER = 1000, 0.2, 0.2  # rows of unit size have steps of STEP * (rank / RANK) ** POWER
LEAST, RATIO = 0.2, 1.12  # ... rounded to LEAST * RATIO ** class
ROUNDED_DOWN = 0.56  # of a step: zeros and small symbols are cheap
GROUP = 32  # columns
REACH = SYMBOLS // 2 - 1  # steps on either side of zero


@dataclass(frozen=True, slots=True)
class Quantized:
    """Symbols (V, C) of a table; each row's class, each column's group, and what their symbols stand for."""

    symbols: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    groups: NDArray[np.uint8]
    values: NDArray[np.float32]  # (classes, groups, 64)

    def rows(self) -> NDArray[np.float32]:
        """(V, C), each value replaced by the mean of those that share its symbol, class and group."""
        rows = np.empty(self.symbols.shape, np.float32)
        # a group at a time: the indices of all values would take gigabytes
        for group in range(self.values.shape[1]):
            columns = self.groups == group
            rows[:, columns] = self.values[self.classes[:, None], group, self.symbols[:, columns]]
        return rows


def quantize(table: NDArray[np.float32]) -> Quantized:
    """`table` (V, C), tokens numbered by use; rows of any length."""
    V, C = table.shape
    unit = table / np.sqrt(np.square(table).mean(1, keepdims=True))
    ranks = np.maximum(np.arange(V) - FIRST_RANK, 1)
    steps = STEP * (ranks / RANK) ** POWER
    classes = np.maximum(np.rint(np.log(steps / LEAST) / np.log(RATIO)), 0).astype(np.uint8)
    steps = (LEAST * RATIO**classes).astype(np.float32)
    groups = (np.arange(C) // GROUP).astype(np.uint8)
    scaled = unit / steps[:, None]
    nearest = np.sign(scaled) * np.floor(np.abs(scaled) + 1 - ROUNDED_DOWN)
    symbols = (np.clip(nearest, -REACH, REACH) + REACH).astype(np.uint8)
    shape = int(classes.max()) + 1, int(groups.max()) + 1, SYMBOLS
    values = np.zeros(shape, np.float32)
    for group in range(shape[1]):
        columns = groups == group
        which = (classes[:, None].astype(np.int64) * SYMBOLS + symbols[:, columns]).ravel()
        size = shape[0] * SYMBOLS
        count = np.bincount(which, minlength=size)
        total = np.bincount(which, unit[:, columns].ravel(), minlength=size)
        values[:, group] = (total / np.maximum(count, 1)).reshape(-1, SYMBOLS)
    return Quantized(symbols, classes, groups, values)
