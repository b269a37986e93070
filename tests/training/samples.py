"""A small bag, a small tokenizer, a file of pairs."""

import json
from pathlib import Path
from typing import Any

import torch

from rwkv_embed.tokenizer import FileTokenizer
from rwkv_embed.training.model import Bag
from rwkv_embed.training.vocabulary import build_tokenizer


def small_bag() -> Bag:
    torch.manual_seed(0)
    bag = Bag(torch.randn(50, 128), torch.rand(50))
    with torch.no_grad():
        for parameter in bag.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return bag


def letters(folder: Path) -> FileTokenizer:
    build_tokenizer([(f"▁{c}", -1.0) for c in "abc"]).save(str(folder / "tokenizer.json"))
    return FileTokenizer(folder / "tokenizer.json")


def written(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines))
    return path
