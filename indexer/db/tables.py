"""The SQL schema: the truth of a store. Vectors, terms and FAISS snapshots all hang off `chunks.id`.

`chunks.id` is AUTOINCREMENT (in PostgreSQL an identity): it is the FAISS id and the full-text row id, and it is
never used twice.
Change the schema only together with a new file in `migrations/versions`.
"""

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any
from zlib import crc32

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from indexer.db.types import Bytewise, Id, StoredVector, UtcDateTime


def now() -> datetime:
    return datetime.now(timezone.utc)


class Base(DeclarativeBase):
    pass


class CollectionRow(Base):
    """A set of documents embedded with one model and one recipe; it refuses any other."""

    __tablename__ = "collections"
    __table_args__ = ({"sqlite_autoincrement": True},)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Bytewise, unique=True)
    model_id: Mapped[str] = mapped_column(Text)
    model_fingerprint: Mapped[str] = mapped_column(String(64))
    dim: Mapped[int] = mapped_column(Integer)
    recipe: Mapped[dict[str, Any]] = mapped_column(JSON)  # ChunkingOptions
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", JSON, default=dict)
    version: Mapped[int] = mapped_column(Id, default=0)  # +1 with every transaction that changes chunks
    tombstones_since: Mapped[int] = mapped_column(Id, default=0)  # earlier deletions are forgotten
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class DocumentRow(Base):
    """One document. `content_hash` is sha256 of its text, title, uri, language and metadata; unchanged means
    nothing to do. `body` is its whole text, UTF-8 compressed with zlib: the last column and loaded only when
    asked for, so that listing documents does not read it.
    """

    __tablename__ = "documents"
    __table_args__ = (
        UniqueConstraint("collection_id", "external_id"),
        Index("ix_documents_collection_id_source", "collection_id", "source"),
        Index(  # read instead of documents; PostgreSQL indexes no JSON
            "ix_documents_filter", "collection_id", "language", "metadata"
        ).ddl_if("sqlite"),
        {"sqlite_autoincrement": True},
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id", ondelete="CASCADE"), index=True)
    external_id: Mapped[str] = mapped_column(Bytewise)
    uri: Mapped[str | None] = mapped_column(Bytewise)
    title: Mapped[str | None] = mapped_column(Bytewise)
    language: Mapped[str | None] = mapped_column(Bytewise)
    content_hash: Mapped[str] = mapped_column(String(64))
    chars: Mapped[int] = mapped_column(Integer)
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", JSON, default=dict)
    source: Mapped[str | None] = mapped_column(Bytewise)  # URI of the file; one may hold many documents
    source_stamp: Mapped[str | None] = mapped_column(Text)  # that file's size, mtime, run's metadata: a hint
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, onupdate=now)
    checksum: Mapped[int] = mapped_column(BigInteger)  # `document_checksum`: SQLite has none of its own
    body: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)


class ChunkRow(Base):
    """A passage with its vector: `dim` little-endian float16 values, L2-normalised."""

    __tablename__ = "chunks"
    __table_args__ = (
        UniqueConstraint("document_id", "ordinal"),
        Index("ix_chunks_collection_id_id", "collection_id", "id"),
        Index("ix_chunks_collection_id_text_hash", "collection_id", "text_hash"),
        {"sqlite_autoincrement": True},
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id", ondelete="CASCADE"))
    document_id: Mapped[int] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    ordinal: Mapped[int] = mapped_column(Integer)
    start: Mapped[int] = mapped_column(Integer)
    end: Mapped[int] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)
    language: Mapped[str | None] = mapped_column(Bytewise)
    text_hash: Mapped[str] = mapped_column(String(32))  # of what was embedded; equal: same vector
    checksum: Mapped[int] = mapped_column(BigInteger)  # `chunk_checksum`
    vector: Mapped[bytes] = mapped_column(StoredVector)


def document_checksum(fields: Sequence[Any], body: bytes) -> int:
    """CRC-32 of (external_id, uri, title, language, content_hash, metadata) as JSON, then of the body."""
    return crc32(body, crc32(json.dumps(list(fields), sort_keys=True).encode()))


def chunk_checksum(text: str, language: str | None, text_hash: str, vector: bytes) -> int:
    """CRC-32 of a chunk's text, language and text_hash as JSON, then of its vector."""
    return crc32(vector, crc32(json.dumps([text, language, text_hash]).encode()))


class TombstoneRow(Base):
    """A chunk deleted in `version`: how other processes learn of it. `compact` forgets them."""

    __tablename__ = "tombstones"
    __table_args__ = (Index("ix_tombstones_collection_id_version", "collection_id", "version"),)
    chunk_id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id", ondelete="CASCADE"))
    version: Mapped[int] = mapped_column(Id)


class StateRow(Base):
    """The RNN's state after a document, so that appending reads only the new tokens."""

    __tablename__ = "states"
    document_id: Mapped[int] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True)
    chars: Mapped[int] = mapped_column(Integer)  # how much of the document the state has read
    data: Mapped[bytes] = mapped_column(LargeBinary)  # compressed safetensors


class JobRow(Base):
    """Durable progress of an ingestion. When its process died, the next run of the `key` resumes it."""

    __tablename__ = "jobs"
    __table_args__ = ({"sqlite_autoincrement": True},)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id", ondelete="CASCADE"), index=True)
    key: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16), default="running")  # running | done | failed
    done: Mapped[int] = mapped_column(Integer, default=0)
    total: Mapped[int | None] = mapped_column(Integer)
    owner: Mapped[str] = mapped_column(Text)  # host:pid:start time
    report: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, onupdate=now)
