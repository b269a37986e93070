"""stats, verify, compact, backup, restore, export, import: the care of a store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from api import shapes
from api.locations import default_store
from api.terminal import (
    DEFAULT_COLLECTION,
    CollectionOption,
    JsonOption,
    ModelOption,
    StoreOption,
    collection,
    facts,
    opened,
    printable,
    progress,
    say,
    say_json,
)
from indexer.errors import StoreError


class Format(str, Enum):
    jsonl = "jsonl"
    parquet = "parquet"


def register(app: typer.Typer) -> None:
    panel = "Store"
    app.command(rich_help_panel=panel)(stats)
    app.command(rich_help_panel=panel)(verify)
    app.command(rich_help_panel=panel)(compact)
    app.command(rich_help_panel=panel)(backup)
    app.command(rich_help_panel=panel)(restore)
    app.command(rich_help_panel=panel)(export)
    app.command("import", rich_help_panel=panel)(import_collection)


def _print(result: Any, as_json: bool) -> None:
    """A result of the indexer: JSON, or its facts in two columns."""
    known = result if isinstance(result, Mapping) else json.loads(shapes.dumps(result))
    if as_json:
        say_json(known)
    else:
        facts(known)


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
        report = chosen.verify(sample=sample)
    if as_json:
        _print(report, as_json)
    else:
        say("checked " + ", ".join(f"{count:,} {what}" for what, count in report.checked.items()))
        for sentence in (*report.problems, *report.notes):
            say(printable(sentence))
    if not report.ok:
        raise StoreError(f"{len(report.problems)} problems; restore a backup if you have one")


def compact(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Give back the space of what was deleted."""
    with opened(store) as chosen:
        report = chosen.compact()
    if as_json:
        _print(report, as_json)
    else:
        say(f"{report.bytes_before:,} bytes before, {report.bytes_after:,} after")


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
    restore_store(path, location)
    if as_json:
        say_json({"store": location})
    else:
        say(f"restored to {location}")


def export(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A new file: NAME.jsonl, NAME.jsonl.gz or NAME.parquet.")
    ],
    format: Annotated[
        Format | None,
        typer.Option(
            "--format", metavar="FORMAT", help="jsonl or parquet, for a name that does not say the format."
        ),
    ] = None,
    store: StoreOption = None,
    name: CollectionOption = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
) -> None:
    """Write a collection, vectors included, as JSON lines or Parquet that other programs can read."""
    from indexer.export import export_collection

    with collection(store, name) as chosen, progress("Exporting") as advance:
        documents = export_collection(chosen, path, format.value if format else None, advance)
    if as_json:
        say_json({"export": str(path), "documents": documents})
    else:
        say(f"{path}: {documents} documents")


def import_collection(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `export` wrote.")],
    name: Annotated[
        str | None,
        typer.Option("--collection", "-c", metavar="NAME", help="Its name here, if it is to change."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new collection of an export. Nothing is embedded again, and no model is needed."""
    from indexer import export

    if not path.is_file():  # before a store is made for nothing
        raise StoreError(f"{path} cannot be imported: there is no such file; nothing was imported")
    with opened(store, create=True) as chosen, progress("Importing") as advance:
        info = export.import_collection(chosen, path, name, advance).info
    if as_json:
        say_json(shapes.collection(info))
    else:
        say(f"{info.name}: {info.documents} documents, {info.chunks} passages")
