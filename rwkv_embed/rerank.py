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
from rwkv_embed.backends import read_tensors
from rwkv_embed.errors import CheckpointError, StateError
from rwkv_embed.reading import Reading, go_on

if TYPE_CHECKING:
    from torch import Tensor

    from rwkv_embed.embedder import Embedder

Floats = NDArray[np.float32]

BATCH = 32  # passages scored at once
PASSAGE_TEMPLATE = "Instruct: Given a query, retrieve documents that answer the query\nDocument: {passage}\n"
QUERY_TEMPLATE = "Query: {query}"
LN_EPS = 1e-5
LN_X_EPS = 64e-5  # RWKV-7's group norm: 1e-5 x 8^2


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
        digest = hashlib.sha256(b"reranking\n" + PASSAGE_TEMPLATE.encode() + info.identity.encode())
        self.fingerprint = (
            digest.hexdigest()
        )  # of passage states: they depend on the embedder, not on the reranker

    @classmethod
    def load(cls, embedder: "Embedder", path: str | Path) -> "StateReranker":
        """Read a reranker checkpoint (.pth or .safetensors)."""
        tensors, extras = read_tensors(Path(path))
        layers = extras.get("reranker_layer_idx")
        return cls(embedder, tensors, None if layers is None else [int(layer) for layer in np.ravel(layers)])

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
        chosen = list(range(n_layer)) if layers is None else [layer % n_layer for layer in layers]
        if len(chosen) != self._scorer.n_layer:
            raise CheckpointError(
                f"the reranker has {self._scorer.n_layer} blocks but is to look at {len(chosen)} of the "
                f"embedder's {n_layer} layers; it was trained with another embedder"
            )
        sizes = (self._backend.info.config.n_head, self._backend.info.config.head_size)
        if sizes != (self._scorer.n_head, self._scorer.head_size):
            raise CheckpointError(
                f"the reranker has {self._scorer.n_head} heads of {self._scorer.head_size}, "
                f"the embedder {sizes[0]} of {sizes[1]}; it was trained with another embedder"
            )
        return chosen


class StateScorer:
    """The reranker itself: RWKV-7 blocks that read one learnt token, each from the state of one layer.

    There is one token and nothing before it, so token shift sees zeros: `x + (0 - x) * mix`. Float32.
    """

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        self._tensors = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
        try:
            self.n_head, self.head_size = self._tensors["blocks.0.att.r_k"].shape
            self._token = self._tensors["emb.weight"].reshape(-1)  # (C,)
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"not a reranker checkpoint: {error} is missing or misshapen") from error
        self.n_layer = 1 + max(
            int(name.split(".")[1]) for name in self._tensors if name.startswith("blocks.")
        )

    def __call__(self, states: Floats) -> Floats:
        """WKV states (layers, B, H, N, N) -> logits (B,)."""
        z = self._tensors
        x = np.tile(self._token, (states.shape[1], 1))  # (B, C)
        x = _layer_norm(x, z["blocks.0.ln0.weight"], z["blocks.0.ln0.bias"])
        v_first: Floats | None = None
        for layer, state in enumerate(states):
            block = f"blocks.{layer}."
            normed = _layer_norm(x, z[block + "ln1.weight"], z[block + "ln1.bias"])
            mixed, v = self._time_mixing(block + "att.", normed, state, v_first)
            v_first = v if v_first is None else v_first
            x = x + mixed
            normed = _layer_norm(x, z[block + "ln2.weight"], z[block + "ln2.bias"])
            x = x + self._channel_mixing(block + "ffn.", normed)
        x = _layer_norm(x, z["ln_out.weight"], z["ln_out.bias"])
        inner = np.tanh(x @ z["head.0.weight"].T + z["head.0.bias"])
        return cast(Floats, (inner @ z["head.2.weight"].T)[:, 0])

    def _time_mixing(
        self, name: str, x: Floats, state: Floats, v_first: Floats | None
    ) -> tuple[Floats, Floats]:
        """x (B, C), state (B, H, N, N) as [value, key] -> what is added to x, this layer's v: (B, C)."""
        z = {key.removeprefix(name): tensor for key, tensor in self._tensors.items() if key.startswith(name)}
        H, N = self.n_head, self.head_size
        xr, xw, xk, xv, xa, xg = (x - x * z[f"x_{letter}"].reshape(-1) for letter in "rwkvag")
        r, k, v = xr @ z["receptance.weight"].T, xk @ z["key.weight"].T, xv @ z["value.weight"].T
        decay = _sigmoid(z["w0"].reshape(-1) + np.tanh(xw @ z["w1"]) @ z["w2"])
        w = np.exp(np.float32(-np.exp(-0.5)) * decay)  # = exp(-exp(-softplus(-…) - 0.5))
        if v_first is not None:
            v = v + (v_first - v) * _sigmoid(z["v0"].reshape(-1) + xv @ z["v1"] @ z["v2"])
        a = _sigmoid(z["a0"].reshape(-1) + xa @ z["a1"] @ z["a2"])
        g = _sigmoid(xg @ z["g1"]) @ z["g2"]
        kk = (k * z["k_k"].reshape(-1)).reshape(-1, H, N)
        kk = kk / np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), 1e-12)
        k = k * (1 + (a - 1) * z["k_a"].reshape(-1))

        r, w, k, v_heads, a = (each.reshape(-1, H, N) for each in (r, w, k, v, a))
        removed = np.einsum("bhij,bhj->bhi", state, -kk)
        state = state * w[:, :, None, :] + removed[..., None] * (kk * a)[:, :, None, :]
        state = state + v_heads[..., None] * k[:, :, None, :]
        out = np.einsum("bhij,bhj->bhi", state, r)

        out = out - out.mean(axis=-1, keepdims=True)
        out = out / np.sqrt((out**2).mean(axis=-1, keepdims=True) + LN_X_EPS)
        out = out.reshape(-1, H * N) * z["ln_x.weight"] + z["ln_x.bias"]
        bonus = (r * k * z["r_k"]).sum(axis=-1, keepdims=True) * v_heads
        return (out + bonus.reshape(-1, H * N)) * g @ z["output.weight"].T, v

    def _channel_mixing(self, name: str, x: Floats) -> Floats:
        z = self._tensors
        k = np.maximum((x - x * z[name + "x_k"].reshape(-1)) @ z[name + "key.weight"].T, 0) ** 2
        return cast(Floats, k @ z[name + "value.weight"].T)


class LikelihoodReranker:
    """Mean log-probability of the query's tokens after the passage, under any RWKV language model.

    `model` is what `load_model` returns. The templates are plain text around passage and query; only the
    tokens of the query itself are scored. `model_id` becomes part of stored states: give the model's
    fingerprint.
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
        self._before, self._between = before, between
        facts = json.dumps([model_id, str(model.config), before, between])
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()

    def score(self, query: str, passages: Sequence[str]) -> Floats:
        """(len(passages),) mean natural log-probabilities, 0 at best."""
        return np.array([self._score(query, self._read(passage)) for passage in passages], np.float32)

    def passage_state(self, passage: str) -> bytes:
        """What is left of a passage: the fingerprint (64 bytes), then the state's own bytes."""
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


def _layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    centred = x - x.mean(axis=-1, keepdims=True)
    return cast(Floats, centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + LN_EPS) * weight + bias)


def _sigmoid(x: NDArray[Any]) -> Floats:
    return cast(Floats, 1 / (1 + np.exp(-x)))
