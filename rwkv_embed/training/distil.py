"""The two training runs of the default model: the bag, then the RWKV-7 blocks on top of it.

Both are bounded by minutes, not steps: the learning rate falls to zero over the time that was given,
however much else the machine does. A checkpoint is written every few minutes and holds everything that
resuming needs.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkv_embed.training.data import Sampler, Texts
from rwkv_embed.training.loss import distillation_loss
from rwkv_embed.training.model import Bag, RWKV7Embedder
from rwkv_embed.training.table import TokenTable

EOS = 0
WARM_UP_STEPS = 60
INHERITED_RATE = 0.2  # of the rate of fresh parameters: what the bag has learned is easily lost
SAVE_SECONDS = 240.0
LOG_STEPS = 20
OTHERS = 512


@dataclass(frozen=True, slots=True)
class Schedule:
    """`rate` for matrices, `table_rate` for token vectors; a batch is tokens (RWKV) or texts (bag)."""

    rate: float
    table_rate: float
    minutes: float
    batch_tokens: int = 8192
    batch_texts: int = 3072
    longest: int = 400


Log = Callable[[dict[str, Any]], None]


def encode(
    module: nn.Module, table: TokenTable, packed: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct tokens of the batch, their rows (which get the gradient), and the texts' vectors (B, C)."""
    distinct, rows, index = table.gather(packed)
    return distinct, rows, module(rows, index, starts)


def train(
    module: Bag | RWKV7Embedder,
    table: TokenTable,
    texts: Texts,
    targets: NDArray[np.float32],
    schedule: Schedule,
    checkpoint: Path,
    log: Log,
    seed: int = 0,
) -> None:
    """Run one schedule; resumes from `checkpoint` when it is there and belongs to an unfinished run."""
    dense = {name: p for name, p in module.named_parameters() if name != "emb" and p.requires_grad}
    careful = [p for name, p in dense.items() if module.inherited(name)]
    fresh = [p for name, p in dense.items() if not module.inherited(name)]
    optimizer = torch.optim.AdamW(
        [{"params": careful}, {"params": fresh}], betas=(0.9, 0.98), weight_decay=0.0
    )
    rates = (schedule.rate * INHERITED_RATE, schedule.rate)
    progress = {"step": 0, "tokens": 0, "texts": 0, "minutes": 0.0}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        table.load_state_dict(saved["table"])
        progress = saved["progress"]

    goal = torch.from_numpy(targets)
    sampler = Sampler(texts, len(targets), seed + int(progress["step"]), 1, schedule.longest)
    average, saved_at, clock = 0.0, time.monotonic(), time.monotonic()
    for rows in _batches(sampler, schedule, isinstance(module, Bag)):
        done = progress["minutes"] / schedule.minutes
        if done >= 1:
            break
        packed, starts = (torch.from_numpy(x) for x in sampler.pack(rows, EOS))
        others = goal[torch.from_numpy(sampler.random.integers(len(goal), size=OTHERS))]
        distinct, used, out = encode(module, table, packed, starts)
        loss = distillation_loss(out, goal[torch.from_numpy(texts.line[rows]).long()], others)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(dense.values(), 1.0)
        factor = min(1.0, (progress["step"] + 1) / WARM_UP_STEPS) * (1 - done)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        assert used.grad is not None
        table.update(distinct, used.grad, schedule.table_rate * factor)

        progress["step"] += 1
        progress["tokens"] += len(packed)
        progress["texts"] += len(rows)
        progress["minutes"] += (time.monotonic() - clock) / 60
        clock = time.monotonic()
        average += 0.02 * (loss.item() - average) if average else loss.item()
        if progress["step"] % LOG_STEPS == 0:
            log({**progress, "minutes": round(progress["minutes"], 2), "loss": round(average, 4)})
        if time.monotonic() - saved_at > SAVE_SECONDS:
            _save(checkpoint, module, optimizer, table, progress)
            saved_at = time.monotonic()
    _save(checkpoint, module, optimizer, table, progress)


def _batches(sampler: Sampler, schedule: Schedule, by_texts: bool) -> Iterator[NDArray[np.int64]]:
    while True:
        yield (
            sampler.draw(schedule.batch_texts) if by_texts else sampler.batch_of_tokens(schedule.batch_tokens)
        )


def _save(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, table: TokenTable, progress: Any
) -> None:
    partial = path.with_suffix(".partial")
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "table": table.state_dict()}
    torch.save({**state, "progress": progress}, partial)
    partial.replace(path)


def append_json(path: Path) -> Log:
    """A log that adds one JSON line a call."""

    def log(entry: dict[str, Any]) -> None:
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    return log
