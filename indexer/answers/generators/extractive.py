"""Answers without a language model: the sentences of the passages that answer, verbatim, or nothing.

Every sentence of the passages is a candidate. Small logistic models over the numbers of `features.py`, fitted
on labelled questions (`calibration.py`), give two probabilities: that a sentence answers, and that the
collection answers at all. There are two of each, because evidence differs: one for passages in the language of
the question, where its words are found again, and one for those in another, where hardly any is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from indexer.answers.calibration import MODELS, UNKNOWN_MODEL
from indexer.answers.evidence import text_terms
from indexer.answers.features import (
    FULL_SENTENCE_CHARS,
    Candidate,
    foreign,
    sentence_features,
    support_features,
)
from indexer.answers.generators.base import Passage, Quote, Request
from indexer.chunking import sentences
from indexer.types import Embedder

NEAR_DUPLICATE = 0.8  # Jaccard similarity of terms
RUNNER_UP = 0.5  # a further sentence is quoted when it is at least this likely, relative to the best

_HEADING = regex.compile(rf"\#{{1,6}}\s[^\n]*+|[^\n\p{{P}}]{{1,{FULL_SENTENCE_CHARS}}}+")


@dataclass(frozen=True, slots=True)
class Extractive:
    """Quotes at most `max_sentences` sentences; yields nothing when the passages do not answer."""

    max_sentences: int = 3

    @property
    def name(self) -> str:
        return "extractive"

    def generate(self, request: Request) -> Iterator[Quote]:
        ranking = rank_sentences(request.query, request.passages, request.embedder)
        if not ranking.supported:
            return
        likely = [quote for quote in ranking.quotes if quote.score >= RUNNER_UP * ranking.quotes[0].score]
        yield from _reading_order(distinct_quotes(likely, self.max_sentences))


@dataclass(frozen=True, slots=True)
class Ranking:
    """All candidates, best first, and the probability that the collection answers."""

    quotes: Sequence[Quote]
    support: float
    threshold: float

    @property
    def supported(self) -> bool:
        """Whether to answer at all."""
        return bool(self.quotes) and self.support >= self.threshold


def rank_sentences(query: str, passages: Sequence[Passage], embedder: Embedder) -> Ranking:
    """Every sentence of the passages with its probability of being an answer to `query`, best first."""
    calibration = MODELS.get(embedder.model_id) or {"same": UNKNOWN_MODEL, "other": UNKNOWN_MODEL}
    candidates = statements(passages)
    if not candidates:
        return Ranking((), 0.0, calibration["same"]["decision"]["threshold"])
    words = any("words" in calibration[kind]["sentence"] for kind in calibration)
    features = sentence_features(query, passages, candidates, embedder, words=words)
    others = foreign(query, passages)
    kinds = ["other" if passage.n in others else "same" for passage, _, _ in candidates]
    by_kind = {kind: linear(calibration[kind]["sentence"], features) for kind in set(kinds)}
    logits = np.array([by_kind[kind][i] for i, kind in enumerate(kinds)])
    best = int(np.argmax(logits))
    chosen = calibration[kinds[best]]
    evidence = support_features(features, logits, chosen["sentence"]["bias"], best)
    support = _sigmoid(linear(chosen["support"], evidence))
    quotes = [
        Quote(passage, start, end, score)
        for (passage, start, end), score in zip(candidates, _sigmoid(logits).tolist(), strict=True)
    ]
    ranked = [quotes[i] for i in np.argsort(-logits, kind="stable")]
    return Ranking(ranked, float(support), chosen["decision"]["threshold"])


def statements(passages: Sequence[Passage]) -> list[Candidate]:
    """The sentences of the passages, without headings: these repeat the question and answer nothing.

    A heading is a line of its own that has a `#` or is short and ends in no mark. Where there is nothing
    else, headings are better than nothing.
    """
    found = [(p, start, end) for p in passages for start, end in sentences(p.text)]
    return [(p, a, b) for p, a, b in found if not _HEADING.fullmatch(p.text, a, b)] or found


def linear(weights: Mapping[str, float], features: Mapping[str, Any]) -> Any:
    """bias + sum of weight * feature, for numbers and arrays alike."""
    return weights["bias"] + sum(weights[name] * features[name] for name in weights if name != "bias")


def _sigmoid(x: Any) -> NDArray[np.float64]:
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
