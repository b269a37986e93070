"""Predictable parts for the tests of answers: an embedder of hashed words and a collection in memory."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from indexer.analysis import index_terms
from indexer.answers import Passage, Quote, Request
from indexer.language import identify_language
from indexer.types import Message, SearchHit, SearchOptions

# A fitted calibration, rounded: tests do not change when the shipped one is fitted again.
SAME = {
    "sentence": {
        "bias": -7.5,
        "spread": 0.6,
        "words": 0.1,
        "coverage": 0.4,
        "match": 0.9,
        "around": 0.6,
        "passage": 0.4,
        "rank": 1.3,
        "length": 0.1,
    },
    "support": {
        "bias": -7.0,
        "coverage": 1.4,
        "around": 3.2,
        "passage": 2.2,
        "known": -0.1,
        "margin": 1.0,
    },
    "decision": {"threshold": 0.49},
}
OTHER_LANGUAGE = {
    "sentence": {"bias": -6.0, "spread": 1.1, "words": 0.6, "rank": 1.2},
    "support": {"bias": -3.0, "dense": 4.0, "margin": 0.5},
    "decision": {"threshold": 0.6},
}
CALIBRATION = {"same": SAME, "other": OTHER_LANGUAGE}


class HashEmbedder:
    """A text is the normalised sum of one fixed random vector per term: cosine is the overlap of terms."""

    model_id = "hash-test"
    fingerprint = "hash-test"
    dim = 256
    sentence_share = 0.0

    def _vector(self, text: str) -> np.ndarray:
        vector = np.zeros(self.dim)
        for term in index_terms(text).words:
            vector += np.random.default_rng(zlib.crc32(term.encode())).standard_normal(self.dim)
        return (vector / (np.linalg.norm(vector) or 1.0)).astype(np.float32)

    def encode_document(self, inputs: Sequence[str]) -> np.ndarray:
        return np.array([self._vector(text) for text in inputs], dtype=np.float32).reshape(-1, self.dim)

    def encode_query(self, inputs: str) -> np.ndarray:
        return self._vector(inputs)

    def encode_chunks(self, text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        return self.encode_document([text[start:end] for start, end in spans])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


@dataclass
class FakeCollection:
    """Finds passages by cosine; remembers what it was asked."""

    texts: Sequence[str]
    embedder: HashEmbedder = field(default_factory=HashEmbedder)
    asked: list[tuple[str, SearchOptions]] = field(default_factory=list)

    def search(self, query: str, options: SearchOptions | None = None) -> list[SearchHit]:
        options = options or SearchOptions()
        self.asked.append((query, options))
        scores = self.embedder.encode_document(self.texts) @ self.embedder.encode_query(query)
        order = np.argsort(-scores, kind="stable")[: options.top_k]
        return [hit(int(i), self.texts[i], float(scores[i])) for i in order]


def hit(
    i: int, text: str, score: float = 0.5, *, start: int = 0, document_id: str | None = None
) -> SearchHit:
    return SearchHit(
        score=score,
        document_id=document_id or f"doc{i}",
        chunk_id=i,
        title=f"Title {i}",
        uri=None,
        language=identify_language(text),
        text=text,
        start=start,
        end=start + len(text),
        metadata={},
    )


def passages(*texts: str) -> list[Passage]:
    return [Passage(n, hit(n, text, 1 / n), text) for n, text in enumerate(texts, start=1)]


def request(question: str, *texts: str, history: Sequence[Message] = ()) -> Request:
    return Request(question, question, passages(*texts), history, HashEmbedder())


@dataclass
class Scripted:
    """Says what it is told to; counts the pieces it was asked for and notices being closed."""

    pieces: Sequence[str | Quote]
    name: str = "scripted"
    given: list[Request] = field(default_factory=list)
    made: int = 0
    closed: bool = False

    def generate(self, request: Request) -> Iterator[str | Quote]:
        self.given.append(request)
        try:
            for piece in self.pieces:
                self.made += 1
                yield piece
        finally:
            self.closed = True
