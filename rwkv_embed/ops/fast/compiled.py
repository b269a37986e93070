"""The kernels in C (`kernels.c`, `products.c`, `coding.c`) through ctypes."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.coding import CodedMatrix
from rwkv_embed.config import Dtype
from rwkv_embed.ops.fast.kernels import PANEL, Array, DecodedBlocks, Gates, Index, Norm, Products
from rwkv_embed.ops.fast.narrow import quantize_columns, round_bfloat16
from rwkv_embed.sums import Sums


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


class _LayerPointers(ctypes.Structure):
    _fields_ = _pointers("w0", "a0", "k_k", "k_a", "r_k", "ln_weight", "ln_bias")


class _ProductPointers(ctypes.Structure):
    _fields_ = _pointers("w", "k", "v", "a")


@dataclass(frozen=True, slots=True)
class _PackedGates:
    """`pointers` into `gates`, which must live as long."""

    gates: Gates
    pointers: _LayerPointers


class _CodedPointers(ctypes.Structure):
    _fields_ = [
        *_pointers(
            "words", "starts", "classes", "groups", "counts", "first", "symbol_of", "values", "symbols", "decoded",
            "parts", "shares", "sum_starts",
        ),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "n_groups", "in_panels")),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _PackedCoded:
    """`pointers` into `blocks`, its matrix and `sums`, which must live as long."""

    blocks: DecodedBlocks
    sums: Sums | None
    pointers: _CodedPointers


@dataclass(frozen=True, slots=True)
class _BFloat16:
    """Pairs of bfloat16 along K, (B N / PANEL, pairs, PANEL, 2)."""

    panels: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class _Int8:
    """Fours of int8 along K, (B N / PANEL, fours, PANEL, 4); `scale` and sum (B N) of each column."""

    panels: NDArray[np.int8]
    scale: Array
    totals: NDArray[np.int32]


def _at(array: NDArray | None) -> int | None:
    if array is None or not array.size:
        return None
    if array.flags.writeable:  # a quarter of the time of array.ctypes.data, of which there are many
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    return array.ctypes.data


def _pointers_of(p: Products) -> _ProductPointers:
    return _ProductPointers(*map(_at, (p.w, p.k, p.v, p.a)))


class CompiledKernels:
    """The GIL is released while they run."""

    name = "c"
    releases_gil = True

    def __init__(self, path: str, head_size: int) -> None:
        library = ctypes.CDLL(path)
        size: type[ctypes._SimpleCData] = ctypes.c_int64
        pointer: type[ctypes._SimpleCData] = ctypes.c_void_p
        self._head_size = head_size

        def function(name: str, *arguments: type) -> Any:
            found = library[f"rwkv_{name}"]
            found.argtypes, found.restype = arguments, None
            return found

        texts = (size, pointer, pointer, size, size)  # n, starts, row_starts, H, N
        self._matmul = function("matmul", *[size] * 4, *[pointer] * 3)
        self._matmul_bfloat16 = function("matmul_bfloat16", *[size] * 5, *[pointer] * 4)
        self._matmul_int8 = function("matmul_int8", *[size] * 5, *[pointer] * 6)
        self._coded_rows = function("coded_rows", size, *[pointer] * 3)
        self._norm = function("norm", size, size, *[pointer] * 5)
        self._norm_shift = function("norm_shift", size, pointer, size, size, *[pointer] * 7)
        self._relu_square = function("relu_square", size, pointer)
        self._mix_values = function("mix_values", size, size, *[pointer] * 4)
        self._wkv = function("wkv", *texts, *[pointer] * 7)
        self._backward = function("backward", *texts, pointer, pointer, size, *[pointer] * 5)
        self._read_state = function("read_state", size, pointer, size, size, *[pointer] * 3)
        self._weighted_sums = function("weighted_sums", *texts, size, *[pointer] * 3)
        self._close = function("close", *[size] * 3, *[pointer] * 6)
        narrow: tuple[Dtype, ...] = ("bfloat16", "int8")
        self.native = frozenset(dtype for dtype in narrow if library[f"rwkv_has_{dtype}"]())

    def pack(self, matrix: Array, dtype: Dtype = "float32") -> Any:
        """Panels of PANEL columns: a product reads them from beginning to end, once."""
        if dtype == "bfloat16":
            return _BFloat16(_panels(round_bfloat16(matrix), 2))
        if dtype == "int8":
            numbers, scale = quantize_columns(matrix)
            return _Int8(_panels(numbers, 4), scale, numbers.sum(0, dtype=np.int32))
        return _panels(matrix, 1)

    def pack_gates(self, gates: Gates) -> _PackedGates:
        g = gates
        arrays = (g.w0, g.a0, g.k_k, g.k_a, g.r_k, g.ln_x.weight, g.ln_x.bias)
        return _PackedGates(gates, _LayerPointers(*map(_at, arrays)))

    def matmul(self, x: Array, packed: Any, out: Array) -> Array:
        *batch, rows, depth = x.shape
        sizes = *(batch or [1]), rows, depth, out.shape[-1]
        if isinstance(packed, _BFloat16):
            scratch = np.empty(rows * (depth // 2 + 32), np.int32)
            addresses = [_at(array) for array in (x, packed.panels, scratch, out)]
            self._matmul_bfloat16("bfloat16" in self.native, *sizes, *addresses)
        elif isinstance(packed, _Int8):
            scratch = np.empty(rows * (depth // 4 + 34), np.int32)
            arrays = (x, packed.panels, packed.scale, packed.totals, scratch, out)
            self._matmul_int8("int8" in self.native, *sizes, *[_at(array) for array in arrays])
        else:
            self._matmul(*sizes, *map(_at, (x, packed, out)))
        return out

    def pack_coded(self, matrix: CodedMatrix, sums: Sums | None = None) -> _PackedCoded:
        m, blocks = matrix, DecodedBlocks.none_of(matrix)
        first_of_panel = np.arange(len(m.groups)) // PANEL * PANEL
        in_panels = len(m.groups) % PANEL == 0 and np.array_equal(m.groups, m.groups[first_of_panel])
        arrays: tuple[NDArray | None, ...] = (
            m.words, m.starts, m.classes, m.groups, m.counts, m.first, m.symbol_of, m.values,
            blocks.symbols, blocks.decoded,
            *((sums.parts, sums.shares, sums.starts) if sums else (None, None, None)),
        )  # fmt: skip
        pointers = _CodedPointers(*map(_at, arrays), *m.shape, m.counts.shape[1], in_panels)
        return _PackedCoded(blocks, sums, pointers)

    def coded_rows(self, tokens: Index, packed: _PackedCoded, out: Array) -> None:
        self._coded_rows(len(tokens), _at(tokens), ctypes.addressof(packed.pointers), _at(out))

    def norm(self, x: Array, delta: Array | None, norm: Norm, out: Array) -> None:
        self._norm(*x.shape, _at(x), _at(delta), _at(norm.weight), _at(norm.bias), _at(out))

    def norm_shift(
        self, starts: Index, x: Array, delta: Array | None, norm: Norm, mix: Array, shift: Array, out: Array
    ) -> None:
        addresses = [_at(array) for array in (x, delta, norm.weight, norm.bias, mix, shift, out)]
        self._norm_shift(len(starts) - 1, _at(starts), x.shape[1], len(mix), *addresses)

    def relu_square(self, x: Array) -> None:
        self._relu_square(x.size, _at(x))

    def mix_values(self, v0: Array, gate: Array | None, first: Array, v: Array) -> None:
        self._mix_values(*v.shape, _at(v0), _at(gate), _at(first), _at(v))

    def wkv(
        self,
        starts: Index,
        row_starts: Index,
        gates: Any,
        products: Products,
        r: Array,
        g: Array,
        state: Array | None,
        out: Array,
    ) -> None:
        streams = _pointers_of(products)
        scratch = np.empty(self._head_size**2, np.float32)
        self._wkv(
            *self._texts(starts, row_starts, out.shape[1]),
            ctypes.addressof(gates.pointers), ctypes.addressof(streams),
            *map(_at, (r, g, state, scratch, out)),
        )  # fmt: skip

    def backward(
        self,
        starts: Index,
        row_starts: Index,
        gates: Any,
        products: Products,
        after: int,
        u: Array,
        own: Array,
        out: Array,
    ) -> None:
        streams = _pointers_of(products)
        scratch = np.empty(3 * u.shape[1], np.float32)
        weights, sums = (out, None) if products.v is None else (None, out)
        self._backward(
            *self._texts(starts, row_starts, u.shape[1]),
            ctypes.addressof(gates.pointers), ctypes.addressof(streams),
            after, *map(_at, (scratch, u, own, weights, sums)),
        )  # fmt: skip

    def read_state(self, row_starts: Index, state: Array, u: Array, y: Array) -> None:
        self._read_state(len(state), _at(row_starts), *state.shape[1:3], _at(state), _at(u), _at(y))

    def weighted_sums(self, starts: Index, row_starts: Index, weights: Array, x: Array, sums: Array) -> None:
        addresses = [_at(array) for array in (weights, x, sums)]
        self._weighted_sums(len(starts) - 1, _at(starts), _at(row_starts), *sums.shape, *addresses)

    def close(self, gates: Any, y: Array, own: Array, v: Array | None, g: Array, out: Array) -> None:
        self._close(
            *own.shape, self._head_size, ctypes.addressof(gates.pointers), *map(_at, (y, own, v, g, out))
        )

    def _texts(self, starts: Index, row_starts: Index, C: int) -> tuple[Any, ...]:
        n, H = len(starts) - 1, C // self._head_size
        return n, _at(starts), _at(row_starts), H, self._head_size


def _panels(matrix: NDArray, together: int) -> NDArray:
    """(N / PANEL, K / together, PANEL, together): `together` numbers of a column are one word; zeros fill up K."""
    rows, columns = matrix.shape
    if rows % together:
        matrix = np.pad(matrix, ((0, -rows % together), (0, 0)))
    words = matrix.reshape(-1, together, columns // PANEL, PANEL)
    return np.ascontiguousarray(words.transpose(2, 0, 3, 1))
