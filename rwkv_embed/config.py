"""What a checkpoint says about itself: generation and sizes, told from parameter names and shapes."""

from dataclasses import dataclass
from typing import Literal, get_args

Version = Literal["4", "5.0", "5.1", "5.2", "6", "7"]
Kind = Literal["language-model", "embedder", "reranker"]
Dtype = Literal["float32", "bfloat16", "int8"]  # how the big matrices are kept in memory


def check_dtype(dtype: str) -> None:
    """Raise ValueError unless it is a Dtype."""
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(get_args(Dtype))}")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of one RWKV model.

    `version` is the architecture: 4, 5.0, 5.1, 5.2 (Eagle), 6 (Finch), 7 (Goose). `kind` is what the
    checkpoint was trained for: a language model has a vocabulary head, an embedder or reranker has the
    heads of EmbeddingRWKV. RWKV-4 has no heads: `n_head` is 1 and `head_size` is the width of its
    attention. `norm_eps` and `ln_x_eps` are not stored in the official files; the defaults are the
    reference implementation's, whatever the head size. Hugging Face folders may say otherwise.
    """

    version: Version
    n_layer: int
    n_embd: int
    n_head: int
    head_size: int
    n_ffn: int
    vocab_size: int
    kind: Kind = "language-model"
    norm_eps: float = 1e-5
    ln_x_eps: float = 64e-5

    @property
    def n_att(self) -> int:
        """Width of time mixing: heads x head size."""
        return self.n_head * self.head_size

    @property
    def unusual_epsilons(self) -> tuple[float, ...]:
        """Both of them when one is not the reference implementation's."""
        found = (self.norm_eps, self.ln_x_eps)
        return () if found == (1e-5, 64e-5) else found

    @property
    def state_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the state tensors of one layer, in the order of the reference implementation.

        RWKV-4: time-mixing shift (C,), then aa, bb, pp (A,), then channel-mixing shift (C,).
        RWKV-5 to 7: time-mixing shift (C,), wkv matrices (H, N, N), channel-mixing shift (C,). The
        matrices are [key, value] in 5 and 6, and [value, key] in 7.
        """
        shift = (self.n_embd,)
        if self.version == "4":
            return [shift, *[(self.n_att,)] * 3, shift]
        return [shift, (self.n_head, self.head_size, self.head_size), shift]
