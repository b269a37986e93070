"""Filters on documents: `year >= 2020 and lang in (de, fr) and not draft and path startswith "a/"`, or the
same as JSON.

Fields are `id`, `title`, `uri` (or `path`), `language` (or `lang`), `created_at` and `updated_at`; every
other name is metadata, with dots for nested objects. `metadata.title` reaches a metadata field that a
document field hides.

Tests are either true or false, never unknown, so that `not` means what it says:
- a missing or null field fails every test; `x != 1` is `not x = 1` and so is true of documents without x;
- numbers are compared with numbers, text with text (by code point), booleans with booleans; nothing is
  converted;
- a list passes when one of its elements does; `x` alone means `x = true`, `x = null` means `not exists(x)`.

JSON: {"and": [...]}, {"or": [...]}, {"not": {...}}, {"field": "year", "op": ">=", "value": 2020}; `exists`
has no value. `text_form` and `json_form` make the same tree (`tree`); it is turned into SQL (`sql`, with `sqlite`
and `postgresql`) and evaluated in Python (`matching`), and a property test holds them together.
"""

from collections.abc import Iterator
from typing import Any

from indexer.errors import InvalidFilter
from indexer.filters.json_form import from_json
from indexer.filters.matching import matches
from indexer.filters.sql import to_sql
from indexer.filters.text_form import Parser
from indexer.filters.tree import And, Compare, Exists, Filter, Not, Or
from indexer.limits import MAX_FILTER_NODES

__all__ = ["And", "Compare", "Exists", "Filter", "Not", "Or", "matches", "parse", "to_sql"]


def parse(where: Any) -> Filter:
    """A filter from its text or JSON form; None gives one that everything passes. Raises InvalidFilter."""
    if where is None:
        return And(())
    if isinstance(where, Filter):
        return where
    if isinstance(where, str):
        parsed = Parser(where).parse() if where.strip() else And(())
    else:
        parsed = from_json(where, "filter", 0)
    nodes = sum(1 for _ in _walk(parsed))
    if nodes > MAX_FILTER_NODES:
        raise InvalidFilter(f"the filter has {nodes} conditions; at most {MAX_FILTER_NODES} are allowed")
    return parsed


def _walk(node: Filter) -> Iterator[Filter]:
    yield node
    for part in getattr(node, "parts", ()):
        yield from _walk(part)
    if isinstance(node, Not):
        yield from _walk(node.part)
