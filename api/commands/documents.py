"""index, add, append, list, show, delete: what is in a collection."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api import shapes
from api.errors import InvalidRequest, SomeFilesFailed
from api.terminal import (
    CTRL_C,
    DEFAULT_COLLECTION,
    CollectionOption,
    JsonOption,
    ModelOption,
    StoreOption,
    WhereOption,
    collection,
    json_object,
    note,
    opened,
    progress,
    say,
    say_json,
    table,
    text_argument,
)
from indexer.errors import DocumentNotFound, LoaderError

if TYPE_CHECKING:
    from indexer.types import IngestReport

DocumentId = Annotated[str, typer.Argument(metavar="ID", help="The document's id.")]
TextArgument = Annotated[
    str | None, typer.Argument(metavar="[TEXT|-]", help="The text; from stdin if not given or '-'.")
]
FileOption = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="Read the text from this file.")
]
MetadataOption = Annotated[
    str | None, typer.Option("--metadata", metavar="JSON", help="A JSON object to store with each document.")
]


def register(app: typer.Typer) -> None:
    panel = "Documents"
    app.command(rich_help_panel=panel)(index)
    app.command(rich_help_panel=panel)(add)
    app.command(rich_help_panel=panel)(append)
    app.command("list", rich_help_panel=panel)(list_documents)
    app.command(rich_help_panel=panel)(show)
    app.command(rich_help_panel=panel)(delete)


def index(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    model: ModelOption = None,
    delete_missing: Annotated[
        bool, typer.Option("--delete-missing", help="Forget documents of these folders whose file is gone.")
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Only files like this; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="GLOB", help="No files like this; may be repeated."),
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            "--part",
            metavar="K/N",
            help="Only the K-th of N shares of the files: run all N at once, on machines that share the store.",
        ),
    ] = "1/1",
    metadata: MetadataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read files and folders into a collection, and keep it up to date: what has not changed costs nothing.

    Text, Markdown, HTML, PDF, Word, PowerPoint, Excel, EPUB, CSV, JSON lines, mail and source code are
    understood. A file that cannot be read is reported and does not stop the others (exit code 8).
    """
    extra, share = json_object("--metadata", metadata), _part(part)
    for path in paths:  # before a store is made for nothing
        if not os.path.lexists(path.expanduser()):
            raise LoaderError(str(path), "no such file or directory; nothing was indexed")
    with collection(store, name, model, create=True) as chosen, progress("Indexing", "files") as advance:
        done = chosen.index_paths(
            paths,
            delete_missing=delete_missing,
            metadata=extra,
            progress=advance,
            include=include or None,
            exclude=exclude or None,
            part=share,
        )
    _tell(done, as_json)


def _part(text: str) -> tuple[int, int]:
    """(K, N) of "K/N"; InvalidRequest for anything else."""
    k, n = text.split("/") if re.fullmatch(r"\d{1,6}/\d{1,6}", text, re.ASCII) else ("0", "0")
    if not 1 <= int(k) <= int(n):
        raise InvalidRequest(f"--part {text}: K/N with K from 1 to N is needed, such as 2/4")
    return int(k), int(n)


def add(
    document_id: DocumentId,
    text: TextArgument = None,
    file: FileOption = None,
    title: Annotated[str | None, typer.Option("--title", help="A title, shown with results.")] = None,
    uri: Annotated[str | None, typer.Option("--uri", help="Where it comes from, shown with results.")] = None,
    language: Annotated[
        str | None, typer.Option("--language", metavar="CODE", help="ISO 639 code; identified if not given.")
    ] = None,
    metadata: MetadataOption = None,
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add one text under an id of your choice, or replace the text of that id."""
    from indexer.types import Document

    document = Document(
        document_id, text_argument(text, file), title, uri, language, json_object("--metadata", metadata)
    )
    with collection(store, name, model, create=True) as chosen:
        done = chosen.upsert([document])
    if done.failed:
        raise InvalidRequest(f"nothing was added: {done.failed[0]['reason']}")
    _tell(done, as_json)


def append(
    document_id: DocumentId,
    text: TextArgument = None,
    file: FileOption = None,
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
) -> None:
    """Add text at the end of a document. The new text and the passage that it continues are embedded, no more.

    In a collection whose passages know what is before them (context "document") only the new text is read: the
    RNN's state remembers the rest.
    """
    addition = text_argument(text, file)
    with collection(store, name) as chosen:
        done = chosen.append(document_id, addition)
    _tell(done, as_json)


def _tell(done: IngestReport, as_json: bool) -> None:
    """Print the report; SomeFilesFailed when files could not be read."""
    if as_json:
        say_json(shapes.report(done))
    else:
        counts = (
            f"{done.added} added, {done.updated} updated, {done.unchanged} unchanged, {done.deleted} deleted"
        )
        say(f"{counts} ({done.chunks_embedded} passages embedded)")
        if done.resumed:
            note("An earlier run of this had stopped half-way; this one went on from there.")
        for failure in done.failed:
            note(f"{failure['path']}: {failure['reason']}")
    if done.failed:
        raise SomeFilesFailed(
            f"{len(done.failed)} of the files could not be read; everything else is indexed"
        )


def list_documents(
    collections: Annotated[
        bool, typer.Option("--collections", help="The store's collections instead.")
    ] = False,
    where: WhereOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 100,
    offset: Annotated[int, typer.Option("--offset", min=0, help="How many to pass over.")] = 0,
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
) -> None:
    """List the documents of a collection, or the collections of the store."""
    if collections:
        _list_collections(store, as_json)
        return
    with collection(store, name) as chosen:
        rows, total = chosen.documents(offset=offset, limit=limit, where=where), chosen.count(where=where)
    if as_json:
        say_json({"documents": rows, "total": total})
        return
    if not rows:
        note(f"There is nothing from number {offset + 1} on; {total} in all." if offset else "No documents.")
        return
    table(("ID", "LANG", "TITLE"), [(row["id"], row.get("language"), row.get("title")) for row in rows])
    if offset + len(rows) < total:
        note(f"{offset + 1} to {offset + len(rows)} of {total}; the next ones: --offset {offset + len(rows)}")


def _list_collections(store: str | None, as_json: bool) -> None:
    with opened(store) as chosen:
        found = [shapes.collection(info) for info in chosen.collections()]
    if as_json:
        say_json({"collections": found})
        return
    if not found:
        note("No collections; `rwkv-embed index` makes one.")
        return
    columns = ("name", "documents", "chunks", "model", "dim")
    table([column.upper() for column in columns], [[row[column] for column in columns] for row in found])


def show(
    document_id: DocumentId,
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
) -> None:
    """Print a document: its text, or with --json everything known about it."""
    with collection(store, name) as chosen:
        document: dict[str, Any] = chosen.get(document_id)
    if as_json:
        say_json(document)
        return
    facts = {key: document.get(key) for key in ("title", "uri", "language", "metadata") if document.get(key)}
    for key, value in facts.items():
        note(f"{key}: {value if isinstance(value, str) else shapes.dumps(value)}")
    note(f"passages: {len(document['chunks'])}")
    say(document["text"])


def delete(
    document_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Documents to delete.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole-collection", help="Delete the collection with all its documents.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before deleting a collection.")
    ] = False,
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
) -> None:
    """Delete documents, or a whole collection. `compact` then gives the space back.

    An id that is not there does not stop the others; the exit code then is 14.
    """
    if whole == bool(document_ids):
        raise InvalidRequest("say either which documents to delete, by id, or --whole-collection")
    ids = set(document_ids or [])
    deleted = _delete_collection(store, name, yes) if whole else _delete_documents(store, name, ids)
    if as_json:
        say_json({"deleted": deleted})
    else:
        say(f"{deleted} deleted")
    if missing := 0 if whole else len(ids) - deleted:
        raise DocumentNotFound(f"{missing} of {len(ids)} ids not in the collection")


def _delete_documents(store: str | None, name: str, ids: Set[str]) -> int:
    with collection(store, name) as chosen:
        return chosen.delete(ids)


def _delete_collection(store: str | None, name: str, yes: bool) -> int:
    """How many documents it had. Asks first, unless the answer is given."""
    with opened(store) as chosen:
        documents = chosen.collection(name).count()
        if not yes:
            _confirm(f"Delete the collection {name!r} with its {documents} documents?")
        chosen.delete_collection(name)
    return documents


def _confirm(question: str) -> None:
    """Go on only after a yes; typer's own prompt takes a closed stdin and Ctrl-C for one another."""
    typer.echo(f"{question} [y/N]: ", nl=False, err=True)
    answer = sys.stdin.readline()
    if not answer:
        raise InvalidRequest("standard input is closed, so nobody can say yes; nothing was deleted, give --yes")
    if answer.strip().lower() not in ("y", "yes"):
        note("Nothing was deleted.")
        raise typer.Exit(CTRL_C)
