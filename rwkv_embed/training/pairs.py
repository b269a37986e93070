"""The user's own training data: one JSON object a line.

{"query": "…", "positive": "…", "negatives": ["…", …]}     negatives may be left out

A query and a positive are texts that should be close: a question and its answer, a title and its body, a
sentence and its translation. Negatives are texts that look right for the query and are not.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_embed.errors import TrainingDataError

KEYS = ("query", "positive", "negatives")
EXPECTED = 'expected {"query": "…", "positive": "…"} and, if there are any, "negatives": ["…", …]'
FEWEST = 2  # pairs to train on, and to validate on: alone, a query cannot find a wrong text


@dataclass(frozen=True, slots=True)
class Pair:
    """A query, a text that it should find, and texts that it should not."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a JSONL file; blank lines are skipped. TrainingDataError names the first bad line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingDataError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it with iconv first"
        ) from None
    numbered = enumerate(text.split("\n"), start=1)
    pairs = [_pair(line, f"{path}, line {number}") for number, line in numbered if line.strip()]
    if len(pairs) < FEWEST:
        raise TrainingDataError(f"{path} has {_count(len(pairs))}, expected at least {FEWEST}, one a line")
    return pairs


def _pair(line: str, where: str) -> Pair:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise TrainingDataError(f"{where} is not JSON ({error}); {EXPECTED}") from None
    if not isinstance(record, dict):
        raise TrainingDataError(f"{where} is {_shown(record)}; {EXPECTED}")
    if unknown := [key for key in record if key not in KEYS]:
        raise TrainingDataError(f"{where} has the key {unknown[0]!r}; {EXPECTED}")
    for key in ("query", "positive"):
        if key not in record:
            raise TrainingDataError(f"{where} has no {key!r}; {EXPECTED}")
        if not _is_text(record[key]):
            raise TrainingDataError(f"{where}: {key!r} is {_shown(record[key])}, expected a text")
    negatives = record.get("negatives")
    if negatives is None:
        negatives = []
    if not isinstance(negatives, list):
        raise TrainingDataError(f"{where}: 'negatives' is {_shown(negatives)}, expected a list of texts")
    if wrong := [each for each in negatives if not _is_text(each)]:
        raise TrainingDataError(f"{where}: 'negatives' has {_shown(wrong[0])} in it, expected texts only")
    return Pair(record["query"], record["positive"], tuple(negatives))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]


def _count(pairs: int) -> str:
    return "1 pair" if pairs == 1 else f"{pairs} pairs"


def split(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and, about `fraction` of all, to validate on. Pairs of one query stay together."""
    queries = sorted({pair.query for pair in pairs})
    held = set(
        random.Random(seed).sample(queries, min(len(queries), max(FEWEST, round(fraction * len(queries)))))
    )
    training = [pair for pair in pairs if pair.query not in held]
    if len(training) < FEWEST:
        raise TrainingDataError(
            f"{_count(len(pairs))} with {_queries(len(queries))} leave {_count(len(training))} to train on "
            f"when {len(held)} queries are held out for validation; give more pairs, a smaller fraction, or "
            "a validation file"
        )
    return training, [pair for pair in pairs if pair.query in held]


def _queries(count: int) -> str:
    return "1 query" if count == 1 else f"{count} different queries"
