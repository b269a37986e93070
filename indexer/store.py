"""A store: a directory, or a PostgreSQL database, that holds collections.

    store.sqlite3      the truth: collections, documents, chunks with vectors, terms, jobs
    writer.lock        who is writing
    faiss/             rebuildable snapshots of the vectors (indexer/vectors.py)

In PostgreSQL all of it is in the database (indexer/db/postgresql.py, indexer/pgvector.py). Every write goes
through `Store.write`: the writer lock, then one transaction. Readers use `Store.read` and are never blocked.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, select
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from indexer import limits
from indexer.collection import Collection, CollectionInfo
from indexer.db.database import open_database, reason, without_password
from indexer.db.engine import open_schema
from indexer.db.tables import ChunkRow, CollectionRow, DocumentRow
from indexer.errors import CollectionExists, CollectionNotFound, InvalidCollection, InvalidQuery, StoreError
from indexer.locks import DEFAULT_WAIT_S
from indexer.pipeline import Pipeline
from indexer.types import ChunkingOptions, Embedder, Reranker

if TYPE_CHECKING:
    from indexer.ann import IndexKind
    from indexer.fulltext import FullText
    from indexer.vector_index import CollectionIndex
    from indexer.verify import CompactReport, VerifyReport

EmbedderFactory = Callable[[str | None], Embedder]  # a model's name or path, None: the default -> an embedder
RerankerFactory = Callable[[Embedder], Reranker]  # a collection's embedder -> a reranker for its passages

_UNDEFINED_TABLE = "42P01"  # PostgreSQL drops tables under the eyes of those who have not read them yet
_NAME = re.compile(r"[^\W_][\w.\-]*")


def open_store(
    location: str | Path,
    embedder_factory: EmbedderFactory,
    create: bool = True,
    *,
    pipeline: Pipeline | None = None,
    lock_wait_s: float = DEFAULT_WAIT_S,
    index_kind: "IndexKind" = "auto",
    reranker_factory: RerankerFactory | None = None,
) -> "Store":
    """Open the store at a directory or at a PostgreSQL URL, bringing its schema up to date.

    `embedder_factory` is called with a model's name, or None for the default, when a vector is first needed.
    `index_kind` overrules the choice of the vector index ("exact", "hnsw" or "ivf"; see `indexer.ann`).
    `reranker_factory` is called when a search first asks to rerank; None: no search can.
    StoreError: it is not there and `create` is false, cannot be read, or is of a newer version.
    """
    return Store(
        location, embedder_factory, create, pipeline or Pipeline(), lock_wait_s, index_kind, reranker_factory
    )


class Store:
    """See `open_store`. Safe to share between threads; close it, or use it as a context manager."""

    def __init__(
        self,
        location: str | Path,
        embedder_factory: EmbedderFactory,
        create: bool,
        pipeline: Pipeline,
        lock_wait_s: float,
        index_kind: "IndexKind",
        reranker_factory: RerankerFactory | None,
    ) -> None:
        self.pipeline, self.index_kind = pipeline, index_kind
        self._factory, self._reranker_factory = embedder_factory, reranker_factory
        self._embedders: dict[str | None, Embedder] = {}
        self._rerankers: dict[str, Reranker] = {}  # by the embedder's fingerprint
        self._indexes: dict[int, CollectionIndex] = {}  # by collection id
        self._guard = threading.RLock()
        self.database = open_database(location, create, lock_wait_s)
        self.engine = self.database.engine
        try:
            open_schema(self.database, create)
        except StoreError:
            self.engine.dispose()
            raise
        self.fulltext: FullText = pipeline.fulltext(self.engine)

    @property
    def name(self) -> str:
        """The store in messages."""
        return self.database.name

    # transactions

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one moment of the store. Writers do not disturb it.

        StoreError: damaged. InvalidQuery: a value that the database cannot look for. CollectionNotFound: it was
        deleted meanwhile.
        """
        with Session(self.engine) as session:
            try:
                yield session
            except DataError as error:  # only PostgreSQL refuses values, such as a NUL in a document's id
                raise InvalidQuery(f"{self.name} cannot look for that: {reason(error)}") from error
            except PoolTimeout as error:
                raise StoreError(f"{self.name}: all connections of this process are in use; try again") from error
            except DatabaseError as error:
                if getattr(error.orig, "sqlstate", None) == _UNDEFINED_TABLE:
                    raise CollectionNotFound(
                        f"the collection was deleted while it was read ({reason(error)})"
                    ) from error
                raise StoreError(
                    f"{self.name} cannot be read ({reason(error)}); {self.database.checkup}"
                ) from error

    def ping(self) -> None:
        """StoreError when the database does not answer."""
        with self.read() as session:
            session.execute(select(1))

    @contextmanager
    def write(self, purpose: str) -> Iterator[Session]:
        """The writer lock and one transaction: committed on success, rolled back on any error.

        StoreLocked: somebody else keeps writing. StoreError: the disk is full or failed, or the store is damaged.
        """
        try:
            with (
                self.database.writing(purpose) as connection,
                Session(connection) as session,
            ):
                yield session
                session.flush()
        except OperationalError as error:
            raise StoreError(
                f"{self.name} could not be written while {purpose} ({reason(error)}); what was "
                "acknowledged before is stored, run it again when the cause is mended"
            ) from error
        except PoolTimeout as error:
            raise StoreError(f"{self.name}: all connections of this process are in use; try again") from error
        except DataError as error:
            raise InvalidQuery(f"{self.name} cannot store that: {reason(error)}") from error
        except IntegrityError:  # the caller's rows are at fault, not the store
            raise
        except DatabaseError as error:
            raise StoreError(
                f"{self.name} could not be written while {purpose} ({reason(error)}); {self.database.checkup}"
            ) from error

    # collections

    def collections(self) -> list[CollectionInfo]:
        """All collections by name."""
        with self.read() as session:
            rows = session.scalars(select(CollectionRow).order_by(CollectionRow.name)).all()
            return [_info(session, row) for row in rows]

    def create_collection(
        self,
        name: str,
        embedder: Embedder | None = None,
        chunking: ChunkingOptions | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Collection:
        """A new, empty collection bound to the model of `embedder` (None: the default model)."""
        _check_new(name, chunking or ChunkingOptions())
        if embedder is None:
            embedder = self.embedder(None)
        self._embedders.setdefault(embedder.model_id, embedder)
        row = CollectionRow(
            name=name,
            model_id=embedder.model_id,
            model_fingerprint=embedder.fingerprint,
            dim=embedder.dim,
            recipe=asdict(chunking or ChunkingOptions()),
            meta=dict(metadata or {}),
        )
        with self.write("creating a collection") as session:
            return self.add_collection(session, row)

    def add_collection(self, session: Session, row: CollectionRow) -> Collection:
        """A new collection from its row, in the caller's transaction; its model need not be at hand."""
        _check_new(row.name, ChunkingOptions(**row.recipe))
        if session.scalar(select(CollectionRow.id).where(CollectionRow.name == row.name)) is not None:
            raise CollectionExists(f"there is already a collection {row.name!r}; choose another name")
        session.add(row)
        session.flush()
        self.fulltext.create(session.connection(), row.id)
        return Collection(self, row.id, row.name)

    def collection(self, name: str) -> Collection:
        """The collection called `name`; CollectionNotFound names those that exist."""
        with self.read() as session:
            row = session.scalar(select(CollectionRow).where(CollectionRow.name == name))
            if row is None:
                names = session.scalars(
                    select(CollectionRow.name).order_by(CollectionRow.name).limit(10)
                ).all()
                known = f"there are: {', '.join(names)}" if names else "the store is empty"
                raise CollectionNotFound(f"there is no collection {name!r}; {known}")
            return Collection(self, row.id, row.name)

    def collection_or_create(
        self, name: str, embedder: Embedder | None = None, chunking: ChunkingOptions | None = None
    ) -> Collection:
        """The collection called `name`, made now when it is not there. An existing one keeps its recipe."""
        try:
            return self.collection(name)
        except CollectionNotFound:
            try:
                return self.create_collection(name, embedder, chunking)
            except CollectionExists:  # somebody else was quicker
                return self.collection(name)

    def delete_collection(self, name: str) -> None:
        """Delete a collection with all it holds. The file shrinks at the next `compact`."""
        collection = self.collection(name)
        index = collection.index
        with self.write("deleting a collection") as session:
            self.fulltext.drop(session.connection(), collection.id)
            session.execute(delete(CollectionRow).where(CollectionRow.id == collection.id))
        with self._guard:
            self._indexes.pop(collection.id, None)
        index.close()
        index.remove()

    def info(self, collection_id: int) -> CollectionInfo:
        """What is known of a collection, now."""
        with self.read() as session:
            row = session.get(CollectionRow, collection_id)
            if row is None:
                raise CollectionNotFound(f"the collection with id {collection_id} was deleted")
            return _info(session, row)

    # what collections share

    def embedder(self, model_id: str | None) -> Embedder:
        """The embedder of a model, loaded once per store."""
        with self._guard:
            if model_id not in self._embedders:
                embedder = self._factory(model_id)
                self._embedders[model_id] = embedder
                self._embedders.setdefault(embedder.model_id, embedder)
            return self._embedders[model_id]

    def reranker(self, embedder: Embedder) -> Reranker:
        """The reranker of an embedder's passages, loaded once per store. InvalidQuery: none was named."""
        if self._reranker_factory is None:
            raise InvalidQuery(
                "rerank was asked for, but no reranker is named; name one with --reranker NAME|PATH or "
                "RWKV_EMBED_RERANKER, or search without rerank"
            )
        with self._guard:
            if embedder.fingerprint not in self._rerankers:
                self._rerankers[embedder.fingerprint] = self._reranker_factory(embedder)
            return self._rerankers[embedder.fingerprint]

    def vectors(self, collection_id: int, dim: int, recipe: str) -> "CollectionIndex":
        """The vector index of a collection, one per process."""
        from indexer.vector_index import index_for

        with self._guard:
            if collection_id not in self._indexes:
                self._indexes[collection_id] = index_for(self, collection_id, dim, recipe)
            return self._indexes[collection_id]

    # care

    def verify(self, sample: int = 100) -> "VerifyReport":
        """Check everything that can be checked; see `indexer.verify`."""
        from indexer.verify import verify

        return verify(self, sample)

    def compact(self) -> "CompactReport":
        """Give the bytes of deleted documents back; see `indexer.verify`."""
        from indexer.verify import compact

        return compact(self)

    def backup(self, path: str | Path) -> dict[str, Any]:
        """Write a consistent copy of the store into one file while it is in use; see `indexer.backup`."""
        from indexer.backup import backup

        return backup(self, Path(path))

    def import_collection(self, path: str | Path, name: str | None = None) -> Collection:
        """A new collection from an export, without its model; see `indexer.export`."""
        from indexer.export import import_collection

        return import_collection(self, Path(path), name)

    def close(self, wait: bool = True) -> None:
        """Finish background index builds (`wait=False`: give them up) and close all connections."""
        with self._guard:
            indexes = list(self._indexes.values())
            self._indexes.clear()
        for index in indexes:
            index.close(wait)
        self.engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def restore(file: str | Path, directory: str | Path) -> dict[str, Any]:
    """Unpack and verify a backup into a new directory; see `indexer.backup`."""
    from indexer.backup import restore as restore_backup

    if "://" in str(directory):
        raise StoreError(f"{without_password(str(directory))} is a URL; a backup is restored into a new directory")
    return restore_backup(Path(file), Path(directory))


def _check_new(name: str, chunking: ChunkingOptions) -> None:
    """InvalidCollection before anything is written: every document of such a collection would fail."""
    if len(name) > limits.MAX_COLLECTION_NAME_CHARS or not _NAME.fullmatch(name):
        raise InvalidCollection(
            f"{name[:80]!r} cannot be a collection name: up to {limits.MAX_COLLECTION_NAME_CHARS} letters, "
            "digits, '.', '_' or '-', beginning with a letter or digit"
        )
    if not 0 <= chunking.overlap_tokens < chunking.max_tokens:
        raise InvalidCollection(
            f"overlap_tokens is {chunking.overlap_tokens}; with max_tokens {chunking.max_tokens} it must be "
            f"0 to {chunking.max_tokens - 1}"
        )


def _info(session: Session, row: CollectionRow) -> CollectionInfo:
    def count(table: type[DocumentRow] | type[ChunkRow]) -> int:
        return session.scalar(select(func.count()).where(table.collection_id == row.id)) or 0

    return CollectionInfo(
        name=row.name,
        model_id=row.model_id,
        fingerprint=row.model_fingerprint,
        dim=row.dim,
        documents=count(DocumentRow),
        chunks=count(ChunkRow),
        recipe=ChunkingOptions(**row.recipe),
        metadata=row.meta,
        created_at=row.created_at,
    )
