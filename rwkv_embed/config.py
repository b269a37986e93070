"""What a checkpoint says about itself: generation and sizes, told from parameter names and shapes."""

from dataclasses import dataclass
from typing import Literal

Version = Literal["4", "5.0", "5.1", "5.2", "6", "7"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of one RWKV model.

    `version` is the architecture: 4, 5.0, 5.1, 5.2 (Eagle), 6 (Finch), 7 (Goose). `kind` is what the
    checkpoint was trained for: a language model has a vocabulary head, an embedder or reranker has the
    heads of EmbeddingRWKV. RWKV-4 has no heads: `n_head` is 1 and `head_size` is `n_embd`.
    """

    version: Version
    n_layer: int
    n_embd: int
    n_head: int
    head_size: int
    n_ffn: int
    vocab_size: int
    kind: Literal["language-model", "embedder", "reranker"] = "language-model"
