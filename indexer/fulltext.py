"""Full text inside the store's own transactions: BM25 over the terms of `analysis`, behind a small protocol.

SQLite: one contentless FTS5 table per collection, `terms_<id>(words, variants)` with the chunk's id as row
id. It keeps no copy of the text: a row is removed by giving FTS5 the text again, which works in every SQLite
since 3.9 (the newer `contentless_delete` would make a store unreadable to older ones). Terms are separated by
spaces and hold nothing that FTS5's `ascii` tokenizer splits.

A query is parsed here, never by FTS5: "a phrase" and -excluded and prefix* are understood, everything else is
words. The FTS5 expression is built from analysed terms in double quotes and bound as a parameter, so that no
input is syntax.

Few matching rows are ranked by FTS5; for many, `postings` has the same ranking from memory.
"""

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import numpy as np
import regex
from numpy.typing import NDArray
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    column,
    func,
    literal_column,
    select,
    table,
    text,
)

from indexer.analysis import index_terms, query_terms
from indexer.errors import StoreError
from indexer.postings import Postings, Version

MAX_TERMS = 64  # of a query; a pasted page is cut to its rarest terms
MAX_CONSIDERED_TERMS = 512  # whose frequencies are looked up to find the rarest
# Rows that the terms of a query may match together, counted once for each, before its commonest are left out:
RANKED_BY_FTS5 = 3_000  # where FTS5 ranks words alone, in about 6 ms; with more, `postings` does
MATCH_BUDGET = 50_000  # where FTS5 ranks, beside phrases and the like
POSTING_BUDGET = 2_000_000  # where `postings` ranks: half a second when none is in memory yet
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
        return SqliteFullText()
    raise StoreError(f"there is no full text for {engine.dialect.name!r} databases; expected sqlite")


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


# --- SQLite ----------------------------------------------------------------------------------------


class SqliteFullText:
    """`FullText` on SQLite FTS5."""

    def __init__(self) -> None:
        self._postings: dict[int, Postings] = {}  # by collection id
        self._guard = threading.Lock()

    def create(self, connection: Connection, collection_id: int) -> None:
        name = _name(collection_id)
        connection.execute(text(f"CREATE VIRTUAL TABLE {name} USING {_FTS5}"))
        connection.execute(text(f"CREATE VIRTUAL TABLE {name}_vocabulary USING fts5vocab('{name}', 'row')"))

    def drop(self, connection: Connection, collection_id: int) -> None:
        name = _name(collection_id)
        connection.execute(text(f"DROP TABLE IF EXISTS {name}_vocabulary"))
        connection.execute(text(f"DROP TABLE IF EXISTS {name}"))
        with self._guard:
            self._postings.pop(collection_id, None)

    def add(self, connection: Connection, collection_id: int, rows: Iterable[Row]) -> None:
        self._write(connection, f"INSERT INTO {_name(collection_id)}{_INSERTED}", rows)

    def remove(self, connection: Connection, collection_id: int, rows: Iterable[Row]) -> None:
        name = _name(collection_id)
        statement = (
            f"INSERT INTO {name}({name}, rowid, words, variants) VALUES ('delete', :id, :words, :variants)"
        )
        self._write(connection, statement, rows)

    def optimize(self, connection: Connection, collection_id: int) -> None:
        name = _name(collection_id)
        connection.execute(text(f"INSERT INTO {name}({name}) VALUES ('optimize')"))

    def strays(self, connection: Connection, collection_id: int) -> int:
        mine, indexed = "SELECT id FROM chunks WHERE collection_id = :id", f"{_name(collection_id)}_docsize"
        counts = (
            f"SELECT (SELECT count(*) FROM ({mine}) WHERE id NOT IN (SELECT id FROM {indexed}))"
            f" + (SELECT count(*) FROM {indexed} WHERE id NOT IN ({mine}))"
        )
        return int(connection.execute(text(counts), {"id": collection_id}).scalar_one())

    def is_sound(self, connection: Connection, collection_id: int) -> bool:
        """By making the new one, as a temporary table, which takes no lock.

        All terms with their places and the lengths that BM25 reckons with are compared; the order of segments
        on disk may differ.
        """
        name, fresh = _name(collection_id), f"fresh_{_name(collection_id)}"
        made = {fresh: _FTS5, f"{fresh}_is": f"fts5vocab('temp', '{fresh}', 'instance')"}
        made[f"{fresh}_was"] = f"fts5vocab('main', '{name}', 'instance')"
        chunks = text("SELECT id, text FROM chunks WHERE collection_id = :id ORDER BY id")
        try:
            for table_name, module in made.items():
                connection.execute(text(f"CREATE VIRTUAL TABLE temp.{table_name} USING {module}"))
            rows = connection.execute(chunks, {"id": collection_id})
            self._write(
                connection, f"INSERT INTO temp.{fresh}{_INSERTED}", ((id, chunk) for id, chunk in rows)
            )
            return all(
                _same(connection, *queries)
                for queries in (
                    (f"SELECT * FROM temp.{fresh}_is", f"SELECT * FROM temp.{fresh}_was"),
                    (
                        f"SELECT * FROM temp.{fresh}_docsize ORDER BY id",
                        f"SELECT * FROM main.{name}_docsize ORDER BY id",
                    ),
                    (
                        f"SELECT block FROM temp.{fresh}_data WHERE id = 1",
                        f"SELECT block FROM main.{name}_data WHERE id = 1",
                    ),
                )
            )
        finally:
            for table_name in reversed(made):
                connection.execute(text(f"DROP TABLE IF EXISTS temp.{table_name}"))

    def search(
        self,
        connection: Connection,
        collection_id: int,
        query: str,
        limit: int,
        allowed: NDArray[np.int64] | None = None,
    ) -> list[tuple[int, float]]:
        parsed = parse_query(query)
        with self._guard:
            postings = self._postings.setdefault(collection_id, Postings(_name(collection_id)))
        version = postings.version(connection)
        known = self._frequencies(connection, collection_id, parsed.terms, postings, version)
        only_words = not (parsed.prefixes or parsed.demands)
        if limit < 1:
            return []
        if only_words and sum(rows for rows, _ in known) > RANKED_BY_FTS5:
            known = _within(known, POSTING_BUDGET)
            found, last = postings.best(connection, version, known, limit, allowed)
            if last < version.last:
                expression = _expression(parsed, [term for _, term in known])
                found += self._ranked(connection, collection_id, expression, limit, allowed, last)
            return sorted(found, key=lambda row: (-row[1], row[0]))[:limit]
        expression = _expression(parsed, [term for _, term in _within(known, MATCH_BUDGET)])
        return self._ranked(connection, collection_id, expression, limit, allowed)

    def _ranked(
        self,
        connection: Connection,
        collection_id: int,
        expression: str | None,
        limit: int,
        allowed: NDArray[np.int64] | None,
        after: int = 0,
    ) -> list[tuple[int, float]]:
        """What FTS5 finds among the rows with a larger id than `after`, ranked by FTS5."""
        if expression is None:
            return []
        index = table(_name(collection_id), column("rowid"), column("rank"))
        found = select(index.c.rowid, index.c.rank).where(_match(collection_id, expression))
        if after:
            found = found.where(index.c.rowid > after)
        if allowed is not None:
            listed = func.json_each(json.dumps(allowed.tolist())).table_valued("value")
            found = found.where(index.c.rowid.in_(select(listed.c.value)))
        newest = found.order_by(index.c.rowid.desc()).limit(CANDIDATES).subquery()
        ranked = select(newest.c.rowid, newest.c.rank).order_by(newest.c.rank, newest.c.rowid).limit(limit)
        return [(row.rowid, -row.rank) for row in connection.execute(ranked)]

    def demanded(
        self, collection_id: int, query: str, chunk_id: ColumnElement[int]
    ) -> ColumnElement[bool] | None:
        parsed = parse_query(query)
        if not parsed.demands:
            return None
        index = table(_name(collection_id), column("rowid"))

        def rows(expression: str) -> Select[Any]:
            return select(index.c.rowid).where(_match(collection_id, expression))

        conditions = [chunk_id.in_(rows(_all(parsed.phrases)))] if parsed.phrases else []
        if parsed.excluded:
            conditions.append(chunk_id.not_in(rows(_any(parsed.excluded))))
        return and_(*conditions)

    def _write(self, connection: Connection, statement: str, rows: Iterable[Row]) -> None:
        waiting = iter(rows)
        while batch := list(islice(waiting, BATCH_ROWS)):
            connection.execute(text(statement), [_values(chunk_id, chunk) for chunk_id, chunk in batch])

    def _frequencies(
        self,
        connection: Connection,
        collection_id: int,
        terms: Sequence[str],
        postings: Postings,
        version: Version,
    ) -> list[tuple[int, str]]:
        """(in how many rows, term) of those that are in any, rarest first. FTS5 counts the rows each time."""
        known = postings.frequencies(version)
        considered = terms[:MAX_CONSIDERED_TERMS]
        unknown = [term for term in considered if term not in known]
        if unknown:
            counted = text(
                f"SELECT v.term, v.doc FROM json_each(:terms) t"
                f" CROSS JOIN {_name(collection_id)}_vocabulary v ON v.term = t.value"
            )
            rows = connection.execute(counted, {"terms": json.dumps(unknown)})
            known.update(dict.fromkeys(unknown, 0))
            known.update((row.term, row.doc) for row in rows)
        return sorted((count, term) for term in considered if (count := known[term]))


_FTS5 = "fts5(words, variants, content='', tokenize='ascii')"
_INSERTED = "(rowid, words, variants) VALUES (:id, :words, :variants)"


def _within(terms: Sequence[tuple[int, str]], budget: int) -> list[tuple[int, str]]:
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


def _same(connection: Connection, one: str, other: str) -> bool:
    """Whether two queries give the same rows in the same order."""
    rows, others = connection.execute(text(one)), connection.execute(text(other))
    while page := rows.fetchmany(BATCH_ROWS):
        if page != others.fetchmany(len(page)):
            return False
    return not others.fetchmany(1)


def _name(collection_id: int) -> str:
    return f"terms_{int(collection_id)}"


def _match(collection_id: int, expression: str) -> ColumnElement[bool]:
    return literal_column(_name(collection_id)).op("MATCH", is_comparison=True)(expression)


def _values(chunk_id: int, chunk: str) -> dict[str, Any]:
    terms = index_terms(chunk)
    return {"id": chunk_id, "words": " ".join(terms.words), "variants": " ".join(terms.variants)}


def _quote(terms: Sequence[str]) -> str:
    """One FTS5 string; terms hold no quotes, so nothing needs escaping."""
    return f'"{" ".join(terms)}"'


def _any(phrases: Iterable[Sequence[str]]) -> str:
    return "words : (" + " OR ".join(_quote(phrase) for phrase in phrases) + ")"


def _all(phrases: Iterable[Sequence[str]]) -> str:
    return "words : (" + " AND ".join(_quote(phrase) for phrase in phrases) + ")"


def _expression(parsed: ParsedQuery, terms: Sequence[str]) -> str | None:
    """The FTS5 expression of a query, or None when it has nothing to look for.

    Phrases are demanded, words beside them only raise the rank: `(phrases AND words) OR phrases`.
    """
    wanted = [_quote([term]) for term in terms] + [
        f"words : {_quote([prefix])} *" for prefix in parsed.prefixes
    ]
    any_word = "(" + " OR ".join(wanted) + ")" if wanted else None
    if parsed.phrases:
        demanded = _all(parsed.phrases)
        positive = f"(({demanded}) AND {any_word}) OR ({demanded})" if any_word else demanded
    elif any_word:
        positive = any_word
    else:
        return None
    return f"({positive}) NOT ({_any(parsed.excluded)})" if parsed.excluded else positive
