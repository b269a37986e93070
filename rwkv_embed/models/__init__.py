"""RWKV models of every generation, behind one function: `load_model(path)`."""

from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_embed.config import Dtype, check_dtype

if TYPE_CHECKING:
    from rwkv_embed.models.base import Model

__all__ = ["load_model"]


def load_model(path: str | Path, dtype: Dtype = "float32", tokenizer: str | Path | None = None) -> "Model":
    """Load any RWKV checkpoint: a .pth or .safetensors file, a shard index, or a Hugging Face folder.

    `dtype` is how the big matrices are kept in memory: float32 (exact), bfloat16 (half the memory), int8 with
    a scale per row (a quarter). What the file already stores so is memory-mapped and not copied: do not
    overwrite the file while the model is in use. Arithmetic and states are float32, but for
    bfloat16 products where the processor has instructions for them.

    `tokenizer`: "world", "neox", "byte", or the path of a tokenizer.json; by default the one beside the
    weights, or the one that belongs to the vocabulary size.

    Raises ModelNotFound, or CheckpointError naming everything that is wrong with the file.
    """
    check_dtype(dtype)
    from rwkv_embed.checkpoint import open_checkpoint
    from rwkv_embed.models.rwkv4 import RWKV4
    from rwkv_embed.models.rwkv5 import RWKV5
    from rwkv_embed.models.rwkv6 import RWKV6
    from rwkv_embed.models.rwkv7 import RWKV7

    checkpoint = open_checkpoint(path)
    for generation in (RWKV4, RWKV5, RWKV6, RWKV7):
        if checkpoint.config.version in generation.versions:
            return generation(checkpoint, dtype, tokenizer)
    raise AssertionError(f"no class for RWKV-{checkpoint.config.version}")
