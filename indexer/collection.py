"""A collection: the verbs people use. Thin: each is done by the module named for it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from indexer.db.tables import ChunkRow, CollectionRow, DocumentRow
from indexer.errors import CollectionNotFound, ModelMismatch
from indexer.types import (
    Answer,
    ChunkingOptions,
    Document,
    Embedder,
    IngestReport,
    Message,
    Metadata,
    Reranker,
    SearchHit,
    SearchOptions,
)

if TYPE_CHECKING:
    from indexer.export_formats import ExportFormat
    from indexer.ingest import Progress
    from indexer.store import Store
    from indexer.vector_index import CollectionIndex
    from indexer.view import VectorIndex


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """What is known of a collection without loading its model."""

    name: str
    model_id: str
    fingerprint: str
    dim: int
    documents: int
    chunks: int
    recipe: ChunkingOptions
    metadata: Metadata
    created_at: datetime


class Collection:
    """Documents embedded with one model and one recipe. Get it from `Store.collection`."""

    def __init__(self, store: "Store", id: int, name: str) -> None:
        self.store, self.id, self.name = store, id, name

    @property
    def info(self) -> CollectionInfo:
        return self.store.info(self.id)

    @cached_property
    def recipe(self) -> ChunkingOptions:
        return self.info.recipe

    @cached_property
    def embedder(self) -> Embedder:
        """The collection's embedder, loaded now; ModelMismatch when it is not the one it was built with."""
        info = self.info
        embedder = self.store.embedder(info.model_id)
        if embedder.fingerprint != info.fingerprint or embedder.dim != info.dim:
            raise ModelMismatch(
                f"collection {self.name!r} was built with model {info.model_id!r} ({info.dim}-d, fingerprint "
                f"{info.fingerprint[:12]}), but this model is {embedder.model_id!r} ({embedder.dim}-d, "
                f"{embedder.fingerprint[:12]}); use that model or index into a new collection"
            )
        return embedder

    @cached_property
    def reranker(self) -> Reranker:
        """The reranker for the collection's passages, loaded now; InvalidQuery when the store has none."""
        return self.store.reranker(self.embedder)

    # writing

    def upsert(self, documents: Iterable[Document], *, progress: "Progress | None" = None) -> IngestReport:
        """Add or replace documents; see `indexer.ingest.upsert`."""
        from indexer.ingest import upsert

        return upsert(self, documents, progress)

    def index_paths(
        self,
        paths: Iterable[str | Path],
        *,
        delete_missing: bool = False,
        metadata: Metadata | None = None,
        progress: "Progress | None" = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        part: tuple[int, int] = (1, 1),
    ) -> IngestReport:
        """Bring files and folders into the collection; see `indexer.files.index_paths`."""
        from indexer.files import index_paths

        return index_paths(
            self,
            paths,
            delete_missing=delete_missing,
            metadata=metadata,
            progress=progress,
            include=include,
            exclude=exclude,
            part=part,
        )

    def append(self, document_id: str, text: str) -> IngestReport:
        """Add text to the end of a document; see `indexer.ingest.append`."""
        from indexer.ingest import append

        return append(self, document_id, text)

    def delete(self, ids: Iterable[str]) -> int:
        """Delete documents; how many there were."""
        from indexer.ingest import delete_documents

        return delete_documents(self, ids)

    # reading

    def get(self, document_id: str) -> dict[str, Any]:
        """A document with "text" and "chunks", or DocumentNotFound."""
        from indexer.documents import body_text
        from indexer.writing import find_document

        with self.session() as session:
            row = find_document(session, self.id, document_id)
            chunks = session.scalars(
                select(ChunkRow).where(ChunkRow.document_id == row.id).order_by(ChunkRow.ordinal)
            ).all()
            fields = ("id", "ordinal", "start", "end", "text", "language")
            listed = [{name: getattr(chunk, name) for name in fields} for chunk in chunks]
            return _described(row, len(chunks)) | {"text": body_text(row.body), "chunks": listed}

    def documents(self, *, offset: int = 0, limit: int = 100, where: Any = None) -> list[dict[str, Any]]:
        """Documents in the order they were added, without their text. `where` is a filter as in a search."""
        chunks = select(func.count()).where(ChunkRow.document_id == DocumentRow.id).correlate(DocumentRow)
        statement = (
            select(DocumentRow, chunks.scalar_subquery())
            .where(self._condition(where))
            .order_by(DocumentRow.id)
            .offset(offset)
            .limit(limit)
        )
        with self.session() as session:
            return [_described(row, count) for row, count in session.execute(statement)]

    def count(self, where: Any = None) -> int:
        """How many documents there are, or how many pass a filter."""
        with self.session() as session:
            return session.scalar(select(func.count(DocumentRow.id)).where(self._condition(where))) or 0

    def _condition(self, where: Any) -> ColumnElement[bool]:
        mine = DocumentRow.collection_id == self.id
        if where is None:
            return mine
        from indexer.filters import parse, to_sql

        return and_(mine, to_sql(parse(where), self.store.engine.dialect))

    def session(self) -> AbstractContextManager[Session]:
        """A session for reading."""
        return self.store.read()

    @property
    def index(self) -> "CollectionIndex":
        """The vector index as this process last saw it."""
        info = self._identity
        return self.store.vectors(self.id, info[0], info[1])

    @property
    def vectors(self) -> "VectorIndex":
        """The vector index, brought up to date with what any process has committed."""
        return self.index.synchronised()

    @cached_property
    def _identity(self) -> tuple[int, str]:
        with self.session() as session:
            row = session.get(CollectionRow, self.id)
            if row is None:
                raise CollectionNotFound(f"the collection {self.name!r} was deleted")
            return row.dim, row.model_fingerprint

    def stats(self, recall: bool = False) -> dict[str, Any]:
        """Counts, languages, bytes and the vector index; with `recall`, its recall@10 as measured now."""
        from indexer.stats import stats

        return stats(self, recall)

    def export(self, path: str | Path, format: "ExportFormat | None" = None) -> int:
        """Write the collection, vectors included, as JSON lines or Parquet; how many documents. The name says
        which (.jsonl, .jsonl.gz, .parquet), unless `format` does. See `indexer.export`."""
        from indexer.export import export_collection

        return export_collection(self, Path(path), format)

    # search and answers

    def search(self, query: str, options: SearchOptions | None = None) -> list[SearchHit]:
        """The best passages for a query; see `indexer.search`."""
        from indexer.search import search

        return search(self, query, options or SearchOptions())

    def ask(self, question: str, **options: Any) -> Answer:
        """A cited answer from this collection; see `indexer.answers.answer`."""
        from indexer.answers import answer

        return answer(self, question, **options)

    def ask_stream(
        self, question: str, *, history: Sequence[Message] = (), **options: Any
    ) -> Iterator[str | Answer]:
        """The pieces of an answer as they are made, then the answer; see `indexer.answers.answer_stream`."""
        from indexer.answers import answer_stream

        return answer_stream(self, question, history=history, **options)


def _described(row: DocumentRow, chunks: int) -> dict[str, Any]:
    return {
        "id": row.external_id,
        "title": row.title,
        "uri": row.uri,
        "language": row.language,
        "chars": row.chars,
        "chunks": chunks,
        "metadata": row.meta,
        "content_hash": row.content_hash,
        "created_at": row.created_at.isoformat(),
        "updated_at": row.updated_at.isoformat(),
    }
