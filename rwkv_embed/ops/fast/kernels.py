"""The operations of an RWKV-7 layer behind one protocol: in C (compiled.py), or the same in NumPy (plain.py).

Texts are packed, without padding: `starts` (n + 1, int64) are cumulative lengths, text s is at positions
starts[s] ... starts[s + 1] - 1 of a stream of T tokens. Arrays are float32 and C-contiguous.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.coding import BLOCK, CodedMatrix
from rwkv_embed.config import Dtype
from rwkv_embed.sums import Sums

Array = NDArray[np.float32]
Index = NDArray[np.int64]

PANEL = 16  # PANEL of common.h: widths of matrices are multiples of it


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


@dataclass(frozen=True, slots=True)
class DecodedBlocks:
    """What is known of a matrix that is decoded block by block; memory of the others is not touched."""

    matrix: CodedMatrix
    symbols: NDArray[np.uint8]  # (blocks, BLOCK, C)
    decoded: NDArray[np.bool_]  # (blocks,), set after a block's symbols

    @classmethod
    def none_of(cls, matrix: CodedMatrix) -> "DecodedBlocks":
        shape = matrix.blocks, BLOCK, matrix.shape[1]
        return cls(matrix, np.empty(shape, np.uint8), np.zeros(matrix.blocks, np.bool_))


class Kernels(Protocol):
    """The operations of an RWKV-7 layer."""

    name: str
    releases_gil: bool  # whether threads of ours use more cores
    native: frozenset[Dtype]  # narrow types whose products this processor has instructions for

    def pack(self, matrix: Array, dtype: Dtype = "float32") -> Any:
        """A matrix (K, N) as `matmul` wants it; made once, at load.

        bfloat16: weights and what they are multiplied with are rounded, sums are float32. int8: whole numbers up
        to 127 times a scale for each column of the matrix and each row of what it is multiplied with.
        """

    def pack_gates(self, gates: Gates) -> Any:
        """Gates as the recurrence wants them; made once, at load."""

    def matmul(self, x: Array, packed: Any, out: Array) -> Array:
        """out (..., M, N) = x (..., M, K) @ matrix; returns out.

        With B x's, the matrix (K, B N) is B matrices (K, N) side by side, one for each.
        """

    def pack_coded(self, matrix: CodedMatrix, sums: Sums | None = None) -> Any:
        """A coded matrix, and sums of its rows, as `coded_rows` wants them; made once, at load, when nothing is
        decoded yet."""

    def coded_rows(self, tokens: Index, packed: Any, out: Array) -> None:
        """out (T, C) = rows `tokens`, or sums of rows; a block of rows is decoded when the first is asked for.

        Several threads may ask.
        """

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
        """sums (H, rows, C) += for each row read the sum over its text of x_t (C,) times the weights of t.

        x (T, C); weights (rows of a text, H, T) are those of `backward`.
        """

    def close(self, gates: Any, y: Array, own: Array, v: Array | None, g: Array, out: Array) -> None:
        """out = (group_norm(y) + own v) * g for rows (rows, C); own (rows, H); `v` None where own is zero."""


def read_positions(starts: Index, row_starts: Index) -> Index:
    """Positions in the stream of the rows that are read: the last of each text."""
    counts = np.diff(row_starts)
    return np.arange(row_starts[-1], dtype=np.int64) + np.repeat(starts[1:] - row_starts[1:], counts)
