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
from rwkv_embed.packing import unpack_int4

Array = NDArray[np.float32]
Index = NDArray[np.int64]

LAYER_NORM_EPS = 1e-5
GROUP_NORM_EPS = 64e-5
LOG_DECAY = -0.606531  # -exp(-0.5) as PyPI `rwkv` has it
_MAX_HEAD_SIZE = 256  # MAX_HEAD and LANES of kernels.c
_HEAD_SIZE_STEP = 8
_LEAST_NORM = 1e-12  # of a removal key
PANEL = 16  # PANEL of kernels.c: widths of matrices are multiples of it


@dataclass(frozen=True, slots=True)
class Norm:
    """Weight and bias (C,) of a layer norm."""

    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class Gates:
    """Time mixing's parameters per channel (C,), named as in the checkpoint."""

    w0: Array
    a0: Array
    k_k: Array
    k_a: Array
    r_k: Array
    ln_x: Norm


@dataclass(frozen=True, slots=True)
class Products:
    """Products of one layer's shifted input (T, C). `w` and `a` may be None: zero, so the gates are constant.

    `v`, with the first layer's values mixed in, may be None where only weights of tokens are wanted.
    """

    w: Array | None
    k: Array
    v: Array | None
    a: Array | None


class Kernels(Protocol):
    """The operations of an RWKV-7 layer."""

    name: str
    releases_gil: bool  # whether threads of ours use more cores

    def pack(self, matrix: Array) -> Any:
        """A matrix (K, N) as `matmul` wants it; made once, at load."""

    def pack_gates(self, gates: Gates) -> Any:
        """Gates as the recurrence wants them; made once, at load."""

    def matmul(self, x: Array, packed: Any, out: Array) -> Array:
        """out (..., M, N) = x (..., M, K) @ matrix; returns out.

        With B x's, the matrix (K, B N) is B matrices (K, N) side by side, one for each.
        """

    def unpack_int4(
        self, tokens: Index, packed: NDArray[np.uint8], scale: NDArray[np.float16], out: Array
    ) -> None:
        """out (T, C) = rows `tokens` of a table in four bits (see packing.py)."""

    def norm(self, x: Array, delta: Array | None, norm: Norm, out: Array) -> None:
        """x += delta; out = layer_norm(x); all (rows, C); out may be x."""

    def norm_shift(
        self, starts: Index, x: Array, delta: Array | None, norm: Norm, mix: Array, shift: Array, out: Array
    ) -> None:
        """x += delta; y = layer_norm(x); out[m, t] = y[t] + (y[t-1] - y[t]) * mix[m].

        x, delta (T, C); mix (M, C); out (M, T, C). y[-1] of text s is shift[s], which becomes its last y.
        """

    def relu_square(self, x: Array) -> None:
        """x = relu(x)^2 in place."""

    def mix_values(self, v0: Array, gate: Array | None, first: Array, v: Array) -> None:
        """v += (first - v) * sigmoid(v0 + gate): a later layer's values with the first layer's, (T, C)."""

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
        """The recurrence, its gates before and the group norm, bonus and output gate after it.

        Text s is read at its last row_starts[s+1] - row_starts[s] positions: r, g, out (row_starts[-1], C).
        `state` (n, H, N, N) becomes the state after each text; None: texts start at zero and the state is
        dropped.
        """

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
        """What `wkv` reads from its states, without the states: O(N) a token and head instead of O(N^2).

        S_T r = sum of v_t (k_t . u_t) + S_0 u_0, with u_T = r and u_{t-1} = u_t w_t - kk_t (b_t . u_t).
        `u` (rows, C) holds the r of each row read and becomes its u_0. With `products.v` the sum is added to
        `out` (rows, C); without, out (rows of a text, H, T) becomes the weights k_t . u_t. `own` (rows, H)
        becomes the sums of r k r_k, of rows read here. `after` positions of a text follow those given here: the
        text is read in pieces, from its end to its beginning, and u is that of the piece before.
        """

    def read_state(self, row_starts: Index, state: Array, u: Array, y: Array) -> None:
        """y (rows, C) += S u, `state` (n, H, N, N)."""

    def weighted_sums(self, starts: Index, row_starts: Index, weights: Array, x: Array, sums: Array) -> None:
        """sums (rows, H, C) += for each row read the sum over its text of x_t (C,) times the weights of t.

        x (T, C); weights (rows of a text, H, T) are those of `backward`.
        """

    def close(self, gates: Any, y: Array, own: Array, v: Array | None, g: Array, out: Array) -> None:
        """out = (group_norm(y) + own v) * g for rows (rows, C); own (rows, H); `v` None where own is zero."""


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
    _fields_ = _pointers("w0", "a0", "k_k", "k_a", "r_k", "ln_weight", "ln_bias")


class _ProductPointers(ctypes.Structure):
    _fields_ = _pointers("w", "k", "v", "a")


@dataclass(frozen=True, slots=True)
class _PackedGates:
    """`pointers` into `gates`, which must live as long."""

    gates: Gates
    pointers: _LayerPointers


def _at(array: NDArray | None) -> int | None:
    if array is None or not array.size:
        return None
    if array.flags.writeable:  # a quarter of the time of array.ctypes.data, of which there are many
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    return array.ctypes.data


def _pointers_of(p: Products) -> _ProductPointers:
    return _ProductPointers(*map(_at, (p.w, p.k, p.v, p.a)))


class CompiledKernels:
    """`kernels.c` through ctypes: the GIL is released while they run."""

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
        self._unpack = function("unpack", size, size, *[pointer] * 4)
        self._norm = function("norm", size, size, *[pointer] * 5)
        self._norm_shift = function("norm_shift", size, pointer, size, size, *[pointer] * 7)
        self._relu_square = function("relu_square", size, pointer)
        self._mix_values = function("mix_values", size, size, *[pointer] * 4)
        self._wkv = function("wkv", *texts, *[pointer] * 7)
        self._backward = function("backward", *texts, pointer, pointer, size, *[pointer] * 5)
        self._read_state = function("read_state", size, pointer, size, size, *[pointer] * 3)
        self._weighted_sums = function("weighted_sums", *texts, *[pointer] * 3)
        self._close = function("close", *[size] * 3, *[pointer] * 6)

    def pack(self, matrix: Array) -> Array:
        """(N / PANEL, K, PANEL): a product reads it from beginning to end, once."""
        rows, columns = matrix.shape
        return np.ascontiguousarray(matrix.reshape(rows, columns // PANEL, PANEL).transpose(1, 0, 2))

    def pack_gates(self, gates: Gates) -> _PackedGates:
        g = gates
        arrays = (g.w0, g.a0, g.k_k, g.k_a, g.r_k, g.ln_x.weight, g.ln_x.bias)
        return _PackedGates(gates, _LayerPointers(*map(_at, arrays)))

    def matmul(self, x: Array, packed: Any, out: Array) -> Array:
        batch = len(x) if x.ndim == 3 else 1
        self._matmul(batch, *x.shape[-2:], out.shape[-1], _at(x), _at(packed), _at(out))
        return out

    def unpack_int4(
        self, tokens: Index, packed: NDArray[np.uint8], scale: NDArray[np.float16], out: Array
    ) -> None:
        self._unpack(*out.shape, _at(tokens), _at(packed), _at(scale), _at(out))

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
        n, (_, H, C) = len(starts) - 1, sums.shape
        self._weighted_sums(n, _at(starts), _at(row_starts), H, C, _at(weights), _at(x), _at(sums))

    def close(self, gates: Any, y: Array, own: Array, v: Array | None, g: Array, out: Array) -> None:
        self._close(
            *own.shape, self._head_size, ctypes.addressof(gates.pointers), *map(_at, (y, own, v, g, out))
        )

    def _texts(self, starts: Index, row_starts: Index, C: int) -> tuple[Any, ...]:
        n, H = len(starts) - 1, C // self._head_size
        return n, _at(starts), _at(row_starts), H, self._head_size


class NumpyKernels:
    """The same operations in NumPy: no compiler needed, and the measure of the compiled ones."""

    name = "numpy"
    releases_gil = False

    def __init__(self, head_size: int) -> None:
        self._head_size = head_size

    def pack(self, matrix: Array) -> Array:
        return matrix

    def matmul(self, x: Array, packed: Any, out: Array) -> Array:
        if x.ndim == 3:
            packed = packed.reshape(len(packed), len(x), -1).transpose(1, 0, 2)
        return np.matmul(x, packed, out=out)

    def pack_gates(self, gates: Gates) -> Gates:
        return gates

    def unpack_int4(
        self, tokens: Index, packed: NDArray[np.uint8], scale: NDArray[np.float16], out: Array
    ) -> None:
        out[:] = unpack_int4(packed[tokens], scale[tokens])

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

    def mix_values(self, v0: Array, gate: Array | None, first: Array, v: Array) -> None:
        v += (first - v) * _sigmoid(v0 if gate is None else v0 + gate)

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
        w, k, kk, b = self._gated(gates, products)
        assert products.v is not None
        v = products.v.reshape(k.shape)
        if state is None:
            state = np.zeros((len(starts) - 1, *k.shape[1:], self._head_size), np.float32)
        at = read_positions(starts, row_starts)
        queries = r.reshape(-1, *k.shape[1:])
        y = _recur(starts, w, k, v, kk, b, state, queries, at)
        own = (queries * k[at] * gates.r_k.reshape(k.shape[1:])).sum(-1)
        self.close(gates, y.reshape(out.shape), own, products.v[at], g, out)

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
        w, k, kk, b = self._gated(gates, products)
        vectors, r_k = u.reshape(-1, *k.shape[1:]), gates.r_k.reshape(k.shape[1:])  # a view: u is changed
        text = np.repeat(np.arange(len(starts) - 1), np.diff(row_starts))
        begins = (
            row_starts[1:][text] - 1 - np.arange(len(u)) - after
        )  # steps from the end to a row's position
        lengths = np.diff(starts)[text]
        for i in range(lengths.max()):
            rows = np.flatnonzero((lengths > i) & (begins <= i))
            at = starts[1:][text[rows]] - 1 - i
            now = vectors[rows]
            new = begins[rows] == i
            own[rows[new]] = (now[new] * k[at[new]] * r_k).sum(-1)
            seen = (k[at] * now).sum(-1)
            if products.v is None:
                out[rows - row_starts[text[rows]], :, at] = seen
            else:
                out[rows] += (seen[..., None] * products.v[at].reshape(now.shape)).reshape(len(rows), -1)
            vectors[rows] = now * w[at] - kk[at] * (b[at] * now).sum(-1, keepdims=True)

    def read_state(self, row_starts: Index, state: Array, u: Array, y: Array) -> None:
        text = np.repeat(np.arange(len(state)), np.diff(row_starts))
        y += np.einsum("bhij,bhj->bhi", state[text], u.reshape(-1, *state.shape[1:3])).reshape(y.shape)

    def weighted_sums(self, starts: Index, row_starts: Index, weights: Array, x: Array, sums: Array) -> None:
        for begin, end, first, last in zip(starts, starts[1:], row_starts, row_starts[1:], strict=False):
            sums[first:last] += weights[: last - first, :, begin:end] @ x[begin:end]

    def close(self, gates: Any, y: Array, own: Array, v: Array | None, g: Array, out: Array) -> None:
        heads = (len(y), -1, self._head_size)
        normed = _standardise(y.reshape(heads), GROUP_NORM_EPS).reshape(y.shape)
        normed = normed * gates.ln_x.weight + gates.ln_x.bias
        if v is not None:
            normed += (own[..., None] * v.reshape(heads)).reshape(y.shape)
        np.multiply(normed, g, out=out)

    def _gated(self, gates: Gates, p: Products) -> tuple[Array, Array, Array, Array]:
        """w, k, kk and b at every position, (T, H, N)."""
        heads = (len(p.k), -1, self._head_size)
        rate = _sigmoid(gates.a0 if p.a is None else gates.a0 + p.a)
        w = np.exp(LOG_DECAY * _sigmoid(gates.w0 if p.w is None else gates.w0 + p.w))
        kk = (p.k * gates.k_k).reshape(heads)
        kk = kk / np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), _LEAST_NORM)
        k = (p.k * (1 + (rate - 1) * gates.k_a)).reshape(heads)
        w, rate = (np.broadcast_to(gate, p.k.shape).reshape(heads) for gate in (w, rate))
        return w, k, kk, kk * rate


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
