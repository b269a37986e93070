"""XQuAD as collections in memory with questions that they answer and questions that they do not."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.analysis import query_terms
from indexer.answers import Passage, pipeline
from indexer.answers.evidence import term_counts
from indexer.best_sentence import SentenceReader, raised, worth_reading
from indexer.chunking import sentences
from indexer.fusion import fuse
from indexer.language import identify_language
from indexer.types import Embedder, EmbeddingStream, SearchHit, SearchOptions

ARTICLES, PARAGRAPHS, KEPT = 48, 5, 3
TOP_K = 8
LANGUAGES = "ar,de,en,es,hi,ru,vi,zh"


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    paragraph: int
    answers: tuple[str, ...]

    @property
    def fold(self) -> int:
        return self.paragraph // PARAGRAPHS * 2 // ARTICLES

    @property
    def kept(self) -> bool:
        return self.paragraph % PARAGRAPHS < KEPT


@dataclass(frozen=True)
class Dataset:
    paragraphs: list[str]
    questions: list[Question]

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text("utf-8").splitlines()]
        place = {row["_id"]: i for i, row in enumerate(corpus)}
        (qrels,) = (folder / "qrels").glob("*.tsv")
        gold = {row.split("\t")[0]: row.split("\t")[1] for row in qrels.read_text("utf-8").splitlines()[1:]}
        rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]
        questions = [
            Question(row["_id"], row["text"], place[gold[row["_id"]]], tuple(row["metadata"]["answers"]))
            for row in rows
        ]
        return cls([row["text"] for row in corpus], questions)

    def kept(self, fold: int) -> list[int]:
        half = ARTICLES * PARAGRAPHS // 2
        return [i for i in range(fold * half, (fold + 1) * half) if i % PARAGRAPHS < KEPT]


def spaced(items: Sequence[Question], count: int) -> list[Question]:
    """`count` of the items, evenly spaced: every article is asked about, and no random seed is needed."""
    return [items[i * len(items) // count] for i in range(min(count, len(items)))]


class Remembering:
    """An embedder that encodes each text once: the questions share their passages and sentences."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._documents: dict[str, NDArray[np.float32]] = {}
        self.encode_query = lru_cache(maxsize=None)(embedder.encode_query)
        self.model_id, self.fingerprint, self.dim = embedder.model_id, embedder.fingerprint, embedder.dim
        self.encode_chunks, self.count_tokens = embedder.encode_chunks, embedder.count_tokens
        self.sentence_share = embedder.sentence_share

    def encode_document(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(inputs) if text not in self._documents]
        self._documents.update(zip(new, self._embedder.encode_document(new), strict=True))
        return np.array([self._documents[text] for text in inputs], np.float32).reshape(-1, self.dim)

    def stream(self, state: bytes | None = None) -> EmbeddingStream:
        return self._embedder.stream(state)


class BM25:
    """BM25 (k1 = 1.2, b = 0.75) over the terms of a few hundred texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [term_counts(text) for text in texts]
        lengths = np.array([sum(count.values()) for count in counts], float)
        norm = 1.2 * (0.25 + 0.75 * lengths / max(1.0, lengths.mean()))
        found: dict[str, list[tuple[int, float]]] = {}
        for i, count in enumerate(counts):
            for term, n in count.items():
                found.setdefault(term, []).append((i, n * 2.2 / (n + norm[i])))
        self._size = len(texts)
        self._gains = {term: _weighted(entries, len(texts)) for term, entries in found.items()}

    def scores(self, query: Iterable[str]) -> NDArray[np.float64]:
        scores = np.zeros(self._size)
        for term in dict.fromkeys(query):
            if term in self._gains:
                places, gains = self._gains[term]
                scores[places] += gains
        return scores


def _weighted(entries: list[tuple[int, float]], total: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions of the texts that have a term, and what it adds to their scores."""
    idf = np.log(1 + (total - len(entries) + 0.5) / (len(entries) + 0.5))
    return np.array([i for i, _ in entries]), idf * np.array([saturated for _, saturated in entries])


class Paragraphs:
    """A collection in memory with the product's default search, dense and BM25 fused."""

    def __init__(self, texts: Sequence[str], numbers: Sequence[int], embedder: Embedder) -> None:
        self.texts, self.numbers, self.embedder = list(texts), list(numbers), embedder
        self._languages = [identify_language(text) for text in self.texts]
        self._vectors = embedder.encode_document(self.texts)
        self._bm25, self._reader = BM25(self.texts), SentenceReader()

    @cached_property
    def sentences(self) -> list[str]:
        return [text[start:end] for text in self.texts for start, end in sentences(text)]

    @cached_property
    def sentence_bm25(self) -> BM25:
        return BM25(self.sentences)

    def search(self, query: str, options: SearchOptions | None = None) -> list[SearchHit]:
        terms = query_terms(query)
        vector = self.embedder.encode_query(query)
        dense = _ranking(self._vectors @ vector, float("-inf"))
        lexical = _ranking(self._bm25.scores(terms), 0.0)
        if self.embedder.sentence_share:
            cosines, near = dict(dense), worth_reading(dense, lexical)
            nearest = self._reader.nearest(self.embedder, vector, {i: self.texts[i] for i in near})
            gains = {i: best - cosines[i] for i, (best, _) in nearest.items()}
            dense = raised(dense, gains, self.embedder.sentence_share)
        found = fuse(dense, lexical, len(terms))
        return [self._hit(i, score) for i, score in found[: options.top_k if options else TOP_K]]

    def _hit(self, i: int, score: float) -> SearchHit:
        text, n = self.texts[i], self.numbers[i]
        return SearchHit(score, f"p{n:03}", n, None, None, self._languages[i], text, 0, len(text), {})

    def passages(self, query: str) -> list[Passage]:
        return pipeline.pack(self.search(query, SearchOptions(top_k=TOP_K)), self.embedder, 10**6)


def _ranking(scores: NDArray[np.floating], above: float) -> list[tuple[int, float]]:
    """(position, score) of the scores above a bound, best first."""
    order = np.argsort(-scores, kind="stable").tolist()
    return [(i, float(scores[i])) for i in order if scores[i] > above]


def contains(text: str, answers: Iterable[str]) -> bool:
    bare = " ".join(text.casefold().split())
    return any(" ".join(answer.casefold().split()) in bare for answer in answers)


@dataclass(frozen=True)
class Task:
    """Questions in one language against paragraphs in the same or another one.

    The 48 articles are cut in two folds of 24. In a fold the collection holds the first three paragraphs of each
    article. Answerable questions are about those; unanswerable ones are about the two paragraphs that were left
    out ("near": the right article without the answer) or about the other fold ("far").
    """

    name: str
    asked: Dataset
    read: Dataset

    @property
    def within(self) -> bool:
        """Whether question and text are in one language."""
        return self.asked is self.read

    def collection(self, fold: int, embedder: Embedder) -> Paragraphs:
        kept = self.read.kept(fold)
        return Paragraphs([self.read.paragraphs[i] for i in kept], kept, embedder)

    def questions(self, fold: int, count: int) -> tuple[list[Question], list[Question]]:
        """`count` answerable and as many unanswerable ones, half of them near and half far."""
        gold = {question.id: question.answers for question in self.read.questions}
        asked = [Question(q.id, q.text, q.paragraph, gold[q.id]) for q in self.asked.questions]
        near = [q for q in asked if q.fold == fold and not q.kept]
        far = [q for q in asked if q.fold != fold]
        return (
            spaced([q for q in asked if q.fold == fold and q.kept], count),
            spaced(near, count // 2) + spaced(far, count - count // 2),
        )


def load_tasks(data: Path, languages: Sequence[str]) -> list[Task]:
    sets = {language: Dataset.load(data / language) for language in languages}
    tasks = [Task(language, dataset, dataset) for language, dataset in sets.items()]
    if "en" in sets:
        tasks += [Task(f"{name} > en", dataset, sets["en"]) for name, dataset in sets.items() if name != "en"]
    return tasks


def load_embedder(name: str | None) -> Embedder:
    """The embedder that a script's `--model` names, with a memory."""
    from rwkv_embed import Embedder as RWKVEmbedder

    return Remembering(RWKVEmbedder(name))
