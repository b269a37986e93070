"""The heads of EmbeddingRWKV (https://github.com/howard-hou/EmbeddingRWKV): an embedding, and a rerank score.

Both are formulas on top of an RWKV-7; `Model.heads` has their tensors.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_embed.errors import CheckpointError, StateError
from rwkv_embed.models.base import Model
from rwkv_embed.state import State

Task = Literal["cls", "sts", "retr"]


def embedding_head(model: Model, feature: Tensor, task: Task = "retr") -> Tensor:
    """The vector of a text, not yet normalised: norm(fc2(relu(fc1(x))) + x).

    feature: (..., C), the hidden state after ln_out at the end-of-text token (their mean, if there are several).
    Raises CheckpointError when the model has no such head.
    """
    head = f"head.{task}_head"
    if f"{head}.fc1.weight" not in model.heads:
        have = sorted({name.split(".")[1] for name in model.heads}) or "none"
        raise CheckpointError(f"{model.path} has no {task}_head (heads: {have}); it is a {model.config.kind}")
    h = model.heads
    inner = F.linear(torch.relu(F.linear(feature, h[f"{head}.fc1.weight"])), h[f"{head}.fc2.weight"])
    return F.layer_norm(inner + feature, feature.shape[-1:], h[f"{head}.norm.weight"], h[f"{head}.norm.bias"])


def rerank_scores(reranker: Model, states: Sequence[State]) -> Tensor:
    """Relevance (B,) as a logit, from the embedder's states after document and query.

    The reranker is a small RWKV-7 whose layers start from the wkv matrices of some of the embedder's layers, and
    which reads a single learnt token. Raises StateError when the layers do not fit.
    """
    if reranker.config.kind != "reranker":
        raise CheckpointError(f"{reranker.path} is a {reranker.config.kind}, not a reranker")
    starts = [_starting_state(reranker, state) for state in states]
    hidden, _ = reranker.hidden([[0]] * len(starts), starts)
    assert isinstance(hidden, Tensor)
    h = reranker.heads
    inner = torch.tanh(F.linear(hidden, h["head.0.weight"], h["head.0.bias"]))
    return F.linear(inner, h["head.2.weight"])[:, 0]


def _starting_state(reranker: Model, state: State) -> State:
    chosen = list(reranker.extras.get("reranker_layer_idx") or range(state.config.n_layer))
    start = reranker.zero_state()
    fits = len(chosen) == reranker.n_layer and all(-state.config.n_layer <= i < state.config.n_layer for i in chosen)
    if not fits or state.config.version != "7" or state.wkv.shape[1:] != start.wkv.shape[1:]:
        raise StateError(
            f"a state of {state.config.n_layer} layers of {tuple(state.wkv.shape[1:])} does not fit a reranker of "
            f"{reranker.n_layer} layers of {tuple(start.wkv.shape[1:])} (it reads {chosen}); use the embedder it was trained with"
        )
    for layer, source in enumerate(chosen):
        start.tensors[3 * layer + 1] = state.wkv[source]
    return start
