"""Packs a trained embedder for shipping: the table coded (coding.py), the rest in float16, EmbeddingRWKV's names.

rwkv.emb.weight.*   the table's symbols and what they stand for
rwkv.emb.*          the tokens that are sums of rows (sums.py)
rwkv.*              the official RWKV-7 tensors
head.retr_head.*    the head; cls and sts would be copies
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rwkv_embed import coding
from rwkv_embed.sums import Sums
from rwkv_embed.training.model import RWKV7Embedder
from rwkv_embed.training.quantize import Quantized


def official_name(name: str) -> str:
    """EmbeddingRWKV's name, without its prefix `rwkv.`, of a parameter of `RWKV7Embedder`."""
    return name.replace("head.", "head.retr_head.", 1) if name.startswith("head.") else name


def stored_name(name: str) -> str:
    """The name in a file of EmbeddingRWKV."""
    return official_name(name) if name.startswith("head.") else f"rwkv.{name}"


def export(model: RWKV7Embedder, table: Quantized, sums: Sums | None, path: Path) -> None:
    """Write the checkpoint."""
    counts = coding.frequencies(table.symbols, table.classes, table.groups)
    coded, starts = coding.encode(table.symbols, table.classes, table.groups, counts)
    tensors: dict[str, NDArray[Any]] = {
        "rwkv.emb.weight.coded": coded,
        "rwkv.emb.weight.starts": starts,
        "rwkv.emb.weight.classes": table.classes,
        "rwkv.emb.weight.groups": table.groups,
        "rwkv.emb.weight.counts": counts,
        "rwkv.emb.weight.values": table.values,
    }
    if sums:
        tensors |= {stored_name(name): values for name, values in sums.tensors().items()}
    for name, values in model.state_dict().items():
        tensors[stored_name(name)] = values.numpy().astype(np.float16)
    save_file(tensors, path, metadata={"format": "rwkv-embed", "version": "7"})
