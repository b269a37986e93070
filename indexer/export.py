"""A collection as JSON lines, with vectors: to move it, to read it elsewhere, to restore it without a model.

The first line describes the collection, each further line is a document:

    {"format": "rwkv-embed export 1", "collection", "model_id", "fingerprint", "dim", "recipe", "metadata"}
    {"id", "text", "title", "uri", "language", "metadata", "content_hash", "source", "source_stamp",
     "chunks": [{"start", "end", "language", "vector"}]}     vector: base64 of `dim` float16, little-endian

A name that ends in ".gz" is compressed.
"""

import base64
import gzip
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from sqlalchemy import select

from indexer import ingest
from indexer.db.tables import ChunkRow, CollectionRow, DocumentRow
from indexer.errors import LimitExceeded, StoreError
from indexer.types import Chunk, ChunkingOptions, Document

if TYPE_CHECKING:
    from indexer.collection import Collection
    from indexer.store import Store

FORMAT = "rwkv-embed export 1"
_PAGE_DOCUMENTS = 64


def export_collection(collection: "Collection", path: Path, progress: ingest.Progress | None = None) -> int:
    """Write a collection, as it is at this moment, to a new file; how many documents it has."""
    if path.exists():
        raise StoreError(f"{path} exists; give another name, an export never overwrites")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _open(temporary, "wt", path.suffix == ".gz") as file:
            count = _write(collection, file, progress)
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _write(collection: "Collection", file: IO[str], progress: ingest.Progress | None) -> int:
    info = collection.info
    header = {
        "format": FORMAT,
        "collection": info.name,
        "model_id": info.model_id,
        "fingerprint": info.fingerprint,
        "dim": info.dim,
        "recipe": asdict(info.recipe),
        "metadata": info.metadata,
    }
    file.write(json.dumps(header, ensure_ascii=False) + "\n")
    done = last = 0
    with collection.session() as session:
        while True:
            statement = select(DocumentRow).where(
                DocumentRow.collection_id == collection.id, DocumentRow.id > last
            )
            rows = session.scalars(statement.order_by(DocumentRow.id).limit(_PAGE_DOCUMENTS)).all()
            if not rows:
                return done
            for row in rows:
                chunks = session.scalars(
                    select(ChunkRow).where(ChunkRow.document_id == row.id).order_by(ChunkRow.ordinal)
                )
                file.write(json.dumps(_document_line(row, chunks), ensure_ascii=False) + "\n")
            last, done = rows[-1].id, done + len(rows)
            session.expunge_all()
            if progress:
                progress(done, info.documents)


def _document_line(row: DocumentRow, chunks: Any) -> dict[str, Any]:
    return {
        "id": row.external_id,
        "text": ingest.body_text(row.body),
        "title": row.title,
        "uri": row.uri,
        "language": row.language,
        "metadata": row.meta,
        "content_hash": row.content_hash,
        "source": row.source,
        "source_stamp": row.source_stamp,
        "chunks": [
            {
                "start": chunk.start,
                "end": chunk.end,
                "language": chunk.language,
                "vector": base64.b64encode(chunk.vector).decode(),
            }
            for chunk in chunks
        ],
    }


def import_collection(
    store: "Store", path: Path, name: str | None = None, progress: ingest.Progress | None = None
) -> "Collection":
    """Make a new collection (`name`, or the exported one's) of an export. No model is needed.

    StoreError: the file is not an export, with the line; what was read before it stays. CollectionExists.
    """
    try:
        with _open(path, "rt", path.suffix == ".gz") as file:
            lines = enumerate(file, start=1)
            header = _parsed(path, *next(lines, (1, "")))
            collection = _create(store, path, header, name)
            done = 0
            for batch in ingest.batched(lines, _PAGE_DOCUMENTS):
                plans = [
                    _plan(path, n, _parsed(path, n, line), header["dim"], collection.recipe)
                    for n, line in batch
                ]
                with store.write(f"importing {path.name}") as session:
                    ingest.write_plans(collection, session, plans)
                done += len(plans)
                if progress:
                    progress(done, None)
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise StoreError(f"{path} cannot be read as an export: {error}") from error
    collection.index.maintain()
    return collection


def _create(store: "Store", path: Path, header: dict[str, Any], name: str | None) -> "Collection":
    try:
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, this version reads {FORMAT!r}")
        row = CollectionRow(
            name=name or header["collection"],
            model_id=str(header["model_id"]),
            model_fingerprint=str(header["fingerprint"]),
            dim=int(header["dim"]),
            recipe=asdict(ChunkingOptions(**header["recipe"])),
            meta=dict(header["metadata"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is not an export of rwkv-embed: {error}") from error
    return store.add_collection(row)


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise StoreError(f"{path}, line {number} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path}, line {number} is not a JSON object")
    return value


def _plan(path: Path, number: int, line: dict[str, Any], dim: int, recipe: ChunkingOptions) -> ingest.Planned:
    """A document of an export as the write path takes it."""
    try:
        document = Document(
            line["id"], line["text"], line["title"], line["uri"], line["language"], line["metadata"]
        )
        chunks = [
            Chunk(
                n,
                chunk["start"],
                chunk["end"],
                document.text[chunk["start"] : chunk["end"]],
                chunk["language"],
            )
            for n, chunk in enumerate(line["chunks"])
        ]
        vectors = [base64.b64decode(chunk["vector"], validate=True) for chunk in line["chunks"]]
        source = ingest.Source(document, line["source"], line["source_stamp"])
        ingest.check(document)
        for vector in vectors:
            if len(vector) != 2 * dim or not np.isfinite(np.frombuffer(vector, "<f2")).all():
                raise ValueError(f"a vector is not {dim} finite float16 values")
    except (KeyError, TypeError, ValueError, AttributeError, LimitExceeded) as error:
        raise StoreError(f"{path}, line {number} is not an exported document: {error!r}") from error
    hashes = ingest.text_hashes(document.text, chunks, recipe.context)
    by_hash = dict(zip(hashes, vectors, strict=True))
    languages = {hash: chunk.language for hash, chunk in zip(hashes, chunks, strict=True)}
    return ingest.Planned(
        source, str(line["content_hash"]), document.language, chunks, hashes, by_hash, languages
    )


def _open(path: Path, mode: str, zipped: bool) -> IO[str]:
    return cast(IO[str], (gzip.open if zipped else open)(path, mode, encoding="utf-8"))
