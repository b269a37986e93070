"""How much nearer a query is to everything in one language than to the collection as a whole.

Models put texts of one language nearer to each other than their meanings are. In a collection of several
languages a query then finds what is in its own language, or one akin to it, before what answers it. So the
search takes off each cosine what the language alone gives: the query's cosine with the mean of the language's
passages, less that with the mean of all. Measured in docs/retrieval.md.

Means are those of a sample, the same in every process that sees the same version. A language with few passages
in it has the mean of all; that of others is drawn there by PRIOR_PASSAGES, because the mean of thirty passages is
also that of their subjects. With fewer than two languages left, nothing is taken off anything.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from indexer.db.ids import among, as_json
from indexer.db.tables import ChunkRow
from indexer.view import Ids

if TYPE_CHECKING:
    from indexer.vector_index import VersionedIndex

SAMPLE_ROWS = 4_096  # read in about 20 ms, once for each version of a collection
LEAST_PASSAGES = 20
PRIOR_PASSAGES = 20

_LANGUAGES = select(ChunkRow.id, ChunkRow.language).where(among(ChunkRow.id))


@dataclass(frozen=True, slots=True)
class Leanings:
    """The languages of one version of a collection, as far as they differ."""

    version: int
    languages: tuple[str, ...]
    differences: NDArray[np.float32]  # (n, dim) from the mean of all passages to that of each language

    def of(self, query: NDArray[np.float32]) -> dict[str, float]:
        """By language, how much larger its cosines with `query` (dim,) are for being in that language."""
        return dict(zip(self.languages, (self.differences @ query).tolist(), strict=True))


def leanings(session: Session, view: "VersionedIndex") -> Leanings:
    """What the languages of a view's passages do to cosines."""
    ids, vectors = view.sample(SAMPLE_ROWS)
    of = languages_of(session, ids)
    found = np.array([of.get(id) or "" for id in ids.tolist()], object)
    counts = Counter(found.tolist())
    several = sorted(language for language, n in counts.items() if language and n >= LEAST_PASSAGES)
    if len(several) < 2:
        return Leanings(view.version, (), np.empty((0, vectors.shape[1]), np.float32))
    vectors -= vectors.mean(0)
    differences = [vectors[found == one].sum(0) / (counts[one] + PRIOR_PASSAGES) for one in several]
    return Leanings(view.version, tuple(several), np.array(differences, np.float32))


def languages_of(session: Session, ids: Ids | Sequence[int]) -> dict[int, str | None]:
    """The languages of those chunks that are there."""
    rows = session.execute(_LANGUAGES, {"ids": as_json(ids)})
    return {row.id: row.language for row in rows}
