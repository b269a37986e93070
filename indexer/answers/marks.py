"""Filters over generated text as it streams: reasoning goes, citation marks are checked and renumbered."""

import re
from collections.abc import Collection, Iterator

from indexer.answers.generators.base import Quote

_NUMBERS = r"\d{1,4}(?:\s*[,、;]\s*\d{1,4})*"
_MARK = re.compile(rf"(\s*)(?:\[\s*({_NUMBERS})\s*\]|【\s*({_NUMBERS})\s*】)")
_UNDECIDED = re.compile(
    r"\s*(?:[\[【][\d\s,、;]{0,60})?$"
)  # may still become a mark, with the space before it
_OPEN, _CLOSE = "<think>", "</think>"


def without_thoughts(pieces: Iterator[str | Quote]) -> Iterator[str | Quote]:
    """The stream without a leading `<think>…</think>`, which reasoning models write before they answer."""
    held: str | None = ""  # text not yet decided on; None once the answer has begun
    for piece in pieces:
        if held is None or not piece or isinstance(piece, Quote):
            yield piece
            continue
        held += piece
        start = held.lstrip()
        if start.startswith(_OPEN):
            _, closed, rest = start.partition(_CLOSE)
            if not closed:
                continue
            start = rest.lstrip()
        elif _OPEN.startswith(start):
            continue
        held = None
        if start:
            yield start
    if held and not held.lstrip().startswith(_OPEN):
        yield held


class CitationMarks:
    """Rewrites [n] marks as they stream by: numbers become 1, 2, ... by first use, unknown ones vanish.

    `text` is everything written so far; `places` maps a passage's number to its new number and to the
    position in `text` of its first mark.
    """

    def __init__(self, known: Collection[int]) -> None:
        self.text = ""
        self.places: dict[int, tuple[int, int]] = {}
        self._known = known
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be shown after `piece`; a mark that is not complete yet is held back."""
        self._held += piece
        cut = _UNDECIDED.search(self._held)
        decided, self._held = self._held[: cut.start()], self._held[cut.start() :]  # type: ignore[union-attr]
        return self._write(decided)

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        rest, self._held = self._held.rstrip(), ""
        return self._write(rest)

    def cite(self, n: int) -> str:
        """The mark for passage `n`, which is thereby cited."""
        number, _ = self.places.setdefault(n, (len(self.places) + 1, len(self.text)))
        return f"[{number}]"

    def _write(self, piece: str) -> str:
        written, position = "", 0
        before = self.text
        for match in _MARK.finditer(piece):
            written += piece[position : match.start()]
            self.text = before + written
            numbers = [int(n) for n in re.findall(r"\d+", match[2] or match[3])]
            marks = "".join(self.cite(n) for n in dict.fromkeys(numbers) if n in self._known)
            written += match[1] + marks if marks else ""
            position = match.end()
        written += piece[position:]
        self.text = before + written
        return written
