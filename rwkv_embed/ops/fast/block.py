"""One layer of RWKV-7 on packed texts: at every position, or at the texts' ends alone.

`forward` reads the recurrence from its state, position by position. `ends` is for the last layer when the state
after the text is not wanted: what a text's end reads from the state is a weighted sum of the text's values, and
the weights are found by carrying the reading vector backwards, O(N) a token and head instead of O(N^2). That is
exact; `Kernels.backward` has the formula.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rwkv_embed.config import ModelConfig
from rwkv_embed.ops.fast.kernels import PANEL, Array, Index, Kernels, Products, read_positions
from rwkv_embed.ops.fast.weights import Layer, LowRank

Streams = dict[str, Array]  # time mixing's shifted inputs (T, C) by the letters of weights.STREAMS
TAIL = 3  # tokens that the end of a text needs: two are read, and token shift looks at the one before them
LayerState = list[Array]  # of n texts: shift (n, C), wkv (n, H, N, N), channel mixing's shift (n, C)


class Workspace:
    """Buffers of one batch, used again for the next: no page faults between batches."""

    def __init__(self, c: ModelConfig, tokens: int) -> None:
        self._channels, self._heads = c.n_embd, c.n_head
        streams = np.empty((11, tokens, c.n_embd), np.float32)
        self.x, self.delta, self.out, self.r, self.w, self.k, self.v, self.a, self.g = streams[:9]
        self.v_gate, self.v_first = streams[9:]
        self._mixed = np.empty(6 * tokens * c.n_embd, np.float32)
        self.hidden = np.empty((tokens, c.n_ffn), np.float32)
        self._sums = np.empty(0, np.float32)

    def mixed(self, n: int, tokens: int) -> Array:
        """(n, tokens, C) contiguous, in the same memory at each call."""
        return self._mixed[: n * tokens * self._channels].reshape(n, tokens, self._channels)

    def sums(self, rows: int) -> Array:
        """Zeros (H, rows, C). Made anew they are large enough for the allocator to give them back each time."""
        size = self._heads * rows * self._channels
        if len(self._sums) < size:
            self._sums = np.empty(size, np.float32)
        sums = self._sums[:size].reshape(self._heads, rows, self._channels)
        sums[:] = 0
        return sums

    def zeros(self, n: int) -> Array:
        """Token shift's past of texts that begin."""
        return np.zeros((n, self._channels), np.float32)


@dataclass(frozen=True, slots=True)
class Piece:
    """Packed texts before a layer: x + delta (T, C).

    `shift` (n, C): what token shift finds before them; it is changed.
    `first`: number of the first text among all that are read. `after`: tokens that follow, of a piece of one text.
    """

    starts: Index
    x: Array
    delta: Array | None
    shift: Array
    first: int = 0
    after: int = 0

    def tails(self) -> "Piece":
        """The last tokens of each text, in arrays of their own."""
        tails = np.cumsum([0, *np.minimum(np.diff(self.starts), TAIL)])
        at = read_positions(self.starts, tails)
        return Piece(tails, self.x[at], None if self.delta is None else self.delta[at], self.shift.copy())


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is known of the rows that are read, while texts are gone through backwards.

    `x` before the layer, `g`, and `u`, `own`, `y` of `Kernels.backward`. `values` (rows, C): their own, where
    they count; `sums` (H, rows, C): weighted sums of the values' inputs, where values are made of sums.
    """

    rows: Index
    x: Array
    g: Array
    u: Array
    own: Array
    y: Array
    values: Array | None
    sums: Array | None


class Block:
    """A layer with the kernels that run it. Arrays that it returns are the workspace's."""

    def __init__(self, layer: Layer, kernels: Kernels, config: ModelConfig, is_first: bool) -> None:
        self._layer, self._kernels, self._config = layer, kernels, config
        self._is_first = is_first
        # Values of the first layer are linear in its input, so one product is made of a text's weighted sum.
        self._sums_inputs = is_first and config.head_size % PANEL == 0

    def forward(
        self,
        ws: Workspace,
        starts: Index,
        x: Array,
        delta: Array | None,
        state: LayerState | None,
        reads_all: bool = True,
    ) -> tuple[Array, Array | None]:
        """x and delta after the layer, at every position or at the texts' ends; `state` becomes that after them.

        x += delta on the way in; delta is what the layer's last part adds to x.
        """
        shift, wkv, ffn_shift = state or (ws.zeros(len(starts) - 1), None, None)
        streams = self._shifted(ws, Piece(starts, x, delta, shift))
        products = self._products(ws, streams, with_values=True)
        rows = starts if reads_all else self._end_rows(starts)
        at = None if reads_all else read_positions(starts, rows)
        r, g = self._queries(ws, streams, at)
        out = ws.out[: rows[-1]]
        self._kernels.wkv(starts, rows, self._layer.gates, products, r, g, wkv, out)
        delta = self._kernels.matmul(out, self._layer.output, ws.delta[: len(out)])
        x = x if at is None else x[at]
        return self._channel_mixing(ws, rows, x, delta, ffn_shift, reads_all)

    def ends(
        self, ws: Workspace, tails: Piece, pieces: Iterable[Piece], state: LayerState | None
    ) -> tuple[Array, Array | None]:
        """x and delta (n, C) after the layer at the texts' ends; `state` is the one before the texts, and is lost.

        `tails`: the last TAIL tokens of the texts, or all if they have fewer. `pieces`: some texts, or a part of
        one text in which case its last piece comes first; their arrays may be in the same memory.
        """
        kernels, reading = self._kernels, self._begin_reading(ws, tails)
        for piece in pieces:
            self._read_back(ws, piece, reading)
        y = reading.y
        if reading.sums is not None:
            by_head = np.empty((self._config.n_head, len(y), self._config.head_size), np.float32)
            kernels.matmul(reading.sums, self._layer.value, by_head)
            y = np.ascontiguousarray(by_head.transpose(1, 0, 2)).reshape(y.shape)
        if state is not None:
            kernels.read_state(reading.rows, state[1], reading.u, y)
        out = ws.out[: len(y)]
        kernels.close(self._layer.gates, y, reading.own, reading.values, reading.g, out)
        delta = kernels.matmul(out, self._layer.output, ws.delta[: len(out)])
        ffn_shift = None if state is None else state[2]
        return self._channel_mixing(ws, reading.rows, reading.x, delta, ffn_shift, reads_all=False)

    def shift_after(self, x: Array) -> Array:
        """What token shift finds (n, C) after tokens of which the layer reads x (n, C)."""
        normed = np.empty_like(x)
        self._kernels.norm(x, None, self._layer.ln1, normed)
        return normed

    def _begin_reading(self, ws: Workspace, tails: Piece) -> _Reading:
        rows, H = self._end_rows(tails.starts), self._config.n_head
        at = read_positions(tails.starts, rows)
        u, g = self._queries(ws, self._shifted(ws, tails), at)
        return _Reading(
            rows, tails.x[at], g, u,
            own=np.empty((len(u), H), np.float32),
            y=np.zeros_like(u),
            values=np.empty_like(u) if self._layer.own_values else None,
            sums=ws.sums(len(u)) if self._sums_inputs else None,
        )  # fmt: skip

    def _read_back(self, ws: Workspace, piece: Piece, reading: _Reading) -> None:
        """One piece: what its tokens add to the rows that are read."""
        kernels, gates, starts = self._kernels, self._layer.gates, piece.starts
        streams = self._shifted(ws, piece)
        products = self._products(ws, streams, with_values=reading.sums is None)
        read = reading.rows[piece.first : piece.first + len(starts)]
        here, rows = slice(read[0], read[-1]), read - read[0]
        u, own, y = reading.u[here], reading.own[here], reading.y[here]
        if reading.values is not None and not piece.after:
            reading.values[here] = self._values_at(streams, products, read_positions(starts, rows))
        if reading.sums is None:
            kernels.backward(starts, rows, gates, products, piece.after, u, own, y)
            return
        weights = np.zeros((np.diff(rows).max(), own.shape[1], len(piece.x)), np.float32)
        kernels.backward(starts, rows, gates, products, piece.after, u, own, weights)
        kernels.weighted_sums(starts, read, weights, streams["v"], reading.sums)

    def _values_at(self, streams: Streams, products: Products, at: Index) -> Array:
        if products.v is not None:
            return products.v[at]
        x = streams["v"][at]
        return self._kernels.matmul(x, self._layer.value, np.empty_like(x))

    def _end_rows(self, starts: Index) -> Index:
        """Rows of the texts' last positions: two where channel mixing looks at the one before the last."""
        ffn = self._layer.ffn
        return np.cumsum([0, *np.minimum(np.diff(starts), 2 if ffn is not None and ffn.shifts else 1)])

    def _shifted(self, ws: Workspace, piece: Piece) -> Streams:
        """x += delta, normed and shifted for each letter."""
        layer = self._layer
        mixed = ws.mixed(len(layer.mix), len(piece.x))
        self._kernels.norm_shift(piece.starts, piece.x, piece.delta, layer.ln1, layer.mix, piece.shift, mixed)
        return {letter: mixed[i] for letter, i in layer.stream.items()}

    def _products(self, ws: Workspace, streams: Streams, with_values: bool) -> Products:
        """What the recurrence reads at every position."""
        layer, key = self._layer, self._layer.key
        xk = streams["k"] if key.inputs is None else np.take(streams["k"], key.inputs, axis=1)
        k = self._kernels.matmul(xk, key.matrix, ws.k[: len(xk)])
        w = None if layer.w is None else self._low_rank(streams["w"], layer.w, ws.w, np.tanh)
        a = None if layer.a is None else self._low_rank(streams["a"], layer.a, ws.a)
        return Products(w, k, self._values(ws, streams["v"]) if with_values else None, a)

    def _values(self, ws: Workspace, x: Array) -> Array:
        """Values (T, C); those of the first layer stay in `ws.v_first`."""
        layer = self._layer
        v = self._kernels.matmul(x, layer.value, (ws.v_first if self._is_first else ws.v)[: len(x)])
        if layer.v0 is not None:
            gate = None if layer.v is None else self._low_rank(x, layer.v, ws.v_gate)
            self._kernels.mix_values(layer.v0, gate, ws.v_first[: len(x)], v)
        return v

    def _queries(self, ws: Workspace, streams: Streams, at: Index | None) -> tuple[Array, Array]:
        """r and g at the positions `at`; None: all."""
        xr, xg = (streams[letter] if at is None else streams[letter][at] for letter in "rg")
        r = self._kernels.matmul(xr, self._layer.receptance, ws.r[: len(xr)])
        return r, self._low_rank(xg, self._layer.g, ws.g, _sigmoid)

    def _low_rank(
        self, x: Array, pair: LowRank, buffer: Array, activation: Callable[..., object] | None = None
    ) -> Array:
        inner = np.empty((len(x), pair.width + -pair.width % PANEL), np.float32)
        self._kernels.matmul(x, pair.down, inner)
        if activation is not None:
            activation(inner, out=inner)
        return self._kernels.matmul(inner, pair.up, buffer[: len(x)])

    def _channel_mixing(
        self, ws: Workspace, starts: Index, x: Array, delta: Array, shift: Array | None, reads_all: bool
    ) -> tuple[Array, Array | None]:
        """x += delta and what channel mixing adds to it; at the texts' ends only, unless `reads_all`."""
        kernels, layer, last = self._kernels, self._layer, starts[1:] - 1
        if layer.ffn is None:
            if shift is not None:  # a state is whole, whatever reads it
                normed = np.empty_like(x)
                kernels.norm(x, delta, layer.ln2, normed)
                shift[:] = normed[last]
                return x, None
            return x, delta
        mixed = ws.mixed(1, len(x))
        shift = ws.zeros(len(last)) if shift is None else shift
        kernels.norm_shift(starts, x, delta, layer.ln2, layer.ffn.mix, shift, mixed)
        (xk,) = mixed
        if not reads_all:
            xk, x = xk[last], x[last]
        hidden = kernels.matmul(xk, layer.ffn.key, ws.hidden[: len(x)])
        kernels.relu_square(hidden)
        return x, kernels.matmul(hidden, layer.ffn.value, ws.delta[: len(x)])


def _sigmoid(x: Array, out: Array) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    np.add(out, 1, out=out)
    np.reciprocal(out, out=out)


def flops(layers: Sequence[Layer], config: ModelConfig) -> tuple[int, int]:
    """2 x the matrix parameters that a token, and besides that a text's end, passes through to a vector.

    In the last layer a token passes through keys, decays, rates and, unless they are made of a weighted sum,
    values. Parameters that are skipped because they change nothing do not count.
    """
    *earlier, last = layers
    by_token = sum(
        layer.receptance.size + layer.value.size + layer.output.size + layer.g.size + _ffn_size(layer)
        for layer in earlier
    )
    by_token += sum(
        layer.key.size + sum(pair.size for pair in (layer.w, layer.a, layer.v) if pair is not None)
        for layer in layers
    )
    by_row = last.receptance.size + last.g.size + last.output.size
    if len(layers) == 1 and config.head_size % PANEL == 0:
        by_row += last.value.size * (2 if last.own_values else 1)
    else:
        by_token += last.value.size
    rows = 2 if last.ffn is not None and last.ffn.shifts else 1
    return 2 * by_token, 2 * (rows * by_row + _ffn_size(last))


def _ffn_size(layer: Layer) -> int:
    return 0 if layer.ffn is None else int(layer.ffn.key.size + layer.ffn.value.size)
