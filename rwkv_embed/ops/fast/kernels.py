"""The operations of an RWKV-7 layer behind one protocol: in C (`kernels.c`), or the same numbers in NumPy.

Texts are packed, without padding: `starts` (n + 1, int64) are cumulative lengths, text s is at positions
starts[s] ... starts[s + 1] - 1 of a stream of T tokens. Arrays are float32 and C-contiguous.
"""

import ctypes
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.config import ModelConfig

Array = NDArray[np.float32]
Index = NDArray[np.int64]

LAYER_NORM_EPS = 1e-5
GROUP_NORM_EPS = 64e-5
LOG_DECAY = -0.606531  # -exp(-0.5) as PyPI `rwkv` has it
_MAX_HEAD_SIZE = 256  # MAX_HEAD and LANES of kernels.c
_HEAD_SIZE_STEP = 8
PANEL = 16  # PANEL of kernels.c: widths of matrices are multiples of it


@dataclass(frozen=True, slots=True)
class Norm:
    """Weight and bias (C,) of a layer norm."""

    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class Gates:
    """Time mixing's parameters per channel (C,), named as in the checkpoint; the first layer has no `v0`."""

    w0: Array
    a0: Array
    v0: Array | None
    k_k: Array
    k_a: Array
    r_k: Array
    ln_x: Norm


@dataclass(frozen=True, slots=True)
class Products:
    """Products of one layer's shifted input: (T, C), but `r` and `g` only at the rows that are read."""

    r: Array
    w: Array
    k: Array
    v: Array
    a: Array
    g: Array
    v_gate: Array | None
    v_first: Array | None


class Kernels(Protocol):
    """The operations of an RWKV-7 layer."""

    name: str
    releases_gil: bool  # whether threads of ours use more cores

    def pack(self, matrix: Array) -> Any:
        """A matrix (K, N) as `matmul` wants it; made once, at load."""

    def matmul(self, x: Array, packed: Any, out: Array) -> Array:
        """out (M, N) = x (M, K) @ matrix; returns out."""

    def norm(self, x: Array, delta: Array | None, norm: Norm, out: Array) -> None:
        """x += delta; out = layer_norm(x); all (rows, C)."""

    def norm_shift(
        self, starts: Index, x: Array, delta: Array | None, norm: Norm, mix: Array, shift: Array, out: Array
    ) -> None:
        """x += delta; y = layer_norm(x); out[m, t] = y[t] + (y[t-1] - y[t]) * mix[m].

        x, delta (T, C); mix (M, C); out (M, T, C). y[-1] of text s is shift[s], which becomes its last y.
        """

    def relu_square(self, x: Array) -> None:
        """x = relu(x)^2 in place."""

    def wkv(
        self,
        starts: Index,
        row_starts: Index,
        gates: Gates,
        products: Products,
        state: Array | None,
        out: Array,
    ) -> None:
        """The recurrence, its gates before and the group norm, bonus and output gate after it.

        Text s is read at its last row_starts[s+1] - row_starts[s] positions; out (row_starts[-1], C). `state`
        (n, H, N, N) becomes the state after each text; None: texts start at zero and the state is dropped.
        """


def load_kernels(config: ModelConfig) -> Kernels:
    """The compiled kernels where they are built and fit the sizes, else NumPy."""
    head_size = config.head_size
    fits = head_size <= _MAX_HEAD_SIZE and head_size % _HEAD_SIZE_STEP == 0
    fits = fits and config.n_embd % PANEL == 0 and config.n_ffn % PANEL == 0
    spec = find_spec("rwkv_embed.ops.fast._kernels")
    if fits and spec is not None and spec.origin is not None:
        return CompiledKernels(spec.origin, head_size)
    return NumpyKernels(head_size)


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


class _LayerPointers(ctypes.Structure):
    _fields_ = _pointers("w0", "a0", "v0", "k_k", "k_a", "r_k", "ln_weight", "ln_bias")


class _ProductPointers(ctypes.Structure):
    _fields_ = _pointers("r", "w", "k", "v", "a", "g", "v_gate", "v_first", "out")


def _at(array: NDArray | None) -> int | None:
    return None if array is None else array.ctypes.data


class CompiledKernels:
    """`kernels.c` through ctypes: the GIL is released while they run."""

    name = "c"
    releases_gil = True

    def __init__(self, path: str, head_size: int) -> None:
        library = ctypes.CDLL(path)
        size: type[ctypes._SimpleCData] = ctypes.c_int64
        pointer: type[ctypes._SimpleCData] = ctypes.c_void_p
        self._head_size = head_size
        self._matmul = library.rwkv_matmul
        self._matmul.argtypes = [size] * 3 + [pointer] * 3
        self._norm = library.rwkv_norm
        self._norm.argtypes = [size] * 2 + [pointer] * 5
        self._norm_shift = library.rwkv_norm_shift
        self._norm_shift.argtypes = [size, pointer, size, size] + [pointer] * 7
        self._relu_square = library.rwkv_relu_square
        self._relu_square.argtypes = [size, pointer]
        self._wkv = library.rwkv_wkv
        self._wkv.argtypes = [size, pointer, pointer, size, size] + [pointer] * 4
        for function in (self._matmul, self._norm, self._norm_shift, self._relu_square, self._wkv):
            function.restype = None

    def pack(self, matrix: Array) -> Array:
        """(N / PANEL, K, PANEL): a product reads it from beginning to end, once."""
        rows, columns = matrix.shape
        return np.ascontiguousarray(matrix.reshape(rows, columns // PANEL, PANEL).transpose(1, 0, 2))

    def matmul(self, x: Array, packed: Any, out: Array) -> Array:
        self._matmul(*x.shape, out.shape[1], _at(x), _at(packed), _at(out))
        return out

    def norm(self, x: Array, delta: Array | None, norm: Norm, out: Array) -> None:
        self._norm(*x.shape, _at(x), _at(delta), _at(norm.weight), _at(norm.bias), _at(out))

    def norm_shift(
        self, starts: Index, x: Array, delta: Array | None, norm: Norm, mix: Array, shift: Array, out: Array
    ) -> None:
        addresses = [_at(array) for array in (x, delta, norm.weight, norm.bias, mix, shift, out)]
        self._norm_shift(len(starts) - 1, _at(starts), x.shape[1], len(mix), *addresses)

    def relu_square(self, x: Array) -> None:
        self._relu_square(x.size, _at(x))

    def wkv(
        self,
        starts: Index,
        row_starts: Index,
        gates: Gates,
        products: Products,
        state: Array | None,
        out: Array,
    ) -> None:
        g, p = gates, products
        channels = (g.w0, g.a0, g.v0, g.k_k, g.k_a, g.r_k, g.ln_x.weight, g.ln_x.bias)
        layer = _LayerPointers(*map(_at, channels))
        streams = _ProductPointers(*map(_at, (p.r, p.w, p.k, p.v, p.a, p.g, p.v_gate, p.v_first, out)))
        size = self._head_size
        scratch = np.empty(size * size, np.float32)
        self._wkv(
            len(starts) - 1, _at(starts), _at(row_starts), out.shape[1] // size, size,
            ctypes.addressof(layer), ctypes.addressof(streams), _at(state), _at(scratch),
        )  # fmt: skip


class NumpyKernels:
    """The same operations in NumPy: no compiler needed, and the measure of the compiled ones."""

    name = "numpy"
    releases_gil = False

    def __init__(self, head_size: int) -> None:
        self._head_size = head_size

    def pack(self, matrix: Array) -> Array:
        return matrix

    def matmul(self, x: Array, packed: Any, out: Array) -> Array:
        return np.matmul(x, packed, out=out)

    def norm(self, x: Array, delta: Array | None, norm: Norm, out: Array) -> None:
        if delta is not None:
            x += delta
        out[:] = _standardise(x, LAYER_NORM_EPS) * norm.weight + norm.bias

    def norm_shift(
        self, starts: Index, x: Array, delta: Array | None, norm: Norm, mix: Array, shift: Array, out: Array
    ) -> None:
        y = np.empty_like(x)
        self.norm(x, delta, norm, y)
        previous = np.roll(y, 1, axis=0)
        previous[starts[:-1]] = shift
        shift[:] = y[starts[1:] - 1]
        np.multiply(previous - y, mix[:, None], out=out)
        out += y

    def relu_square(self, x: Array) -> None:
        np.square(np.maximum(x, 0, out=x), out=x)

    def wkv(
        self,
        starts: Index,
        row_starts: Index,
        gates: Gates,
        products: Products,
        state: Array | None,
        out: Array,
    ) -> None:
        heads = (-1, out.shape[1] // self._head_size, self._head_size)
        p = products
        rate = _sigmoid(gates.a0 + p.a)
        w = np.exp(LOG_DECAY * _sigmoid(gates.w0 + p.w)).reshape(heads)
        kk = (p.k * gates.k_k).reshape(heads)
        kk = kk / np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), 1e-12)
        b = kk * rate.reshape(heads)
        k = (p.k * (1 + (rate - 1) * gates.k_a)).reshape(heads)
        v = p.v
        if gates.v0 is not None and p.v_first is not None and p.v_gate is not None:
            v = v + (p.v_first - v) * _sigmoid(gates.v0 + p.v_gate)
        v = v.reshape(heads)
        if state is None:
            state = np.zeros((len(starts) - 1, *heads[1:], self._head_size), np.float32)
        positions = read_positions(starts, row_starts)
        y = _recur(starts, w, k, v, kk, b, state, p.r.reshape(heads), positions)
        bonus = (p.r.reshape(heads) * k[positions] * gates.r_k.reshape(heads[1:])).sum(-1, keepdims=True)
        normed = _standardise(y, GROUP_NORM_EPS).reshape(out.shape) * gates.ln_x.weight + gates.ln_x.bias
        np.multiply(normed + (bonus * v[positions]).reshape(out.shape), p.g, out=out)


def _recur(
    starts: Index, w: Array, k: Array, v: Array, kk: Array, b: Array, state: Array, r: Array, positions: Index
) -> Array:
    """All texts in step: S = S diag(w) - (S kk) b^T + v k^T in `state`; gives S r at `positions`."""
    y = np.empty_like(r)
    row_of = np.full(starts[-1], -1, np.int64)
    row_of[positions] = np.arange(len(positions))
    lengths = np.diff(starts)
    for t in range(lengths.max()):
        texts = np.flatnonzero(lengths > t)
        at = starts[texts] + t
        S = state[texts]
        removed = np.einsum("bhij,bhj->bhi", S, kk[at])
        S = S * w[at][:, :, None] - removed[..., None] * b[at][:, :, None]
        S += v[at][..., None] * k[at][:, :, None]
        state[texts] = S
        rows = row_of[at]
        read = rows >= 0
        y[rows[read]] = np.einsum("bhij,bhj->bhi", S[read], r[rows[read]])
    return y


def read_positions(starts: Index, row_starts: Index) -> Index:
    """Positions in the stream of the rows that are read: the last of each text."""
    counts = np.diff(row_starts)
    return np.arange(row_starts[-1], dtype=np.int64) + np.repeat(starts[1:] - row_starts[1:], counts)


def _standardise(x: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance: Array = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(eps))


def _sigmoid(x: Array) -> Array:
    return np.float32(1) / (np.float32(1) + np.exp(-np.clip(x, -87, 87)))
