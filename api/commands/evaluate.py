"""eval: how well a model, and the search around it, does on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.commands.search import Mode
from api.errors import InvalidRequest
from api.terminal import BareModelOption, JsonOption, RerankerOption, progress, say, say_json


def register(app: typer.Typer) -> None:
    app.command("eval", rich_help_panel="Models")(evaluate)


def evaluate(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="A BEIR folder (corpus.jsonl, queries.jsonl, qrels/), a folder of those, bitext, pairs.",
        ),
    ],
    modes: Annotated[
        list[Mode] | None, typer.Option("--mode", help="Only this mode of search; may be repeated.")
    ] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Rerank what was found.")] = False,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="NAME|PATH", help="Another model, for its differences.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which qrels of a BEIR folder.")] = "test",
    model: BareModelOption = None,
    reranker: RerankerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model, and the search around it, on labelled data; prints a Markdown table.

    nDCG, recall and MRR of searches by meaning, by words and by both; accuracy on bitext; Spearman on pairs.
    """
    from api.backend import load_reranker
    from indexer import evaluation
    from rwkv_embed import Embedder

    if rerank and reranker is None:
        raise InvalidRequest("--rerank: no reranker is named; name one with --reranker NAME|PATH")
    datasets = evaluation.load_datasets(dataset, split)
    chosen = tuple(mode.value for mode in modes) if modes else ("dense", "lexical", "hybrid")
    with progress("Evaluating", "steps") as advance:
        reports = [
            evaluation.evaluate(
                datasets,
                embedder,
                chosen,  # type: ignore[arg-type]  # Mode has exactly these values
                reranker=load_reranker(reranker, embedder) if rerank and reranker else None,
                progress=lambda item, done, total: advance(done, total, item),
            )
            for embedder in map(Embedder, [model] if compare is None else [model, compare])
        ]
    report, other = reports[0], reports[1] if compare is not None else None
    if as_json:
        say_json(report.to_json() | ({"compared": other.to_json()} if other else {}))
    else:
        say(report.to_markdown(other).rstrip("\n"))
