"""Answers without a language model: the sentences of the passages that answer, verbatim, or nothing.

Every sentence of the passages is a candidate. Two small logistic models, fitted on labelled questions
(`calibration.py`), turn the features below into probabilities: that a sentence answers, and that the
collection answers at all. Features are few and named, so a wrong answer can be explained by hand.

    dense     cosine of question and sentence
    spread    the same, in standard deviations above the mean of the candidates: no matter the scale
    coverage  share of the question's term weight that the sentence contains
    match     BM25 of the sentence among the candidates, over the root of the number of question terms
    around    coverage for the sentence and its two neighbours, where pronouns point to
    passage   the same for the whole passage
    known     the same for all passages together: 0 when question and passages share no language
    context   best cosine among the sentences of the passage
    rank      1 for the first passage of the search, 1/2 for the second, ...
    length    1 for a full sentence, less for a heading or a fragment
    margin    how far (in log-odds) the best sentence is ahead of the average candidate; `support` only
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import regex
from numpy.typing import NDArray

from indexer.analysis import index_terms
from indexer.answers.calibration import MODELS, OTHER
from indexer.answers.evidence import content_terms, coverage, idf, text_terms
from indexer.answers.generators.base import Passage, Quote, Request
from indexer.chunking import sentences
from indexer.types import Embedder

FULL_SENTENCE_CHARS = 40
NEAR_DUPLICATE = 0.8  # Jaccard similarity of terms
RUNNER_UP = 0.5  # a further sentence is quoted when it is at least this likely, relative to the best

Candidate = tuple[Passage, int, int]  # a sentence of a passage: start, end
_HEADING = regex.compile(rf"\#{{1,6}}\s[^\n]*+|[^\n\p{{P}}]{{1,{FULL_SENTENCE_CHARS}}}+")

Features = dict[str, NDArray[np.float64]]  # name -> (n candidates,)


@dataclass(frozen=True, slots=True)
class Extractive:
    """Quotes at most `max_sentences` sentences; yields nothing when the passages do not answer."""

    max_sentences: int = 3

    @property
    def name(self) -> str:
        return "extractive"

    def generate(self, request: Request) -> Iterator[Quote]:
        ranking = rank_sentences(request.query, request.passages, request.embedder)
        if not ranking.quotes or ranking.support < ranking.threshold:
            return
        likely = [quote for quote in ranking.quotes if quote.score >= RUNNER_UP * ranking.quotes[0].score]
        yield from _reading_order(distinct_quotes(likely, self.max_sentences))


@dataclass(frozen=True, slots=True)
class Ranking:
    """All candidates, best first, and the probability that the collection answers."""

    quotes: Sequence[Quote]
    support: float
    threshold: float


def rank_sentences(query: str, passages: Sequence[Passage], embedder: Embedder) -> Ranking:
    """Every sentence of the passages with its probability of being an answer to `query`, best first."""
    calibration = MODELS.get(embedder.model_id, OTHER)
    candidates = statements(passages)
    if not candidates:
        return Ranking((), 0.0, calibration["decision"]["threshold"])
    features = sentence_features(query, passages, candidates, embedder)
    logits = _linear(calibration["sentence"], features)
    nothing = calibration["sentence"]["bias"]
    support = _sigmoid(_linear(calibration["support"], support_features(features, logits, nothing)))[0]
    scores = _sigmoid(logits)
    quotes = [
        Quote(passage, start, end, score)
        for (passage, start, end), score in zip(candidates, scores.tolist(), strict=True)
    ]
    ranked = [quotes[i] for i in np.argsort(-logits, kind="stable")]
    return Ranking(ranked, float(support), calibration["decision"]["threshold"])


def statements(passages: Sequence[Passage]) -> list[Candidate]:
    """The sentences of the passages, without headings: these repeat the question and answer nothing.

    A heading is a line of its own that has a `#` or is short and ends in no mark. Where there is nothing
    else, headings are better than nothing.
    """
    found = [(p, start, end) for p in passages for start, end in sentences(p.text)]
    return [(p, a, b) for p, a, b in found if not _HEADING.fullmatch(p.text, a, b)] or found


def sentence_features(
    query: str,
    passages: Sequence[Passage],
    candidates: Sequence[Candidate],
    embedder: Embedder,
) -> Features:
    """The features of each candidate (passage, start, end); see the module's list."""
    texts = [passage.text[start:end] for passage, start, end in candidates]
    dense = (embedder.encode_document(texts) @ embedder.encode_query(query)).astype(np.float64)
    spread = (dense - dense.mean()) / max(float(dense.std()), 1e-6)

    owner = np.array([passage.n for passage, _, _ in candidates])
    own = [text_terms(text) for text in texts]
    weights = idf(own)
    unseen = float(np.log(2 * len(own) + 2))  # the weight of a term that no candidate has
    asked = content_terms(query)

    def covered(term_sets: Sequence[frozenset[str]]) -> NDArray[np.float64]:
        return np.array([coverage(asked, present, weights, unseen) for present in term_sets])

    around = [
        frozenset().union(*(own[j] for j in (i - 1, i, i + 1) if 0 <= j < len(own) and owner[j] == owner[i]))
        for i in range(len(own))
    ]
    whole = {n: frozenset().union(*(own[i] for i in np.flatnonzero(owner == n))) for n in set(owner.tolist())}
    context = {n: dense[owner == n].max() for n in whole}
    best_first = sorted(passages, key=lambda passage: -passage.hit.score)
    rank = {passage.n: 1 / position for position, passage in enumerate(best_first, start=1)}
    return {
        "dense": dense,
        "spread": spread,
        "coverage": covered(own),
        "match": _bm25(asked, texts, weights),
        "around": covered(around),
        "passage": covered([whole[n] for n in owner]),
        "known": np.full(len(own), covered([frozenset().union(*own)])[0]),
        "context": np.array([context[n] for n in owner]),
        "rank": np.array([rank[n] for n in owner]),
        "length": np.array([min(1.0, len(text) / FULL_SENTENCE_CHARS) for text in texts]),
    }


def _bm25(asked: Sequence[str], texts: Sequence[str], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """BM25 (k1 = 1.2, b = 0.75) of each text, divided by the root of the number of terms asked for."""
    counts = [Counter(chain(*index_terms(text))) for text in texts]
    lengths = np.array([sum(count.values()) for count in counts], np.float64)
    norm = 1.2 * (0.25 + 0.75 * lengths / max(1.0, lengths.mean()))
    total = np.zeros(len(texts))
    for term in asked:
        found = np.array([count[term] for count in counts], np.float64)
        total += weights.get(term, 0.0) * found * 2.2 / (found + norm)
    return total / max(1, len(asked)) ** 0.5


def support_features(features: Features, logits: NDArray[np.float64], nothing: float) -> Features:
    """What tells whether the collection answers: the best sentence's features and its lead. Shapes (1,).

    `nothing` is the logit of a sentence without any evidence. One such is averaged with the candidates, so
    that the only sentence of a small collection has a lead too.
    """
    best = int(np.argmax(logits))
    margin = logits[best] - np.append(logits, nothing).mean()
    return {
        **{name: values[best : best + 1] for name, values in features.items()},
        "margin": np.array([margin]),
    }


def _linear(weights: Mapping[str, float], features: Features) -> NDArray[np.float64]:
    total = np.full(1, weights["bias"])
    for name, weight in weights.items():
        if name != "bias":
            total = total + weight * features[name]
    return total


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(x, -50, 50)))


def distinct_quotes(ranked: Sequence[Quote], limit: int) -> list[Quote]:
    """The first `limit` quotes that are not nearly the same words as one before them."""
    chosen: list[Quote] = []
    seen: list[frozenset[str]] = []
    for quote in ranked:
        own = text_terms(quote.text)
        if not any(own and len(own & other) >= NEAR_DUPLICATE * len(own | other) for other in seen):
            chosen.append(quote)
            seen.append(own)
        if len(chosen) == limit:
            break
    return chosen


def _reading_order(quotes: Sequence[Quote]) -> list[Quote]:
    """The passage of the best sentence first; inside a passage as in the document."""
    first: dict[int, int] = {}
    for position, quote in enumerate(quotes):
        first.setdefault(quote.passage.n, position)
    return sorted(quotes, key=lambda quote: (first[quote.passage.n], quote.start))
