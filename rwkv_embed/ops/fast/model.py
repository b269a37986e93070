"""RWKV-7 on a CPU at the speed of its matrix products, without torch.

It differs from the reference in where the work is done, not in what is computed. Texts are packed into one
stream: no padding, token shift and state begin anew at each text. Products are one `x @ w` over the whole
stream. Of the last layer only what enters the state is computed at every position; receptance, output and
channel mixing are needed at a text's end alone, and so is the state itself unless it is asked for (block.py).
A text longer than the token budget is read piece by piece, so memory does not depend on length.

    model = FastRWKV7.from_file("model.safetensors")
    hidden, states = model.hidden([[17, 4, 65535], [9, 65535]])     # (2, C) float32, one state per text
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike

from rwkv_embed.config import Dtype, ModelConfig, check_dtype
from rwkv_embed.errors import StateError, TokenizerError
from rwkv_embed.ops.fast.block import TAIL, Block, LayerState, Piece, Workspace, flops
from rwkv_embed.ops.fast.choice import choose_dtype, load_kernels
from rwkv_embed.ops.fast.kernels import Array, Index, Kernels
from rwkv_embed.ops.fast.weights import Tensors, build_weights, read_safetensors

TOKEN_BUDGET = 256  # tokens a batch: buffers stay near the cache, products are long enough for full speed
LARGE_BATCH = 16  # budgets a batch where tokens are read in pieces and only texts' ends together
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
        dtype: Dtype | None = None,
        threads: int | None = None,
        token_budget: int = TOKEN_BUDGET,
        kernels: Kernels | None = None,
    ) -> None:
        """`tensors`: a checkpoint's, with or without `rwkv.`; a given `config` must agree with their shapes.

        `dtype`: of the products, by default float32 or, where it is faster, bfloat16 (choice.py).
        `threads` (default: the processors this process may use) are busy only inside a call; one does where a
        single layer is read without its states.
        `flops_per_token` and `flops_per_text` are 2 x the matrix parameters that each token, and each text's end
        besides, passes through when no state is asked for.
        """
        if dtype is not None:
            check_dtype(dtype)
        weights = build_weights(tensors)
        self.config = weights.config
        if config is not None and _sizes(config) != _sizes(self.config):
            raise ValueError(f"the configuration says {config} but the tensors are of {self.config}")
        self.kernels = kernels or load_kernels(self.config)
        self.threads = (threads or _processors()) if self.kernels.releases_gil else 1
        self.flops_per_token, self.flops_per_text = flops(weights.layers, self.config)
        self.dtype = dtype or choose_dtype(self.kernels, self.flops_per_token)
        self._table, self._ln0, self._ln_out = weights.table.packed(self.kernels), weights.ln0, weights.ln_out
        self._blocks = [
            Block(layer.packed(self.kernels, self.dtype), self.kernels, self.config, i == 0)
            for i, layer in enumerate(weights.layers)
        ]
        self._budget = max(token_budget, TAIL)
        self._idle: list[Workspace] = []  # list.pop and list.append are atomic: no lock

    @classmethod
    def from_file(
        cls, path: str | Path, *, dtype: Dtype | None = None, threads: int | None = None
    ) -> "FastRWKV7":
        """A .safetensors checkpoint. Raises CheckpointError."""
        return cls(read_safetensors(path), dtype=dtype, threads=threads)

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
        texts = self._tokens(batch)
        given = None if states is None else self._checked_states(states, len(texts))
        outputs: list[Array] = [np.empty(0, np.float32)] * len(texts)
        ends: list[State] = [[] for _ in texts]

        def run(texts_of_batch: list[int]) -> None:
            begin = None if given is None else [given[i] for i in texts_of_batch]
            rows, after = self._run([texts[i] for i in texts_of_batch], begin, full_output, return_states)
            for i, row, end in zip(texts_of_batch, rows, after, strict=True):
                outputs[i], ends[i] = row, end

        backwards = len(self._blocks) == 1 and not (full_output or return_states)
        room = (
            (LARGE_BATCH * self._budget, self._budget // TAIL) if backwards else (self._budget, self._budget)
        )
        threads = 1 if backwards else self.threads  # its calls are so short that two threads wait for each other
        batches = _pack([len(text) for text in texts], *room, threads)
        if threads == 1 or len(batches) == 1:
            for texts_of_batch in batches:
                run(texts_of_batch)
        else:
            with ThreadPoolExecutor(threads, "rwkv7") as pool:
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
        try:
            workspace = self._idle.pop()
        except IndexError:
            workspace = Workspace(self.config, self._budget)
        state = self._stack(begin, len(texts)) if keep or begin is not None else None
        if len(self._blocks) == 1 and not (full or keep):
            rows = list(self._ends(workspace, texts, state))
        elif max(map(len, texts)) <= self._budget:
            rows = self._forward(workspace, texts, state, full, keep)
        else:
            (text,) = texts
            state = state or self._stack(None, 1)
            starts = range(0, len(text), self._budget)
            parts = [
                self._forward(
                    workspace, [text[at : at + self._budget]], state, full, keep or at < starts[-1]
                )[0]
                for at in starts
            ]
            rows = [np.concatenate(parts) if full else parts[-1]]
        self._idle.append(workspace)
        if not (keep and state):
            return rows, [[] for _ in texts]
        return rows, [[array[i].copy() for array in state] for i in range(len(texts))]

    def _forward(
        self, ws: Workspace, texts: list[Index], state: State | None, full: bool, keep: bool
    ) -> list[Array]:
        """Hidden states of packed texts; with `keep`, `state` (texts first) becomes the one after them."""
        starts = np.cumsum([0, *map(len, texts)])
        x, delta = self._embed(ws, np.concatenate(texts)), None
        *earlier, last = [(block, _of_layer(state, i)) for i, block in enumerate(self._blocks)]
        for block, of_layer in earlier:
            x, delta = block.forward(ws, starts, x, delta, of_layer)
        block, of_layer = last
        if full or keep:
            x, delta = block.forward(ws, starts, x, delta, of_layer, reads_all=full)
        else:
            piece = Piece(starts, x, delta, of_layer[0] if of_layer else ws.zeros(len(texts)))
            x, delta = block.ends(ws, piece.tails(), [piece], of_layer)
        hidden = self._normed(x, delta)
        return np.split(hidden, starts[1:-1]) if full else list(hidden)

    def _ends(self, ws: Workspace, texts: list[Index], state: State | None) -> Array:
        """Hidden states (n, C) after texts of a model with one layer: many ends together, tokens in pieces."""
        (block,) = self._blocks
        shift = state[0] if state else ws.zeros(len(texts))
        lengths = list(map(len, texts))

        def piece(texts: list[Index], shift: Array, first: int = 0, after: int = 0) -> Piece:
            starts = np.cumsum([0, *map(len, texts)])
            return Piece(starts, self._embed(ws, np.concatenate(texts)), None, shift, first, after)

        def pieces() -> Iterator[Piece]:
            for some in _pack(lengths, self._budget, self._budget, threads=1):
                first, last = some[0], some[-1] + 1
                if sum(lengths[first:last]) <= self._budget:
                    yield piece(texts[first:last], shift[first:last], first)
                    continue
                for end in range(lengths[first], 0, -self._budget):
                    start = max(0, end - self._budget)
                    before = shift[first:last]
                    if start:
                        before = block.shift_after(self._embed(ws, texts[first][start - 1 : start]))
                    yield piece([texts[first][start:end]], before, first, lengths[first] - end)

        tails = piece([text[-TAIL:] for text in texts], shift.copy())
        return self._normed(*block.ends(ws, tails, pieces(), state))

    def _embed(self, ws: Workspace, tokens: Index) -> Array:
        """What the first layer reads (T, C), in `ws.x`."""
        x = ws.x[: len(tokens)]
        self._table.rows(tokens, self.kernels, out=x)
        self.kernels.norm(x, None, self._ln0, x)
        return x

    def _normed(self, x: Array, delta: Array | None) -> Array:
        out = np.empty_like(x)
        self.kernels.norm(x, delta, self._ln_out, out)
        return out

    def _tokens(self, batch: Sequence[Sequence[int]]) -> list[Index]:
        texts = [np.asarray(text, np.int64) for text in batch]
        for i, tokens in enumerate(texts):
            if tokens.ndim != 1 or not len(tokens):
                raise ValueError(f"text {i} of the batch has no tokens; give at least its end-of-text token")
        together = np.concatenate(texts) if texts else np.empty(0, np.int64)
        if ((together < 0) | (together >= self.config.vocab_size)).any():
            self._refuse_unknown(texts)
        return texts

    def _refuse_unknown(self, texts: list[Index]) -> NoReturn:
        V = self.config.vocab_size
        i, token = next((i, t) for i, text in enumerate(texts) for t in text.tolist() if not 0 <= t < V)
        raise TokenizerError(
            f"text {i} of the batch has the token {token}, outside the vocabulary of {V}; encode it with this "
            "model's tokenizer"
        )

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


def _of_layer(state: State | None, i: int) -> LayerState | None:
    return None if state is None else state[3 * i : 3 * i + 3]


def _pack(lengths: list[int], budget: int, most: int, threads: int) -> list[list[int]]:
    """Texts into batches of at most `budget` tokens and `most` texts, one or more a thread.

    A longer text is alone.
    """
    share = max(_SMALLEST_BATCH, -(-sum(lengths) // threads))
    budget = min(budget, share)
    batches: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if length > room or not batches or len(batches[-1]) == most:
            batches.append([])
            room = budget
        batches[-1].append(i)
        room -= length
    return batches


def _sizes(config: ModelConfig) -> tuple[int, ...]:
    return config.n_layer, config.n_embd, config.n_head, config.head_size, config.n_ffn, config.vocab_size


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
