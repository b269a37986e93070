"""Full text inside the store's own transactions: BM25 over the terms of `analysis`, behind a small protocol.

Here are the protocol and what its implementations share: `indexer.fulltext_sqlite` (FTS5) and
`indexer.fulltext_postgresql` (tsvector). They give the same rows with the same scores.

A query is parsed here, never by a database: "a phrase" and -excluded and prefix* are understood, everything else
is words. What the database gets is built from quoted analysed terms and bound as a parameter, so that no input is
syntax.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import regex
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Engine

from indexer.analysis import index_terms, query_terms
from indexer.errors import StoreError

MAX_TERMS = 64  # of a query; a pasted page is cut to its rarest terms
MAX_CONSIDERED_TERMS = 512  # whose frequencies are looked up to find the rarest
CANDIDATES = 100_000  # matching rows that are ranked at most, the newest first
BATCH_ROWS = 500

Row = tuple[int, str]  # (chunk id, text)


class FullText(Protocol):
    """A full-text index of each collection. All methods work inside the caller's transaction."""

    def create(self, connection: Connection, collection_id: int) -> None:
        """Make the empty index of a collection."""

    def drop(self, connection: Connection, collection_id: int) -> None:
        """Remove it; nothing happens when there is none."""

    def add(self, connection: Connection, collection_id: int, rows: Iterable[Row]) -> None:
        """Index chunks. A chunk id must not be there already."""

    def remove(self, connection: Connection, collection_id: int, rows: Iterable[Row]) -> None:
        """Remove chunks. The text must be the one that was added."""

    def search(
        self,
        connection: Connection,
        collection_id: int,
        query: str,
        limit: int,
        allowed: NDArray[np.int64] | None = None,
    ) -> list[tuple[int, float]]:
        """The best chunks as (chunk id, BM25 score), larger is better. `allowed` are the only ids looked at.

        Rows that the caller's transaction has written itself may be missing.
        """

    def demanded(
        self, collection_id: int, query: str, chunk_id: ColumnElement[int]
    ) -> ColumnElement[bool] | None:
        """The condition that a chunk has the query's phrases and nothing it excludes; None without such."""

    def optimize(self, connection: Connection, collection_id: int) -> None:
        """Merge the index into its smallest form."""

    def strays(self, connection: Connection, collection_id: int) -> int:
        """How many chunks are not indexed, and entries of chunks that are not there; 0 in a sound store."""

    def is_sound(self, connection: Connection, collection_id: int) -> bool:
        """Whether the index is what a new one over the same chunks would be. Takes as long as making that."""


def fulltext_for(engine: Engine) -> FullText:
    """The implementation for an engine's database. Raises StoreError when there is none."""
    if engine.dialect.name == "sqlite":
        from indexer.fulltext_sqlite import SqliteFullText

        return SqliteFullText()
    if engine.dialect.name == "postgresql":
        from indexer.fulltext_postgresql import PostgresFullText

        return PostgresFullText()
    raise StoreError(
        f"there is no full text for {engine.dialect.name!r} databases; expected sqlite or postgresql"
    )


# --- queries ---------------------------------------------------------------------------------------

_PART = regex.compile(
    r'(?<!\S)(?P<minus>-)?"(?P<phrase>[^"]*)"|(?<!\S)-(?P<excluded>[^\s"-]\S*)|(?P<word>\S+)'
)


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """What a person asked for. `text` is the query without operators, as an embedder should read it."""

    text: str
    terms: tuple[str, ...] = ()  # any of them
    prefixes: tuple[str, ...] = ()  # any of them, as the beginning of a word
    phrases: tuple[tuple[str, ...], ...] = ()  # all of them
    excluded: tuple[tuple[str, ...], ...] = ()  # none of them

    @property
    def size(self) -> int:
        """How many terms a passage may have; BM25 is a sum over them."""
        return len(self.terms) + len(self.prefixes) + sum(map(len, self.phrases))

    @property
    def demands(self) -> bool:
        """Whether some chunks are ruled out, however similar they are."""
        return bool(self.phrases or self.excluded)


@dataclass(slots=True)
class _Parts:
    kept: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    phrases: list[tuple[str, ...]] = field(default_factory=list)
    excluded: list[tuple[str, ...]] = field(default_factory=list)


@lru_cache(maxsize=256)
def parse_query(query: str) -> ParsedQuery:
    """Understand "phrases", -exclusions and prefixes*. Never fails: what is no operator is text."""
    parts = _Parts()
    for match in _PART.finditer(query):
        _sort_in(match, parts)
    text = " ".join(parts.kept)
    return ParsedQuery(
        text=text if text.strip() or parts.excluded else query,  # operators of nothing, such as * and "", are text
        terms=tuple(query_terms(" ".join(parts.words))),
        prefixes=tuple(dict.fromkeys(parts.prefixes)),
        phrases=tuple(dict.fromkeys(parts.phrases)),
        excluded=tuple(dict.fromkeys(parts.excluded)),
    )


def _sort_in(match: Any, parts: _Parts) -> None:
    excluded = match["excluded"] or (match["phrase"] if match["minus"] else None)
    if excluded is not None:
        words = tuple(index_terms(excluded).words)
        if words:
            parts.excluded.append(words)
            return
    if match["phrase"] is not None:
        parts.kept.append(match["phrase"])
        words = tuple(index_terms(match["phrase"]).words)
        if words:
            parts.phrases.append(words)
        return
    word = match.group()
    parts.kept.append(word.rstrip("*"))
    beginnings = index_terms(word).words if word.endswith("*") else []
    if len(beginnings) == 1:
        parts.prefixes.append(beginnings[0])
    else:
        parts.words.append(word)


def rarest_within(terms: Sequence[tuple[int, str]], budget: int) -> list[tuple[int, str]]:
    """The rarest terms, at most MAX_TERMS and as many as match `budget` rows together; at least one.

    In a large collection "the" matches nearly every row, costs seconds to rank and moves nothing: its weight
    in BM25 is close to 0.
    """
    chosen: list[tuple[int, str]] = []
    total = 0
    for rows, term in terms[:MAX_TERMS]:
        total += rows
        if chosen and total > budget:
            break
        chosen.append((rows, term))
    return chosen
