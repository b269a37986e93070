"""The training loop, for the bag as for the RWKV-7 blocks on top of it.

A step asks four things at once: the teacher's vectors of some texts, and the partners of translations, of words
in their surroundings, and of questions. A run is bounded by minutes, not steps: the learning rate falls to zero
over the time that was given, however much else the machine does. A checkpoint is written every few minutes and
holds everything that resuming needs.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkv_embed.training.contrast import Drawn, Pairs, Rows
from rwkv_embed.training.data import Sampler, Texts, pack
from rwkv_embed.training.delta import DeltaBag
from rwkv_embed.training.loss import contrastive_loss, distillation_loss, neighbour_loss
from rwkv_embed.training.model import Bag, RWKV7Embedder
from rwkv_embed.training.stages import replacing
from rwkv_embed.training.table import TokenTable

EOS = 0
WARM_UP_STEPS = 60
INHERITED_RATE = 0.2  # of the rate of fresh parameters: what the bag has learned is easily lost
SAVE_SECONDS = 240.0
LOG_STEPS = 20
OTHERS = 512


@dataclass(frozen=True, slots=True)
class Mixture:
    """Texts (distilled) and pairs of a step, and what each kind counts in the loss."""

    distilled: int = 1024
    translations: int = 512
    surroundings: int = 256
    questions: int = 128
    weights: tuple[float, float, float, float] = (1.0, 0.5, 0.7, 0.5)


@dataclass(frozen=True, slots=True)
class Schedule:
    """`rate` for matrices, `table_rate` for token vectors, which stay as they are where it is 0."""

    rate: float
    table_rate: float
    minutes: float
    mixture: Mixture = Mixture()


@dataclass(frozen=True, slots=True)
class Sources:
    """Texts with teacher targets (lines, C), and rows of texts that belong together."""

    texts: Texts
    targets: NDArray[np.float32]
    rows: Rows


Log = Callable[[dict[str, Any]], None]


def encode(
    module: nn.Module, table: TokenTable, packed: Tensor, starts: Tensor, frozen: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct tokens of the batch, their rows (which get the gradient), and the texts' vectors (B, C).

    `frozen`: the rows get none, and what depends on nothing else is not kept for it.
    """
    distinct, rows, index = table.gather(packed)
    rows.requires_grad_(not frozen)
    return distinct, rows, module(table.read(distinct, rows), index, starts)


class Objective:
    """Draws the texts of a step and scores the vectors that the student gives them."""

    def __init__(self, sources: Sources, mixture: Mixture, seed: int) -> None:
        self.texts, self.mixture = sources.texts, mixture
        self.goal = torch.from_numpy(sources.targets)
        self.sampler = Sampler(sources.texts, len(sources.targets), seed)
        self.pairs = Pairs(sources.rows, seed)

    def draw(self) -> tuple[NDArray[np.int64], list[Drawn], list[NDArray[np.int32]]]:
        """Rows of the distilled texts, the pairs, and the tokens of all of them in order."""
        m = self.mixture
        distilled = self.sampler.draw(m.distilled)
        pairs = [
            self.pairs.translations(m.translations),
            self.pairs.surroundings(m.surroundings),
            self.pairs.questions(m.questions),
        ]
        tokens = [self.texts.text(i) for i in distilled]
        for drawn in pairs:
            tokens += drawn.left + drawn.right
        return distilled, pairs, tokens

    def losses(self, vectors: Tensor, distilled: NDArray[np.int64], pairs: list[Drawn]) -> list[Tensor]:
        """distilled, translations, surroundings, questions"""
        line = torch.from_numpy(self.texts.line[distilled]).long()
        sizes = [len(distilled), *(len(side) for drawn in pairs for side in (drawn.left, drawn.right))]
        parts = vectors.split(sizes)
        losses = [self._distilled(parts[0], line)]
        for drawn, left, right in zip(pairs, parts[1::2], parts[2::2], strict=True):
            losses.append(contrastive_loss(left, right, torch.from_numpy(drawn.meaning)))
        return losses

    def _distilled(self, vectors: Tensor, line: Tensor) -> Tensor:
        """A student with axes of its own learns which texts are near each other, not where they are."""
        if vectors.shape[1] != self.goal.shape[1]:
            return neighbour_loss(vectors, self.goal[line], line)
        others = self.goal[torch.from_numpy(self.sampler.random.integers(len(self.goal), size=OTHERS))]
        return distillation_loss(vectors, self.goal[line], others)


def train(
    module: Bag | DeltaBag | RWKV7Embedder,
    table: TokenTable,
    sources: Sources,
    schedule: Schedule,
    checkpoint: Path,
    log: Log,
    seed: int = 0,
) -> None:
    """Run one schedule; resumes from `checkpoint` when it is there and belongs to an unfinished run."""
    dense = {name: p for name, p in module.named_parameters() if name != "emb" and p.requires_grad}
    careful = [p for name, p in dense.items() if module.inherited(name)]
    fresh = [p for name, p in dense.items() if not module.inherited(name)] + list(table.parameters())
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

    objective = Objective(sources, schedule.mixture, seed + int(progress["step"]))
    weights = torch.tensor(schedule.mixture.weights)
    average, averaged = torch.zeros(4), 0  # losses of the steps since this start
    saved_at = clock = time.monotonic()
    while progress["minutes"] < schedule.minutes:
        distilled, pairs, tokens = objective.draw()
        packed, starts = (torch.from_numpy(x) for x in pack(tokens, EOS))
        distinct, used, vectors = encode(module, table, packed, starts, frozen=not schedule.table_rate)
        losses = torch.stack(objective.losses(vectors, distilled, pairs))
        optimizer.zero_grad(set_to_none=True)
        (losses @ weights).backward()
        nn.utils.clip_grad_norm_(careful + fresh, 1.0)
        factor = min(1.0, (progress["step"] + 1) / WARM_UP_STEPS) * (
            1 - progress["minutes"] / schedule.minutes
        )
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        if schedule.table_rate:
            assert used.grad is not None
            table.update(distinct, used.grad, schedule.table_rate * factor)

        progress["step"] += 1
        progress["tokens"] += len(packed)
        progress["texts"] += len(tokens)
        progress["minutes"] += (time.monotonic() - clock) / 60
        clock = time.monotonic()
        averaged += 1
        average.lerp_(losses.detach(), max(0.02, 1 / averaged))
        if progress["step"] % LOG_STEPS == 0:
            losses_so_far = [round(value, 4) for value in average.tolist()]
            log({**progress, "minutes": round(progress["minutes"], 2), "losses": losses_so_far})
        if time.monotonic() - saved_at > SAVE_SECONDS:
            _save(checkpoint, module, optimizer, table, progress)
            saved_at = time.monotonic()
    _save(checkpoint, module, optimizer, table, progress)


def _save(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, table: TokenTable, progress: Any
) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "table": table.state_dict()}
    with replacing(path) as partial:
        torch.save({**state, "progress": progress}, partial)


def append_json(path: Path) -> Log:
    """A log that adds one JSON line a call."""

    def log(entry: dict[str, Any]) -> None:
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    return log
