"""Fine-tunes an embedding model on pairs of texts; `rwkv-embed train` on the command line.

The loss is InfoNCE: a query's positive must be closer than every other text of the batch, the positives and
negatives of the other pairs included, in the first numbers of the vectors as well as in all of them. What is
kept is the epoch whose validation queries find their positives best.
"""

import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkv_embed.embedder import START_TOKEN, Embedder
from rwkv_embed.errors import CheckpointError, NotImproved
from rwkv_embed.hub import RANGES, ModelFiles
from rwkv_embed.training.loss import info_nce
from rwkv_embed.training.model import RWKV7Embedder
from rwkv_embed.training.pairs import Pair
from rwkv_embed.training.trainable import Trainable, open_trainable, save_trainable
from rwkv_embed.training.validation import Scores, Validation, evaluate
from rwkv_embed.training.wkv7 import set_threads

# Of the rate of the matrices: a row is seen only where its token is, and a few steps must be enough to give a word
# a meaning. The matrices at a tenth of that make the loss jump (docs/log.md).
TABLE_RATE = 300.0
WARM_UP = 0.1  # of all steps; then the rate falls to zero
LONGEST = 512  # tokens of a text that training reads; the model that comes out reads any length
GRAPH_FLOATS = 1 << 28  # kept for one backward pass; a larger batch is read in parts
RANGE_TEXTS = 2_000  # that the int8 ranges are fitted on

Ended = Literal["all epochs", "patience", "interrupted", "diverged"]


@dataclass(frozen=True, slots=True)
class Options:
    """`batch_size` is in pairs; `rate` of the matrices, see `share_of_rate`; `patience` in epochs without a
    better validation.
    """

    epochs: int = 10
    batch_size: int = 64
    rate: float = 3e-5
    patience: int = 3
    seed: int = 0
    threads: int | None = None


class Epoch(NamedTuple):
    """Mean training loss and validation MRR@10 of an epoch; `best` so far?"""

    number: int
    loss: float
    mrr: float
    best: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it. `before` and `after`: dimensions -> validation scores of the models as users run them."""

    output: Path
    pairs: int
    validation_queries: int
    validation_texts: int
    before: dict[int, Scores]
    after: dict[int, Scores]
    epochs: list[Epoch]
    best_epoch: int
    ended: Ended


@dataclass(slots=True)
class Watch:
    """Told what happens: `step(done, total, loss)` often, `epoch(…)` after each."""

    step: Callable[[int, int, float], None] = field(default=lambda done, total, loss: None)
    epoch: Callable[[Epoch], None] = field(default=lambda epoch: None)


def finetune(
    source: ModelFiles,
    training: Sequence[Pair],
    validation_pairs: Sequence[Pair],
    output: Path,
    options: Options = Options(),
    watch: Watch | None = None,
) -> Result:
    """Train on pairs, keep the best epoch and write it as a model folder `output`, which must not exist yet
    or be empty. Ctrl-C, or a loss that is not a number any more, ends the training early; the best epoch so far
    is written.

    Raises NotImproved, and writes nothing, when no epoch was better than `source`; CheckpointError for a
    model that is not trained here or an `output` that is in use or cannot be written; TrainingDataError for
    validation pairs that no model can fail; KeyboardInterrupt when there is no better epoch yet, or while the
    written model is being measured.
    """
    output = output.resolve()
    check_output(output)
    validation = Validation(validation_pairs)
    if options.threads is not None:
        set_threads(options.threads)
    torch.manual_seed(options.seed)
    embedder = Embedder(source.name, threads=options.threads)
    eos = embedder.backend.info.eos
    trainable = open_trainable(source, START_TOKEN if eos is None else eos)
    dims = _dims(source, trainable.table.weight.shape[1])
    before = evaluate(embedder, validation, dims)
    run = _Run(trainable, Reader(embedder, trainable.eos), dims, options, watch or Watch())
    ended = run.fit(training, validation)
    if run.best is None:
        if ended == "interrupted":
            raise KeyboardInterrupt
        if ended == "diverged":
            raise NotImproved(
                f"the training diverged in epoch {len(run.epochs) + 1}: its loss is not a number any more, and no "
                f"epoch before was better; nothing was written; give a rate below {options.rate:g}"
            )
        start = before[dims[-1]]["mrr@10"]
        raise NotImproved(
            f"no epoch was better on the validation pairs than {source.name} (MRR@10 {start:.3f}); nothing was "
            "written; give more pairs, or another rate"
        )
    trainable.restore(run.best)
    has_ranges = embedder.backend.info.int8_ranges is not None
    texts = list(dict.fromkeys(pair.positive for pair in training))[:RANGE_TEXTS]
    with _new_folder(output) as folder:
        save_trainable(trainable, source, folder)
    # It is in place before it is measured, so that a Ctrl-C from here on costs nothing that was learned.
    tuned = Embedder(output, threads=options.threads)
    if has_ranges and len(texts) > 1:
        tuned.fit_int8(texts, dims).save(output / RANGES)
    after = evaluate(tuned, validation, dims)
    counts = (len(training), len(validation.queries), len(validation.documents))
    return Result(output, *counts, before, after, run.epochs, run.best_epoch, ended)


def check_output(output: Path) -> None:
    """Make the folder around it; raise CheckpointError unless a model folder can be put there."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise CheckpointError(
            f"{output} exists already and is no empty folder; remove it or choose another name"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise CheckpointError(
            f"{output} cannot be written ({error.strerror}); choose another place for the model"
        ) from error


def _dims(source: ModelFiles, width: int) -> list[int]:
    """What vectors are cut to, ascending: what the model says of itself, and its width."""
    said = source.settings.get("dims") or []
    if not isinstance(said, list) or not all(isinstance(dim, int) and 1 <= dim <= width for dim in said):
        raise CheckpointError(
            f"\"dims\" in the config.json of {source.name} is {json.dumps(said)[:60]}; expected a list of numbers "
            f"from 1 to {width}"
        )
    return sorted({*said, width})


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder that becomes `output` when all went well."""
    folder = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    folder.mkdir()
    try:
        yield folder
        if output.exists():
            output.rmdir()
        folder.rename(output)
    except BaseException:
        shutil.rmtree(folder)
        raise


def share_of_rate(parameter: Tensor, C: int) -> float:
    """What part of the rate a parameter of a model of width C learns with: less, the smaller its numbers are.

    Adam's steps have one size. A matrix whose numbers are far below 1 / sqrt(C), as in the bundled model what
    asks the state at a text's end, would be another one after a few of them. What is zero starts from nothing: all
    of it.
    """
    size = float(parameter.detach().square().mean().sqrt()) * C**0.5
    return min(1.0, size) if size else 1.0


class Reader:
    """Texts to the tokens that the model reads, prompt and end of text included."""

    def __init__(self, embedder: Embedder, eos: int) -> None:
        self._tokenizer, self._prompts, self._eos = embedder.tokenizer, embedder.prompts, eos

    def queries(self, texts: Sequence[str]) -> list[list[int]]:
        return self._read(self._prompts["query"], texts)

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        return self._read(self._prompts["document"], texts)

    def _read(self, prompt: str, texts: Sequence[str]) -> list[list[int]]:
        tokens = self._tokenizer.encode_batch([prompt + Embedder.clean(text) for text in texts])
        return [[*row[: LONGEST - 1], self._eos] for row in tokens]


class _Run:
    """One training: a model, its optimiser, what has happened and the best epoch so far."""

    def __init__(
        self, trainable: Trainable, reader: Reader, dims: Sequence[int], options: Options, watch: Watch
    ) -> None:
        self.trainable, self.reader, self.dims = trainable, reader, dims
        self.options, self.watch = options, watch
        self.parameters = list(trainable.module.parameters())
        C = trainable.table.weight.shape[1]
        groups = [{"params": [p], "share": share_of_rate(p, C)} for p in self.parameters]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        self.part_tokens = GRAPH_FLOATS // _floats_per_token(trainable.module)
        self.epochs: list[Epoch] = []
        self.best: dict[str, Tensor] | None = None

    def fit(self, pairs: Sequence[Pair], validation: Validation) -> Ended:
        """Train until the epochs are over, `patience` of them were no better, the loss is NaN, or Ctrl-C."""
        shuffle, shuffled = random.Random(self.options.seed).shuffle, list(pairs)
        right = right_texts(pairs)
        batches = -(-len(pairs) // self.options.batch_size)
        steps = batches * self.options.epochs
        try:
            record, _ = self._validate(validation)
            for number in range(1, self.options.epochs + 1):
                shuffle(shuffled)
                losses = []
                for i in range(batches):
                    done = (number - 1) * batches + i
                    losses.append(self._step(shuffled[i::batches], right, _falling(done, steps)))
                    if not math.isfinite(losses[-1]):
                        return "diverged"
                    self.watch.step(done + 1, steps, losses[-1])
                score, mrr = self._validate(validation)
                better = score > record
                if better:
                    record, self.best = score, self.trainable.state()
                self.epochs.append(Epoch(number, fmean(losses), mrr, better))
                self.watch.epoch(self.epochs[-1])
                if number - self.best_epoch >= self.options.patience:
                    return "patience"
        except KeyboardInterrupt:
            return "interrupted"
        return "all epochs"

    @property
    def best_epoch(self) -> int:
        """0 is the model that training began with."""
        return max((epoch.number for epoch in self.epochs if epoch.best), default=0)

    def _step(self, pairs: Sequence[Pair], right: Mapping[str, set[str]], share: float) -> float:
        """One batch: its loss, and the changed model."""
        queries = [pair.query for pair in pairs]
        documents = list(dict.fromkeys(text for pair in pairs for text in (pair.positive, *pair.negatives)))
        positive = torch.tensor([documents.index(pair.positive) for pair in pairs])
        other = torch.tensor([[text in right[query] for text in documents] for query in queries])
        other[torch.arange(len(pairs)), positive] = False

        def loss_of(vectors: Tensor) -> Tensor:
            return info_nce(vectors[: len(pairs)], vectors[len(pairs) :], positive, other, self.dims)

        rate = self.options.rate * share
        self.optimizer.zero_grad(set_to_none=True)
        texts = self.reader.queries(queries) + self.reader.documents(documents)
        loss, distinct, grad = self._backward(texts, loss_of)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        self.trainable.table.update(distinct, grad, TABLE_RATE * rate)
        return loss

    def _backward(
        self, texts: Sequence[list[int]], loss_of: Callable[[Tensor], Tensor]
    ) -> tuple[float, Tensor, Tensor]:
        """Loss, the distinct tokens, and the gradient of their rows; the parameters keep theirs.

        Texts that do not fit into memory together are read twice: for the loss, and part by part for its
        gradient (Gao et al. 2021, arXiv:2101.06983). The gradient is the same.
        """
        packed = torch.tensor([token for text in texts for token in text])
        distinct, rows, index = self.trainable.table.gather(packed)
        parts = list(self._parts(texts))

        def read(part: slice) -> Tensor:
            lengths = [len(text) for text in texts[part]]
            first = sum(len(text) for text in texts[: part.start])
            starts = torch.tensor([0, *accumulate(lengths)])
            vectors: Tensor = self.trainable.module(rows, index[first : first + sum(lengths)], starts)
            return vectors

        if len(parts) == 1:
            loss = loss_of(read(parts[0]))
            loss.backward()
        else:
            with torch.no_grad():
                vectors = torch.cat([read(part) for part in parts])
            loss = loss_of(vectors.requires_grad_())
            loss.backward()
            assert vectors.grad is not None
            for part in parts:
                read(part).backward(vectors.grad[part])
        assert rows.grad is not None
        return loss.item(), distinct, rows.grad

    def _parts(self, texts: Sequence[list[int]]) -> Iterator[slice]:
        """Runs of texts of `part_tokens` tokens at most, or of one text."""
        first = tokens = 0
        for i, text in enumerate(texts):
            if i > first and tokens + len(text) > self.part_tokens:
                yield slice(first, i)
                first, tokens = i, 0
            tokens += len(text)
        yield slice(first, len(texts))

    def _validate(self, validation: Validation) -> tuple[tuple[float, float], float]:
        """What epochs are compared by, and MRR@10."""
        queries = self._encode(self.reader.queries(validation.queries))
        scores, lead = validation.score(queries, self._encode(self.reader.documents(validation.documents)))
        return (scores["mrr@10"], lead), scores["mrr@10"]

    @torch.no_grad()
    def _encode(self, texts: Sequence[list[int]]) -> NDArray[np.float32]:
        """Unit vectors (n, C)."""
        vectors = []
        for part in self._parts(texts):
            _, rows, index = self.trainable.table.gather(
                torch.tensor([t for text in texts[part] for t in text])
            )
            starts = torch.tensor([0, *accumulate(len(text) for text in texts[part])])
            vectors.append(self.trainable.module(rows, index, starts))
        unit: NDArray[np.float32] = F.normalize(torch.cat(vectors), dim=1).numpy()
        return unit


def right_texts(pairs: Sequence[Pair]) -> dict[str, set[str]]:
    """All positives of each query."""
    right: dict[str, set[str]] = {}
    for pair in pairs:
        right.setdefault(pair.query, set()).add(pair.positive)
    return right


def _falling(done: int, steps: int) -> float:
    """Up to 1 while warming up, then down to 0."""
    return min((done + 1) / (WARM_UP * steps), 1.0, (steps - done) / steps)


def _floats_per_token(module: RWKV7Embedder) -> int:
    """Roughly what a forward pass keeps for its backward pass."""
    blocks: list[Any] = list(module.blocks)
    return sum(40 * block.ffn.key.in_features + 4 * block.ffn.key.out_features for block in blocks)
