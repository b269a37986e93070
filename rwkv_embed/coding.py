"""Coded matrices: a matrix X (rows, columns) of few different values, stored in about as many bits as they tell.

    X.coded    (n,) uint8                      16-bit words, little endian: one stream for each block of two rows
    X.starts   (blocks + 1,) uint32            the word at which each block's stream begins; the last is n / 2
    X.classes  (rows,) uint8                   each row's class
    X.groups   (columns,) uint8                each column's group
    X.counts   (classes, groups, 64) uint16    how often each symbol comes, of 4096
    X.values   (classes, groups, 64) float32   what each symbol stands for

A value is `values[class of its row, group of its column, symbol]`; where every 16 columns from the first on have
one group, a row is looked up fastest. A block is decoded by itself, so that a text needs only the blocks of its
tokens; the last one may have fewer rows.

The symbols of a block are coded row by row with asymmetric numeral systems (Duda 2013, arXiv:1311.2540), in the
variant with 16-bit words that Giesen's `ryg_rans` made known. A state x is in 2^16 ... 2^32 - 1 between symbols:

    slot = x & 4095;  s = the symbol of that slot;  x = count[s] * (x >> 12) + slot - first[s]
    if x < 2^16:  x = x << 16 | the next word

with `first` the sum of the counts before. Two states take turns, symbol i belongs to state i % 2, so that a
processor works on both at once. A stream begins with them (the first's upper and lower word, then the second's),
and goes on with words in the order in which they are asked for; where it has ended, words are zero.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.errors import CheckpointError

DTYPES = {
    "coded": "uint8", "starts": "uint32", "classes": "uint8", "groups": "uint8",
    "counts": "uint16", "values": "float32",
}  # fmt: skip

BLOCK = 2  # rows that are decoded together
SYMBOLS = 64
_BITS = 12
_TOTAL = 1 << _BITS  # of the counts of one class and group
_LANES = 2  # states that take turns
_LOWEST = 1 << 16  # of a state
_BLOCKS_AT_ONCE = 8192  # of a whole matrix: about 40 MB on the way

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CodedMatrix:
    """The tensors of a matrix, checked; and what decoding them needs besides."""

    words: NDArray[np.uint16]  # (n / 2,)
    starts: NDArray[np.uint32]
    classes: NDArray[np.uint8]
    groups: NDArray[np.uint8]
    counts: NDArray[np.uint16]
    values: NDArray[np.float32]
    first: NDArray[np.uint16]  # (classes, groups, 64)
    symbol_of: NDArray[np.uint8]  # (classes, groups, 4096), by slot

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, NDArray]) -> "CodedMatrix":
        """`tensors` by their endings, see above. Raises CheckpointError with every problem in one message."""
        coded_shape(name, {ending: tensor.shape for ending, tensor in tensors.items()})
        _refuse(_dtype_problems(name, tensors) or _content_problems(name, tensors))
        coded, starts, classes, groups, counts, values = (
            np.require(tensors[ending], dtype, ["C", "A"]) for ending, dtype in DTYPES.items()
        )
        return cls(
            words=np.require(coded.view("<u2"), np.uint16, ["C", "A"]), starts=starts, classes=classes,
            groups=groups, counts=counts, values=values, first=_first(counts), symbol_of=_symbol_of(counts),
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.classes), len(self.groups)

    @property
    def blocks(self) -> int:
        return len(self.starts) - 1

    def decode_blocks(self, blocks: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Symbols (n, BLOCK, columns) of blocks (n,); rows past the matrix's end mean nothing."""
        rows, columns = self.shape
        at, ends = self.starts[blocks].astype(np.int64), self.starts[blocks + 1]

        def next_words(which: NDArray[np.int64]) -> NDArray[np.uint32]:
            read = np.zeros(len(which), np.uint32)
            left = at[which] < ends[which]
            read[left] = self.words[at[which[left]]]
            at[which] += 1
            return read

        everywhere = np.arange(len(blocks))
        states = [next_words(everywhere) << 16 | next_words(everywhere) for _ in range(_LANES)]
        counts, first, symbol_of = self.counts.ravel(), self.first.ravel(), self.symbol_of.ravel()
        classes = self.classes[np.minimum(blocks * BLOCK + np.arange(BLOCK)[:, None], rows - 1)]
        tables = classes.astype(np.int64) * self.counts.shape[1]
        symbols = np.empty((BLOCK, columns, len(blocks)), np.uint8)
        for i in range(BLOCK * columns):
            row, column = divmod(i, columns)
            table, x = tables[row] + self.groups[column], states[i % _LANES]
            slot = x & (_TOTAL - 1)
            symbol = symbol_of[table * _TOTAL + slot]
            at_symbol = table * SYMBOLS + symbol
            x[:] = counts[at_symbol] * (x >> _BITS) + slot - first[at_symbol]
            low = np.flatnonzero(x < _LOWEST)
            x[low] = x[low] << 16 | next_words(low)
            symbols[row, column] = symbol
        return symbols.transpose(2, 0, 1)

    def decode(self) -> NDArray[np.float32]:
        """The whole matrix (rows, columns)."""
        rows, columns = self.shape
        matrix = np.empty(self.shape, np.float32)
        for begin in range(0, self.blocks, _BLOCKS_AT_ONCE):
            blocks = np.arange(begin, min(begin + _BLOCKS_AT_ONCE, self.blocks))
            some = np.arange(begin * BLOCK, min((begin + len(blocks)) * BLOCK, rows))
            symbols = self.decode_blocks(blocks).reshape(-1, columns)[: len(some)]
            matrix[some] = self.rows(some, symbols)
        return matrix

    def rows(self, rows: NDArray[np.int64], symbols: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The values (n, columns) of rows (n,) whose symbols (n, columns) are known."""
        return self.values[self.classes[rows, None], self.groups, symbols]


def coded_shape(name: str, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Rows and columns of a matrix, from the shapes of its tensors by their endings.

    Raises CheckpointError, with every problem in one message, when they do not belong together.
    """
    dimensions = {"counts": 3, "values": 3}
    problems = [f"{name}.{ending} is missing" for ending in DTYPES if ending not in shapes]
    for ending, shape in shapes.items():
        if len(shape) != dimensions.get(ending, 1):
            wanted = "three dimensions" if ending in dimensions else "one dimension"
            problems.append(f"{name}.{ending} has shape {shape}, expected {wanted}")
    _refuse(problems)
    (rows,), (columns,), (n,) = shapes["classes"], shapes["groups"], shapes["coded"]
    tables = (*shapes["counts"][:2], SYMBOLS)
    expected = {"coded": (n + n % 2,), "starts": (_blocks(rows) + 1,), "counts": tables, "values": tables}
    _refuse(
        f"{name}.{ending} has shape {shapes[ending]}, expected {shape}"
        for ending, shape in expected.items()
        if shapes[ending] != shape
    )
    return rows, columns


def encode(
    symbols: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    groups: NDArray[np.uint8],
    counts: NDArray[np.uint16],
) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """`coded` (n,) and `starts` of symbols (rows, columns), with the counts of `frequencies`.

    Raises ValueError for a symbol whose count is zero.
    """
    rows, columns = symbols.shape
    blocks, first = _blocks(rows), _first(counts)
    words = np.zeros((blocks, BLOCK * columns + 2 * _LANES), np.uint16)  # the last word is made first
    at = np.full(blocks, words.shape[1])
    states = np.full((_LANES, blocks), _LOWEST, np.uint64)
    for i in reversed(range(BLOCK * columns)):
        row, column = divmod(i, columns)
        symbol = symbols[row::BLOCK, column]  # of the blocks that have such a row: all but the last, perhaps
        which = classes[row::BLOCK], groups[column], symbol
        count = counts[which].astype(np.uint64)
        if not count.all():
            raise ValueError(f"column {column} has a symbol whose count is zero; count with frequencies()")
        x = states[i % _LANES, : len(symbol)]
        full = np.flatnonzero(x >= count << 20)  # it would become 2^32 or more
        at[full] -= 1
        words[full, at[full]] = x[full] & 0xFFFF
        x[full] >>= 16
        quotient, remainder = np.divmod(x, count)
        x[:] = (quotient << _BITS) + remainder + first[which]
    for half in (half for x in states[::-1] for half in (x & 0xFFFF, x >> 16)):
        at -= 1
        words[np.arange(blocks), at] = half
    stream = words[np.arange(words.shape[1]) >= at[:, None]]
    starts = np.concatenate([[0], np.cumsum(words.shape[1] - at)])
    return stream.astype("<u2").view(np.uint8), starts.astype(np.uint32)


def frequencies(
    symbols: NDArray[np.uint8], classes: NDArray[np.uint8], groups: NDArray[np.uint8]
) -> NDArray[np.uint16]:
    """`counts` of symbols (rows, columns): a class and group's sum to 4096, and what occurs has one at least."""
    n_classes, n_groups = int(classes.max(initial=0)) + 1, int(groups.max(initial=0)) + 1
    found = np.zeros((n_groups, n_classes, SYMBOLS), np.int64)
    for group, column in zip(groups, symbols.T, strict=True):
        place = classes.astype(np.int64) * SYMBOLS + column
        found[group] += np.bincount(place, minlength=n_classes * SYMBOLS).reshape(n_classes, SYMBOLS)
    return np.stack([[_scaled(table) for table in tables] for tables in found.transpose(1, 0, 2)])


def _scaled(found: NDArray[np.int64]) -> NDArray[np.uint16]:
    """How often symbols were found (64,), as counts of 4096 in all; equal ones where nothing was found."""
    if not found.any():
        found = np.ones_like(found)
    counts = np.maximum(np.rint(found * (_TOTAL / found.sum())), found > 0)
    while missing := _TOTAL - int(counts.sum()):  # given or taken where it changes the size most or least
        load = found / np.maximum(counts, 1)
        if missing > 0:
            counts[load.argmax()] += 1
        else:
            counts[np.where(counts > 1, load, np.inf).argmin()] -= 1
    return counts.astype(np.uint16)


def _blocks(rows: int) -> int:
    return -(-rows // BLOCK)


def _first(counts: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The slot of each symbol's first."""
    return np.cumsum(counts, -1, dtype=np.uint16) - counts


def _symbol_of(counts: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The symbol (classes, groups, 4096) of each slot."""
    symbols = np.broadcast_to(np.arange(SYMBOLS, dtype=np.uint8), counts.shape)
    return np.repeat(symbols.ravel(), counts.ravel()).reshape(*counts.shape[:2], _TOTAL)


def _dtype_problems(name: str, tensors: Mapping[str, NDArray]) -> list[str]:
    return [
        f"{name}.{ending} is stored as {tensors[ending].dtype}, expected {dtype}"
        for ending, dtype in DTYPES.items()
        if tensors[ending].dtype != dtype
    ]


def _content_problems(name: str, tensors: Mapping[str, NDArray]) -> list[str]:
    """What is wrong with tensors of the right types and shapes; whatever words a stream has can be decoded."""
    starts, counts = tensors["starts"].astype(np.int64), tensors["counts"]
    last = len(tensors["coded"]) // 2
    problems = []
    if starts[0] != 0 or starts[-1] != last or (np.diff(starts) < 0).any():
        problems.append(f"{name}.starts does not ascend from 0 to {last}, the words of {name}.coded")
    for ending, number, size in (("classes", "class", len(counts)), ("groups", "group", counts.shape[1])):
        largest = int(tensors[ending].max(initial=0))
        if tensors[ending].size and largest >= size:
            problems.append(f"{name}.{ending} has the {number} {largest}, but {name}.counts has {size} of them")
    sums = counts.sum(-1, dtype=np.int64)
    for class_, group in np.argwhere(sums != _TOTAL)[:1]:
        problems.append(
            f"{name}.counts of class {class_} and group {group} sum to {sums[class_, group]}, expected {_TOTAL}"
        )
    if not np.isfinite(tensors["values"]).all():
        problems.append(f"{name}.values has NaN or infinite values")
    return problems


def _refuse(problems: Iterable[str]) -> None:
    if found := "; ".join(problems):
        raise CheckpointError(found)
