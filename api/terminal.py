"""What all commands share: options, two consoles, JSON, progress, errors as sentences with exit codes.

Results go to stdout; progress, notes and errors go to stderr, so that a pipe gets results only.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from api.errors import EXPECTED, INTERNAL, InvalidRequest, meaning, sentence
from api.shapes import dumps
from indexer.errors import DocumentNotFound

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from indexer.collection import Collection
    from indexer.store import Store

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="DIR|URL",
        envvar="RWKV_EMBED_STORE",
        help="Where the store is: a directory, or a PostgreSQL database with pgvector, "
        "postgresql://user@host/name. If not given: your user data folder (~/.local/share/rwkv-embed on Linux), "
        "the same from every directory.",
    ),
]
CollectionOption = Annotated[
    str,
    typer.Option(
        "--collection", "-c", metavar="NAME", envvar="RWKV_EMBED_COLLECTION", help="The collection."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|PATH",
        envvar="RWKV_EMBED_MODEL",
        help="The embedding model. If not given: the one the collection was built with, or the bundled one.",
    ),
]
BareModelOption = Annotated[  # of commands that open no store
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|PATH",
        envvar="RWKV_EMBED_MODEL",
        help="The embedding model; the bundled one if not given.",
    ),
]
RerankerOption = Annotated[
    str | None,
    typer.Option(
        "--reranker",
        metavar="NAME|PATH",
        envvar="RWKV_EMBED_RERANKER",
        help="What --rerank scores with: the reranker trained with the model, or an RWKV language model.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
WhereOption = Annotated[
    str | None,
    typer.Option(
        "--where", metavar="FILTER", help="Only documents that match: 'year >= 2020 and lang in (de, fr)'."
    ),
]
DEFAULT_COLLECTION = "default"
CTRL_C, SIGPIPE = 130, 141
INDENT = 4  # columns before what belongs to the line above
ANY_WIDTH = 1 << 16  # of a pipe: a row of a table is a line


@cache
def out() -> Console:
    from rich.console import Console

    piped = not sys.stdout.isatty()
    width = ANY_WIDTH if piped else None
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=piped, width=width)


@cache
def err() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def note(text: str) -> None:
    """A line for the person, on stderr."""
    err().print(printable(text), style="dim", soft_wrap=True)


def say(text: str = "") -> None:
    """A line of results, on stdout."""
    typer.echo(printable(text))


def say_json(value: Any) -> None:
    typer.echo(dumps(value))


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """A document's text cannot move the cursor, ring, or recolour the terminal: controls become �."""
    return _CONTROLS.sub("�", text)


def one_line(text: str) -> str:
    """As `printable`, for what must not take more than its line: ids, titles, addresses."""
    return re.sub(r"[\n\t]", "�", printable(text))


class Commands(TyperGroup):
    """Turns every exception into one sentence on stderr and the exit code of `api.errors`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            indexing = ctx.invoked_subcommand == "index"
            note("Stopped." + " What was finished is kept; the same command goes on from there." * indexing)
            raise typer.Exit(CTRL_C) from None
        except BrokenPipeError:  # the reader of our pipe, `head` for one, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(SIGPIPE) from None
        except EXPECTED as error:
            fail(error)
            raise typer.Exit(meaning(error).exit_code) from None
        except Exception as error:
            if not _is_ours(error):
                raise  # typer's own: usage errors and exits
            if os.environ.get("RWKV_EMBED_DEBUG"):
                raise
            fail(f"internal error: {type(error).__name__}: {error}; set RWKV_EMBED_DEBUG=1 for the traceback")
            raise typer.Exit(INTERNAL.exit_code) from None


def _is_ours(error: Exception) -> bool:
    return not any(cls.__module__.partition(".")[0] in ("typer", "click") for cls in type(error).__mro__)


def fail(error: BaseException | str) -> None:
    text = error if isinstance(error, str) else sentence(error)
    if isinstance(error, DocumentNotFound):  # the next step here; over HTTP and MCP it is another
        text += "; `rwkv-embed list` shows the ids"
    err().print("Error:", style="bold red", end=" ")
    err().print(printable(text), soft_wrap=True)


@contextmanager
def opened(
    location: str | None, model: str | None = None, reranker: str | None = None, *, create: bool = False
) -> Iterator[Store]:
    """The store of the options. Only commands that write create one."""
    from api.backend import open_store
    from api.locations import default_store

    with open_store(location or default_store(), model, reranker, create=create) as store:
        yield store


@contextmanager
def collection(
    location: str | None,
    name: str,
    model: str | None = None,
    reranker: str | None = None,
    *,
    create: bool = False,
) -> Iterator[Collection]:
    """One collection of the store. `create` makes both when they are missing."""
    with opened(location, model, reranker, create=create) as store:
        yield store.collection_or_create(name) if create else store.collection(name)


@contextmanager
def progress(label: str, unit: str = "documents") -> Iterator[Callable[..., None]]:
    """A bar on stderr. Gives the callback that the indexer calls with (done, total, what is being done)."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[item]}", style="dim"),
    )
    with Progress(*columns, console=err(), transient=True, disable=not err().is_terminal) as bar:
        task = bar.add_task(label, total=None, item="")

        def advance(done: int, total: int | None = None, item: str = "") -> None:
            bar.update(task, completed=done, total=total, item=printable(item)[-40:])

        yield advance


def json_object(option: str, text: str | None) -> dict[str, Any]:
    """The JSON object given to an option; InvalidRequest when it is not one."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{option}: not JSON ({error}); write it like '{{\"year\": 2024}}'") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{option}: a JSON object is needed, such as '{{\"year\": 2024}}', not {text}")
    return value


def text_argument(text: str | None, file: Path | None = None) -> str:
    """The text of an argument, of a file, or of stdin when it is missing or '-'."""
    if file is not None:
        if text is not None:
            raise InvalidRequest("give the text either as an argument or with --file, not both")
        return _utf8(file.read_bytes(), str(file))
    if text is not None and text != "-":
        return text
    if sys.stdin.isatty():
        note("Reading from the terminal; end with Ctrl-D.")
    return _utf8(sys.stdin.buffer.read(), "standard input")


def _utf8(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{source}: not UTF-8 text (byte {error.start}); convert it with iconv first"
        ) from None


def indented(text: Text) -> None:
    """Results set in from the margin: wrapped on a terminal, whole lines in a pipe, where others search them."""
    from rich.padding import Padding

    if out().is_terminal:
        out().print(Padding(text, (0, 0, 0, INDENT), expand=False))
    else:
        for line in text.plain.splitlines():
            say(f"{'':{INDENT}}{line}" if line.strip() else "")


def facts(known: Mapping[str, Any]) -> None:
    """What is known of a thing, for people: a name and a value a line, nested ones written out."""
    table(("", ""), [(name.replace("_", " "), _in_words(value)) for name, value in known.items()])


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        # numbers have commas of their own: "en 5,019; de 12"
        return "; ".join(f"{str(key).replace('_', ' ')} {_in_words(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people; columns of numbers are to the right."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, header_style="bold", pad_edge=False, show_header=any(headings))
    for number, heading in enumerate(headings):
        numeric = bool(rows) and all(isinstance(row[number], int | float) for row in rows)
        drawn.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(one_line("" if cell is None else str(cell))) for cell in row))
    if out().is_terminal:
        out().print(drawn)
        return
    with out().capture() as captured:  # rich pads the last column, which other programs would have to strip
        out().print(drawn)
    say("\n".join(line.rstrip() for line in captured.get().splitlines()))
