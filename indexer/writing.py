"""The transaction: planned documents become rows of documents, chunks with vectors, terms and tombstones.

A document's old and new chunks are compared by `text_hash`: equal ones keep their row, id and vector, the rest is
replaced. A kept chunk may get another place and language. Every function here works inside the caller's
transaction, which makes it all or nothing.
"""

import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from indexer.db.tables import (
    ChunkRow,
    CollectionRow,
    DocumentRow,
    StateRow,
    TombstoneRow,
    chunk_checksum,
    document_checksum,
    now,
)
from indexer.documents import body_bytes
from indexer.errors import CollectionNotFound, DocumentNotFound
from indexer.types import Chunk, Document

if TYPE_CHECKING:
    from indexer.collection import Collection

T = TypeVar("T")

SQL_VARIABLES = 500  # per IN list


@dataclass(frozen=True, slots=True)
class Source:
    """A document on its way in, with the file it came from when there is one."""

    document: Document
    uri: str | None = None
    stamp: str | None = None


@dataclass(slots=True)
class Planned:
    """A document ready to be written. `vectors` and `languages`, by hash, are of chunks that may be new."""

    source: Source
    content_hash: str
    language: str | None
    chunks: list[Chunk]
    hashes: list[str]  # of each chunk
    vectors: Mapping[str, bytes] = field(default_factory=dict)
    languages: Mapping[str, str | None] = field(default_factory=dict)
    state: bytes | None = None  # of the embedder after the whole text, when it is known
    expected_hash: str | None = None  # what the plan was made from; otherwise plan again
    ids: Sequence[int] = ()  # of new chunks, when they must have certain ones


class Outdated(Exception):
    """Somebody else changed the document a plan was made from."""


def write_plans(collection: "Collection", session: Session, plans: Sequence[Planned]) -> None:
    """Write documents, chunks, vectors and terms. The caller's transaction makes it all or nothing."""
    if not plans:
        return
    rows = known_documents(session, collection.id, [plan.source.document.id for plan in plans])
    for plan in plans:
        row = rows.get(plan.source.document.id)
        if plan.expected_hash is not None and (row is None or row.content_hash != plan.expected_hash):
            raise Outdated
    version = next_version(collection, session)
    ids = _write_documents(collection, session, plans, rows)
    old = defaultdict(list)
    for page in batched([row.id for row in rows.values()], SQL_VARIABLES):
        for chunk in session.execute(
            select(
                ChunkRow.document_id,
                ChunkRow.id,
                ChunkRow.ordinal,
                ChunkRow.start,
                ChunkRow.end,
                ChunkRow.language,
                ChunkRow.text_hash,
            )
            .where(ChunkRow.document_id.in_(page))
            .order_by(ChunkRow.ordinal)
        ):
            old[chunk.document_id].append(chunk)
    removed, moved, added = [], [], []
    relabelled: dict[int, str | None] = {}
    for plan in plans:
        document_id = ids[plan.source.document.id]
        changes = _difference(plan, old[document_id])
        removed += changes[0]
        moved += changes[1]
        relabelled |= changes[2]
        added += [_chunk_values(collection, plan, document_id, n) for n in changes[3]]
    remove_chunks(collection, session, removed, version)
    _move_chunks(session, moved)
    _relabel_chunks(session, relabelled)
    _add_chunks(collection, session, added)


def known_documents(session: Session, collection_id: int, ids: Sequence[str]) -> dict[str, Any]:
    """Rows (id, external_id, content_hash, source, source_stamp) of those ids that exist."""
    found = {}
    for page in batched(ids, SQL_VARIABLES):
        for row in session.execute(
            select(
                DocumentRow.id,
                DocumentRow.external_id,
                DocumentRow.content_hash,
                DocumentRow.source,
                DocumentRow.source_stamp,
            ).where(DocumentRow.collection_id == collection_id, DocumentRow.external_id.in_(page))
        ):
            found[row.external_id] = row
    return found


def find_document(session: Session, collection_id: int, document_id: str) -> DocumentRow:
    """The row of a document, or DocumentNotFound."""
    row = session.scalar(
        select(DocumentRow).where(
            DocumentRow.collection_id == collection_id, DocumentRow.external_id == document_id
        )
    )
    if row is None:
        raise DocumentNotFound(f"there is no document {document_id[:200]!r} in the collection")
    return row


def _write_documents(
    collection: "Collection", session: Session, plans: Sequence[Planned], known: Mapping[str, Any]
) -> dict[str, int]:
    """Insert or update the document rows; the row id of each document."""
    table = DocumentRow.__table__
    connection = session.connection()
    values = {plan.source.document.id: _document_values(collection, plan) for plan in plans}
    new = [row | {"created_at": row["updated_at"]} for id, row in values.items() if id not in known]
    ids = {id: known[id].id for id in values if id in known}
    if ids:
        connection.execute(
            update(table)  # type: ignore[arg-type]
            .where(table.c.id == bindparam("row"))
            .values({name: bindparam(f"new_{name}") for name in next(iter(values.values()))}),
            [
                {f"new_{name}": value for name, value in values[id].items()} | {"row": row}
                for id, row in ids.items()
            ],
        )
        connection.execute(delete(StateRow).where(StateRow.document_id.in_(ids.values())))
    if new:
        inserted = connection.execute(
            insert(table).returning(table.c.external_id, table.c.id),  # type: ignore[arg-type]
            new,
        )
        ids.update((external_id, id) for external_id, id in inserted)
    states = [
        {
            "document_id": ids[plan.source.document.id],
            "chars": len(plan.source.document.text),
            "data": zlib.compress(plan.state, level=1),
        }
        for plan in plans
        if plan.state is not None
    ]
    if states:
        connection.execute(insert(StateRow), states)
    return ids


def _document_values(collection: "Collection", plan: Planned) -> dict[str, Any]:
    document = plan.source.document
    body = body_bytes(document.text)
    fields = (
        document.id,
        document.uri,
        document.title,
        plan.language,
        plan.content_hash,
        dict(document.metadata),
    )
    return {
        "collection_id": collection.id,
        "external_id": document.id,
        "uri": document.uri,
        "title": document.title,
        "language": plan.language,
        "content_hash": plan.content_hash,
        "chars": len(document.text),
        "metadata": dict(document.metadata),
        "source": plan.source.uri,
        "source_stamp": plan.source.stamp,
        "updated_at": now(),
        "checksum": document_checksum(fields, body),
        "body": body,
    }


def _difference(
    plan: Planned, old: Sequence[Any]
) -> tuple[list[int], list[dict[str, int]], dict[int, str | None], list[int]]:
    """Ids of chunks to remove, kept chunks with a new place, the new languages of kept chunks by id, and numbers
    in `plan.chunks` of those to add.
    """
    spare: dict[str, deque[Any]] = defaultdict(deque)
    for chunk in old:
        spare[chunk.text_hash].append(chunk)
    moved, added = [], []
    relabelled = {}
    for n, (chunk, hash) in enumerate(zip(plan.chunks, plan.hashes, strict=True)):
        if not spare[hash]:
            added.append(n)
            continue
        kept = spare[hash].popleft()
        if (kept.ordinal, kept.start, kept.end) != (n, chunk.start, chunk.end):
            moved.append({"row": kept.id, "ordinal": n, "start": chunk.start, "end": chunk.end})
        if kept.language != _language(plan, n):
            relabelled[kept.id] = _language(plan, n)
    return [chunk.id for rest in spare.values() for chunk in rest], moved, relabelled, added


def _language(plan: Planned, n: int) -> str | None:
    return plan.chunks[n].language or plan.source.document.language or plan.languages.get(plan.hashes[n])


def _chunk_values(collection: "Collection", plan: Planned, document_id: int, n: int) -> dict[str, Any]:
    chunk = plan.chunks[n]
    vector = plan.vectors[plan.hashes[n]]
    language = _language(plan, n)
    return {
        "collection_id": collection.id,
        "document_id": document_id,
        "ordinal": n,
        "start": chunk.start,
        "end": chunk.end,
        "text": chunk.text,
        "language": language,
        "text_hash": plan.hashes[n],
        "checksum": chunk_checksum(chunk.text, language, plan.hashes[n], vector),
        "vector": vector,
        **({"id": plan.ids[n]} if plan.ids else {}),
    }


def remove_chunks(collection: "Collection", session: Session, ids: Sequence[int], version: int) -> None:
    for page in batched(ids, SQL_VARIABLES):
        rows = session.execute(select(ChunkRow.id, ChunkRow.text).where(ChunkRow.id.in_(page))).all()
        collection.store.fulltext.remove(
            session.connection(), collection.id, [(id, text) for id, text in rows]
        )
        session.execute(delete(ChunkRow).where(ChunkRow.id.in_(page)))
        session.execute(
            insert(TombstoneRow),
            [{"chunk_id": id, "collection_id": collection.id, "version": version} for id in page],
        )


def _move_chunks(session: Session, moved: Sequence[dict[str, int]]) -> None:
    """Give kept chunks their new ordinals and offsets, by way of negative ordinals: they are unique."""
    if not moved:
        return
    table = ChunkRow.__table__
    connection = session.connection()
    for sign in (-1, 1):
        connection.execute(
            update(table)  # type: ignore[arg-type]
            .where(table.c.id == bindparam("row"))
            .values(ordinal=bindparam("new_ordinal"), start=bindparam("new_start"), end=bindparam("new_end")),
            [
                {
                    "row": m["row"],
                    "new_ordinal": m["ordinal"] if sign > 0 else -1 - m["ordinal"],
                    "new_start": m["start"],
                    "new_end": m["end"],
                }
                for m in moved
            ],
        )


def _relabel_chunks(session: Session, languages: Mapping[int, str | None]) -> None:
    """Give kept chunks their new languages, which are part of their checksums."""
    for page in batched(languages, SQL_VARIABLES):
        for chunk in session.execute(
            select(ChunkRow.id, ChunkRow.text, ChunkRow.text_hash, ChunkRow.vector).where(ChunkRow.id.in_(page))
        ).all():
            language = languages[chunk.id]
            checksum = chunk_checksum(chunk.text, language, chunk.text_hash, chunk.vector)
            session.execute(
                update(ChunkRow).where(ChunkRow.id == chunk.id).values(language=language, checksum=checksum)
            )


def _add_chunks(collection: "Collection", session: Session, added: Sequence[dict[str, Any]]) -> None:
    if not added:
        return
    connection = session.connection()
    statement = insert(ChunkRow).returning(ChunkRow.id, sort_by_parameter_order=True)
    ids = connection.execute(statement, list(added)).scalars().all()
    rows = [(id, values["text"]) for id, values in zip(ids, added, strict=True)]
    collection.store.fulltext.add(connection, collection.id, rows)


def next_version(collection: "Collection", session: Session) -> int:
    version = session.scalar(
        update(CollectionRow)
        .where(CollectionRow.id == collection.id)
        .values(version=CollectionRow.version + 1)
        .returning(CollectionRow.version)
    )
    if version is None:
        raise CollectionNotFound(f"the collection {collection.name!r} was deleted while it was being written")
    return version


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
