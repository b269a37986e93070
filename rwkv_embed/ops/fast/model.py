"""RWKV-7 on a CPU at the speed of its matrix products, without torch.

It differs from the reference in where the work is done, not in what is computed. Texts are packed into one
stream: no padding, token shift and state begin anew at each text. Products are one `x @ w` over the whole
stream. Of the last layer only what enters the state is computed at every position; receptance, output and
channel mixing are needed at a text's end alone. A text longer than the token budget is read piece by piece
with its state, so memory does not depend on length.

    model = FastRWKV7.from_file("model.safetensors")
    hidden, states = model.hidden([[17, 4, 65535], [9, 65535]])     # (2, C) float32, one state per text
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from rwkv_embed.config import ModelConfig
from rwkv_embed.errors import StateError, TokenizerError
from rwkv_embed.ops.fast.kernels import PANEL, Array, Index, Kernels, Products, load_kernels, read_positions
from rwkv_embed.ops.fast.weights import Layer, LowRank, Tensors, build_weights, read_safetensors

TOKEN_BUDGET = 256  # tokens a batch: buffers stay near the cache, products are long enough for full speed
_SMALLEST_BATCH = 32  # below this many tokens a second thread costs more than it brings

# Per layer: time mixing's shift (C,), wkv (H, N, N), channel mixing's shift (C,); the order of PyPI `rwkv`.
State = list[Array]


class FastRWKV7:
    """An RWKV-7 read for its hidden states. Several threads may call it; arguments are never changed."""

    def __init__(
        self,
        tensors: Tensors,
        config: ModelConfig | None = None,
        *,
        threads: int | None = None,
        token_budget: int = TOKEN_BUDGET,
        kernels: Kernels | None = None,
    ) -> None:
        """`tensors`: a checkpoint's, with or without `rwkv.`; a given `config` must agree with their shapes.

        `threads` (default: the processors this process may use) are busy only inside a call.
        """
        weights = build_weights(tensors)
        self.config = weights.config
        if config is not None and _sizes(config) != _sizes(self.config):
            raise ValueError(f"the configuration says {config} but the tensors are of {self.config}")
        self.kernels = kernels or load_kernels(self.config)
        self.threads = (threads or _processors()) if self.kernels.releases_gil else 1
        self.flops_per_token = _flops_per_token(weights.layers)
        self._weights = replace(weights, layers=tuple(layer.packed(self.kernels) for layer in weights.layers))
        self._budget = token_budget
        self._idle: list[_Workspace] = []  # list.pop and list.append are atomic: no lock

    @classmethod
    def from_file(cls, path: str | Path, *, threads: int | None = None) -> "FastRWKV7":
        """A .safetensors checkpoint. Raises CheckpointError."""
        return cls(read_safetensors(path), threads=threads)

    def zero_state(self) -> State:
        """The state before a text."""
        c = self.config
        one_layer = ((c.n_embd,), (c.n_head, c.head_size, c.head_size), (c.n_embd,))
        return [np.zeros(shape, np.float32) for _ in range(c.n_layer) for shape in one_layer]

    def hidden(
        self,
        batch: Sequence[Sequence[int]],
        states: Sequence[Sequence[ArrayLike]] | None = None,
        *,
        full_output: bool = False,
        return_states: bool = True,
    ) -> tuple[Array | list[Array], list[State] | None]:
        """Hidden states after `ln_out`: (B, C) at the last tokens; with `full_output` a list of (T_i, C).

        `states` continues texts. The second value is the states after the texts, each n_layer x n_embd x
        (head_size + 2) floats, or None with `return_states=False`: the choice for many texts. Raises
        TokenizerError for an unknown token, StateError for a state of another shape, ValueError for a text
        without tokens.
        """
        texts = [self._tokens(text, i) for i, text in enumerate(batch)]
        given = None if states is None else self._checked_states(states, len(texts))
        outputs: list[Array] = [np.empty(0, np.float32)] * len(texts)
        ends: list[State] = [[] for _ in texts]

        def run(texts_of_batch: list[int]) -> None:
            begin = None if given is None else [given[i] for i in texts_of_batch]
            rows, after = self._run([texts[i] for i in texts_of_batch], begin, full_output, return_states)
            for i, row, end in zip(texts_of_batch, rows, after, strict=True):
                outputs[i], ends[i] = row, end

        batches = _pack([len(text) for text in texts], self._budget, self.threads)
        if self.threads == 1 or len(batches) == 1:
            for texts_of_batch in batches:
                run(texts_of_batch)
        else:
            with ThreadPoolExecutor(self.threads, "rwkv7") as pool:
                for _ in pool.map(run, batches):  # asks for each result, so that errors are raised here
                    pass
        kept = ends if return_states else None
        if full_output:
            return outputs, kept
        return np.stack(outputs) if outputs else np.empty((0, self.config.n_embd), np.float32), kept

    def _run(
        self, texts: list[Index], begin: list[State] | None, full: bool, keep: bool
    ) -> tuple[list[Array], list[State]]:
        """One batch, or one long text in pieces: hidden and final states (empty unless `keep`) a text."""
        longest = max(map(len, texts))
        pieces = -(-longest // self._budget)
        stateful = keep or begin is not None or pieces > 1
        stacked = self._stack(begin, len(texts)) if stateful else None
        try:
            workspace = self._idle.pop()
        except IndexError:
            workspace = _Workspace(self.config, self._budget)
        if pieces == 1:
            rows = self._forward(workspace, texts, stacked, full)
        else:
            (text,) = texts
            parts = [
                self._forward(workspace, [text[at : at + self._budget]], stacked, full)[0]
                for at in range(0, longest, self._budget)
            ]
            rows = [np.concatenate(parts) if full else parts[-1]]
        self._idle.append(workspace)
        if not (keep and stacked):
            return rows, [[] for _ in texts]
        return rows, [[array[i].copy() for array in stacked] for i in range(len(texts))]

    def _forward(self, ws: "_Workspace", texts: list[Index], state: State | None, full: bool) -> list[Array]:
        """Hidden states of packed texts; `state` (texts are the first axis) becomes the state after them."""
        kernels, weights = self.kernels, self._weights
        starts = np.cumsum([0, *map(len, texts)])
        x = ws.x[: starts[-1]]
        embedded = ws.delta[: starts[-1]]
        weights.table.rows(np.concatenate(texts), out=embedded)
        kernels.norm(embedded, None, weights.ln0, x)
        delta = None
        rows = starts
        for i, layer in enumerate(weights.layers):
            reads_all = full or i + 1 < len(weights.layers)
            if not reads_all:  # channel mixing at the last position also looks at the one before it
                rows = np.cumsum([0, *np.minimum(np.diff(starts), 2)])
            att_shift, wkv, ffn_shift = (
                state[3 * i : 3 * i + 3] if state else (ws.zeros(len(texts)), None, ws.zeros(len(texts)))
            )
            delta = self._time_mixing(ws, layer, i == 0, (starts, rows), x, delta, att_shift, wkv)
            if not reads_all:
                x = x[read_positions(starts, rows)]
            delta, x = self._channel_mixing(ws, layer, rows, x, delta, ffn_shift, reads_all)
        out = np.empty_like(x)
        kernels.norm(x, delta, weights.ln_out, out)
        return np.split(out, starts[1:-1]) if full else list(out)

    def _time_mixing(
        self, ws: "_Workspace", layer: Layer, is_first: bool, spans: tuple[Index, Index], x: Array,
        delta: Array | None, shift: Array, wkv: Array | None,
    ) -> Array:  # fmt: skip
        """x += delta; what time mixing adds to x (at the rows read), in `ws.delta`."""
        starts, rows = spans
        T, M = len(x), rows[-1]
        mixed = ws.mixed(6, T)
        self.kernels.norm_shift(starts, x, delta, layer.ln1, layer.mix, shift, mixed)
        xr, xw, xk, xv, xa, xg = mixed
        if T > M:
            at = read_positions(starts, rows)
            xr, xg = xr[at], xg[at]
        r = self.kernels.matmul(xr, layer.receptance, ws.r[:M])
        k = self.kernels.matmul(xk, layer.key, ws.k[:T])
        v = self.kernels.matmul(xv, layer.value, (ws.v_first if is_first else ws.v)[:T])
        w = self._low_rank(xw, layer.w, ws.w[:T], np.tanh)
        a = self._low_rank(xa, layer.a, ws.a[:T])
        g = self._low_rank(xg, layer.g, ws.g[:M], _sigmoid)
        v_gate = None if layer.v is None else self._low_rank(xv, layer.v, ws.v_gate[:T])
        products = Products(r, w, k, v, a, g, v_gate, None if is_first else ws.v_first[:T])
        out = ws.out[:M]
        self.kernels.wkv(starts, rows, layer.gates, products, wkv, out)
        return self.kernels.matmul(out, layer.output, ws.delta[:M])

    def _channel_mixing(
        self,
        ws: "_Workspace",
        layer: Layer,
        starts: Index,
        x: Array,
        delta: Array,
        shift: Array,
        reads_all: bool,
    ) -> tuple[Array, Array]:
        """x += delta; what channel mixing adds to x, and x; at the texts' ends only, unless `reads_all`."""
        mixed = ws.mixed(1, len(x))
        self.kernels.norm_shift(starts, x, delta, layer.ln2, layer.ffn_mix, shift, mixed)
        (xk,) = mixed
        if not reads_all:
            last = starts[1:] - 1
            xk, x = xk[last], x[last]
        hidden = self.kernels.matmul(xk, layer.ffn_key, ws.hidden[: len(x)])
        self.kernels.relu_square(hidden)
        return self.kernels.matmul(hidden, layer.ffn_value, ws.delta[: len(x)]), x

    def _low_rank(
        self, x: Array, pair: LowRank, out: Array, activation: Callable[..., object] | None = None
    ) -> Array:
        inner = np.empty((len(x), pair.width + -pair.width % PANEL), np.float32)
        self.kernels.matmul(x, pair.down, inner)
        if activation is not None:
            activation(inner, out=inner)
        return self.kernels.matmul(inner, pair.up, out)

    def _tokens(self, text: Sequence[int], i: int) -> Index:
        tokens = np.asarray(text, np.int64)
        if tokens.ndim != 1 or not len(tokens):
            raise ValueError(f"text {i} of the batch has no tokens; give at least its end-of-text token")
        low, high = tokens.min(), tokens.max()
        if low < 0 or high >= self.config.vocab_size:
            raise TokenizerError(
                f"text {i} of the batch has the token {low if low < 0 else high}, outside the vocabulary of "
                f"{self.config.vocab_size}; encode it with this model's tokenizer"
            )
        return tokens

    def _checked_states(self, states: Sequence[Sequence[ArrayLike]], n: int) -> list[State]:
        if len(states) != n:
            raise StateError(f"{len(states)} states for {n} texts; give one per text")
        expected = [array.shape for array in self.zero_state()]
        arrays = [[np.asarray(array, np.float32) for array in state] for state in states]
        for i, state in enumerate(arrays):
            shapes = [array.shape for array in state]
            if shapes != expected:
                raise StateError(
                    f"state {i} has {len(shapes)} arrays of shapes {shapes[:3]}..., this model's has "
                    f"{len(expected)} of {expected[:3]}...; it belongs to another model"
                )
        return arrays

    def _stack(self, states: list[State] | None, n: int) -> State:
        states = states or [self.zero_state()] * n
        return [np.stack(arrays) for arrays in zip(*states, strict=True)]


class _Workspace:
    """Buffers of one batch, used again for the next: no page faults between batches."""

    def __init__(self, c: ModelConfig, tokens: int) -> None:
        self._channels = c.n_embd
        streams = np.empty((11, tokens, c.n_embd), np.float32)
        self.x, self.delta, self.out, self.r, self.w, self.k, self.v, self.a, self.g = streams[:9]
        self.v_gate, self.v_first = streams[9:]
        self._mixed = np.empty(6 * tokens * c.n_embd, np.float32)
        self.hidden = np.empty((tokens, c.n_ffn), np.float32)

    def mixed(self, n: int, tokens: int) -> Array:
        """(n, tokens, C) contiguous, in the same memory at each call."""
        return self._mixed[: n * tokens * self._channels].reshape(n, tokens, self._channels)

    def zeros(self, n: int) -> Array:
        """Token shift's past of texts that begin."""
        return np.zeros((n, self._channels), np.float32)


def _sigmoid(x: Array, out: Array) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    np.add(out, 1, out=out)
    np.reciprocal(out, out=out)


def _pack(lengths: list[int], budget: int, threads: int) -> list[list[int]]:
    """Texts into batches of at most `budget` tokens, one or more a thread; a longer text is alone."""
    share = max(_SMALLEST_BATCH, -(-sum(lengths) // threads))
    budget = min(budget, share)
    batches: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if length > room or not batches:
            batches.append([])
            room = budget
        batches[-1].append(i)
        room -= length
    return batches


def _flops_per_token(layers: tuple[Layer, ...]) -> int:
    """2 x the matrix parameters each token passes through; what only a text's end passes is left out."""
    total = 0
    for i, layer in enumerate(layers):
        matrices = [layer.key, layer.value]
        pairs = [layer.w, layer.a, layer.v]
        if i + 1 < len(layers):
            matrices += [layer.receptance, layer.output, layer.ffn_key, layer.ffn_value]
            pairs += [layer.g]
        total += sum(matrix.size for matrix in matrices)
        total += sum(pair.width * (len(pair.down) + pair.up.shape[1]) for pair in pairs if pair is not None)
    return 2 * total


def _sizes(config: ModelConfig) -> tuple[int, ...]:
    return config.n_layer, config.n_embd, config.n_head, config.head_size, config.n_ffn, config.vocab_size


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
