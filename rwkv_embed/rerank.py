"""Scoring (query, passage) pairs with a model that has read both. Larger is better.

    StateReranker        a reranker checkpoint of EmbeddingRWKV: a few RWKV-7 blocks that look at the states
                         an embedder is in after it has read instruction, passage and query
    LikelihoodReranker   any RWKV language model: how likely is the query after the passage?

Both read the passage first, so what is left of it is a state. `passage_state` makes it once, `score_states`
pays only for the query's tokens; `score` does both at once. Neither reads a passage differently in the two
modes, so the scores are equal.

Source of StateReranker: https://github.com/howard-hou/EmbeddingRWKV (package/src/rwkv_emb/model.py); of
LikelihoodReranker: Sachan et al. 2022, arXiv:2204.07496.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from rwkv_embed import reading
from rwkv_embed.errors import CheckpointError, StateError
from rwkv_embed.ops.fast import FastRWKV7
from rwkv_embed.reading import Reading, go_on

if TYPE_CHECKING:
    from torch import Tensor

    from rwkv_embed.embedder import Embedder

Floats = NDArray[np.float32]

BATCH = 32  # passages scored at once
PASSAGE_TEMPLATE = "Instruct: Given a query, retrieve documents that answer the query\nDocument: {passage}\n"
QUERY_TEMPLATE = "Query: {query}"
HEAD = ("head.0.weight", "head.0.bias", "head.2.weight")  # what turns the hidden state into a score


class StateReranker:
    """EmbeddingRWKV's reranker on top of the embedder it was trained with.

    `embedder`: an RWKV-7 embedder. `tensors`: the checkpoint's, without the prefix
    `reranker.`. `layers`: whose states the blocks look at (`reranker_layer_idx` of the checkpoint); all of
    them by default.
    """

    def __init__(
        self,
        embedder: "Embedder",
        tensors: Mapping[str, Floats],
        layers: Sequence[int] | None = None,
    ) -> None:
        self._backend = embedder.backend
        info = self._backend.info
        if info.config.version != "7" or info.eos is None:
            raise CheckpointError(
                f"a state reranker needs the RWKV-7 embedder it was trained with; {info.model_id} is an "
                f"RWKV-{info.config.version} {info.config.kind}"
            )
        self._eos = info.eos
        self._scorer = StateScorer(tensors)
        self._layers = self._check_layers(layers)
        # Passage states depend on the embedder and the template, not on the reranker.
        self.fingerprint = hashlib.sha256(f"{PASSAGE_TEMPLATE}\n{info.identity}".encode()).hexdigest()

    @classmethod
    def load(cls, embedder: "Embedder", path: str | Path) -> "StateReranker":
        """Read a reranker checkpoint (.pth or .safetensors).

        Raises ModelNotFound, and CheckpointError when it is damaged, no reranker, or another embedder's.
        """
        from rwkv_embed.checkpoint import open_checkpoint

        checkpoint = open_checkpoint(path)
        tensors = {name: checkpoint.get(name).float().numpy() for name in checkpoint.tensors}
        layers = checkpoint.extras.get("reranker_layer_idx")
        if layers is not None and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
            raise CheckpointError(
                f"{path}: reranker_layer_idx is {layers!r}, expected a list of the embedder's layers, such as "
                "[0, 1, 3]; convert the original checkpoint again"
            )
        return cls(embedder, tensors, layers)

    def score(self, query: str, passages: Sequence[str]) -> Floats:
        """(len(passages),) probabilities that a passage answers the query."""
        scores = [np.empty(0, np.float32)]
        for start in range(0, len(passages), BATCH):
            scores.append(self._score(query, self._read(passages[start : start + BATCH])))
        return np.concatenate(scores)

    def passage_state(self, passage: str) -> bytes:
        """What is left of a passage, to be stored and scored later."""
        return reading.to_bytes(self._backend, self._read([passage])[0], self.fingerprint)

    def score_states(self, query: str, states: Sequence[bytes]) -> Floats:
        """The same scores as `score` from stored passages; raises StateError for states of another model."""
        scores = [np.empty(0, np.float32)]
        for start in range(0, len(states), BATCH):
            batch = [
                reading.from_bytes(self._backend, state, self.fingerprint)[0]
                for state in states[start : start + BATCH]
            ]
            scores.append(self._score(query, batch))
        return np.concatenate(scores)

    def _read(self, passages: Sequence[str]) -> list[Reading]:
        tokens = self._backend.tokenizer.encode_batch(
            [PASSAGE_TEMPLATE.format(passage=text) for text in passages]
        )
        return go_on(self._backend, [Reading()] * len(tokens), tokens)

    def _score(self, query: str, passages: list[Reading]) -> Floats:
        tokens = [*self._backend.tokenizer.encode(QUERY_TEMPLATE.format(query=query)), self._eos]
        ends = go_on(self._backend, passages, [tokens] * len(passages))
        arrays = [self._backend.arrays(end.state) for end in ends]
        states = np.stack([np.stack([array[3 * layer + 1] for array in arrays]) for layer in self._layers])
        return cast(Floats, 1 / (1 + np.exp(-self._scorer(states))))

    def _check_layers(self, layers: Sequence[int] | None) -> list[int]:
        n_layer = self._backend.info.config.n_layer
        chosen = list(range(n_layer) if layers is None else layers)
        fits = all(-n_layer <= layer < n_layer for layer in chosen)
        if len(chosen) != self._scorer.n_layer or not fits:
            raise CheckpointError(
                f"the reranker has {self._scorer.n_layer} blocks but is to look at layers {chosen} of the "
                f"embedder's {n_layer}; it was trained with another embedder"
            )
        sizes = (self._backend.info.config.n_head, self._backend.info.config.head_size)
        if sizes != (self._scorer.n_head, self._scorer.head_size):
            raise CheckpointError(
                f"the reranker has {self._scorer.n_head} heads of {self._scorer.head_size}, "
                f"the embedder {sizes[0]} of {sizes[1]}; it was trained with another embedder"
            )
        return [layer % n_layer for layer in chosen]


class StateScorer:
    """The reranker itself: RWKV-7 blocks that read one learnt token, each from the state of one layer."""

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        missing = [name for name in HEAD if name not in tensors]
        if missing:
            raise CheckpointError(f"not a reranker checkpoint: {', '.join(missing)} missing")
        self._model = FastRWKV7(tensors)
        self._weight, self._bias, self._out = (np.asarray(tensors[name], np.float32) for name in HEAD)
        config = self._model.config
        self.n_layer, self.n_head, self.head_size = config.n_layer, config.n_head, config.head_size

    def __call__(self, states: Floats) -> Floats:
        """WKV states (layers, B, H, N, N) -> logits (B,)."""
        batch = states.shape[1]
        starts = [self._model.zero_state() for _ in range(batch)]
        for row, start in enumerate(starts):
            start[1::3] = states[:, row]
        hidden = self._model.hidden([[0]] * batch, starts, return_states=False)[0]
        inner = np.tanh(hidden @ self._weight.T + self._bias)
        return cast(Floats, (inner @ self._out.T)[:, 0])


class LikelihoodReranker:
    """Mean log-probability of the query's tokens after the passage, under any RWKV language model.

    `model` is what `load_model` returns. The templates are plain text around passage and query; only the
    tokens of the query itself are scored. `model_id`, needed to store passages, says whose states they are:
    give a hash of the weights, for instance `hub.resolve(path).identity`.
    """

    def __init__(
        self,
        model: Any,
        *,
        before: str = "Passage: ",
        between: str = "\n\nA question that this passage answers: ",
        model_id: str = "",
    ) -> None:
        self._model = model
        if not between:
            raise ValueError("between is empty: the query's first token needs one before it; give at least '\\n'")
        self._before, self._between = before, between
        self._model_id = model_id
        facts = json.dumps([model_id, str(model.config), before, between])
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()

    def score(self, query: str, passages: Sequence[str]) -> Floats:
        """(len(passages),) mean natural log-probabilities, 0 at best."""
        return np.array([self._score(query, self._read(passage)) for passage in passages], np.float32)

    def passage_state(self, passage: str) -> bytes:
        """What is left of a passage: the fingerprint (64 bytes), then the state's own bytes."""
        if not self._model_id:
            raise ValueError("storing passages needs model_id, so that another model's are never resumed")
        return self.fingerprint.encode() + cast(bytes, self._read(passage).to_bytes())

    def score_states(self, query: str, states: Sequence[bytes]) -> Floats:
        """The same scores as `score` from stored passages; raises StateError for states of another model."""
        return np.array([self._score(query, self._resume(state)) for state in states], np.float32)

    def _read(self, passage: str) -> Any:
        tokens = [0, *self._model.tokenizer.encode(self._before + passage)]
        return self._model.forward(tokens)[1]

    def _resume(self, data: bytes) -> Any:
        owner = data[:64].decode("ascii", "replace")
        if owner != self.fingerprint:
            raise StateError(
                f"the passage state belongs to another model or template ({owner[:12]}…, this is "
                f"{self.fingerprint[:12]}…); read the passages again"
            )
        return type(self._model.zero_state()).from_bytes(data[64:], self._model.config)

    def _score(self, query: str, state: Any) -> float:
        between = self._model.tokenizer.encode(self._between)
        tokens = self._model.tokenizer.encode(query)
        if not tokens:
            return 0.0
        logits, _ = self._model.forward([*between, *tokens], state, full_output=True)
        return float(log_probabilities(logits[len(between) - 1 : -1], tokens).mean())


def log_probabilities(logits: "Tensor", tokens: Sequence[int]) -> "Tensor":
    """log p of `tokens` (T,), each under the row of `logits` (T, V) that predicts it. Float64."""
    import torch

    rows = torch.log_softmax(logits.double(), dim=-1)
    return rows[torch.arange(len(tokens)), torch.tensor(tokens)]
