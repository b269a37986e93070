"""The nouns of the index room and the protocols it is handed. No logic.

A file becomes a `Document`, is cut into `Chunk`s, each chunk becomes a vector and a row; a query becomes
`SearchHit`s. Offsets are always character offsets into the document's text, end exclusive, so that
`document.text[chunk.start:chunk.end] == chunk.text`. A score is always "larger is better".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Metadata = Mapping[str, Any]  # JSON object
Vectors = NDArray[np.float32]  # (n, dim), L2-normalised
SearchMode = Literal["dense", "lexical", "hybrid"]
GroupBy = Literal["chunk", "document"]
Context = Literal["chunk", "document"]


@dataclass(frozen=True, slots=True)
class Document:
    """One text to index. `id` is the caller's own and unique in its collection (a path, a URL, a key).

    `language` is an ISO 639 code; None means "identify it".
    """

    id: str
    text: str
    title: str | None = None
    uri: str | None = None
    language: str | None = None
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document: what is embedded and returned."""

    ordinal: int
    start: int
    end: int
    text: str
    language: str | None = None


@dataclass(frozen=True, slots=True)
class ChunkingOptions:
    """How documents are cut. `max_tokens` counts the embedder's tokens. Part of a collection's recipe."""

    max_tokens: int = 200
    overlap_tokens: int = 0
    context: Context = (
        "chunk"  # "document": a chunk's vector is read off the state that knows all text before it
    )


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One result. `start`, `end` place `text` in the document; `highlights` are (start, end) inside `text`."""

    score: float
    document_id: str
    chunk_id: int
    title: str | None
    uri: str | None
    language: str | None
    text: str
    start: int
    end: int
    metadata: Metadata
    highlights: Sequence[tuple[int, int]] = ()
    # when asked for: {"dense": {"rank", "score", and where these differ "cosine", "sentence"}, "lexical": {...}}
    explain: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Everything a search can be asked, with its default."""

    top_k: int = 10
    offset: int = 0
    mode: SearchMode = "hybrid"
    where: Any = None  # a filter: text ('year >= 2020 and lang in (de, fr)'), JSON object, or None
    group_by: GroupBy = "chunk"
    score_threshold: float | None = None
    mmr_lambda: float | None = None  # 1 = relevance only, 0 = diversity only; None = off
    rerank: bool = False
    explain: bool = False
    exact: bool = False  # bypass an approximate index


@dataclass(slots=True)
class IngestReport:
    """What one ingestion did. Document ids are counted, files that failed are listed."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)  # {"path", "reason"}
    chunks_embedded: int = 0
    resumed: bool = False  # an earlier run of the same job had died and this one went on from there


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a statement of an answer comes from. `quote` is verbatim document text at [start, end)."""

    n: int
    document_id: str
    chunk_id: int
    title: str | None
    uri: str | None
    quote: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with [n] marks and its citations. `abstained` is true when the collection does not say."""

    answer: str
    abstained: bool
    citations: Sequence[Citation]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class EmbeddingStream(Protocol):
    """A text being read piece by piece; the state it leaves can be stored and resumed."""

    def feed(self, text: str) -> Any: ...
    def vector(self) -> NDArray[np.float32]: ...  # (dim,), of everything read so far
    def state_bytes(self) -> bytes: ...


class Embedder(Protocol):
    """What the indexer needs of an embedder; `rwkv_embed.Embedder` is one, tests have a predictable fake."""

    @property
    def model_id(self) -> str: ...  # a name for people
    @property
    def fingerprint(self) -> str: ...  # hash of weights, tokenizer, pooling, prompts and dimension
    @property
    def dim(self) -> int: ...
    @property
    def sentence_share(self) -> float: ...  # of a passage's best sentence in its score; 0 where it does not help
    def encode_document(self, inputs: Sequence[str]) -> Vectors: ...
    def encode_query(self, inputs: str) -> NDArray[np.float32]: ...  # (dim,)
    def encode_chunks(self, text: str, spans: Sequence[tuple[int, int]]) -> Vectors:
        """One vector per span of `text`, each read off a state that has read everything before it."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...
    def stream(self, state: bytes | None = None) -> EmbeddingStream: ...


class Reranker(Protocol):
    """Scores (query, passage) pairs; larger is better."""

    def score(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]: ...
