"""Token vectors that are weighted sums of others, a dozen bytes each: the last tokens of a vocabulary.

A vocabulary of a million words has few meanings that are not near those of more frequent words. `emb.weight`
(R, C) holds the vectors of the first R tokens; token R + s is sum s, of a few of these:

    emb.parts    (n,) uint16    the rows that are added up, sum after sum
    emb.shares   (n,) uint8     what each is multiplied with, in sixteenths
    emb.lengths  (S,) uint8     how many parts each sum has
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.errors import CheckpointError

DTYPES = {"emb.parts": "uint16", "emb.shares": "uint8", "emb.lengths": "uint8"}
ONE = 16  # the share of a part that is taken as it is

Array = NDArray[np.float32]
Index = NDArray[np.int64]


def count_sums(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many tokens are sums, from the shapes of tensors by name; 0 where that cannot be told."""
    shape = shapes.get("emb.lengths", ())
    return shape[0] if len(shape) == 1 else 0


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of a table of `rows` vectors; the parts of sum s are those from starts[s] up to starts[s + 1]."""

    rows: int
    parts: NDArray[np.uint16]  # (n,)
    shares: NDArray[np.uint8]  # (n,)
    starts: Index  # (S + 1,)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray], rows: int) -> "Sums | None":
        """None where `tensors` has none of them; CheckpointError, with every problem in one message."""
        found = {name: tensors[name] for name in DTYPES if name in tensors}
        if not found:
            return None
        problems = [f"{name} is missing" for name in DTYPES if name not in found]
        for name, tensor in found.items():
            if tensor.dtype != DTYPES[name]:
                problems.append(f"{name} is stored as {tensor.dtype}, expected {DTYPES[name]}")
            if tensor.ndim != 1:
                problems.append(f"{name} has shape {tensor.shape}, expected one dimension")
        if problems:
            raise CheckpointError("; ".join(problems))
        parts, shares, lengths = (np.require(found[name], DTYPES[name], ["C", "A"]) for name in DTYPES)
        sums, n = cls.of(rows, parts, shares, lengths), len(parts)
        if not n == len(shares) == sums.starts[-1]:
            problems.append(
                f"emb.lengths adds up to {sums.starts[-1]}, but emb.parts has {n} and emb.shares {len(shares)}"
            )
        if not lengths.all():
            problems.append(f"emb.lengths has a sum of nothing, the one of token {rows + int(lengths.argmin())}")
        if (highest := int(parts.max(initial=0))) >= rows:
            problems.append(f"emb.parts has the row {highest}, but emb.weight has {rows} of them")
        if problems:
            raise CheckpointError("; ".join(problems))
        return sums

    @classmethod
    def of(
        cls, rows: int, parts: NDArray[np.uint16], shares: NDArray[np.uint8], lengths: NDArray[np.uint8]
    ) -> "Sums":
        """Of tensors as they are stored."""
        return cls(rows, parts, shares, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def tensors(self) -> dict[str, NDArray]:
        """By name, as they are stored."""
        lengths = np.diff(self.starts).astype(np.uint8)
        return {"emb.parts": self.parts, "emb.shares": self.shares, "emb.lengths": lengths}

    def __len__(self) -> int:
        return len(self.starts) - 1

    def expanded(self, tokens: Index) -> tuple[Index, Array, Index]:
        """What is added up for tokens (T,): rows (n,), shares (n,), and the place in `tokens` (n,) of each."""
        sums = np.maximum(tokens - self.rows, 0)
        first = self.starts[sums]
        counts = np.where(tokens < self.rows, 1, self.starts[sums + 1] - first)
        places = np.repeat(np.arange(len(tokens)), counts)
        before = np.cumsum(counts) - counts
        rows, shares = tokens[places], np.ones(len(places), np.float32)
        is_part = rows >= self.rows
        at = (np.arange(len(places)) + np.repeat(first - before, counts))[is_part]
        rows[is_part], shares[is_part] = self.parts[at], self.shares[at] / np.float32(ONE)
        return rows, shares, places

    def vectors(self, tokens: Index, rows_of: Callable[[Index], Array]) -> Array:
        """(T, C) of `tokens` (T,); `rows_of` gives the stored rows (n, C) of row numbers (n,)."""
        rows, shares, places = self.expanded(tokens)
        parts = rows_of(rows) * shares[:, None]
        first = np.flatnonzero(np.diff(places, prepend=-1))
        return np.add.reduceat(parts, first) if len(first) else parts
