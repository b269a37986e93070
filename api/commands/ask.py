"""ask: one cited answer, streamed as it is written, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api import shapes
from api.errors import EXPECTED, InvalidRequest
from api.terminal import (
    DEFAULT_COLLECTION,
    CollectionOption,
    JsonOption,
    ModelOption,
    StoreOption,
    WhereOption,
    collection,
    fail,
    indented,
    note,
    one_line,
    out,
    printable,
    say,
    say_json,
)

if TYPE_CHECKING:
    from indexer.collection import Collection
    from indexer.types import Answer, Citation, Message


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Search")(ask)


def ask(
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="The question, in any language.")
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive", "-i", help="A conversation: later questions may refer to earlier ones."
        ),
    ] = False,
    generator: Annotated[
        str,
        typer.Option(
            metavar="KIND[:NAME]",
            help="Who writes: extractive (quotes, needs no language model), rwkv:PATH (a language model) "
            "or openai:MODEL (a server with OpenAI's API; OPENAI_BASE_URL and OPENAI_API_KEY say which).",
        ),
    ] = "extractive",
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Chat template of an rwkv model: world, g1 or a JSON file. Default: by its file name.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many passages to read.")] = 8,
    where: WhereOption = None,
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from the collection, with numbered sources; says so when the collection is silent."""
    if interactive == (question is not None) or (interactive and as_json):
        raise InvalidRequest("give either a question or -i for a conversation (which has no --json)")
    from indexer.answers import make_generator

    with collection(store, name, model) as chosen:
        writer = make_generator(generator, template=template)
        options: dict[str, Any] = {"generator": writer, "top_k": top_k, "where": where}
        if question is None:
            _converse(chosen, options)
        elif as_json:
            say_json(shapes.answer(chosen.ask(question, **options)))
        else:
            _sources(_write(chosen.ask_stream(question, **options)).citations)


def _write(pieces: Iterable[str | Answer]) -> Answer:
    """Print the text as it comes and return the final answer."""
    answer: Answer | None = None
    for piece in pieces:
        if isinstance(piece, str):
            sys.stdout.write(printable(piece))
            sys.stdout.flush()
        else:
            answer = piece
    say()
    if answer is None:
        raise RuntimeError("the generator stopped without an answer")
    return answer


def _sources(citations: Sequence[Citation]) -> None:
    from rich.text import Text

    for cited in citations:
        line = Text(f"\n[{cited.n}] ", style="bold")
        line.append(one_line(cited.title or cited.document_id))
        line.append(f"  {one_line(cited.uri or cited.document_id)}  {cited.start}-{cited.end}", style="dim")
        out().print(line)
        indented(Text(printable(cited.quote), style="italic"))


def _converse(chosen: Collection, options: dict[str, Any]) -> None:
    from indexer.types import Message

    note("Ask away. /sources shows where the last answer comes from, /new starts afresh, Ctrl-D ends.")
    history: list[Message] = []
    citations: Sequence[Citation] = ()
    while (line := _question()) is not None:
        if line == "/sources":
            _sources(citations)
        elif line == "/new":
            history, citations = [], ()
        elif line:
            try:
                answer = _write(chosen.ask_stream(line, history=tuple(history), **options))
            except EXPECTED as error:  # one bad question does not end the conversation
                fail(error)
                continue
            citations = answer.citations
            history += [Message("user", line), Message("assistant", answer.answer)]


def _question() -> str | None:
    """The next line, with line editing where there is a terminal; None at its end."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  gives input() its history and arrow keys
    try:
        return input("\n> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
