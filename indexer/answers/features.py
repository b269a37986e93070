"""What a sentence has to do with a question, in a few named numbers that can be checked by hand.

    spread    cosine of question and sentence, in standard deviations above the mean of the candidates
    words     how near the sentence comes to each word of the question: for every content word the cosine of
              the nearest word of the sentence, averaged by rarity, then as `spread`
    coverage  share of the question's term weight that the sentence contains
    match     BM25 of the sentence among the candidates for all terms of the question, question words too, over
              the root of their number: what every candidate has weighs next to nothing
    around    coverage for the sentence and its two neighbours, where pronouns point to
    passage   the same for the whole passage
    rank      1 for the first passage of the search, 1/2 for the second, ...
    length    1 for a full sentence, less for a heading or a fragment
    dense     cosine of question and sentence; `support` only
    known     coverage for all passages together: 0 when question and passages share no word; `support` only
    margin    how far (in log-odds) the best sentence is ahead of the average candidate; `support` only

Weights of terms are taken among the candidates, not in the collection: what all of them contain tells none
from another, and a collection's size does not matter. `words` compares single words by meaning, which is what
is left of term evidence when question and passage share no language.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.analysis import query_terms
from indexer.answers.evidence import (
    content,
    content_terms,
    coverage,
    distinct_words,
    idf,
    term_counts,
    text_terms,
)
from indexer.answers.generators.base import Passage
from indexer.language import identify_language
from indexer.types import Embedder, Vectors

FULL_SENTENCE_CHARS = 40
SAME_LANGUAGE = (
    0.5  # share of the question's words in a passage that tells its language whatever is identified
)

Candidate = tuple[Passage, int, int]  # a sentence of a passage: start, end
Features = dict[str, NDArray[np.float64]]  # name -> (n candidates,)


def foreign(query: str, passages: Sequence[Passage]) -> set[int]:
    """The numbers of the passages that are in another language than the question.

    A short question is easily taken for another language; but one whose words stand in a passage is in that
    passage's language.
    """
    asked = frozenset(map(str.casefold, distinct_words(query)))
    language = identify_language(query)
    others = set()
    for passage in passages:
        its = passage.hit.language or identify_language(passage.text)
        shared = asked.intersection(map(str.casefold, distinct_words(passage.text)))
        if _bare(its) != language and len(shared) < SAME_LANGUAGE * len(asked):
            others.add(passage.n)
    return others


def _bare(tag: str | None) -> str | None:
    return tag and tag.split("-")[0].lower()


def sentence_features(
    query: str,
    passages: Sequence[Passage],
    candidates: Sequence[Candidate],
    embedder: Embedder,
    *,
    words: bool = True,
) -> Features:
    """The features of each candidate (passage, start, end); see the module's list.

    `words` is left out on demand: it embeds every distinct word of the candidates, which takes as long as
    reading them once more.
    """
    texts = [passage.text[start:end] for passage, start, end in candidates]
    query_vector = embedder.encode_query(query)
    dense = (embedder.encode_document(texts) @ query_vector).astype(np.float64)

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
    best_first = sorted(passages, key=lambda passage: -passage.hit.score)
    rank = {passage.n: 1 / position for position, passage in enumerate(best_first, start=1)}
    features = {
        "dense": dense,
        "spread": _spread(dense),
        "coverage": covered(own),
        "match": _bm25(query_terms(query), texts, weights),
        "around": covered(around),
        "passage": covered([whole[n] for n in owner]),
        "known": np.full(len(own), covered([frozenset().union(*own)])[0]),
        "rank": np.array([rank[n] for n in owner]),
        "length": np.array([min(1.0, len(text) / FULL_SENTENCE_CHARS) for text in texts]),
    }
    if words:
        features["words"] = _spread(_nearest_words(query, texts, weights, unseen, embedder))
    return features


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values - values.mean()) / max(float(values.std()), 1e-6)


def _nearest_words(
    query: str, texts: Sequence[str], weights: Mapping[str, float], unseen: float, embedder: Embedder
) -> NDArray[np.float64]:
    """For each text the mean, by rarity, of the cosine of each word asked for and the text's nearest word."""
    asked = distinct_words(content(query))
    found = [distinct_words(text) for text in texts]
    place = {word: i for i, word in enumerate(dict.fromkeys(word for words in found for word in words))}
    if not asked or not place:
        return np.zeros(len(texts))
    vectors: Vectors = embedder.encode_document([*place, *asked])
    cosines = vectors[: len(place)] @ vectors[len(place) :].T  # (words of the texts, words asked for)
    nearest = np.array(
        [cosines[[place[w] for w in words]].max(0) if words else np.zeros(len(asked)) for words in found]
    )
    rarity = np.array([max(weights.get(term, unseen) for term in text_terms(w) or ("",)) for w in asked])
    return (nearest @ rarity / max(float(rarity.sum()), 1e-9)).astype(np.float64)


def _bm25(asked: Sequence[str], texts: Sequence[str], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """BM25 (k1 = 1.2, b = 0.75) of each text, divided by the root of the number of terms asked for."""
    counts = [term_counts(text) for text in texts]
    lengths = np.array([sum(count.values()) for count in counts], np.float64)
    norm = 1.2 * (0.25 + 0.75 * lengths / max(1.0, lengths.mean()))
    total = np.zeros(len(texts))
    for term in asked:
        found = np.array([count.get(term, 0) for count in counts], np.float64)
        total += weights.get(term, 0.0) * found * 2.2 / (found + norm)
    return total / max(1, len(asked)) ** 0.5


def support_features(
    features: Features, logits: NDArray[np.float64], nothing: float, best: int
) -> dict[str, float]:
    """What tells whether the collection answers: the features of the `best` candidate and its lead.

    `nothing` is the logit of a sentence without any evidence. One such is averaged with the candidates, so
    that the only sentence of a small collection has a lead too.
    """
    margin = logits[best] - np.append(logits, nothing).mean()
    return {**{name: float(values[best]) for name, values in features.items()}, "margin": float(margin)}
