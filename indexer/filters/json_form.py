"""The JSON form of a filter, with every mistake named by its place."""

from collections.abc import Mapping
from typing import Any

from indexer.errors import InvalidFilter
from indexer.filters.tree import MAX_DEPTH, And, Filter, Not, Or, checked


def from_json(node: Any, where: str, depth: int) -> Filter:
    """The tree of a JSON node; `where` says in errors which one it is."""
    if depth > MAX_DEPTH:
        raise InvalidFilter(f"the filter is nested more than {MAX_DEPTH} deep")
    if not isinstance(node, Mapping):
        raise InvalidFilter(
            f"{where}: expected an object such as {{'field': 'year', 'op': '>=', 'value': 2020}}"
        )
    if len(node) == 1 and (set(node) & {"and", "or"}):
        key, parts = next(iter(node.items()))
        if not isinstance(parts, list):
            raise InvalidFilter(f"{where}.{key}: expected a list of conditions")
        children = tuple(from_json(part, f"{where}.{key}[{n}]", depth + 1) for n, part in enumerate(parts))
        return And(children) if key == "and" else Or(children)
    if set(node) == {"not"}:
        return Not(from_json(node["not"], f"{where}.not", depth + 1))
    unknown = sorted(set(map(str, node)) - {"field", "op", "value"})
    if unknown or "field" not in node:
        problem = f"unknown key {unknown[0][:50]!r}" if unknown else "'field' is missing"
        raise InvalidFilter(f"{where}: {problem}; expected 'and', 'or', 'not', or 'field', 'op' and 'value'")
    op = node.get("op", "=")
    if op != "exists" and "value" not in node:
        raise InvalidFilter(f"{where}: 'value' is missing")
    if op in ("in", "not in") and not isinstance(node["value"], list):
        raise InvalidFilter(f"{where}: {op!r} needs a list of values")
    return checked(node["field"], str(op), node.get("value"), where)
