"""The text form of a filter, with every mistake placed and shown."""

from dataclasses import dataclass
from typing import Any

import regex

from indexer.errors import InvalidFilter
from indexer.filters.tree import (
    ALIASES,
    MAX_DEPTH,
    OPS,
    TEXT_FIELDS,
    TEXT_OPS,
    And,
    Filter,
    Not,
    Or,
    Scalar,
    checked,
)

_TOKEN = regex.compile(
    r"""\s*+(?:
      (?P<quoted> "(?:[^"\\]|\\.)*+" | '(?:[^'\\]|\\.)*+' )
    | (?P<symbol> <= | >= | != | == | [=<>(),] )
    | (?P<word>   [^\s"'=<>!(),]++ )
    )""",
    regex.VERBOSE | regex.DOTALL,
)
_NUMBER = regex.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_KEYWORDS = {"and", "or", "not", "in", "exists"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # quoted | symbol | word | end
    text: str
    position: int


class Parser:
    """Recursive descent: or = and ("or" and)*; and = not ("and" not)*; not = "not" not, "(" or ")", test."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = self._tokens()
        self.next = 0
        self.depth = 0

    def parse(self) -> Filter:
        parsed = self._or()
        if self._peek.kind != "end":
            raise self._error("expected 'and', 'or' or the end")
        return parsed

    def _tokens(self) -> list[_Token]:
        tokens, position = [], 0
        end = len(self.source.rstrip())
        while position < end:
            match = _TOKEN.match(self.source, position)
            if match is None or match.lastgroup is None:
                raise InvalidFilter(
                    self._located("this is neither a name, a value nor an operator", position)
                )
            kind = match.lastgroup
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            position = match.end()
        return [*tokens, _Token("end", "", end)]

    @property
    def _peek(self) -> _Token:
        return self.tokens[self.next]

    def _take(self) -> _Token:
        token = self._peek
        self.next = min(self.next + 1, len(self.tokens) - 1)
        return token

    def _accept(self, text: str) -> bool:
        """Take the next token if it is this symbol or keyword."""
        token = self._peek
        found = token.kind in ("word", "symbol") and token.text.lower() == text
        if found:
            self._take()
        return found

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._error(f"expected {text!r}")

    def _or(self) -> Filter:
        parts = [self._and()]
        while self._accept("or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _and(self) -> Filter:
        parts = [self._not()]
        while self._accept("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _not(self) -> Filter:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} deep")
        if self._accept("not"):
            inner: Filter = Not(self._not())
        elif self._accept("("):
            inner = self._or()
            self._expect(")")
        else:
            inner = self._condition()
        self.depth -= 1
        return inner

    def _condition(self) -> Filter:
        start = self._peek.position
        if self._accept("exists"):
            self._expect("(")
            field = self._name()
            self._expect(")")
            return self._build(field, "exists", None, start)
        field = self._name()
        if self._accept("not"):
            self._expect("in")
            return self._build(field, "not in", self._list(field), start)
        if self._accept("in"):
            return self._build(field, "in", self._list(field), start)
        op = self._peek.text.lower()
        if (self._peek.kind == "symbol" and op in OPS) or (self._peek.kind == "word" and op in TEXT_OPS):
            self._take()
            return self._build(field, op, self._value(field), start)
        return self._build(field, "=", True, start)

    def _build(self, field: str, op: str, value: Any, start: int) -> Filter:
        return checked(field, op, value, f"filter at character {start + 1}")

    def _name(self) -> str:
        if self._peek.kind != "word" or self._peek.text.lower() in _KEYWORDS:
            raise self._error("expected a field name")
        return self._take().text

    def _list(self, field: str) -> list[Scalar]:
        self._expect("(")
        values = [self._value(field)]
        while self._accept(","):
            values.append(self._value(field))
        self._expect(")")
        return values

    def _value(self, field: str) -> Scalar:
        token = self._peek
        if token.kind not in ("quoted", "word"):
            raise self._error("expected a value")
        self._take()
        if token.kind == "quoted":
            return regex.sub(r"\\(.)", r"\1", token.text[1:-1], flags=regex.DOTALL)
        is_text = ALIASES.get(field, field) in TEXT_FIELDS  # there, 007 and 1.10 stay as they are written
        if _NUMBER.fullmatch(token.text) and not is_text:
            return float(token.text) if any(mark in token.text for mark in ".eE") else int(token.text)
        named: dict[str, Scalar] = {"true": True, "false": False, "null": None}
        return named.get(token.text.lower(), token.text)

    def _error(self, problem: str) -> InvalidFilter:
        found = self._peek
        seen = f"found {found.text[:50]!r}" if found.kind != "end" else "the filter ends here"
        return InvalidFilter(self._located(f"{problem}, {seen}", found.position))

    def _located(self, problem: str, position: int) -> str:
        around = self.source[max(0, position - 20) :][:60]
        return f"filter at character {position + 1}: {problem} (in {around!r})"
