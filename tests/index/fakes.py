"""Predictable parts: what they give can be worked out by hand.

`FakeEmbedder` hashes words into a bag; `FakeFullText` counts shared words; `PIPELINE` cuts
one chunk per line.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from sqlalchemy import text as sql

from indexer.errors import LoaderError
from indexer.pipeline import Pipeline
from indexer.types import Chunk, ChunkingOptions, Document, IngestReport


def counts(report: IngestReport) -> tuple[int, int, int, int, int]:
    """Added, updated, unchanged, deleted, passages embedded."""
    return report.added, report.updated, report.unchanged, report.deleted, report.chunks_embedded


class FakeEmbedder:
    """A bag of words: each word adds one to the place its hash says; then the vector gets length 1."""

    def __init__(self, dim: int = 32, name: str = "fake") -> None:
        self.dim, self.model_id = dim, name
        self.sentence_share = 0.0
        self.fingerprint = hashlib.sha256(f"{name}:{dim}".encode()).hexdigest()
        self.read: list[str] = []  # everything that was embedded as a document
        self.fed: list[str] = []  # everything that streams have read

    def encode_document(self, inputs: Sequence[str]) -> np.ndarray:
        self.read.extend(inputs)
        return self._vectors(inputs)

    def encode_query(self, inputs: str) -> np.ndarray:
        return self._vectors([inputs])[0]

    def encode_chunks(self, text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        self.read.extend(text[start:end] for start, end in spans)
        return self._vectors([text[:end] for _, end in spans])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def stream(self, state: bytes | None = None) -> "FakeStream":
        return FakeStream(self, json.loads(state) if state else "")

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in text.lower().split() or [""]:
                row[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % self.dim] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class FakeStream:
    """Its state is the text it has read."""

    def __init__(self, embedder: FakeEmbedder, text: str) -> None:
        self._embedder, self._text = embedder, text

    def feed(self, text: str) -> None:
        self._embedder.fed.append(text)
        self._text += text

    def vector(self) -> np.ndarray:
        return self._embedder._vectors([self._text])[0]

    def state_bytes(self) -> bytes:
        return json.dumps(self._text).encode()


class FakeFullText:
    """A table of chunk texts; a chunk's score is how many words of the query it has."""

    def create(self, connection, collection_id) -> None:
        connection.execute(sql(f"CREATE TABLE fts_{collection_id} (id INTEGER PRIMARY KEY, text TEXT)"))

    def drop(self, connection, collection_id) -> None:
        connection.execute(sql(f"DROP TABLE fts_{collection_id}"))

    def add(self, connection, collection_id, rows: Iterable[tuple[int, str]]) -> None:
        for id, text in rows:
            connection.execute(
                sql(f"INSERT INTO fts_{collection_id} VALUES (:id, :text)"), {"id": id, "text": text}
            )

    def remove(self, connection, collection_id, rows: Iterable[tuple[int, str]]) -> None:
        for id, text in rows:
            gone = connection.execute(
                sql(f"DELETE FROM fts_{collection_id} WHERE id = :id AND text = :text"),
                {"id": id, "text": text},
            )
            assert gone.rowcount == 1, f"chunk {id} was removed with another text than it was added with"

    def search(self, connection, collection_id, query, limit, allowed=None) -> list[tuple[int, float]]:
        words = set(query.split())
        rows = connection.execute(sql(f"SELECT id, text FROM fts_{collection_id}")).all()
        scored = [(id, float(len(words & set(text.split())))) for id, text in rows]
        return sorted((hit for hit in scored if hit[1]), key=lambda hit: (-hit[1], hit[0]))[:limit]

    def demanded(self, collection_id, query, chunk_id) -> None:
        return None  # its queries are words without operators

    def optimize(self, connection, collection_id) -> None:
        return None

    def strays(self, connection, collection_id) -> int:
        mine = set(
            connection.scalars(sql("SELECT id FROM chunks WHERE collection_id = :id"), {"id": collection_id})
        )
        return len(mine ^ set(connection.scalars(sql(f"SELECT id FROM fts_{collection_id}"))))

    def is_sound(self, connection, collection_id) -> bool:
        mine = connection.execute(
            sql("SELECT id, text FROM chunks WHERE collection_id = :id ORDER BY id"), {"id": collection_id}
        )
        indexed = connection.execute(sql(f"SELECT id, text FROM fts_{collection_id} ORDER BY id"))
        return mine.all() == indexed.all()


def chunk_lines(text: str, options: ChunkingOptions, count_tokens) -> list[Chunk]:
    """One chunk per line that is not blank."""
    chunks, start = [], 0
    for line in text.splitlines(keepends=True):
        body = line.rstrip("\n")
        if body.strip():
            chunks.append(Chunk(len(chunks), start, start + len(body), body))
        start += len(line)
    return chunks


def load_text(path: Path, root: Path | None) -> list[Document]:
    """A .txt file is a document; a .rows file has one per line; bytes that are not UTF-8 fail."""
    name = path.relative_to(root).as_posix() if root else path.as_posix()
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise LoaderError(name, "not UTF-8 text") from error
    if path.suffix == ".rows":
        return [Document(f"{name}#{n}", line, uri=name) for n, line in enumerate(text.splitlines())]
    return [Document(name, text, title=path.stem, uri=name)]


PIPELINE = Pipeline(
    load=load_text,
    supported=lambda path: path.suffix in (".txt", ".rows"),
    chunk=chunk_lines,
    identify_language=lambda text: "en" if text.isascii() else "zh",
    fulltext=lambda engine: FakeFullText(),
)
