"""Random checkpoints of every generation in the official layout: seeded, tiny, numerically like trained
ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rwkv_embed.coding import encode, frequencies
from rwkv_embed.config import Version

VERSIONS: tuple[Version, ...] = ("4", "5.0", "5.1", "5.2", "6", "7")


@dataclass(frozen=True)
class Shape:
    """Sizes of a test model. C = n_head x head_size."""

    n_layer: int
    n_head: int
    head_size: int
    vocab_size: int
    n_ffn: int
    rank: int = 8

    @property
    def n_embd(self) -> int:
        return self.n_head * self.head_size


SHAPES = (Shape(2, 2, 16, 97, 64), Shape(3, 2, 64, 256, 224, rank=5), Shape(4, 5, 8, 301, 160, rank=12))


def weights(version: Version, shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Official name -> float32 tensor."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.randn(size, generator=generator) * scale + mean

    def matrix(rows: int, columns: int) -> Tensor:
        return randn(rows, columns, scale=columns**-0.5)

    c, f, v, h, n, rank = (
        shape.n_embd,
        shape.n_ffn,
        shape.vocab_size,
        shape.n_head,
        shape.head_size,
        shape.rank,
    )
    w: dict[str, Tensor] = {"emb.weight": randn(v, c), "head.weight": matrix(v, c)}

    def norm(name: str) -> None:
        w[f"{name}.weight"] = randn(c, scale=0.2, mean=1.0)
        w[f"{name}.bias"] = randn(c, scale=0.2)

    norm("ln_out")
    norm("blocks.0.ln0")
    for layer in range(shape.n_layer):
        b, att, ffn = (f"blocks.{layer}.{part}" for part in ("", "att.", "ffn."))
        norm(f"{b}ln1")
        norm(f"{b}ln2")
        for name in ("receptance", "key", "value", "output"):
            w[f"{att}{name}.weight"] = matrix(c, c)
        w[f"{ffn}key.weight"] = matrix(f, c)
        w[f"{ffn}value.weight"] = matrix(c, f)
        if version != "4":
            norm(f"{att}ln_x")
        if version != "7":
            w[f"{ffn}receptance.weight"] = matrix(c, c)
        if version in ("5.1", "5.2", "6"):
            w[f"{att}gate.weight"] = matrix(c, c)
        if version in ("4", "5.0", "5.1", "5.2"):
            for name in "kvr" if version in ("4", "5.0") else "kvrg":
                w[f"{att}time_mix_{name}"] = torch.rand(1, 1, c, generator=generator)
            for name in "kr":
                w[f"{ffn}time_mix_{name}"] = torch.rand(1, 1, c, generator=generator)
        if version == "4":
            w[f"{att}time_decay"], w[f"{att}time_first"] = randn(c, scale=1.5, mean=-1.0), randn(c)
        elif version in ("5.0", "5.1"):
            w[f"{att}time_decay"], w[f"{att}time_first"] = randn(h, scale=1.5, mean=-1.0), randn(h)
        elif version == "5.2":
            w[f"{att}time_decay"], w[f"{att}time_faaaa"] = randn(h, n, scale=1.5, mean=-1.0), randn(h, n)
        elif version == "6":
            for name in "xwkvrg":
                w[f"{att}time_maa_{name}"] = torch.rand(1, 1, c, generator=generator)
            for name in "kr":
                w[f"{ffn}time_maa_{name}"] = torch.rand(1, 1, c, generator=generator)
            w[f"{att}time_maa_w1"], w[f"{att}time_maa_w2"] = matrix(c, 5 * rank), randn(5, rank, c, scale=0.2)
            w[f"{att}time_decay"] = randn(1, 1, c, scale=1.5, mean=-1.0)
            w[f"{att}time_decay_w1"], w[f"{att}time_decay_w2"] = matrix(c, rank), randn(rank, c, scale=0.3)
            w[f"{att}time_faaaa"] = randn(h, n)
        else:
            for name in "rwkvag":
                w[f"{att}x_{name}"] = torch.rand(1, 1, c, generator=generator)
            w[f"{ffn}x_k"] = torch.rand(1, 1, c, generator=generator)
            for name, mean in (("w", -1.0), ("a", 0.0), ("v", 0.5)):
                if name == "v" and layer == 0:
                    continue
                w[f"{att}{name}0"] = randn(1, 1, c, scale=1.5, mean=mean)
                w[f"{att}{name}1"], w[f"{att}{name}2"] = matrix(c, rank), randn(rank, c, scale=0.3)
            w[f"{att}g1"], w[f"{att}g2"] = matrix(c, rank + 3), randn(rank + 3, c, scale=0.3)
            w[f"{att}k_k"] = randn(1, 1, c, scale=0.3, mean=0.85)
            w[f"{att}k_a"] = randn(1, 1, c, scale=0.3, mean=1.0)
            w[f"{att}r_k"] = randn(h, n, scale=0.3)
    return w


def extreme(tensors: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """The same with decays of RWKV-4 to 6 from exp(-exp(-8)), which keeps all of 200 tokens, to exp(-exp(2))."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=generator) * 10 - 8
        if name.endswith("att.time_decay")
        else tensor
        for name, tensor in tensors.items()
    }


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Write as .pth or .safetensors, by the suffix."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


def coded(table: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """A table rounded to few values and coded: its tensors by their endings, and the rounded table."""
    rows, columns = table.shape
    classes, groups = (np.arange(rows) % 2).astype(np.uint8), (np.arange(columns) * 3 // columns).astype(np.uint8)
    step = np.abs(table).max() / np.array([7, 20], np.float32)
    symbols = np.rint(table / step[classes, None] + 32).astype(np.uint8)
    counts = frequencies(symbols, classes, groups)
    values = np.tile(step[:, None, None] * np.arange(-32, 32, dtype=np.float32), (1, 3, 1))
    stream, starts = encode(symbols, classes, groups, counts)
    tensors = {"coded": stream, "starts": starts, "classes": classes, "groups": groups}
    tensors |= {"counts": counts, "values": values}
    return tensors, values[classes[:, None], groups, symbols]
