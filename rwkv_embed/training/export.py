"""Packs a trained embedder for shipping: the table coded (coding.py), the rest in float16, EmbeddingRWKV's names.

rwkv.emb.weight.*   the table's symbols and what they stand for
rwkv.emb.*          the tokens that are sums of rows (sums.py)
rwkv.*              the official RWKV-7 tensors
head.retr_head.*    the head; cls and sts would be copies
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from rwkv_embed import coding
from rwkv_embed.sums import Sums
from rwkv_embed.training.model import RWKV7Embedder
from rwkv_embed.training.quantize import Quantized
from rwkv_embed.training.stages import replacing

DIMS = (128, 256, 384, 512)
SENTENCE_SHARE = 0.4  # of a passage's best sentence in its score; docs/log.md, 2026-11-26


def dims_of(width: int) -> list[int]:
    """What vectors of this width may be cut to."""
    return [dim for dim in DIMS if dim <= width]


def official_name(name: str) -> str:
    """EmbeddingRWKV's name, without its prefix `rwkv.`, of a parameter of `RWKV7Embedder`."""
    return name.replace("head.", "head.retr_head.", 1) if name.startswith("head.") else name


def stored_name(name: str) -> str:
    """The name in a file of EmbeddingRWKV."""
    return official_name(name) if name.startswith("head.") else f"rwkv.{name}"


def export(model: RWKV7Embedder, table: Quantized, sums: Sums | None, folder: Path, eos: int) -> None:
    """Write model.safetensors and config.json, which says what weights do not."""
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
    with replacing(folder / "model.safetensors") as partial:
        partial.write_bytes(save(tensors, metadata={"format": "rwkv-embed", "version": "7"}))
    width = model.head.fc1.weight.shape[1]
    settings = {
        "eos_token_id": eos,
        "pooling": "head",
        "prompts": {"query": "", "document": ""},
        "dims": dims_of(width),
        "sentence_share": SENTENCE_SHARE,
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
