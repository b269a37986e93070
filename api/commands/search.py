"""search: readable hits, or JSON."""

from __future__ import annotations

from enum import Enum
from math import isfinite
from typing import TYPE_CHECKING, Annotated

import typer

from api import shapes
from api.errors import InvalidRequest
from api.terminal import (
    DEFAULT_COLLECTION,
    CollectionOption,
    JsonOption,
    ModelOption,
    RerankerOption,
    StoreOption,
    WhereOption,
    collection,
    indented,
    note,
    one_line,
    out,
    printable,
    say,
    say_json,
)

if TYPE_CHECKING:
    from rich.text import Text

    from indexer.types import SearchHit


class Mode(str, Enum):
    hybrid = "hybrid"
    dense = "dense"
    lexical = "lexical"


class GroupBy(str, Enum):
    chunk = "chunk"
    document = "document"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Search")(search)


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in any language.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many results.")] = 10,
    offset: Annotated[int, typer.Option("--offset", min=0, help="How many results to pass over.")] = 0,
    mode: Annotated[
        Mode, typer.Option(help="By meaning (dense), by words (lexical), or both.")
    ] = Mode.hybrid,
    where: WhereOption = None,
    group_by: Annotated[
        GroupBy, typer.Option(help="One result per passage or per document.")
    ] = GroupBy.chunk,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            help="No results that score less; a score is a cosine (dense), BM25 (lexical) or their sum, scaled.",
        ),
    ] = None,
    mmr: Annotated[
        float | None,
        typer.Option(
            "--mmr", min=0, max=1, help="Avoid results alike: 1 is relevance only, 0 diversity only."
        ),
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Score the best candidates once more, slower.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say where each result came from.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every vector.")] = False,
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    model: ModelOption = None,
    reranker: RerankerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the passages that answer a query, whatever language they are written in."""
    from indexer.types import SearchOptions

    if threshold is not None and not isfinite(threshold):
        raise InvalidRequest(f"--threshold {threshold}: a number is needed, such as 0.5")
    options = SearchOptions(
        top_k=top_k,
        offset=offset,
        mode=mode.value,
        where=where,
        group_by=group_by.value,
        score_threshold=threshold,
        mmr_lambda=mmr,
        rerank=rerank,
        explain=explain,
        exact=exact,
    )
    with collection(store, name, model, reranker) as chosen:
        hits = chosen.search(query, options)
    if as_json:
        say_json({"hits": [shapes.hit(hit) for hit in hits]})
        return
    if not hits:
        note("Nothing found.")
    for number, hit in enumerate(hits, start=offset + 1):
        _print_hit(number, hit)


def _print_hit(number: int, hit: SearchHit) -> None:
    from rich.text import Text

    head = Text(f"{number:>2}  {hit.score:.3f}  ")
    head.append(one_line(hit.title or hit.document_id), style="bold")
    head.append(f"  [{hit.language or '?'}]", style="cyan")
    source = Text(f"{one_line(hit.uri or hit.document_id)}  {hit.start}-{hit.end}", style="dim")
    out().print(head)
    indented(source)
    indented(_emphasised(hit))
    if hit.explain is not None:
        indented(Text(shapes.dumps(hit.explain), style="dim"))
    say()


def _emphasised(hit: SearchHit) -> Text:
    """The passage with its matching sentences in bold, or between ** where there is no colour."""
    from rich.text import Text

    colour, text, place = out().color_system is not None, Text(), 0
    for start, end in sorted(hit.highlights):
        start = max(start, place)
        if start < end:
            text.append(printable(hit.text[place:start]))
            matching = printable(hit.text[start:end])
            text.append(matching if colour else f"**{matching}**", style="bold yellow")
            place = end
    return text.append(printable(hit.text[place:]))
