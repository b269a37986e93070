"""The same operations in NumPy: no compiler needed, and the measure of the compiled ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rwkv_embed.coding import BLOCK, CodedMatrix
from rwkv_embed.config import Dtype
from rwkv_embed.ops.fast.kernels import Array, DecodedBlocks, Gates, Index, Norm, Products, read_positions
from rwkv_embed.ops.fast.narrow import as_float32, quantize_columns, quantize_rows, round_bfloat16
from rwkv_embed.sums import Sums

LAYER_NORM_EPS = 1e-5
GROUP_NORM_EPS = 64e-5
LOG_DECAY = -0.606531  # -exp(-0.5) as PyPI `rwkv` has it
_LEAST_NORM = 1e-12  # of a removal key


@dataclass(frozen=True, slots=True)
class _Matrix:
    """(K, N) in float32 with the numbers that `dtype` has; of int8, whole numbers times `scale` (N,)."""

    matrix: Array
    scale: Array
    dtype: Dtype


@dataclass(frozen=True, slots=True)
class _Coded:
    blocks: DecodedBlocks
    sums: Sums | None

    def rows(self, rows: Index) -> Array:
        """(n, C) of stored rows."""
        known = self.blocks
        blocks = np.unique(rows // BLOCK)
        missing = blocks[~known.decoded[blocks]]
        known.symbols[missing] = known.matrix.decode_blocks(missing)
        known.decoded[missing] = True
        return known.matrix.rows(rows, known.symbols.reshape(-1, known.symbols.shape[2])[rows])


class NumpyKernels:
    """The same operations in NumPy: no compiler needed, and the measure of the compiled ones."""

    name = "numpy"
    releases_gil = False
    native: frozenset[Dtype] = frozenset()

    def __init__(self, head_size: int) -> None:
        self._head_size = head_size

    def pack(self, matrix: Array, dtype: Dtype = "float32") -> _Matrix:
        if dtype == "int8":
            numbers, scale = quantize_columns(matrix)
            return _Matrix(numbers.astype(np.float32), scale, dtype)
        rounded = as_float32(round_bfloat16(matrix)) if dtype == "bfloat16" else matrix
        return _Matrix(rounded, np.ones(matrix.shape[1], np.float32), dtype)

    def matmul(self, x: Array, packed: Any, out: Array) -> Array:
        matrix, scale = packed.matrix, packed.scale
        if x.ndim == 3:
            matrix = matrix.reshape(len(matrix), len(x), -1).transpose(1, 0, 2)
            scale = scale.reshape(len(x), 1, -1)
        if packed.dtype == "int8":
            x, row_scale = quantize_rows(x)
            np.matmul(x, matrix, out=out)
            out *= row_scale * scale
            return out
        if packed.dtype == "bfloat16":
            x = as_float32(round_bfloat16(x))
        return np.matmul(x, matrix, out=out)

    def pack_gates(self, gates: Gates) -> Gates:
        return gates

    def pack_coded(self, matrix: CodedMatrix, sums: Sums | None = None) -> "_Coded":
        return _Coded(DecodedBlocks.none_of(matrix), sums)

    def coded_rows(self, tokens: Index, packed: "_Coded", out: Array) -> None:
        out[:] = packed.sums.vectors(tokens, packed.rows) if packed.sums else packed.rows(tokens)

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
            added = weights[: last - first, :, begin:end] @ x[begin:end]
            sums[:, first:last] += added.transpose(1, 0, 2)

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


def _standardise(x: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance: Array = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(eps))


def _sigmoid(x: Array) -> Array:
    return np.float32(1) / (np.float32(1) + np.exp(-np.clip(x, -87, 87)))

