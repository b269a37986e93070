"""BM25 over common words: the postings of an FTS5 table in memory, ranked as FTS5 would, but faster.

FTS5 looks at every row that has one of a query's terms, 2 µs a row, and at every place of every term besides:
a question with "the" in it costs a second in a million passages. Here the terms are taken rarest first. As soon
as the rows seen so far hold `limit` scores that no row without a rare term can reach, common terms only raise
rows that are candidates already (Turtle & Flood 1995, "max-score"). So the ranking is that of all terms.

Read from FTS5 once and kept: the rows with their lengths (13 bytes each), and the postings of the terms that
were asked for (6 bytes each, LIST_BYTES at most). Rows added since are ranked by FTS5 itself, deleted ones are
masked, and everything is read within the caller's transaction: the answer is that of one version.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

K1, B = 1.2, 0.75  # as in FTS5
LEAST_IDF = 1e-6  # of a term that more than half of the rows have, as in FTS5
LIST_BYTES = 256_000_000
MAX_FREQUENCIES = 100_000  # terms whose number of rows is remembered
NEWER_ROWS = 5_000  # so many new rows FTS5 ranks in some milliseconds
NEWER_SHARE = 0.02
DEAD_SHARE = 0.2
FEW_SHARE = 1 / 16  # of the rows: so few allowed ones are looked up in each list
_SLACK = 1e-4  # more than what float32 rounds off a score


class Version(NamedTuple):
    """What the table holds. Row ids are never used twice, so that equal versions mean equal contents."""

    last: int  # largest row id
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class PostingList:
    """The rows that have a term, and how often."""

    rows: NDArray[np.int32]  # (n,) positions in the table's rows, ascending
    counts: NDArray[np.uint16]  # (n,)

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.counts.nbytes

    def among(self, permitted: NDArray[np.bool_]) -> "PostingList":
        """The part of the list that is permitted."""
        kept = permitted[self.rows]
        return PostingList(self.rows[kept], self.counts[kept])


class _State(NamedTuple):
    """What a version makes of the rows."""

    version: Version
    alive: NDArray[np.float32]  # (n,) 0, or -inf for a row that is not there
    norms: NDArray[np.float32]  # (n,) what the length of a row adds below the line


@dataclass(slots=True)
class _Rows:
    """The rows at one moment, and the lists over them that were asked for since."""

    ids: NDArray[np.int64]  # (n,) ascending
    tokens: NDArray[np.float32]  # (n,)
    lists: OrderedDict[str, PostingList] = field(default_factory=OrderedDict)  # least recently used first
    list_bytes: int = 0
    state: _State | None = None  # in the version that was last asked for

    @property
    def last(self) -> int:
        return int(self.ids[-1]) if len(self.ids) else 0


class Postings:
    """The postings of one full-text table, as far as searches have asked for them. Safe to share."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._rows: _Rows | None = None
        self._frequencies: tuple[Version, dict[str, int]] = (Version(0, 0, 0), {})
        self._lock = threading.Lock()

    def version(self, connection: Connection) -> Version:
        """The table's version in the caller's transaction."""
        found = connection.exec_driver_sql(
            f"SELECT (SELECT max(id) FROM {self._table}_docsize),"
            f" (SELECT block FROM {self._table}_data WHERE id = 1)"
        ).one()
        totals = _varints(np.frombuffer(found[1] or b"", np.uint8)).tolist()
        return Version(found[0] or 0, totals[0] if totals else 0, sum(totals[1:]))

    def frequencies(self, version: Version) -> dict[str, int]:
        """In how many rows terms are, as far as it was found out in this version; the caller adds to it."""
        with self._lock:
            if self._frequencies[0] != version or len(self._frequencies[1]) > MAX_FREQUENCIES:
                self._frequencies = (version, {})
            return self._frequencies[1]

    def best(
        self,
        connection: Connection,
        version: Version,
        terms: Sequence[tuple[int, str]],
        limit: int,
        allowed: NDArray[np.int64] | None,
    ) -> tuple[list[tuple[int, float]], int]:
        """The best rows as (id, score) for `terms` (in how many rows, term), and the last row id looked at.

        `allowed` are the only ids that may be returned. Rows with a larger id than the last one are left to FTS5.
        """
        rows = self._rows
        state = rows.state if rows is not None else None
        if rows is None or state is None or state.version != version:
            rows = self._rows_of(connection, version)
            state = rows.state = self._state(connection, version, rows)
        few = permitted = None
        if allowed is not None:
            places, there = _places(rows.ids, allowed)
            few = places[there]
            if len(few) > FEW_SHARE * len(rows.ids):
                permitted = np.zeros(len(rows.ids), np.bool_)
                permitted[few], few = True, None
        rarest_first = sorted(terms)
        weights = [max(log((version.rows - n + 0.5) / (n + 0.5)), LEAST_IDF) for n, _ in rarest_first]
        lists = [self._list(connection, rows, term) for _, term in rarest_first]
        found, scores = top_rows(lists, weights, state.norms, state.alive.copy(), limit, few, permitted)
        return list(zip(rows.ids[found].tolist(), scores.tolist(), strict=True)), rows.last

    def _rows_of(self, connection: Connection, version: Version) -> _Rows:
        """The rows in memory, read again when too much has changed since."""
        rows = self._rows
        if rows is not None and version.last >= rows.last:
            newer = self._newer(connection, rows)
            dead = len(rows.ids) - (version.rows - newer)
            if newer <= max(NEWER_ROWS, NEWER_SHARE * len(rows.ids)) and dead <= DEAD_SHARE * len(rows.ids):
                return rows
        ids, sizes = connection.exec_driver_sql(
            "SELECT group_concat(id), CAST(group_concat(sz, '') AS BLOB)"
            f" FROM (SELECT id, sz FROM {self._table}_docsize ORDER BY id)"
        ).one()
        lengths = _varints(np.frombuffer(sizes or b"", np.uint8))
        rows = _Rows(_numbers(ids), (lengths[::2] + lengths[1::2]).astype(np.float32))
        with self._lock:
            self._rows = rows
        return rows

    def _newer(self, connection: Connection, rows: _Rows) -> int:
        count: int = connection.exec_driver_sql(
            f"SELECT count(*) FROM {self._table}_docsize WHERE id > ?", (rows.last,)
        ).scalar_one()
        return count

    def _state(self, connection: Connection, version: Version, rows: _Rows) -> _State:
        alive = np.zeros(len(rows.ids), np.float32)
        if version.rows - self._newer(connection, rows) < len(rows.ids):
            ids = connection.exec_driver_sql(
                f"SELECT group_concat(id) FROM {self._table}_docsize WHERE id <= ?", (rows.last,)
            ).scalar_one()
            alive[~np.isin(rows.ids, _numbers(ids), assume_unique=True)] = -np.inf
        mean = max(version.tokens / max(version.rows, 1), 1e-9)
        norms = np.float32(K1 * (1 - B)) + np.float32(K1 * B / mean) * rows.tokens
        return _State(version, alive, norms)

    def _list(self, connection: Connection, rows: _Rows, term: str) -> PostingList:
        with self._lock:
            if term in rows.lists:
                rows.lists.move_to_end(term)
                return rows.lists[term]
        places = f"{self._table}_places"  # a temporary table takes no lock
        connection.exec_driver_sql(
            f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.{places}"
            f" USING fts5vocab('main', '{self._table}', 'instance')"
        )
        listed = connection.exec_driver_sql(
            f"SELECT group_concat(doc) FROM temp.{places} WHERE term = ?", (term,)
        ).scalar_one()
        ids, counts = _counted(_numbers(listed))
        at, there = _places(rows.ids, ids)
        made = PostingList(at[there].astype(np.int32), counts[there].clip(max=65_535).astype(np.uint16))
        with self._lock:
            if term not in rows.lists:
                rows.lists[term] = made
                rows.list_bytes += made.nbytes
            while len(rows.lists) > 1 and rows.list_bytes > LIST_BYTES:
                rows.list_bytes -= rows.lists.popitem(last=False)[1].nbytes
        return made


def top_rows(
    lists: Sequence[PostingList],
    weights: Sequence[float],
    norms: NDArray[np.float32],
    scores: NDArray[np.float32],
    limit: int,
    few: NDArray[np.int64] | None = None,
    permitted: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `limit` best rows by BM25 and their scores, best first, ties by row.

    A term's share of a score is weight * count * (K1 + 1) / (count + norm), with `norms` (rows,) growing with a
    row's length. `lists` begin with the rarest term. `scores` (rows,) are what each row begins with, 0 or, to
    leave it out, -inf; they are written to. `few` are the only rows to look at, ascending; where they are more,
    `permitted` (rows,) says which.
    """
    least_norm = float(norms.min(initial=np.inf))
    bounds = [
        weight * (K1 + 1) * most / (most + least_norm) if (most := int(one.counts.max(initial=0))) else 0.0
        for one, weight in zip(lists, weights, strict=True)
    ]
    rest = np.cumsum([0.0, *reversed(bounds)])[
        ::-1
    ]  # what a row can still gain from this list and those after it
    threshold = 0.0  # `limit` rows have at least this
    first = 0
    while few is None and first < len(lists) and threshold <= rest[first] + _SLACK:
        one = lists[first] if permitted is None else lists[first].among(permitted)
        scores[one.rows] += _shares(one.counts, weights[first], norms[one.rows])
        first += 1
        if sum(bounds[:first]) > rest[first]:  # otherwise no row has enough yet
            threshold = max(threshold, _kth(scores[one.rows], limit))
    found = np.flatnonzero(scores > 0) if few is None else few
    values = scores[found]
    for number in range(first, len(lists)):
        hopeful = values + rest[number] >= threshold - _SLACK
        found, values = found[hopeful], values[hopeful]
        one = lists[number]
        at, there = _places(one.rows, found)
        at = at[there]
        values[there] += _shares(one.counts[at], weights[number], norms[one.rows[at]])
        threshold = max(threshold, _kth(values, limit))
    kept = (values > 0) & (values >= _kth(values, limit))  # with all ties, so that rows can decide
    found, values = found[kept], values[kept]
    order = np.lexsort((found, -values))[:limit]
    return found[order], values[order]


def _shares(counts: NDArray[np.uint16], weight: float, norms: NDArray[np.float32]) -> NDArray[np.float32]:
    often = counts.astype(np.float32)
    return np.float32(weight * (K1 + 1)) * often / (often + norms)


def _kth(scores: NDArray[np.float32], k: int) -> float:
    """The k-th largest score; 0 when there are fewer."""
    return float(np.partition(scores, len(scores) - k)[len(scores) - k]) if len(scores) >= k else 0.0


def _places(sorted_values: NDArray[Any], wanted: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where each wanted value would stand, and whether it is there. The sorted values are different ones."""
    if not len(sorted_values):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    first, last = int(sorted_values[0]), len(sorted_values) - 1
    if sorted_values[-1] == first + last:  # without a gap, as ids are until something is deleted
        places = (wanted.astype(np.int64) - first).clip(0, last)
    else:
        places = np.searchsorted(sorted_values, wanted).clip(max=last)
    return places, sorted_values[places] == wanted


def _numbers(listed: str | None) -> NDArray[np.int64]:
    """Comma-separated numbers: a quarter of the time that as many result rows take."""
    return np.fromstring(listed or "", np.int64, sep=",")


def _counted(listed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each of the ascending numbers once, and how often it is there."""
    starts = np.flatnonzero(np.diff(listed, prepend=-1))
    return listed[starts], np.diff(starts, append=len(listed))


def _varints(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """SQLite's integers of 7 bits a byte, the highest first; the last byte of each has no upper bit."""
    ends = np.flatnonzero(data < 128)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    values = np.zeros(len(ends), np.int64)
    for place in range(int((ends - starts).max(initial=0)) + 1):
        at = starts + place
        within = at <= ends
        values[within] = values[within] << 7 | data[at[within]] & 127
    return values
