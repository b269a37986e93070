"""How one vector is read off a run of the model.

    head      the trained head of an embedding checkpoint, on the hidden state at the EOS token
              (EmbeddingRWKV)
    last      the hidden state after the last token
    mean      the mean of the hidden states of all tokens
    state     the recurrent state itself: what the RNN remembers, not what it would say next
    summary   `last`, after asking a language model to say the text in one word

"Hidden state" is the output of the last block after `ln_out`, (C,). Everything here is NumPy on plain arrays;
the arrays of a state are in the order of PyPI's `rwkv`: RWKV-4 has att_xx, aa, bb, pp, ffn_xx for each layer,
5 to 7 have att_xx (C,), wkv (H, N, N), ffn_xx (C,).

Sources: `head` https://github.com/howard-hou/EmbeddingRWKV; RWKV-4's `state`
https://github.com/BlinkDL/RWKV-LM/issues/24; `summary` Jiang et al. 2023, arXiv:2307.16645 (PromptEOL).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.config import ModelConfig
from rwkv_embed.errors import CheckpointError

Pooling = Literal["head", "last", "mean", "state", "summary"]
Floats = NDArray[np.float32]

SUMMARY_PROMPT = ('This text: "', '" means in one word: "')  # before and after the text
STATE_DIM = 1024  # of `state` for generations 5 to 7: below pgvector's limit of 2,000 for an HNSW index
STATE_LAYERS = (
    3  # EmbeddingRWKV, Table 5: three layers spread over the depth keep 98% of what all layers know
)
COPIES = 4  # how many places of the projection each component is added to


@dataclass(frozen=True)
class Head:
    """EmbeddingRWKV's head: `norm(fc2(relu(fc1(h))) + h)`. fc1 (F, C), fc2 (C, F), weight and bias (C,)."""

    fc1: Floats
    fc2: Floats
    weight: Floats
    bias: Floats

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Floats], task: str = "retr") -> "Head":
        """Pick `head.<task>_head.*` out of a checkpoint; `task` is cls, sts or retr. Raises CheckpointError."""
        prefix = f"head.{task}_head."
        names = ("fc1.weight", "fc2.weight", "norm.weight", "norm.bias")
        missing = [prefix + name for name in names if prefix + name not in tensors]
        if missing:
            raise CheckpointError(f"the checkpoint has no embedding head: {', '.join(missing)} missing")
        parts = {name: np.asarray(tensors[prefix + name], dtype=np.float32) for name in names}
        for name, part in parts.items():
            if not np.isfinite(part).all():
                raise CheckpointError(
                    f"{prefix}{name} has NaN or infinite weights; the file is damaged or training diverged"
                )
        return cls(*parts.values())

    def __call__(self, hidden: Floats) -> Floats:
        """(n, C) -> (n, C)."""
        raw = np.maximum(hidden @ self.fc1.T, 0) @ self.fc2.T + hidden
        centred = raw - raw.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return cast(Floats, centred / deviation * self.weight + self.bias)


def state_dim(config: ModelConfig) -> int:
    """Width of `state_vector`: xx is (C,), aa/bb as wide as RWKV-4's attention."""
    return config.n_embd + config.n_head * config.head_size if config.version == "4" else STATE_DIM


def state_vector(version: str, state: Sequence[Floats]) -> Floats:
    """One state -> (2 C,) for RWKV-4, (STATE_DIM,) for 5 to 7.

    RWKV-4: xx and aa/bb of the last layer, as its author recommends. Both carry the factor exp(pp), which
    cancels: aa/bb is the weighted mean of all values so far. 5 to 7: the WKV matrices of layers spread over
    the depth, each scaled to length 1 so that no layer drowns the others, projected to a fixed size.
    """
    if version == "4":
        xx, aa, bb = state[-5], state[-4], state[-3]
        mean_value = np.divide(aa, bb, out=np.zeros_like(aa), where=bb != 0)
        return np.concatenate([_unit(xx), _unit(mean_value)])
    matrices = state[1::3]
    chosen = [_unit(matrices[layer].reshape(-1)) for layer in spread(len(matrices), STATE_LAYERS)]
    return project(np.concatenate(chosen), STATE_DIM)


def spread(n_layer: int, count: int) -> list[int]:
    """`count` layers evenly over the depth, the last one among them: (12, 3) -> [3, 7, 11]."""
    count = min(count, n_layer)
    return [round(n_layer * (i + 1) / count) - 1 for i in range(count)]


def project(vector: Floats, size: int) -> Floats:
    """Random projection (n,) -> (size,) that keeps inner products in expectation, without a stored matrix.

    A dense matrix for a 7B model would take 3 GB. Each component is added, with a random sign, to COPIES of
    `size` places (Kane & Nelson 2014, arXiv:1012.1577). Places and signs come from a hash of the component's
    number (splitmix64), not from NumPy's generator, whose stream may change between versions.
    """
    result = np.zeros(size, dtype=np.float64)
    for copy in range(COPIES):
        bits = _splitmix64(np.arange(vector.size, dtype=np.uint64) * np.uint64(COPIES) + np.uint64(copy))
        places = (bits >> np.uint64(1)) % np.uint64(size)
        signed = np.where(bits & np.uint64(1), vector, -vector)
        result += np.bincount(places.astype(np.int64), weights=signed, minlength=size)
    return (result / np.sqrt(COPIES)).astype(np.float32)


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return cast(NDArray[np.uint64], x ^ (x >> np.uint64(31)))


def _unit(vector: Floats) -> Floats:
    return cast(Floats, vector / max(float(np.linalg.norm(vector)), 1e-12))
