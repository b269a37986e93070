"""train: fine-tune an embedding model on pairs of texts of one's own."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.errors import InvalidRequest
from api.terminal import CTRL_C, JsonOption, note, progress, say, say_json, table

if TYPE_CHECKING:
    from rwkv_embed.training.finetune import Epoch, Result
    from rwkv_embed.training.pairs import Pair


NOTHING_BETTER = "Stopped before an epoch was better than the model it began with; nothing was written."


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Models")(train)


def train(
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS.jsonl", help='One {"query": …, "positive": …[, "negatives": […]]} a line.'
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where the new model goes; must be new or empty.")
    ],
    epochs: Annotated[int, typer.Option(min=1, help="Times that every pair is seen, at most.")] = 10,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs that are compared with each other.")] = 64,
    rate: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Learning rate of matrices, lower for those of small numbers; token vectors get 300 times that.",
        ),
    ] = 3e-5,
    validation: Annotated[
        str,
        typer.Option(metavar="FILE|FRACTION", help="Pairs to choose the best epoch by: a file, or a share."),
    ] = "0.1",
    patience: Annotated[
        int, typer.Option(min=1, help="Stop after this many epochs that were no better.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Of the order of pairs and of what is held out.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Processors to use; all if not given.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            envvar="RWKV_EMBED_MODEL",
            help="The model to begin with; the bundled one if not given.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune an embedding model on your own pairs of texts; the best epoch becomes a new model.

    The folder that it writes can be used at once: `rwkv-embed index notes --model DIR`. Ctrl-C keeps the best
    epoch so far.
    """
    from rwkv_embed import hub
    from rwkv_embed.training.finetune import Options, Watch, check_output, finetune
    from rwkv_embed.training.wkv7 import NO_KERNEL, kernel

    if not math.isfinite(rate):
        raise InvalidRequest(f"--rate is {rate}; expected a number such as 3e-5")
    check_output(output)
    if kernel() is None:
        note(NO_KERNEL)
    training, held = _data(pairs, validation, seed)
    options = Options(epochs, batch_size, rate, patience, seed, threads)
    try:
        with progress("Training", "steps") as advance:
            watch = Watch(lambda done, total, loss: advance(done, total, f"loss {loss:.3f}"), _tell)
            result = finetune(hub.resolve(model), training, held, output, options, watch)
    except KeyboardInterrupt:
        written = (output / "config.json").exists()
        note(f"Stopped before {output} was measured; it is the best epoch." if written else NOTHING_BETTER)
        raise typer.Exit(CTRL_C) from None
    _report(result, as_json)
    if result.ended == "interrupted":
        note(f"Stopped; {output} is the best so far, of epoch {result.best_epoch}.")
        raise typer.Exit(CTRL_C)
    if result.ended == "diverged":
        note(f"The loss was not a number any more; {output} is the best before, of epoch {result.best_epoch}.")


def _data(pairs: Path, validation: str, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and to validate on."""
    from rwkv_embed.training.pairs import read_pairs, split

    try:
        fraction = float(validation)
    except ValueError:
        return read_pairs(pairs), read_pairs(Path(validation))
    if not 0 < fraction < 1:
        raise InvalidRequest(
            f"--validation {validation}: a share is between 0 and 1, such as 0.1; or name a file"
        )
    return split(read_pairs(pairs), fraction, seed)


def _tell(epoch: Epoch) -> None:
    note(
        f"epoch {epoch.number}: loss {epoch.loss:.3f}, validation MRR@10 {epoch.mrr:.3f}"
        + (", the best so far" if epoch.best else "")
    )


def _report(result: Result, as_json: bool) -> None:
    if as_json:
        epochs = [epoch._asdict() for epoch in result.epochs]
        say_json(asdict(result) | {"output": str(result.output), "epochs": epochs})
        return
    rows = [
        (f"{metric}, {dim} dimensions", f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
        for dim in sorted(result.after, reverse=True)
        for metric, new in result.after[dim].items()
        for old in (result.before[dim][metric],)
    ]
    table(("", "BEFORE", "AFTER", "CHANGE"), rows)
    say(
        f"{result.validation_queries} validation queries, {result.validation_texts} texts. Trained on "
        f"{result.pairs} pairs; epoch {result.best_epoch} of {len(result.epochs)} was the best: {result.output}"
    )
