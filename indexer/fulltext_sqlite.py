"""Full text in SQLite: one contentless FTS5 table per collection.

`terms_<id>(words, variants)` has the chunk's id as row id. It keeps no copy of the text: a row is removed by
giving FTS5 the text again, which works in every SQLite since 3.9 (the newer `contentless_delete` would make a
store unreadable to older ones). Terms are separated by spaces and hold nothing that FTS5's `ascii` tokenizer
splits.

Few matching rows are ranked by FTS5; for many, `postings` has the same ranking from memory.
"""

import json
import threading
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    column,
    func,
    literal_column,
    select,
    table,
    text,
)

from indexer.analysis import index_terms
from indexer.fulltext import (
    BATCH_ROWS,
    CANDIDATES,
    MAX_CONSIDERED_TERMS,
    ParsedQuery,
    Row,
    parse_query,
    rarest_within,
)
from indexer.postings import Postings, Version

# Rows that the terms of a query may match together, counted once for each, before its commonest are left out:
RANKED_BY_FTS5 = 3_000  # where FTS5 ranks words alone, in about 6 ms; with more, `postings` does
MATCH_BUDGET = 50_000  # where FTS5 ranks, beside phrases and the like
POSTING_BUDGET = 2_000_000  # where `postings` ranks: half a second when none is in memory yet


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
            known = rarest_within(known, POSTING_BUDGET)
            found, last = postings.best(connection, version, known, limit, allowed)
            if last < version.last:
                expression = _expression(parsed, [term for _, term in known])
                found += self._ranked(connection, collection_id, parsed, expression, limit, allowed, last)
            return sorted(found, key=lambda row: (-row[1], row[0]))[:limit]
        expression = _expression(parsed, [term for _, term in rarest_within(known, MATCH_BUDGET)])
        return self._ranked(connection, collection_id, parsed, expression, limit, allowed)

    def _ranked(
        self,
        connection: Connection,
        collection_id: int,
        parsed: ParsedQuery,
        expression: str | None,
        limit: int,
        allowed: NDArray[np.int64] | None,
        after: int = 0,
    ) -> list[tuple[int, float]]:
        """What FTS5 finds among the rows with a larger id than `after`, ranked by FTS5.

        That all phrases are there is a condition of its own: asked for (phrases AND words) OR phrases, FTS5
        forgets the words' share in some rows.
        """
        if expression is None:
            return []
        index = table(_name(collection_id), column("rowid"), column("rank"))
        found = select(index.c.rowid, index.c.rank).where(_match(collection_id, expression))
        if parsed.phrases:
            having = select(index.c.rowid).where(_match(collection_id, _all(parsed.phrases)))
            found = found.where((index.c.rowid + 0).in_(having))  # + 0: or SQLite asks FTS5 again for each row
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
    """What FTS5 ranks by: any of the words, prefixes and phrases, and nothing excluded; None: there is nothing."""
    wanted = [
        *(_quote([term]) for term in terms),
        *(f"words : {_quote([prefix])} *" for prefix in parsed.prefixes),
        *(f"words : {_quote(phrase)}" for phrase in parsed.phrases),
    ]
    if not wanted:
        return None
    positive = " OR ".join(wanted)
    return f"({positive}) NOT ({_any(parsed.excluded)})" if parsed.excluded else positive
