"""Packs a trained embedder for shipping: token table in 4 bits, the rest in float16, EmbeddingRWKV's names.

rwkv.emb.weight.int4   (V, C/2) uint8: columns 2j and 2j+1 in the low and high four bits, each plus 8
rwkv.emb.weight.scale  (V, C/32) float16: one scale for 32 columns
rwkv.*                 the official RWKV-7 tensors
head.retr_head.*       the head; cls and sts would be copies
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from rwkv_embed.packing import GROUP, LEVELS, pack_int4
from rwkv_embed.training.model import RWKV7Embedder, importance_reach

# Steps of a row of unit size. A value takes 2.7 or 2.3 bits in the wheel then, and training gets used to it.
FREQUENT, FREQUENT_STEP = 100_000, 0.65  # tokens are numbered by use
RARE_STEP = 1.05


def shipped_steps(tokens: NDArray[np.int64], C: int) -> NDArray[np.float32]:
    """(n, C/32) steps of the tokens' packed rows; the last group holds the importance, which reaches further."""
    steps = np.where(tokens < FREQUENT, FREQUENT_STEP, RARE_STEP)[:, None].repeat(C // GROUP, axis=1)
    steps[:, -1] = importance_reach(C) / LEVELS
    return steps.astype(np.float16).astype(np.float32)


def official_name(name: str) -> str:
    """EmbeddingRWKV's name, without its prefix `rwkv.`, of a parameter of `RWKV7Embedder`."""
    return name.replace("head.", "head.retr_head.", 1) if name.startswith("head.") else name


def stored_name(name: str) -> str:
    """The name in a file of EmbeddingRWKV."""
    return official_name(name) if name.startswith("head.") else f"rwkv.{name}"


def export(model: RWKV7Embedder, table: Tensor, path: Path) -> None:
    """Write the checkpoint; the rows of the table are normalised first, which `ln0` would do anyway."""
    rows = table / table.pow(2).mean(1, keepdim=True).sqrt()
    packed, scale = pack_int4(rows.numpy(), shipped_steps(np.arange(len(rows)), rows.shape[1]))
    tensors: dict[str, NDArray[Any]] = {"rwkv.emb.weight.int4": packed, "rwkv.emb.weight.scale": scale}
    for name, values in model.state_dict().items():
        tensors[stored_name(name)] = values.numpy().astype(np.float16)
    save_file(tensors, path, metadata={"format": "rwkv-embed", "version": "7"})
