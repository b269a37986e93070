"""The best sentence of a passage: a second look at the nearest passages, which adds to their cosines.

A passage's vector holds a hundred words in a few hundred numbers, and a question asks about one sentence of it. So
the sentences of the nearest passages are embedded as well, and the cosine of the best one counts beside the
passage's own (measured in docs/retrieval.md). Sentences are read when a search wants them and remembered: storing
their vectors would take five times the room of the passages'.

How much the sentence counts is the model's business, `Embedder.sentence_share`: it helps models that sum words up,
and only one that reads thirty passages in some milliseconds can afford it. At 0 nothing is read.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from indexer.chunking import Span, sentences
from indexer.types import Embedder

READ_NEAREST = 20  # passages of a search whose sentences are read
READ_BEST_WORDS = 10  # and so many of those with the best words, if these are not among them
REMEMBERED_PASSAGES = 2_000  # about 8 kB each

Ranking = Sequence[tuple[int, float]]  # (id, score), best first


def worth_reading(dense: Ranking, lexical: Ranking) -> list[int]:
    """Ids of the dense ranking whose sentences are read."""
    known = {id for id, _ in dense}
    near, worded = ([id for id, _ in ranking] for ranking in (dense[:READ_NEAREST], lexical[:READ_BEST_WORDS]))
    return [id for id in dict.fromkeys(near + worded) if id in known]


def raised(dense: Ranking, gains: Mapping[int, float], share: float) -> list[tuple[int, float]]:
    """The dense ranking where a best sentence counts `share`, ties by id.

    `gains`: how much nearer than the passage its best sentence is, of those that were read. The others get the
    least of them, so that all scores can be compared.
    """
    least = min(gains.values(), default=0.0)
    scores = [(id, score + share * gains.get(id, least)) for id, score in dense]
    return sorted(scores, key=lambda pair: (-pair[1], pair[0]))


@dataclass(frozen=True, slots=True)
class Sentences:
    """A passage's sentences and their vectors (n, dim)."""

    spans: Sequence[Span]
    vectors: NDArray[np.float32]

    def best(self, query: NDArray[np.float32]) -> tuple[float, Span] | None:
        """The cosine and place of the sentence that is nearest to `query` (dim,); None without sentences."""
        if not self.spans:
            return None
        cosines = self.vectors @ query
        nearest = int(cosines.argmax())
        return float(cosines[nearest]), self.spans[nearest]


class SentenceReader:
    """Sentences of passages, the last `REMEMBERED_PASSAGES` remembered. For several threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Sentences] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def read(self, embedder: Embedder, passages: Sequence[str]) -> list[Sentences]:
        """The sentences of each passage; all that are not known are embedded in one call."""
        with self._lock:
            found = {text: self._known[text] for text in passages if text in self._known}
        missing = [text for text in dict.fromkeys(passages) if text not in found]
        found.update(zip(missing, _embedded(embedder, missing), strict=True))
        with self._lock:
            self._known.update(found)
            for text in found:
                self._known.move_to_end(text)
            while len(self._known) > REMEMBERED_PASSAGES:
                self._known.popitem(last=False)
        return [found[text] for text in passages]

    def nearest(
        self, embedder: Embedder, query: NDArray[np.float32], passages: Mapping[int, str]
    ) -> dict[int, tuple[float, Span]]:
        """Of each passage, by id, the best sentence for `query` (dim,); without those that have no sentence."""
        read = self.read(embedder, list(passages.values()))
        found = {id: one.best(query) for id, one in zip(passages, read, strict=True)}
        return {id: best for id, best in found.items() if best is not None}


def _embedded(embedder: Embedder, passages: Sequence[str]) -> list[Sentences]:
    spans = [sentences(text) for text in passages]
    texts = [text[a:b] for text, places in zip(passages, spans, strict=True) for a, b in places]
    vectors = embedder.encode_document(texts)
    ends = np.cumsum([0, *map(len, spans)]).tolist()
    return [
        Sentences(places, vectors[a:b]) for places, (a, b) in zip(spans, pairwise(ends), strict=True)
    ]
