"""A collection in one file, with vectors: to move it, to read it elsewhere, to restore it without a model.

A header, and a record per document in the order they were added, whatever the format (`export_formats`):

    {"format": "rwkv-embed export 1", "collection", "model_id", "fingerprint", "dim", "recipe", "metadata",
     "documents", "checksum"}
    {"id", "text", "title", "uri", "language", "metadata", "content_hash", "source", "source_stamp", "checksum",
     "chunks": [{"id", "start", "end", "language", "checksum", "vector"}]}

`checksum`: CRC-32 of everything else in the header or record (`_checksum`); a chunk's is the stored one and covers
its text and vector. Importing believes nothing: these and the number of documents must be right. It is one
transaction, so that a damaged file or a kill leaves no half collection. In an empty store passages get their old
ids, in another one ids in the same order; so answers stay the same, down to the order of equal scores.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from indexer import export_formats
from indexer.collection import Collection
from indexer.db.database import reason
from indexer.db.tables import ChunkRow, CollectionRow, DocumentRow, chunk_checksum
from indexer.documents import body_text, check, content_hash, text_hashes
from indexer.errors import LimitExceeded, StoreError
from indexer.export_formats import ExportFormat, Record
from indexer.ingest import Progress
from indexer.snapshots import sync_directory
from indexer.types import Chunk, ChunkingOptions, Document
from indexer.writing import Planned, Source, batched, write_plans

if TYPE_CHECKING:
    from indexer.store import Store

FORMAT = "rwkv-embed export 1"
_PAGE_DOCUMENTS = 64
_MAX_CHUNK_ID = 1 << 53
_CHUNK_FACTS = ("id", "start", "end", "language", "checksum")


def export_collection(
    collection: Collection,
    path: Path,
    format: ExportFormat | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a collection, as it is at this moment, to a new file; how many documents it has.

    `format` None: what the name ends in. StoreError: the file exists or cannot be written.
    """
    write = export_formats.writer(path, format)
    if path.exists():
        raise StoreError(f"{path} exists; give another name, an export never overwrites")
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # its end tells whether to compress
    try:
        with collection.session() as session:
            header = _header(session, collection)
            write(temporary, header, _records(session, collection, header["documents"], progress))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return int(header["documents"])


def _header(session: Session, collection: Collection) -> Record:
    row = session.get_one(CollectionRow, collection.id)
    header = {
        "format": FORMAT,
        "collection": row.name,
        "model_id": row.model_id,
        "fingerprint": row.model_fingerprint,
        "dim": row.dim,
        "recipe": row.recipe,
        "metadata": row.meta,
        "documents": _count(session, row.id),
    }
    return header | {"checksum": _checksum(header)}


def _checksum(record: Record) -> int:
    """CRC-32 of a header or record as sorted JSON, without its own checksum and the vectors."""
    facts = {name: value for name, value in record.items() if name not in ("checksum", "chunks")}
    chunks = [[chunk[name] for name in _CHUNK_FACTS] for chunk in record.get("chunks", ())]
    return zlib.crc32(json.dumps([facts, chunks], sort_keys=True).encode())


def _count(session: Session, collection_id: int) -> int:
    return session.scalar(select(func.count()).where(DocumentRow.collection_id == collection_id)) or 0


def _records(
    session: Session, collection: Collection, total: int, progress: Progress | None
) -> Iterator[Record]:
    done = last = 0
    while True:
        rows = session.scalars(
            select(DocumentRow)
            .where(DocumentRow.collection_id == collection.id, DocumentRow.id > last)
            .order_by(DocumentRow.id)
            .limit(_PAGE_DOCUMENTS)
        ).all()
        if not rows:
            return
        for row in rows:
            chunks = session.scalars(
                select(ChunkRow).where(ChunkRow.document_id == row.id).order_by(ChunkRow.ordinal)
            )
            yield _record(row, chunks)
        last, done = rows[-1].id, done + len(rows)
        session.expunge_all()
        if progress:
            progress(done, total)


def _record(row: DocumentRow, chunks: Iterable[ChunkRow]) -> Record:
    record: Record = {
        "id": row.external_id,
        "text": body_text(row.body),
        "title": row.title,
        "uri": row.uri,
        "language": row.language,
        "metadata": row.meta,
        "content_hash": row.content_hash,
        "source": row.source,
        "source_stamp": row.source_stamp,
        "chunks": [{name: getattr(chunk, name) for name in (*_CHUNK_FACTS, "vector")} for chunk in chunks],
    }
    return record | {"checksum": _checksum(record)}


def import_collection(
    store: "Store", path: Path, name: str | None = None, progress: Progress | None = None
) -> Collection:
    """Make a new collection (`name`, or the exported one's) of an export. No model is needed.

    Other writers wait until it is done. StoreError: the file is damaged or not an export, and where;
    nothing is imported then. CollectionExists. MissingDependency: Parquet needs pyarrow.
    """
    try:
        with export_formats.reader(path) as (header, records):
            row, documents = _collection_row(header, name)
            with store.write(f"importing {path.name}") as session:
                collection = store.add_collection(session, row)
                first_id = store.database.last_chunk_id(session)  # so that no id was ever used
                takes_nul = store.database.takes_nul
                done = 0
                for page in batched(records, _PAGE_DOCUMENTS):
                    plans = [_placed_plan(place, record, row, first_id, takes_nul) for place, record in page]
                    write_plans(collection, session, plans)
                    done += len(plans)
                    if progress:
                        progress(done, documents)
                store.database.took_chunk_ids(session, session.scalar(select(func.max(ChunkRow.id))) or first_id)
                if (found := _count(session, row.id)) != documents:
                    raise ValueError(f"it has {found:,} documents and should have {documents:,}")
    except (OSError, EOFError, ValueError, zlib.error, IntegrityError) as error:
        why = reason(error) if isinstance(error, IntegrityError) else error
        raise StoreError(f"{path} cannot be imported: {why}; nothing was imported") from error
    collection.index.maintain()
    return collection


def _collection_row(header: Record, name: str | None) -> tuple[CollectionRow, int]:
    """The row of the collection that a header describes, and how many documents it should get."""
    try:
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, this version reads {FORMAT!r}")
        if header["checksum"] != _checksum(header):
            raise ValueError("its header does not match its checksum")
        row = CollectionRow(
            name=str(name or header["collection"]),
            model_id=str(header["model_id"]),
            model_fingerprint=str(header["fingerprint"]),
            dim=int(header["dim"]),
            recipe=asdict(ChunkingOptions(**header["recipe"])),
            meta=dict(header["metadata"]),
        )
        return row, int(header["documents"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is not an export of rwkv-embed ({error})") from error


def _placed_plan(
    place: str, record: Record, row: CollectionRow, first_id: int, takes_nul: bool
) -> Planned:
    try:
        return _plan(record, row, first_id, takes_nul)
    except (KeyError, TypeError, ValueError, AttributeError, LimitExceeded) as error:
        raise ValueError(f"{place} is not an exported document ({error!r})") from error


def _plan(record: Record, row: CollectionRow, first_id: int, takes_nul: bool) -> Planned:
    """A document of an export as the write path takes it. ValueError: it is not what was exported."""
    for name in ("id", "text", "title", "uri", "language", "source", "source_stamp"):
        if not isinstance(record[name], str) and (record[name] is not None or name in ("id", "text")):
            raise TypeError(f"its {name} is {record[name]!r}")
    if record["checksum"] != _checksum(record):
        raise ValueError("it does not match its checksum")
    document = Document(*(record[name] for name in ("id", "text", "title", "uri", "language", "metadata")))
    check(document, takes_nul)
    said = (document, replace(document, language=None))  # its language may have been identified
    if record["content_hash"] not in map(content_hash, said):
        raise ValueError("the document does not match its content_hash")
    chunks = [
        Chunk(
            n, entry["start"], entry["end"], document.text[entry["start"] : entry["end"]], entry["language"]
        )
        for n, entry in enumerate(record["chunks"])
    ]
    hashes = text_hashes(document.text, chunks, row.recipe["context"])
    vectors = [export_formats.vector_bytes(entry["vector"]) for entry in record["chunks"]]
    for chunk, hash, vector, entry in zip(chunks, hashes, vectors, record["chunks"], strict=True):
        if len(vector) != 2 * row.dim or not np.isfinite(np.frombuffer(vector, "<f2")).all():
            raise ValueError(f"a vector is not {row.dim} finite float16 values")
        if chunk_checksum(chunk.text, chunk.language, hash, vector) != entry["checksum"]:
            raise ValueError(f"passage {chunk.ordinal} does not match its checksum")
        if not (0 <= chunk.start <= chunk.end <= len(document.text) and 0 < entry["id"] <= _MAX_CHUNK_ID):
            raise ValueError(f"passage {chunk.ordinal} has an impossible place or id")
    return Planned(
        Source(document, record["source"], record["source_stamp"]),
        record["content_hash"],
        document.language,
        chunks,
        hashes,
        dict(zip(hashes, vectors, strict=True)),
        {hash: chunk.language for hash, chunk in zip(hashes, chunks, strict=True)},
        ids=[first_id + entry["id"] for entry in record["chunks"]],
    )
