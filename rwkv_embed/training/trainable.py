"""A checkpoint as something that can be trained, and the trained thing as a model folder again.

Any RWKV-7 of the packagings of `checkpoint`: an embedder of any depth and width, its table packed or not, or
a language model, which gets a fresh head. The folder that is written has float16 weights, the table too: its
changes are smaller than the steps of a coded one, and packing would undo them.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_embed.checkpoint import Checkpoint, open_checkpoint
from rwkv_embed.errors import CheckpointError
from rwkv_embed.hub import ModelFiles
from rwkv_embed.training.export import official_name, stored_name
from rwkv_embed.training.model import LN_X_EPS, N, RWKV7Embedder
from rwkv_embed.training.table import TokenTable

LN_EPS = 1e-5
COMMON_SETTINGS = ("prompts", "dims", "sentence_share")  # of config.json: what a fine-tuned model keeps


@dataclass(frozen=True)
class Trainable:
    """Blocks and head of a model, its token vectors, and the token that ends each text."""

    module: RWKV7Embedder
    table: TokenTable
    eos: int

    def state(self) -> dict[str, Tensor]:
        """A copy of everything that is trained, without the optimiser's moments."""
        return {name: values.clone() for name, values in self.values().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, values in self.values().items():
            values.copy_(state[name])

    def values(self) -> dict[str, Tensor]:
        """Everything that is trained, by name; no copies."""
        return {"emb.weight": self.table.weight, **self.module.state_dict()}


def open_trainable(files: ModelFiles, eos: int) -> Trainable:
    """The model of `hub.resolve`, in float32. CheckpointError when it is of a kind that is not trained here."""
    checkpoint = open_checkpoint(files.weights)
    _refuse_others(files.name, checkpoint)
    config = checkpoint.config
    module = RWKV7Embedder(config.n_embd, config.n_layer, config.n_ffn)
    for name, parameter in module.named_parameters():
        if name.startswith("head.") and config.kind == "language-model":
            continue  # the fresh head does nothing yet
        parameter.data = checkpoint.get(official_name(name)).float().clone()  # whatever its low rank
    table = TokenTable(checkpoint.get("emb.weight").float(), sums=checkpoint.sums())
    return Trainable(module, table, eos)


def _refuse_others(name: str, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    if config.version != "7":
        raise CheckpointError(
            f"{name} is an RWKV-{config.version}; only RWKV-7 models can be fine-tuned here"
        )
    if config.kind == "reranker":
        raise CheckpointError(f"{name} is a reranker; expected an embedder, or a language model of RWKV-7")
    if config.kind == "embedder" and official_name("head.fc1.weight") not in checkpoint.tensors:
        raise CheckpointError(f"{name} has no retrieval head (head.retr_head.*), which is what is fine-tuned")
    if config.head_size != N or config.n_att != config.n_embd:
        raise CheckpointError(
            f"{name} has heads of {config.head_size} in a width of {config.n_embd}; training needs heads of {N} "
            "that fill the width"
        )
    if (config.norm_eps, config.ln_x_eps) != (LN_EPS, LN_X_EPS):
        raise CheckpointError(
            f"{name} normalises with epsilons {config.norm_eps} and {config.ln_x_eps}, which the official "
            f"layout cannot say; expected {LN_EPS} and {LN_X_EPS}"
        )


def save_trainable(trainable: Trainable, source: ModelFiles, folder: Path) -> None:
    """Write weights, tokenizer and config.json of a model that started as `source` into an existing folder."""
    from safetensors.torch import save

    tensors = {stored_name(name): _half(values) for name, values in trainable.values().items()}
    if sums := trainable.table.sums:
        tensors |= {stored_name(name): torch.from_numpy(values) for name, values in sums.tensors().items()}
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt", "version": "7"}))
    if (source.folder / "tokenizer.json").is_file():
        shutil.copyfile(source.folder / "tokenizer.json", folder / "tokenizer.json")
    settings: dict[str, Any] = {"eos_token_id": trainable.eos, "pooling": "head"}
    settings |= {name: source.settings[name] for name in COMMON_SETTINGS if name in source.settings}
    settings["fine_tuned_from"] = source.name
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _half(values: Tensor) -> Tensor:
    """float16, unless a value is too large for it."""
    half = values.half()
    return half if torch.isfinite(half).all() else values
