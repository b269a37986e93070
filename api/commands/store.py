"""stats, verify, compact, backup, restore, export, import: the care of a store."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api import shapes
from api.errors import InvalidRequest
from api.locations import default_store
from api.terminal import (
    DEFAULT_COLLECTION,
    CollectionOption,
    JsonOption,
    ModelOption,
    StoreOption,
    WhereOption,
    collection,
    note,
    opened,
    printable,
    progress,
    say,
    say_json,
    table,
)

if TYPE_CHECKING:
    from indexer.collection import Collection

    from indexer.types import Document

PAGE = 200  # documents read at once


def register(app: typer.Typer) -> None:
    panel = "Store"
    app.command(rich_help_panel=panel)(stats)
    app.command(rich_help_panel=panel)(verify)
    app.command(rich_help_panel=panel)(compact)
    app.command(rich_help_panel=panel)(backup)
    app.command(rich_help_panel=panel)(restore)
    app.command(rich_help_panel=panel)(export)
    app.command("import", rich_help_panel=panel)(import_documents)


def _print(result: Any, as_json: bool) -> None:
    """A result of the indexer: JSON, or its facts in two columns."""
    facts = result if isinstance(result, Mapping) else json.loads(shapes.dumps(result))
    if as_json:
        say_json(facts)
    elif isinstance(facts, Mapping):
        table(
            ("", ""),
            [(key, value if isinstance(value, str) else shapes.dumps(value)) for key, value in facts.items()],
        )
    elif facts is not None:
        say(printable(shapes.dumps(facts)))


def stats(
    recall: Annotated[
        bool,
        typer.Option("--recall", help="Also measure how much the index finds of what exact search finds."),
    ] = False,
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
) -> None:
    """Sizes of a collection, its model, and which index it uses and why."""
    with collection(store, name) as chosen:
        _print(chosen.stats(recall=recall), as_json)


def verify(
    sample: Annotated[
        int, typer.Option("--sample", min=0, help="How many passages to embed again and compare.")
    ] = 100,
    store: StoreOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the store: its database, its index files, and that vectors still are those of their texts."""
    with opened(store, model) as chosen:
        _print(chosen.verify(sample=sample), as_json)


def compact(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Give back the space of what was deleted."""
    with opened(store) as chosen:
        _print(chosen.compact(), as_json)


def backup(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the whole store to one file, while it is in use."""
    with opened(store) as chosen:
        chosen.backup(path)
    written = {"backup": str(path), "bytes": path.stat().st_size}
    if as_json:
        say_json(written)
    else:
        say(f"{path}: {written['bytes']:,} bytes")


def restore(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `backup` wrote.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a store of a backup. The place must be free: nothing is overwritten."""
    from indexer.store import restore as restore_store

    location = store or default_store()
    restore_store(path, Path(location))
    if as_json:
        say_json({"store": location})
    else:
        say(f"restored to {location}")


def export(
    path: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to write; to stdout if not given.")
    ] = None,
    where: WhereOption = None,
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    as_json: Annotated[
        bool, typer.Option("--json", help="Accepted for symmetry: the output always is JSON lines.")
    ] = False,
) -> None:
    """Write the documents of a collection as JSON lines: id, text, title, uri, language, metadata."""
    with collection(store, name) as chosen, progress("Exporting") as advance:
        lines = (shapes.dumps(document) + "\n" for document in _documents(chosen, where, advance))
        if path is None:
            sys.stdout.writelines(lines)
            return
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(lines)
    note(f"written to {path}")


def _documents(chosen: Collection, where: str | None, advance: Any) -> Iterator[dict[str, Any]]:
    total, offset = chosen.count(where=where), 0
    while rows := chosen.documents(offset=offset, limit=PAGE, where=where):
        for row in rows:
            document = chosen.get(row["id"])
            yield {key: document.get(key) for key in ("id", "text", "title", "uri", "language", "metadata")}
        offset += len(rows)
        advance(offset, total)


def import_documents(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines with id and text, as `export` writes them.")
    ],
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add the documents of a JSON-lines file; those already there unchanged cost nothing."""
    with (
        path.open(encoding="utf-8") as stream,
        collection(store, name, model, create=True) as chosen,
        progress("Importing") as advance,
    ):
        done = chosen.upsert(
            (_document(line, number) for number, line in enumerate(stream, 1) if line.strip()),
            progress=advance,
        )
    if as_json:
        say_json(shapes.report(done))
    else:
        say(f"{done.added} added, {done.updated} updated, {done.unchanged} unchanged")


def _document(line: str, number: int) -> Document:
    from indexer.types import Document

    try:
        value = json.loads(line)
        fields = {key: value.get(key) for key in ("title", "uri", "language")}
        return Document(str(value["id"]), str(value["text"]), **fields, metadata=value.get("metadata") or {})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidRequest(
            f'line {number}: an object with "id" and "text" is needed, not {line.strip()[:60]!r} ({error})'
        ) from None
