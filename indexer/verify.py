"""Checking a store, and giving back the room that deleted things took."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from indexer.db.tables import (
    ChunkRow,
    CollectionRow,
    DocumentRow,
    JobRow,
    TombstoneRow,
    chunk_checksum,
    document_checksum,
)
from indexer.documents import body_text
from indexer.errors import CollectionNotFound, StoreError
from indexer.view import to_float32

if TYPE_CHECKING:
    from indexer.store import Store
    from indexer.vector_index import CollectionIndex

NORM_TOLERANCE = 2e-3  # of a float16 vector
LEAST_COSINE = 0.99  # of a stored and a fresh vector: float16, and kernels that add in another order
MAX_PROBLEMS = 50  # per check; more of the same says nothing new
_PAGE_ROWS = 10_000
_PAGE_DOCUMENTS = 100


@dataclass(slots=True)
class VerifyReport:
    """What was looked at and what was found wrong, in sentences."""

    problems: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # checks that could not be made, and why

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class CompactReport:
    """Bytes on disk before and after."""

    bytes_before: int
    bytes_after: int


def verify(store: "Store", sample: int = 100) -> VerifyReport:
    """Check the database's structure, the counts, every checksum and vector, snapshots and the full-text index.

    `sample` chunks of each collection are embedded again and compared. Reads only; takes no lock.
    """
    report = VerifyReport()
    try:
        with store.read() as session:
            report.problems += store.database.problems(session, MAX_PROBLEMS)
            if report.ok:  # what is read from a damaged file says nothing
                for row in session.scalars(select(CollectionRow)).all():
                    _check_collection(store, session, row, report, sample)
    except CollectionNotFound as error:
        report.notes.append(f"not all was checked ({error}); run it again")
    except (
        StoreError,
        DatabaseError,
        ValueError,
        TypeError,
    ) as error:  # also a column that cannot be decoded
        report.problems.append(f"the database is damaged ({error}); restore a backup")
    return report


def _check_collection(
    store: "Store", session: Session, row: CollectionRow, report: VerifyReport, sample: int
) -> None:
    _check_rows(session, row, report)
    _check_vectors(session, row, report)
    _check_documents(session, row, report)
    _check_index(store, row, report)
    _check_terms(store, session, row, report)
    if report.ok:
        _check_offsets(session, row, report, sample)
        _check_embeddings(store, session, row, report, sample)
    report.checked["collections"] = report.checked.get("collections", 0) + 1


def _check_rows(session: Session, row: CollectionRow, report: VerifyReport) -> None:
    """Chunks are numbered without gaps, belong to their document's collection and none is deleted."""
    mine = ChunkRow.collection_id == row.id
    times = select(DocumentRow.created_at, DocumentRow.updated_at).where(DocumentRow.collection_id == row.id)
    session.execute(times).all()  # a time that cannot be read raises ValueError
    gaps = (
        select(ChunkRow.document_id)
        .where(mine)
        .group_by(ChunkRow.document_id)
        .having((func.min(ChunkRow.ordinal) != 0) | (func.max(ChunkRow.ordinal) != func.count() - 1))
    )
    strays = select(ChunkRow.id).join(DocumentRow).where(mine, DocumentRow.collection_id != row.id)
    undead = select(ChunkRow.id).join(TombstoneRow, TombstoneRow.chunk_id == ChunkRow.id).where(mine)
    for statement, problem in (
        (gaps, "chunks of document row {} are not numbered without gaps"),
        (strays, "chunk {} belongs to a document of another collection"),
        (undead, "chunk {} is there but recorded as deleted"),
    ):
        for id in session.scalars(statement.limit(MAX_PROBLEMS)):
            report.problems.append(f"{row.name}: {problem.format(id)}")
    for name, table in (("documents", DocumentRow), ("chunks", ChunkRow)):
        count = session.scalar(select(func.count()).where(table.collection_id == row.id)) or 0
        report.checked[name] = report.checked.get(name, 0) + count


def _check_vectors(session: Session, row: CollectionRow, report: VerifyReport) -> None:
    """Every chunk has its checksum, and a vector of the collection's dimension and length 1."""
    problems = 0
    statement = select(
        ChunkRow.id, ChunkRow.text, ChunkRow.language, ChunkRow.text_hash, ChunkRow.checksum, ChunkRow.vector
    )
    statement = statement.where(ChunkRow.collection_id == row.id).execution_options(yield_per=_PAGE_ROWS)
    for page in session.execute(statement).partitions():
        whole = [c for c in page if len(c.vector) == 2 * row.dim]
        bad = {c.id: "a vector of another dimension" for c in page if len(c.vector) != 2 * row.dim}
        data = np.frombuffer(b"".join(c.vector for c in whole), "<f2").reshape(len(whole), row.dim)
        norms = np.linalg.norm(to_float32(data), axis=1)
        for i in np.flatnonzero(~(abs(norms - 1) <= NORM_TOLERANCE)):
            bad[whole[i].id] = f"a vector of length {norms[i]:.4f}"
        for c in page:
            if chunk_checksum(c.text, c.language, c.text_hash, c.vector) != c.checksum:
                bad.setdefault(c.id, "another checksum than it was written with")
        for id, fault in bad.items():
            problems += 1
            if problems <= MAX_PROBLEMS:
                report.problems.append(f"{row.name}: chunk {id} has {fault}")


def _check_documents(session: Session, row: CollectionRow, report: VerifyReport) -> None:
    """Every document has its checksum."""
    problems = 0
    columns = DocumentRow.__table__.c
    statement = select(
        columns.external_id,
        columns.uri,
        columns.title,
        columns.language,
        columns.content_hash,
        columns.metadata,
        columns.checksum,
        columns.body,
    ).where(columns.collection_id == row.id)
    for *fields, checksum, body in session.execute(statement.execution_options(yield_per=_PAGE_DOCUMENTS)):
        if document_checksum(fields, body) != checksum:
            problems += 1
            if problems <= MAX_PROBLEMS:
                report.problems.append(
                    f"{row.name}: document {fields[0]!r} has another checksum than it was written with"
                )


def _sampled(session: Session, row: CollectionRow, sample: int) -> Iterator[tuple[ChunkRow, DocumentRow]]:
    """Up to `sample` chunks spread evenly over a collection, with their documents."""
    mine = ChunkRow.collection_id == row.id
    low, high = session.execute(select(func.min(ChunkRow.id), func.max(ChunkRow.id)).where(mine)).one()
    if low is None:
        return
    seen = set()
    for near in np.linspace(low, high, sample).astype(int).tolist():
        chunk = session.scalar(
            select(ChunkRow).where(mine, ChunkRow.id >= near).order_by(ChunkRow.id).limit(1)
        )
        if chunk is not None and chunk.id not in seen:
            seen.add(chunk.id)
            yield chunk, session.get_one(DocumentRow, chunk.document_id)


def _check_offsets(session: Session, row: CollectionRow, report: VerifyReport, sample: int) -> None:
    """A chunk's text is what stands at its offsets in the document."""
    for chunk, document in _sampled(session, row, sample):
        whole = body_text(document.body)
        if len(whole) != document.chars:
            report.problems.append(f"{row.name}: the text of document {document.external_id!r} is not whole")
        if whole[chunk.start : chunk.end] != chunk.text:
            report.problems.append(
                f"{row.name}: chunk {chunk.id} is not what its document says at its offsets"
            )
        session.expunge(document)  # and with it the text


def _check_index(store: "Store", row: CollectionRow, report: VerifyReport) -> None:
    sound, problems = store.vectors(row.id, row.dim, row.model_fingerprint).check()
    if sound:
        report.checked["snapshots"] = report.checked.get("snapshots", 0) + sound
    report.problems += [f"{row.name}: {problem}" for problem in problems]


def _check_terms(store: "Store", session: Session, row: CollectionRow, report: VerifyReport) -> None:
    """Every chunk is in the full-text index with its own terms, and nothing else is."""
    strays = store.fulltext.strays(session.connection(), row.id)
    if strays:
        fault = f"passages and entries of the full-text index do not match ({strays:,} without the other)"
    elif not store.fulltext.is_sound(session.connection(), row.id):
        fault = "the full-text index is damaged: it has other terms than the passages"
    else:
        return
    report.problems.append(
        f"{row.name}: {fault}; nothing is lost, `rwkv-embed export` and `import` build it again"
    )


def _check_embeddings(
    store: "Store", session: Session, row: CollectionRow, report: VerifyReport, sample: int
) -> None:
    """Stored vectors are what the model gives today."""
    chunks = list(_sampled(session, row, sample))
    if not chunks:
        return
    try:
        embedder = store.collection(row.name).embedder
    except Exception as error:  # whatever keeps the model from loading is a note: the data is not at fault
        report.notes.append(f"{row.name}: no vector was compared with a fresh one ({error})")
        return
    if row.recipe["context"] == "document":
        spans = [(body_text(document.body), (chunk.start, chunk.end)) for chunk, document in chunks]
        fresh = np.concatenate([embedder.encode_chunks(whole, [span]) for whole, span in spans])
    else:
        fresh = embedder.encode_document([chunk.text for chunk, _ in chunks])
    for (chunk, _), vector in zip(chunks, fresh, strict=True):
        cosine = float(vector @ to_float32(np.frombuffer(chunk.vector, "<f2")[np.newaxis])[0])
        if not cosine >= LEAST_COSINE:
            report.problems.append(
                f"{row.name}: chunk {chunk.id} has cosine {cosine:.3f} to its fresh vector"
            )
    report.checked["embedded again"] = report.checked.get("embedded again", 0) + len(chunks)


def compact(store: "Store") -> CompactReport:
    """Forget deletions, tidy the full-text index, shrink the database file and rebuild the vector indexes.

    Readers go on. In SQLite writers wait meanwhile, and it needs as much free disk as the database is large.
    """
    with store.write("compacting") as session:
        rows = session.scalars(select(CollectionRow)).all()
        indexes = [store.vectors(row.id, row.dim, row.model_fingerprint) for row in rows]
        before = _size(store, indexes)
        for row in rows:
            session.execute(delete(TombstoneRow).where(TombstoneRow.collection_id == row.id))
            session.execute(
                update(CollectionRow).where(CollectionRow.id == row.id).values(tombstones_since=row.version)
            )
            store.fulltext.optimize(session.connection(), row.id)
        session.execute(delete(JobRow).where(JobRow.status == "done"))
    store.database.shrink()
    for index in indexes:
        with suppress(CollectionNotFound):  # deleted meanwhile
            index.compact()
    return CompactReport(before, _size(store, indexes))


def _size(store: "Store", indexes: Iterable["CollectionIndex"]) -> int:
    return store.database.size() + sum(index.size() for index in indexes)
