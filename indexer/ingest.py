"""The one write path. A single document is a batch of one.

    documents -> batches -> (limits, hashes: what is new?) -> chunks -> vectors -> one transaction per batch

Reading, chunking and embedding happen before the transaction, so the writer lock is held for milliseconds.
The transaction itself is in `writing`. A vector that any chunk of the collection already has for the same text is
reused, so a renamed or copied file embeds nothing. A batch is acknowledged (counted in the report, told to
`progress`) only after its commit.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import bindparam, delete, select, update

from indexer.db.tables import ChunkRow, DocumentRow, StateRow
from indexer.documents import body_text, check, check_new, content_hash, pack_vectors, text_hashes
from indexer.errors import LimitExceeded
from indexer.jobs import Job
from indexer.language import declared_language
from indexer.types import Chunk, Document, IngestReport
from indexer.writing import (
    SQL_VARIABLES,
    Outdated,
    Planned,
    Source,
    batched,
    find_document,
    known_documents,
    next_version,
    remove_chunks,
    write_plans,
)

if TYPE_CHECKING:
    from indexer.collection import Collection

Progress = Callable[[int, int | None], None]  # (done, total or None)
BATCH_DOCUMENTS = 256  # enough texts for the embedder to sort by length, however short the documents are
BATCH_CHARS = 200_000  # some seconds of embedding: the most that a kill loses and that progress stands still


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
    sources, failed = checked(batch, collection.store.database.takes_nul)
    hashes = {id: content_hash(source.document) for id, source in sources.items()}
    with collection.session() as session:
        known = known_documents(session, collection.id, list(sources))
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
        old = Document(document_id, old_text, row.title, row.uri, row.language, row.meta)
        # the row has an identified language, too, but the hash only a declared one
        declared = row.language if content_hash(old) == row.content_hash else None
        document = replace(old, text=old_text + text, language=declared)
        check(document, collection.store.database.takes_nul)
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
            _give_languages(collection, [plan], first=len(kept))
            embedded = len(tail)
        else:
            embedded = _complete(collection, [plan], first=len(kept))
        try:
            with collection.store.write(f"appending to {document_id}") as session:
                write_plans(collection, session, [plan])
        except Outdated:
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
            rows = known_documents(session, collection.id, page)
            document_ids = [row.id for row in rows.values()]
            if not document_ids:
                continue
            chunk_ids = session.scalars(
                select(ChunkRow.id).where(ChunkRow.document_id.in_(document_ids))
            ).all()
            remove_chunks(collection, session, chunk_ids, next_version(collection, session))
            session.execute(delete(DocumentRow).where(DocumentRow.id.in_(document_ids)))
        deleted += len(document_ids)
    if deleted:
        collection.index.maintain()
    return deleted


def checked(batch: Sequence[Source], takes_nul: bool) -> tuple[dict[str, Source], list[dict[str, str]]]:
    """The documents that may go in, by id (the last of each id), and those that may not.

    A declared language is reduced to its code, as filters look for it.
    """
    good: dict[str, Source] = {}
    failed = []
    for source in batch:
        try:
            check_new(source.document, takes_nul)
        except LimitExceeded as error:
            failed.append({"path": source.document.id[:200], "reason": str(error)})
        else:
            code = declared_language(source.document.language)
            document = replace(source.document, language=code)
            good[document.id] = replace(source, document=document)
    return good, failed


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

    The vector of a chunk of the collection with the same text is taken over. Its language is not: it may be
    what another document declared, and identifying it takes a hundredth of the time of embedding.
    """
    wanted = list(dict.fromkeys(hash for plan in plans for hash in plan.hashes[first:]))
    vectors = _known_vectors(collection, wanted)
    missing = {hash for hash in wanted if hash not in vectors}
    if missing:
        vectors.update(_embed(collection, plans, missing))
    for plan in plans:
        plan.vectors = vectors
    _give_languages(collection, plans, first)
    return len(missing)


def _known_vectors(collection: "Collection", hashes: Sequence[str]) -> dict[str, bytes]:
    """Vectors of texts that some chunk already has."""
    vectors = {}
    with collection.session() as session:
        for page in batched(hashes, SQL_VARIABLES):
            for hash, vector in session.execute(
                select(ChunkRow.text_hash, ChunkRow.vector).where(
                    ChunkRow.collection_id == collection.id, ChunkRow.text_hash.in_(page)
                )
            ):
                vectors[hash] = vector
    return vectors


def _give_languages(collection: "Collection", plans: Sequence[Planned], first: int = 0) -> None:
    """Identify the language of chunks; a document is in the language of most of its text."""
    identify = collection.store.pipeline.identify_language
    known: dict[str, str | None] = {}
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


# batches


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
