"""Full text in PostgreSQL: a table of tsvectors with a GIN index for each collection, ranked as FTS5 does.

`terms_<id>(chunk_id, length, terms)` holds the words of a passage with their places and the label A, variants
with the label B: phrases and prefixes look at A only. `length` is the number of words and variants. The one row
of `terms_<id>_totals` is written in the same transaction as the rows that it counts, and names their version.

PostgreSQL knows no BM25, and does not tell how often a term is in a row. But with all weights 1, `ts_rank_cd` adds
up 1 for each place where a term stands, a word with a prefix stands or a phrase begins: it counts them.

A tsvector has limits that only passages of many pages reach:
- 256 places of a lexeme. A term counts for 256 at most; its share of a score hardly grows from there.
- 16,383 places. Words after that are placed from 1 again: their phrases are found, except across the turn, but
  words of both rounds may pass for neighbours.
- 1 MiB. The rest of the terms, variants first, is not indexed.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, and_, column, exists, literal, not_, table
from sqlalchemy.dialects.postgresql import TSQUERY

from indexer.analysis import index_terms
from indexer.fulltext import (
    BATCH_ROWS,
    CANDIDATES,
    MAX_CONSIDERED_TERMS,
    MAX_TERMS,
    Row,
    parse_query,
    rarest_within,
)
from indexer.postings import K1, LEAST_IDF, MAX_FREQUENCIES, B

# Rows that the terms of a query may match together, counted once for each, before its commonest are left out:
MATCH_BUDGET = 20_000  # a tenth of a second, where they are in the server's memory
PLACES = 16_383  # the largest place in a tsvector
PLACES_OF_A_LEXEME = 256
LEXEME_CHARS = 511  # up to 2,044 of its 2,046 bytes; Thai letters with hundreds of marks each make longer terms
PHRASE_WORDS = 1_000  # that are compared: PostgreSQL's time grows with their square, to seconds for a pasted book
VALUE_BYTES = 1_000_000  # of a tsvector or tsquery as text, which is longer than the value; that has 1,048,575


class _Totals(NamedTuple):
    """What a table holds. No version is ever used twice, so that equal ones mean equal contents."""

    version: Any  # UUID
    rows: int
    length: int


@dataclass(slots=True)
class _Frequencies:
    """In how many rows tsqueries match, as far as it was found out in one version of a table."""

    version: Any
    about: dict[str, int] = field(default_factory=dict)  # exact up to MATCH_BUDGET, estimated above
    exact: dict[str, int] = field(default_factory=dict)


class _Document(NamedTuple):
    """A row of a table of terms."""

    chunk_id: int
    length: int
    terms: str  # a tsvector

    @classmethod
    def of(cls, chunk_id: int, chunk: str) -> "_Document":
        words, variants = index_terms(chunk)
        places: dict[str, list[str]] = {}
        for number, word in enumerate(words):
            places.setdefault(word, []).append(f"{number % PLACES + 1}A")
        for variant, count in Counter(variants).items():  # from the last place down, where words seldom are
            labels = [f"{PLACES - number}B" for number in range(min(count, PLACES_OF_A_LEXEME))]
            places.setdefault(variant, []).extend(labels)
        lexemes = [f"{_quoted(term)}:{','.join(at[:PLACES_OF_A_LEXEME])}" for term, at in places.items()]
        return cls(chunk_id, len(words) + len(variants), " ".join(_fitting(lexemes)))


class PostgresFullText:
    """`FullText` on PostgreSQL's tsvector and GIN."""

    def __init__(self) -> None:
        self._frequencies: dict[int, _Frequencies] = {}  # by collection id
        self._guard = threading.Lock()

    def create(self, connection: Connection, collection_id: int) -> None:
        name = _name(collection_id)
        for statement in (
            # rows of up to 8 kB stay in one piece and uncompressed: ranking reads every term of every match
            f"CREATE TABLE {name} (chunk_id bigint PRIMARY KEY, length integer NOT NULL, terms tsvector NOT NULL)"
            " WITH (toast_tuple_target = 8160)",
            f"ALTER TABLE {name} ALTER COLUMN terms SET STORAGE EXTERNAL",
            f"CREATE INDEX {name}_terms ON {name} USING gin (terms)",
            f"CREATE TABLE {name}_totals (version uuid NOT NULL, rows bigint NOT NULL, length bigint NOT NULL)",
            f"INSERT INTO {name}_totals VALUES (gen_random_uuid(), 0, 0)",
        ):
            connection.exec_driver_sql(statement)

    def drop(self, connection: Connection, collection_id: int) -> None:
        """Forget it. Its tables are dropped after the transaction (`PostgresDatabase.tidy`): dropping waits for
        readers, and these, who lock one table after the other, would wait for it."""
        with self._guard:
            self._frequencies.pop(collection_id, None)

    def add(self, connection: Connection, collection_id: int, rows: Iterable[Row]) -> None:
        name = _name(collection_id)
        waiting = iter(rows)
        while batch := [_Document.of(*row) for row in islice(waiting, BATCH_ROWS)]:
            connection.exec_driver_sql(f"INSERT INTO {name} SELECT * FROM {_MADE}", _columns(batch))
            _changed(connection, name, len(batch), sum(document.length for document in batch))

    def remove(self, connection: Connection, collection_id: int, rows: Iterable[Row]) -> None:
        name = _name(collection_id)
        gone = connection.exec_driver_sql(
            f"DELETE FROM {name} WHERE chunk_id = ANY(%(ids)s) RETURNING length",
            {"ids": [chunk_id for chunk_id, _ in rows]},
        )
        lengths = gone.scalars().all()
        _changed(connection, name, -len(lengths), -sum(lengths))

    def optimize(self, connection: Connection, collection_id: int) -> None:
        connection.exec_driver_sql(f"SELECT gin_clean_pending_list('{_name(collection_id)}_terms')")

    def strays(self, connection: Connection, collection_id: int) -> int:
        counted = (
            "SELECT count(*) FROM (SELECT id FROM chunks WHERE collection_id = %(id)s) mine"
            f" FULL JOIN {_name(collection_id)} ON chunk_id = id WHERE id IS NULL OR chunk_id IS NULL"
        )
        return int(connection.exec_driver_sql(counted, {"id": collection_id}).scalar_one())

    def is_sound(self, connection: Connection, collection_id: int) -> bool:
        """By making every row again. The GIN index is PostgreSQL's own, and not compared."""
        name = _name(collection_id)
        next_chunks = (
            "SELECT id, text FROM chunks WHERE collection_id = %(id)s AND id > %(last)s ORDER BY id LIMIT %(most)s"
        )
        same = f"SELECT count(*) FROM {name} JOIN {_MADE} USING (chunk_id, length, terms)"
        last = rows = length = 0
        while chunks := connection.exec_driver_sql(
            next_chunks, {"id": collection_id, "last": last, "most": BATCH_ROWS}
        ).all():
            made = [_Document.of(id, chunk) for id, chunk in chunks]
            if connection.exec_driver_sql(same, _columns(made)).scalar_one() != len(made):
                return False
            last, rows = chunks[-1].id, rows + len(made)
            length += sum(document.length for document in made)
        indexed = connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one()
        totals = _totals(connection, name)
        return indexed == rows == totals.rows and length == totals.length

    def search(
        self,
        connection: Connection,
        collection_id: int,
        query: str,
        limit: int,
        allowed: NDArray[np.int64] | None = None,
    ) -> list[tuple[int, float]]:
        if limit < 1:
            return []
        name = _name(collection_id)
        totals = _totals(connection, name)
        known = self._known(collection_id, totals)
        parsed = parse_query(query)
        terms = parsed.terms[:MAX_CONSIDERED_TERMS]
        words = [_quoted(term) for term in terms]
        prefixes = [f"{_quoted(prefix)}:*A" for prefix in parsed.prefixes]
        phrases = [_phrase(phrase) for phrase in parsed.phrases]
        ranked = [*prefixes[:MAX_TERMS], *phrases[:MAX_TERMS]]  # more than that are only looked for
        if not all(word in known.about for word in words):
            known.about |= _very_common(connection, name, totals, terms)
        _estimate(connection, name, known, [*words, *ranked])
        found = sorted((rows, word) for word in words if (rows := known.about[word]))
        words = [word for _, word in rarest_within(found, MATCH_BUDGET)]
        _count(connection, name, known, [*words, *ranked])
        wanted = _tree(" & ", phrases) or _tree(" | ", [*words, *prefixes])
        if not wanted:
            return []
        values: dict[str, Any] = {
            "wanted": wanted,
            "excluded": _tree(" | ", map(_phrase, parsed.excluded)),
            "allowed": None if allowed is None else f"{{{','.join(map(str, allowed.tolist()))}}}",
            "fixed": K1 * (1 - B),
            "slope": K1 * B * totals.rows / max(totals.length, 1),
            "candidates": CANDIDATES,
            "limit": limit,
        }
        items = [*words, *ranked]
        for number, item in enumerate(items):
            values[f"item_{number}"] = item
            values[f"weight_{number}"] = (K1 + 1) * _idf(totals.rows, known.exact[item])
        bound = min if phrases else sum  # of how many rows match
        all_known = len(ranked) == len(prefixes) + len(phrases)
        few = all_known and bound(known.exact[item] for item in phrases or items) <= CANDIDATES
        conditions = "AND NOT terms @@ %(excluded)s::tsquery " if parsed.excluded else ""
        if allowed is not None:
            conditions += "AND chunk_id IN (SELECT unnest(%(allowed)s::bigint[]))"
        statement = _ranking(name, len(items), conditions, few)
        return [(row.chunk_id, row.score) for row in connection.exec_driver_sql(statement, values)]

    def demanded(
        self, collection_id: int, query: str, chunk_id: ColumnElement[int]
    ) -> ColumnElement[bool] | None:
        parsed = parse_query(query)
        if not parsed.demands:
            return None
        index = table(_name(collection_id), column("chunk_id"), column("terms"))

        def there(matching: str) -> ColumnElement[bool]:
            matches = index.c.terms.op("@@", is_comparison=True)(literal(matching, TSQUERY))
            return exists().where(index.c.chunk_id == chunk_id, matches).correlate_except(index)

        conditions = [there(_tree(" & ", map(_phrase, parsed.phrases)))] if parsed.phrases else []
        if parsed.excluded:
            conditions.append(not_(there(_tree(" | ", map(_phrase, parsed.excluded)))))
        return and_(*conditions)

    def _known(self, collection_id: int, totals: _Totals) -> _Frequencies:
        with self._guard:
            known = self._frequencies.get(collection_id)
            if known is None or known.version != totals.version or len(known.about) > MAX_FREQUENCIES:
                known = self._frequencies[collection_id] = _Frequencies(totals.version)
            return known


def _ranking(name: str, items: int, conditions: str, few: bool) -> str:
    """The statement that ranks rows which are wanted and fulfil more `conditions`, by so many items.

    `few`: there are no more than CANDIDATES.
    """
    counts = [f"ts_rank_cd('{{1,1,1,1}}', terms, %(item_{n})s::tsquery)::float8 n_{n}" for n in range(items)]
    shares = [f"%(weight_{n})s::float8 * n_{n} / (n_{n} + norm)" for n in range(items)]
    return f"""
        SELECT chunk_id, {" + ".join(shares)} AS score
        FROM (
            SELECT
                chunk_id,
                %(fixed)s::float8 + %(slope)s::float8 * length AS norm,
                {", ".join(counts)}
            FROM (
                SELECT chunk_id, length, terms
                FROM {name}
                WHERE terms @@ %(wanted)s::tsquery
                {conditions}
                {"" if few else "ORDER BY chunk_id DESC LIMIT %(candidates)s"}
            ) matching
            OFFSET 0  -- a fence: otherwise each count would be made wherever it is named
        ) counted
        ORDER BY score DESC, chunk_id
        LIMIT %(limit)s"""


_MADE = (  # rows as three lists, which are several times as fast as a statement for each row
    "unnest(%(ids)s::bigint[], %(lengths)s::integer[], %(terms)s::tsvector[]) made (chunk_id, length, terms)"
)


def _columns(documents: Sequence[_Document]) -> dict[str, list[Any]]:
    """The parameters of _MADE."""
    ids, lengths, terms = map(list, zip(*documents, strict=True))
    return {"ids": ids, "lengths": lengths, "terms": terms}


def _totals(connection: Connection, name: str) -> _Totals:
    return _Totals(*connection.exec_driver_sql(f"SELECT version, rows, length FROM {name}_totals").one())


def _changed(connection: Connection, name: str, rows: int, length: int) -> None:
    connection.exec_driver_sql(
        f"UPDATE {name}_totals"
        " SET version = gen_random_uuid(), rows = rows + %(rows)s, length = length + %(length)s",
        {"rows": rows, "length": length},
    )


def _very_common(
    connection: Connection, name: str, totals: _Totals, terms: Sequence[str]
) -> dict[str, int]:
    """In about how many rows terms are that clearly exceed MATCH_BUDGET, as the last ANALYZE saw it.

    Counting the rows of each only to leave the term out would take longer than ranking by the others.
    """
    least = 2 * MATCH_BUDGET
    if totals.rows < least:
        return {}
    common = connection.exec_driver_sql(
        "SELECT term, share FROM pg_stats,"
        " unnest(most_common_elems::text::text[], most_common_elem_freqs) common (term, share)"
        " WHERE schemaname = current_schema AND tablename = %(name)s AND attname = 'terms'"
        " AND term = ANY(%(terms)s) AND share * %(rows)s >= %(least)s",
        {"name": name, "terms": list(terms), "rows": totals.rows, "least": least},
    )
    return {_quoted(row.term): int(row.share * totals.rows) for row in common}


def _estimate(connection: Connection, name: str, known: _Frequencies, queries: Sequence[str]) -> None:
    """Find out in about how many rows each of the queries matches.

    Counting ends above MATCH_BUDGET; the sooner it got there, the more rows there will be.
    """
    unknown = [query for query in queries if query not in known.about]
    if not unknown:
        return
    estimated = f"""
        SELECT CASE WHEN rows <= %(budget)s THEN rows ELSE rows * (SELECT max(chunk_id) FROM {name}) / last END
        FROM unnest(%(queries)s::tsquery[]) WITH ORDINALITY asked (query, number)
        CROSS JOIN LATERAL (
            SELECT count(*) AS rows, max(chunk_id) AS last
            FROM (SELECT chunk_id FROM {name} WHERE terms @@ query LIMIT %(budget)s + 1) matching
        ) counted
        ORDER BY number"""
    rows = connection.exec_driver_sql(estimated, {"queries": unknown, "budget": MATCH_BUDGET}).scalars()
    found = dict(zip(unknown, rows, strict=True))
    known.exact.update((query, rows) for query, rows in found.items() if rows <= MATCH_BUDGET)
    known.about.update(found)


def _count(connection: Connection, name: str, known: _Frequencies, queries: Sequence[str]) -> None:
    """Find out in how many rows each of the queries matches: 2 µs a row for those that are ranked after all."""
    for query in queries:
        if query not in known.exact:
            counted = f"SELECT count(*) FROM {name} WHERE terms @@ %(query)s::tsquery"
            known.exact[query] = connection.exec_driver_sql(counted, {"query": query}).scalar_one()


def _idf(rows: int, matching: int) -> float:
    return max(log((rows - matching + 0.5) / (matching + 0.5)), LEAST_IDF)


def _name(collection_id: int) -> str:
    return f"terms_{int(collection_id)}"


def _quoted(term: str) -> str:
    """A lexeme in a tsvector or a tsquery. Terms hold no syntax, but nothing is lost by making sure."""
    return "'" + term[:LEXEME_CHARS].replace("\\", "\\\\").replace("'", "''") + "'"


def _phrase(words: Iterable[str]) -> str:
    """The tsquery of words that follow each other, in places that are labelled so."""
    return _tree(" <-> ", (f"{_quoted(word)}:A" for word in islice(words, PHRASE_WORDS)))


def _tree(operator: str, operands: Iterable[str]) -> str:
    """A tsquery of many operands, balanced, as PostgreSQL's parser calls itself for each level."""
    level = _fitting(operands)
    while len(level) > 1:
        level = [f"({operator.join(level[at : at + 2])})" for at in range(0, len(level), 2)]
    return level[0] if level else ""


def _fitting(parts: Iterable[str]) -> list[str]:
    """The first parts, as many as PostgreSQL takes in one value; at least one."""
    chosen: list[str] = []
    total = 0
    for part in parts:
        total += len(part.encode()) + 1
        if chosen and total > VALUE_BYTES:
            break
        chosen.append(part)
    return chosen
