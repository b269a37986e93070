"""What `load_model` returns, in small: the NumPy RNN of these tests with a vocabulary head, in torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save

from tests.embedder.numpy_rwkv import NumpyBackend


class TinyState:
    def __init__(self, arrays: list[Any]) -> None:
        self.arrays = arrays

    def to_bytes(self) -> bytes:
        return save({f"{i:04d}": array for i, array in enumerate(self.arrays)})

    @classmethod
    def from_bytes(cls, data: bytes, config: Any) -> "TinyState":
        arrays = load(data)
        return cls([arrays[name] for name in sorted(arrays)])


class TinyLanguageModel:
    def __init__(self, seed: int = 0) -> None:
        self._backend = NumpyBackend(eos=None, seed=seed)
        self.config = self._backend.info.config
        self.tokenizer = self._backend.tokenizer
        rng = np.random.default_rng(seed)
        self._head = rng.standard_normal((self.tokenizer.vocab_size, self.config.n_embd)).astype(np.float32)
        self.tokens_read = 0

    def zero_state(self) -> TinyState:
        return TinyState(self._backend.zero)

    def forward(
        self, tokens: Sequence[int], state: TinyState | None = None, full_output: bool = False
    ) -> tuple[torch.Tensor, TinyState]:
        assert tokens, "a model is never given an empty text"
        self.tokens_read += len(tokens)
        states = None if state is None else [state.arrays]
        (hidden,), (after,) = self._backend.hidden_sequence([tokens], states)
        logits = torch.from_numpy(hidden @ self._head.T)
        return logits if full_output else logits[-1], TinyState(after)

    def log_probability(self, tokens: list[int], first: int) -> float:
        """log p(tokens[first:] | tokens[:first]), one forward of everything a token: slow and obvious."""
        total = 0.0
        for i in range(first, len(tokens)):
            logits, _ = self.forward(tokens[:i])
            total += float(torch.log_softmax(logits.double(), dim=-1)[tokens[i]])
        return total
