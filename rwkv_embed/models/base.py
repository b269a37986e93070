"""What every generation shares: weights, batches of unequal lengths, logits, states in and out.

A batch is read in windows of a bounded number of tokens, so memory does not grow with the length of a text.
Inside a window rows are padded on the right; padding leaves the state alone (see ops/), so a row does not
depend on its neighbours. `sequential=True` reads token by token with the reference recurrence, otherwise the
time-parallel form is used; both give the same states, and one can continue the other's.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_embed.checkpoint import Checkpoint
from rwkv_embed.config import Dtype, ModelConfig
from rwkv_embed.errors import CheckpointError, TokenizerError
from rwkv_embed.models.weights import Matrix, load_matrix, load_token_table
from rwkv_embed.ops import chunked, reference
from rwkv_embed.state import State, check_state, stack, unstack
from rwkv_embed.tokenizer import Tokenizer, load_tokenizer

# Tokens read at once, over all rows of a batch: enough to keep matrix products busy, and bounded.
WINDOW_TOKENS = 2048

Tokens = Sequence[int]


@dataclass(frozen=True)
class Layer:
    """One block's weights under their official names: matrices without `.weight`, everything else float32."""

    index: int
    matrices: dict[str, Matrix]
    vectors: dict[str, Tensor]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], self.vectors[f"{name}.weight"], self.vectors[f"{name}.bias"], eps
        )


@dataclass
class Window:
    """The tokens being read: `lengths` (B,) of them are real in each row of T."""

    lengths: Tensor
    size: int
    ops: ModuleType  # ops.reference or ops.chunked
    v_first: Tensor | None = None  # RWKV-7: the first layer's values of these tokens (B, T, A)

    @cached_property
    def padded(self) -> Tensor | None:
        """(B, T, 1), true at padding; None when there is none."""
        if bool((self.lengths == self.size).all()):
            return None
        return (torch.arange(self.size) >= self.lengths[:, None])[..., None]

    def real(self, x: Tensor, padding: float = 0.0) -> Tensor:
        """x (B, T, C) with a fixed value at padding."""
        return x if self.padded is None else x.masked_fill(self.padded, padding)

    def shift(self, x: Tensor, previous: Tensor) -> Tensor:
        """Token shift: x of the token before; `previous` (B, C) is that of the first."""
        return torch.cat([previous[:, None], x[:, :-1]], dim=1)

    def last(self, x: Tensor) -> Tensor:
        """x (B, T, C) at the last real token of each row (B, C)."""
        return x[torch.arange(len(self.lengths)), self.lengths - 1]


class Model(ABC):
    """An RWKV model on a CPU. `load_model` makes one; each generation is a subclass in its own file.

    Attributes: `config` (sizes), `tokenizer`, `heads` (tensors of EmbeddingRWKV's heads, float32, by their
    official names, empty for a language model), `extras` (plain values of the checkpoint).
    """

    versions: ClassVar[tuple[str, ...]]

    def __init__(
        self, checkpoint: Checkpoint, dtype: Dtype = "float32", tokenizer: str | Path | None = None
    ) -> None:
        self.config: ModelConfig = checkpoint.config
        self.dtype = dtype
        self.path = checkpoint.path
        self.extras = checkpoint.extras
        self._tokenizer_choice = tokenizer
        self._emb = load_token_table(checkpoint)
        in_blocks = [name for name in checkpoint.tensors if name.startswith("blocks.")]
        weights = {name: self._load(checkpoint, name) for name in in_blocks}
        self.layers = [_layer(index, weights) for index in range(self.config.n_layer)]
        for layer in self.layers:
            self.prepare(layer)
        self._ln_out_weight, self._ln_out_bias = (
            checkpoint.get(name).to(torch.float32, copy=True) for name in ("ln_out.weight", "ln_out.bias")
        )
        self._head = (
            load_matrix(checkpoint, "head.weight", dtype) if "head.weight" in checkpoint.tensors else None
        )
        heads = [name for name in checkpoint.tensors if name.startswith("head.") and name != "head.weight"]
        self.heads: dict[str, Tensor] = {
            name: checkpoint.get(name).to(torch.float32, copy=True) for name in heads
        }

    def _load(self, checkpoint: Checkpoint, name: str) -> "Matrix | Tensor":
        if name.endswith(("key.weight", "value.weight", "receptance.weight", "gate.weight", "output.weight")):
            return load_matrix(checkpoint, name, self.dtype)
        return checkpoint.get(name).to(torch.float32, copy=True)

    @property
    def version(self) -> str:
        return self.config.version

    @property
    def n_layer(self) -> int:
        return self.config.n_layer

    @property
    def n_embd(self) -> int:
        return self.config.n_embd

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer named at loading, or the one of the vocabulary size; loaded on first use."""
        return load_tokenizer(self._tokenizer_choice, vocab_size=self.vocab_size, beside=self.path)

    def zero_state(self) -> State:
        """The state of a model that has read nothing (or the tuned one, if the checkpoint has it)."""
        state = State.zeros(self.config)
        for layer in self.layers:
            if "att.time_state" in layer.vectors:
                state.tensors[3 * layer.index + 1] = (
                    layer.vectors["att.time_state"].transpose(1, 2).contiguous()
                )
        return state

    def forward(
        self,
        tokens: Tokens,
        state: State | None = None,
        full_output: bool = False,
        *,
        sequential: bool = False,
    ) -> tuple[Tensor, State]:
        """Read tokens on from `state` (default: nothing read), which stays as it is.

        Returns the float32 logits after the last token (V,), or after each (T, V) with `full_output`, and the
        new state. Without tokens there is nothing to predict from: the logits are zeros (V,), or (0, V).
        """
        states = None if state is None else [state]
        if full_output:
            rows, new_states = self.hidden([tokens], states, full_output=True, sequential=sequential)
            return self.logits(rows[0]), new_states[0]
        hidden, new_states = self.hidden([tokens], states, sequential=sequential)
        return (self.logits(hidden[0]) if len(tokens) else torch.zeros(self.vocab_size)), new_states[0]

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., C); CheckpointError when there is no vocabulary head."""
        if self._head is None:
            raise CheckpointError(
                f"{self.path} is a checkpoint without a vocabulary head ({self.config.kind}), so it has no"
                " logits; use hidden()"
            )
        return self._head(hidden)

    @torch.no_grad()
    def hidden(
        self,
        batch: Sequence[Tokens],
        states: Sequence[State] | None = None,
        full_output: bool = False,
        *,
        sequential: bool = False,
    ) -> tuple[Tensor | list[Tensor], list[State]]:
        """Hidden states after `ln_out` of several texts of any lengths, each read on from its own state.

        Returns the one of each last token (B, C) float32 (zeros for a text without tokens), or with
        `full_output` a list of (T_i, C); and the new states. The states given stay as they are.
        """
        rows = [self._checked(tokens) for tokens in batch]
        if states is not None and len(states) != len(rows):
            raise ValueError(f"{len(states)} states were given for {len(rows)} texts; give one each, or none")
        if not rows:
            return ([] if full_output else torch.empty(0, self.n_embd)), []
        for state in states or ():
            check_state(state, self.config)
        current = stack(states if states is not None else [self.zero_state()] * len(rows))
        pieces: list[list[Tensor]] = [[torch.empty(0, self.n_embd)] for _ in rows]
        last = torch.zeros(len(rows), self.n_embd)
        start = 0
        while active := [i for i, row in enumerate(rows) if len(row) > start]:
            size = max(1, WINDOW_TOKENS // len(active))
            tokens, window = _window([rows[i][start : start + size] for i in active], sequential)
            x, new = self._read(tokens, [tensor[active] for tensor in current], window)
            for tensor, changed in zip(current, new, strict=True):
                tensor[active] = changed
            if full_output:
                x = self._normed(x)
                for row, length, values in zip(active, window.lengths.tolist(), x, strict=True):
                    pieces[row].append(values[:length])
            else:
                last[active] = self._normed(window.last(x))
            start += size
        output = [torch.cat(piece) for piece in pieces] if full_output else last
        return output, unstack(current, self.config)

    def _checked(self, tokens: Tokens) -> list[int]:
        ids = [int(token) for token in tokens]
        if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            wrong = next(token for token in ids if not 0 <= token < self.vocab_size)
            raise TokenizerError(
                f"token {wrong} is outside the model's vocabulary of {self.vocab_size}; encode the text with"
                " its own tokenizer"
            )
        return ids

    def _read(self, tokens: Tensor, state: list[Tensor], window: Window) -> tuple[Tensor, list[Tensor]]:
        """Tokens (B, T) through all layers: x (B, T, C) before `ln_out`, and the new state tensors."""
        x = self.layers[0].norm("ln0", self._emb(tokens), self.config.norm_eps)
        return self.forward_layers(x, state, window)

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._ln_out_weight, self._ln_out_bias, self.config.norm_eps)

    def prepare(self, layer: Layer) -> None:  # noqa: B027
        """Turn stored vectors into what the formulas use (a decay, say), once, at loading."""

    @abstractmethod
    def time_mixing(
        self, layer: Layer, x: Tensor, state: list[Tensor], window: Window
    ) -> tuple[Tensor, list[Tensor]]:
        """x (B, T, C) and the block's state but for its last tensor -> what is added to x, the new state."""

    @abstractmethod
    def channel_mixing(self, layer: Layer, x: Tensor, shift: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """x (B, T, C) and the previous token's (B, C) -> what the block adds to x, and the new shift."""

    def forward_layers(self, x: Tensor, state: list[Tensor], window: Window) -> tuple[Tensor, list[Tensor]]:
        """x (B, T, C) after ln0 through every block; the state tensors given are not changed."""
        new: list[Tensor] = []
        size = len(self.config.state_shapes)
        for layer in self.layers:
            *attention, shift = state[layer.index * size : (layer.index + 1) * size]
            added, attention = self.time_mixing(layer, x, attention, window)
            x = x + added
            added, shift = self.channel_mixing(layer, x, shift, window)
            x = x + added
            new += [*attention, shift]
        return x, new


def group_norm(x: Tensor, n_head: int, layer: Layer, eps: float) -> Tensor:
    """`ln_x`: normalise each head of x (B, T, A) on its own."""
    y = F.group_norm(
        x.reshape(-1, x.shape[-1]),
        n_head,
        layer.vectors["att.ln_x.weight"],
        layer.vectors["att.ln_x.bias"],
        eps,
    )
    return y.view(x.shape)


def _layer(index: int, weights: "dict[str, Matrix | Tensor]") -> Layer:
    prefix = f"blocks.{index}."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    matrices = {
        name.removesuffix(".weight"): value for name, value in own.items() if isinstance(value, Matrix)
    }
    vectors = {name: value for name, value in own.items() if not isinstance(value, Matrix)}
    return Layer(index, matrices, vectors)


def _window(rows: Sequence[list[int]], sequential: bool) -> tuple[Tensor, Window]:
    """Token rows padded on the right to (B, T). One token a row is read by the recurrence itself."""
    size = max(len(row) for row in rows)
    tokens = torch.tensor([row + [0] * (size - len(row)) for row in rows])
    ops = reference if sequential or size == 1 else chunked
    return tokens, Window(torch.tensor([len(row) for row in rows]), size, ops)
