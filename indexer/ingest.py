"""The one write path. A single document is a batch of one.

    documents -> batches -> (limits, hashes: what is new?) -> chunks -> vectors -> one transaction per batch

Reading, chunking and embedding happen before the transaction, so the writer lock is held for milliseconds.
In the transaction a document's old and new chunks are compared by `text_hash`: equal ones keep their row, id
and vector, the rest is replaced. A vector that any chunk of the collection already has for the same text is
reused, so a renamed or copied file embeds nothing. A batch is acknowledged (counted in the report, told to
`progress`) only after its commit.
"""

import hashlib
import json
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from indexer import limits
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
from indexer.errors import CollectionNotFound, DocumentNotFound, LimitExceeded
from indexer.jobs import Job
from indexer.types import Chunk, Document, IngestReport, Vectors

if TYPE_CHECKING:
    from indexer.collection import Collection

Progress = Callable[[int, int | None], None]  # (done, total or None)
T = TypeVar("T")

BATCH_DOCUMENTS = 256  # enough texts for the embedder to sort by length, however short the documents are
BATCH_CHARS = 200_000  # some seconds of embedding: the most that a kill loses and that progress stands still
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


class _Outdated(Exception):
    """Somebody else changed the document a plan was made from."""


def upsert(
    collection: "Collection", documents: Iterable[Document], progress: Progress | None = None
) -> IngestReport:
    """Add or replace documents from any iterable, which is never held in memory as a whole.

    Documents over a limit are listed in `report.failed`; the others go in. Of documents with the same id the
    last one wins.
    """
    report = IngestReport()
    done = 0
    for batch in _batches(Source(document) for document in documents):
        write_batch(collection, batch, report)
        done += len(batch)
        if progress:
            progress(done, None)
    collection.index.maintain()
    return report


def write_batch(
    collection: "Collection", batch: Sequence[Source], report: IngestReport, job: Job | None = None
) -> None:
    """Bring one batch into the store and count it in `report` once it is committed."""
    sources, failed = _checked(batch)
    hashes = {id: content_hash(source.document) for id, source in sources.items()}
    with collection.session() as session:
        known = _documents(session, collection.id, list(sources))
    changed = [s for id, s in sources.items() if id not in known or known[id].content_hash != hashes[id]]
    restamped = [
        {"row": known[id].id, "stamp": s.stamp, "source": s.uri}
        for id, s in sources.items()
        if id in known and known[id].content_hash == hashes[id] and known[id].source_stamp != s.stamp
    ]
    plans = [_plan(collection, source, hashes[source.document.id]) for source in changed]
    embedded = _complete(collection, plans)
    if plans or restamped or job:
        with collection.store.write(f"indexing into {collection.name}") as session:
            write_plans(collection, session, plans)
            if restamped:
                table = DocumentRow.__table__
                session.connection().execute(
                    update(table)  # type: ignore[arg-type]
                    .where(table.c.id == bindparam("row"))
                    .values(source_stamp=bindparam("stamp"), source=bindparam("source")),
                    restamped,
                )
            if job:
                job.advance(session, len(batch))
    report.failed.extend(failed)
    report.added += sum(plan.source.document.id not in known for plan in plans)
    report.updated += sum(plan.source.document.id in known for plan in plans)
    report.unchanged += len(sources) - len(plans)
    report.chunks_embedded += embedded


def append(collection: "Collection", document_id: str, text: str) -> IngestReport:
    """Add `text` to the end of a document. Only the tail is chunked and embedded.

    With context="chunk" the tail begins at the last chunk, which the new text may complete. With
    context="document" the embedder's stored state is resumed, so that it reads nothing but the new text.
    DocumentNotFound; LimitExceeded.
    """
    while True:
        row, old_text, old_chunks, state = _stored(collection, document_id)
        if not text:
            return IngestReport(unchanged=1)
        document = Document(document_id, old_text + text, row.title, row.uri, None, row.meta)
        check(document)
        context = collection.recipe.context
        kept = old_chunks if context == "document" else old_chunks[:-1]
        start = old_chunks[-1].start if len(kept) < len(old_chunks) else len(old_text)
        tail = _shifted(_cut(collection, document.text[start:]), start, len(kept))
        plan = Planned(
            source=Source(document, row.source),  # without its stamp: the file no longer says the same
            content_hash=content_hash(document),
            language=row.language,
            chunks=[Chunk(c.ordinal, c.start, c.end, c.text, c.language) for c in kept] + tail,
            hashes=[],
            expected_hash=row.content_hash,
        )
        plan.hashes = text_hashes(document.text, plan.chunks, context)
        if context == "document":
            plan.vectors, plan.state = _resume(collection, plan, len(kept), len(old_text), state)
            _give_languages(collection, [plan], {}, first=len(kept))
            embedded = len(tail)
        else:
            embedded = _complete(collection, [plan], first=len(kept))
        try:
            with collection.store.write(f"appending to {document_id}") as session:
                write_plans(collection, session, [plan])
        except _Outdated:
            continue
        collection.index.maintain()
        return IngestReport(updated=1, chunks_embedded=embedded)


def _stored(
    collection: "Collection", document_id: str
) -> tuple[DocumentRow, str, Sequence[ChunkRow], StateRow | None]:
    """A document's row, text, chunks and, if there is one, the embedder's state after it."""
    with collection.session() as session:
        row = find_document(session, collection.id, document_id)
        chunks = session.scalars(
            select(ChunkRow).where(ChunkRow.document_id == row.id).order_by(ChunkRow.ordinal)
        ).all()
        return row, body_text(row.body), chunks, session.get(StateRow, row.id)


def delete_documents(collection: "Collection", ids: Iterable[str]) -> int:
    """Delete documents with their chunks, vectors and terms; how many there were. Unknown ids are ignored."""
    deleted = 0
    for page in batched(dict.fromkeys(ids), SQL_VARIABLES):
        with collection.store.write(f"deleting from {collection.name}") as session:
            rows = _documents(session, collection.id, page)
            document_ids = [row.id for row in rows.values()]
            if not document_ids:
                continue
            chunk_ids = session.scalars(
                select(ChunkRow.id).where(ChunkRow.document_id.in_(document_ids))
            ).all()
            _remove_chunks(collection, session, chunk_ids, _next_version(collection, session))
            session.execute(delete(DocumentRow).where(DocumentRow.id.in_(document_ids)))
        deleted += len(document_ids)
    if deleted:
        collection.index.maintain()
    return deleted


# what a document is, as numbers


def content_hash(document: Document) -> str:
    """sha256 of everything a caller can say about a document."""
    fields = [document.text, document.title, document.uri, document.language, document.metadata]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def text_hashes(text: str, chunks: Sequence[Chunk], context: str) -> list[str]:
    """128 bits of sha256 of what each chunk's vector depends on: its text, or all text up to its end."""
    if context == "chunk":
        return [hashlib.sha256(chunk.text.encode()).hexdigest()[:32] for chunk in chunks]
    hashes, read, position = [], hashlib.sha256(), 0
    for chunk in chunks:
        read.update(text[position : chunk.end].encode())
        position = max(position, chunk.end)
        here = read.copy()
        here.update(f"\0{chunk.start}:{chunk.end}".encode())
        hashes.append(here.hexdigest()[:32])
    return hashes


def pack_vectors(vectors: Vectors) -> list[bytes]:
    """(n, dim) float32 -> n rows of little-endian float16, as they are stored."""
    if not np.isfinite(vectors).all():
        raise ValueError("the embedder gave a vector with NaN or infinity; its weights may be damaged")
    return [row.tobytes() for row in np.ascontiguousarray(vectors, dtype="<f2")]


def body_bytes(text: str) -> bytes:
    return zlib.compress(text.encode(), level=1)


def body_text(body: bytes) -> str:
    return zlib.decompress(body).decode() if body else ""


# limits


def _checked(batch: Sequence[Source]) -> tuple[dict[str, Source], list[dict[str, str]]]:
    """The documents that may go in, by id (the last of each id), and those that may not."""
    good: dict[str, Source] = {}
    failed = []
    for source in batch:
        try:
            check(source.document)
        except LimitExceeded as error:
            failed.append({"path": source.document.id[:200], "reason": str(error)})
        else:
            good[source.document.id] = source
    return good, failed


def check(document: Document) -> None:
    """LimitExceeded when a document is over one of `indexer.limits` or is not Unicode text and JSON."""
    for name in ("id", "title", "uri", "language", "text"):
        try:
            size = len((getattr(document, name) or "").encode())
        except UnicodeEncodeError as error:
            raise LimitExceeded(
                f"the {name} has a lone surrogate, which is no text, at character {error.start}; remove it"
            ) from None
        if name == "id" and not 0 < size <= limits.MAX_DOCUMENT_ID_BYTES:
            raise LimitExceeded(f"the id has {size} bytes, 1 to {limits.MAX_DOCUMENT_ID_BYTES} are allowed")
    if len(document.text) > limits.MAX_DOCUMENT_CHARS:
        raise LimitExceeded(
            f"the text has {len(document.text):,} characters, {limits.MAX_DOCUMENT_CHARS:,} may be; split it"
        )
    if len(document.title or "") > limits.MAX_TITLE_CHARS:
        raise LimitExceeded(
            f"the title has {len(document.title or ''):,} characters, {limits.MAX_TITLE_CHARS:,} are allowed"
        )
    _check_metadata(document.metadata)


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    try:
        size = len(json.dumps(metadata, allow_nan=False, ensure_ascii=False).encode())
        if not isinstance(metadata, Mapping) or not _keys_are_text(metadata):
            raise ValueError("it must be an object, and its keys text")
    except (TypeError, ValueError, RecursionError) as error:
        raise LimitExceeded(f"the metadata is not a JSON object: {error}") from None
    if size > limits.MAX_METADATA_BYTES:
        raise LimitExceeded(f"the metadata has {size:,} bytes, {limits.MAX_METADATA_BYTES:,} are allowed")
    if _depth(metadata) > limits.MAX_METADATA_DEPTH:
        raise LimitExceeded(
            f"the metadata is nested {_depth(metadata)} deep, {limits.MAX_METADATA_DEPTH} levels are allowed"
        )


def _keys_are_text(value: Any) -> bool:
    """JSON would make text of other keys, and what comes back would not be what was put in."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) for key in value) and all(map(_keys_are_text, value.values()))
    return not isinstance(value, list | tuple) or all(map(_keys_are_text, value))


def _depth(value: Any) -> int:
    if isinstance(value, Mapping):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list | tuple):
        return 1 + max(map(_depth, value), default=0)
    return 0


# from text to vectors


def _plan(collection: "Collection", source: Source, hash: str) -> Planned:
    document = source.document
    chunks = _cut(collection, document.text)
    hashes = text_hashes(document.text, chunks, collection.recipe.context)
    return Planned(source, hash, document.language, chunks, hashes)


def _cut(collection: "Collection", text: str) -> list[Chunk]:
    return collection.store.pipeline.chunk(text, collection.recipe, collection.embedder.count_tokens)


def _shifted(chunks: Sequence[Chunk], characters: int, ordinals: int) -> list[Chunk]:
    """Chunks of a tail, placed in the whole document."""
    return [
        Chunk(c.ordinal + ordinals, c.start + characters, c.end + characters, c.text, c.language)
        for c in chunks
    ]


def _complete(collection: "Collection", plans: Sequence[Planned], first: int = 0) -> int:
    """Give chunks from number `first` on their vectors and languages; how many had to be embedded.

    What a chunk of the collection with the same text has is taken over.
    """
    wanted = list(dict.fromkeys(hash for plan in plans for hash in plan.hashes[first:]))
    vectors, languages = _known(collection, wanted)
    missing = {hash for hash in wanted if hash not in vectors}
    if missing:
        vectors.update(_embed(collection, plans, missing))
    for plan in plans:
        plan.vectors = vectors
    _give_languages(collection, plans, languages, first)
    return len(missing)


def _known(collection: "Collection", hashes: Sequence[str]) -> tuple[dict[str, bytes], dict[str, str | None]]:
    """Vectors and languages of texts that some chunk already has."""
    vectors, languages = {}, {}
    with collection.session() as session:
        for page in batched(hashes, SQL_VARIABLES):
            for hash, vector, language in session.execute(
                select(ChunkRow.text_hash, ChunkRow.vector, ChunkRow.language).where(
                    ChunkRow.collection_id == collection.id, ChunkRow.text_hash.in_(page)
                )
            ):
                vectors[hash], languages[hash] = vector, language
    return vectors, languages


def _give_languages(
    collection: "Collection", plans: Sequence[Planned], known: dict[str, str | None], first: int = 0
) -> None:
    """Identify the language of chunks; a document is in the language of most of its text."""
    identify = collection.store.pipeline.identify_language
    for plan in plans:
        given = plan.source.document.language
        chars: Counter[str | None] = Counter()
        for chunk, hash in islice(zip(plan.chunks, plan.hashes, strict=True), first, None):
            language = chunk.language or given
            if language is None:
                if hash not in known:
                    known[hash] = identify(chunk.text)
                language = known[hash]
            chars[language] += len(chunk.text)
        plan.languages = known
        if plan.language is None and chars:
            plan.language = chars.most_common(1)[0][0]


def _embed(collection: "Collection", plans: Sequence[Planned], missing: set[str]) -> dict[str, bytes]:
    if collection.recipe.context == "document":
        vectors: dict[str, bytes] = {}
        for plan in plans:
            spans = {
                hash: (chunk.start, chunk.end)
                for hash, chunk in zip(plan.hashes, plan.chunks, strict=True)
                if hash in missing and hash not in vectors
            }
            if spans:
                rows = collection.embedder.encode_chunks(plan.source.document.text, list(spans.values()))
                vectors.update(zip(spans, pack_vectors(rows), strict=True))
        return vectors
    texts = {
        hash: chunk.text
        for plan in plans
        for hash, chunk in zip(plan.hashes, plan.chunks, strict=True)
        if hash in missing
    }
    rows = collection.embedder.encode_document(list(texts.values()))
    return dict(zip(texts, pack_vectors(rows), strict=True))


def _resume(
    collection: "Collection", plan: Planned, first: int, read: int, state: StateRow | None
) -> tuple[dict[str, bytes], bytes]:
    """The vectors of the chunks from number `first` on, and the state after them.

    Continues at character `read` from the stored state; the first time, the text before is read once.
    """
    text = plan.source.document.text
    if state is not None and state.chars == read:
        stream = collection.embedder.stream(zlib.decompress(state.data))
    else:
        stream = collection.embedder.stream()
        stream.feed(text[:read])
    vectors = {}
    for hash, chunk in zip(plan.hashes[first:], plan.chunks[first:], strict=True):
        if chunk.end > read:
            stream.feed(text[read : chunk.end])
            read = chunk.end
        vectors[hash] = pack_vectors(stream.vector()[np.newaxis])[0]
    if read < len(text):
        stream.feed(text[read:])
    return vectors, stream.state_bytes()


# the transaction


def write_plans(collection: "Collection", session: Session, plans: Sequence[Planned]) -> None:
    """Write documents, chunks, vectors and terms. The caller's transaction makes it all or nothing."""
    if not plans:
        return
    rows = _documents(session, collection.id, [plan.source.document.id for plan in plans])
    for plan in plans:
        row = rows.get(plan.source.document.id)
        if plan.expected_hash is not None and (row is None or row.content_hash != plan.expected_hash):
            raise _Outdated
    version = _next_version(collection, session)
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
                ChunkRow.text_hash,
            )
            .where(ChunkRow.document_id.in_(page))
            .order_by(ChunkRow.ordinal)
        ):
            old[chunk.document_id].append(chunk)
    removed, moved, added = [], [], []
    for plan in plans:
        document_id = ids[plan.source.document.id]
        changes = _difference(plan, old[document_id])
        removed += changes[0]
        moved += changes[1]
        added += [_chunk_values(collection, plan, document_id, n) for n in changes[2]]
    _remove_chunks(collection, session, removed, version)
    _move_chunks(session, moved)
    _add_chunks(collection, session, added)


def _documents(session: Session, collection_id: int, ids: Sequence[str]) -> dict[str, Any]:
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
        raise DocumentNotFound(
            f"there is no document {document_id[:200]!r} in the collection; `rwkv-embed list` shows the ids"
        )
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


def _difference(plan: Planned, old: Sequence[Any]) -> tuple[list[int], list[dict[str, int]], list[int]]:
    """Ids of chunks to remove, kept chunks with a new place, and numbers in `plan.chunks` of those to add."""
    spare: dict[str, deque[Any]] = defaultdict(deque)
    for chunk in old:
        spare[chunk.text_hash].append(chunk)
    moved, added = [], []
    for n, (chunk, hash) in enumerate(zip(plan.chunks, plan.hashes, strict=True)):
        if not spare[hash]:
            added.append(n)
            continue
        kept = spare[hash].popleft()
        if (kept.ordinal, kept.start, kept.end) != (n, chunk.start, chunk.end):
            moved.append({"row": kept.id, "ordinal": n, "start": chunk.start, "end": chunk.end})
    return [chunk.id for rest in spare.values() for chunk in rest], moved, added


def _chunk_values(collection: "Collection", plan: Planned, document_id: int, n: int) -> dict[str, Any]:
    chunk = plan.chunks[n]
    vector = plan.vectors[plan.hashes[n]]
    language = chunk.language or plan.source.document.language or plan.languages[plan.hashes[n]]
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


def _remove_chunks(collection: "Collection", session: Session, ids: Sequence[int], version: int) -> None:
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


def _add_chunks(collection: "Collection", session: Session, added: Sequence[dict[str, Any]]) -> None:
    if not added:
        return
    connection = session.connection()
    statement = insert(ChunkRow).returning(ChunkRow.id, sort_by_parameter_order=True)
    ids = connection.execute(statement, list(added)).scalars().all()
    rows = [(id, values["text"]) for id, values in zip(ids, added, strict=True)]
    collection.store.fulltext.add(connection, collection.id, rows)


def _next_version(collection: "Collection", session: Session) -> int:
    version = session.scalar(
        update(CollectionRow)
        .where(CollectionRow.id == collection.id)
        .values(version=CollectionRow.version + 1)
        .returning(CollectionRow.version)
    )
    if version is None:
        raise CollectionNotFound(f"the collection {collection.name!r} was deleted while it was being written")
    return version


# batches


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _batches(sources: Iterable[Source]) -> Iterator[list[Source]]:
    """Batches of up to BATCH_DOCUMENTS documents and about BATCH_CHARS characters."""
    batch: list[Source] = []
    chars = 0
    for source in sources:
        batch.append(source)
        chars += len(source.document.text)
        if len(batch) == BATCH_DOCUMENTS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
