"""Cut a text into passages of a given token length, on heading, paragraph and sentence boundaries.

Everything works on character offsets into the caller's text and never copies or changes it, so that
`text[chunk.start:chunk.end] == chunk.text`. Three steps, each linear in the length of the text:

1. `sentences`: where a person would stop reading, in any script. Sentence-final marks are Unicode's
   `Sentence_Terminal`; a full stop is checked against abbreviations, initials and numbers.
2. Pieces: a sentence over the limit is halved at line breaks, then spaces, then characters (scripts without
   spaces, base64) until every piece fits.
3. Packing: pieces are joined greedily. A heading opens a new chunk, a paragraph that does not fit does so too
   when the current chunk is at least half full.

Token counts are asked for in batches: `count_tokens` is called a handful of times for a whole document.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import regex

from indexer.types import Chunk, ChunkingOptions

Span = tuple[int, int]  # (start, end) in characters, end exclusive
CountTokens = Callable[[Sequence[str]], list[int]]

MAX_SENTENCE_CHARS = 4_096  # longer is a line of data: cut before a tokenizer has to see 50 MB at once
_WRAPPED_LINE_CHARS = 50  # a shorter line ended on purpose (verse, list, log), a longer one may be wrapped

# What ends a sentence: marks that always do, marks that need a space or the end after them, and line breaks.
_BOUNDARY = regex.compile(
    r"""
      (?P<strong> [\p{Sentence_Terminal}--[.!?]]++ )
    | (?P<weak>   [.!?…]++ )                      (?= ["'’”»)\]*_]*+ (?: \s | \Z ) )
    | (?P<blank>  \n [^\S\n]*+ (?: \n \s*+ )++ )
    | (?P<line>   \n )
    """,
    regex.VERBOSE | regex.VERSION1,
)
_CLOSERS = regex.compile(r"[\p{Pe}\p{Pf}\"'*_]*+")  # a closing quote belongs to the sentence it ends
_HEADING = regex.compile(r"[^\S\n]*+\#{1,6}[^\S\n]++\S")
_LIST_ITEM = regex.compile(r"[^\S\n]*+(?: [-*+•–|>] | \#{1,6}\s | \d{1,3}[.)]\s | ```)", regex.VERBOSE)
_LAST_WORD = regex.compile(r"[\p{L}\p{M}\p{N}.]++\Z")
_SPACE = regex.compile(r"\s*+")

# English; German; French, Spanish, Portuguese, Italian, Dutch; Slavic, Turkish, Scandinavian; Cyrillic,
# Greek, Hindi.
_ABBREVIATION_LIST = """ mr mrs ms dr prof st vs etc e.g i.e cf al fig figs eq no nos vol pp ed eds inc ltd co
corp dept approx capt col gen gov lt rev sen sgt jr sr jan feb mar apr jun jul aug sep sept oct nov dec u.s
u.k u.n a.m p.m ph.d z.b d.h u.a u.ä bzw ca nr evtl ggf inkl usw hrsg jh str s.o s.u v.chr n.chr abb bd m mm
mme mlle av p.ex env éd chap art sra srta ud uds ee.uu a.c d.c pág págs núm ej p.ej exmo exma dra sig sigg
dott ecc pag avv ing bijv d.w.z o.a blz mevr dhr ul np tzn itd itp tj tzv např apod atd vb örn bkz yy dk bl.a
f.eks osv mfl т.е т.д т.п т.к т.н др пр г гг в вв ул стр рис табл см им н.э до.н.э тыс млн млрд руб проф акад
напр тощо ін π.χ κ.λπ κ.ά δρ ई ई.पू डॉ श्री प्रो
"""
_ABBREVIATIONS = frozenset(_ABBREVIATION_LIST.split())


def sentences(text: str) -> list[Span]:
    """The sentences of `text` as trimmed (start, end) spans, in order and without overlap.

    Together they cover every non-space character. A heading, a list item and a table row are sentences of
    their own; a hard-wrapped line is joined with the next one.
    """
    return [span for span, _ in _scan(text)]


def chunk_text(text: str, options: ChunkingOptions, count_tokens: CountTokens) -> list[Chunk]:
    """Passages of at most `options.max_tokens` tokens that together cover all non-space text, in order.

    They overlap only when `overlap_tokens` asks for it, and then by whole sentences. `count_tokens` gives the
    token count of each text, in order. `Chunk.language` is left to the caller. A blank text gives [].
    """
    if options.max_tokens < 1:
        raise ValueError(f"max_tokens is {options.max_tokens}; a chunk needs at least 1 token")
    if not 0 <= options.overlap_tokens < options.max_tokens:
        raise ValueError(
            f"overlap_tokens is {options.overlap_tokens}; it must be 0 or more and below max_tokens"
        )
    pieces = _measure(text, options.max_tokens, count_tokens)
    return [
        Chunk(ordinal=ordinal, start=start, end=end, text=text[start:end])
        for ordinal, (start, end) in enumerate(_pack(pieces, options))
    ]


@dataclass(slots=True)
class _Piece:
    """A sentence or a part of one, with what packing needs to know."""

    start: int
    end: int
    heading: bool
    paragraph: bool  # the first piece of a paragraph
    tokens: int = 0


# --- step 1: sentences -----------------------------------------------------------------------------


def _scan(text: str) -> list[tuple[Span, bool]]:
    """Sentences with a mark on those that open a paragraph."""
    found: list[tuple[Span, bool]] = []
    start = line_start = 0
    opens = True
    for match in _BOUNDARY.finditer(text):
        kind, end = match.lastgroup, match.end()
        if end <= start:
            continue
        if kind in ("strong", "weak"):
            ends = kind == "strong" or _full_stop_ends(text, start, match.start(), end)
            end = _CLOSERS.match(text, end).end()
        else:
            ends = kind == "blank" or _line_ends(text, line_start, match.start(), end)
            line_start = end
        if ends:
            span = _trim(text, start, end)
            if span:
                found.append((span, opens))
            opens = kind == "blank" or (opens and not span)
            start = end
    rest = _trim(text, start, len(text))
    return [*found, (rest, opens)] if rest else found


def _trim(text: str, start: int, end: int) -> Span | None:
    """The span without white space at its ends; None when nothing is left."""
    start = _SPACE.match(text, start, end).end()
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None


def _line_ends(text: str, line_start: int, line_end: int, next_start: int) -> bool:
    """Whether a single line break ends a sentence: always, except inside hard-wrapped prose."""
    if _HEADING.match(text, line_start, line_end) or _LIST_ITEM.match(text, next_start):
        return True
    first = text[next_start : next_start + 1]
    return line_end - line_start < _WRAPPED_LINE_CHARS or not first.isalpha()


def _full_stop_ends(text: str, start: int, mark: int, after: int) -> bool:
    """Whether `.`, `!`, `?` or `…` at `mark` ends a sentence; `after` is the first character behind it."""
    if text[mark:after] != ".":
        return True
    following = _SPACE.match(text, after).end()
    if following < len(text) and text[following].islower() and "\n\n" not in text[after:following]:
        return False
    word = _LAST_WORD.search(text, max(start, mark - 20), mark)
    if word is None:
        return True
    last = word.group().casefold()
    initial = len(last) == 1 and word.group().isupper()  # J. R. R. Tolkien
    ordinal = last.isdigit() and len(last) <= 2  # 1. item; am 3. Oktober
    return not (initial or ordinal or last in _ABBREVIATIONS)


# --- step 2: pieces that fit -----------------------------------------------------------------------


def _measure(text: str, max_tokens: int, count_tokens: CountTokens) -> list[_Piece]:
    """All sentences as pieces of at most `max_tokens` tokens, with their counts."""
    pieces: list[_Piece] = []
    for (start, end), paragraph in _scan(text):
        heading = _HEADING.match(text, start, end) is not None
        cuts = _cut(text, start, end, -(-(end - start) // MAX_SENTENCE_CHARS))
        pieces += [_Piece(a, b, heading, paragraph and number == 0) for number, (a, b) in enumerate(cuts)]
    return _split_long(text, pieces, max_tokens, count_tokens)


def _split_long(
    text: str, pieces: list[_Piece], max_tokens: int, count_tokens: CountTokens
) -> list[_Piece]:
    """Cut what is over `max_tokens`, count the parts, repeat: one call of `count_tokens` a round."""
    waiting = list(range(len(pieces)))
    while waiting:
        # of an empty text, too: an end-of-text token is paid once a chunk, not once a sentence
        special, *counts = count_tokens(["", *(_with_gap(text, pieces, index) for index in waiting)])
        limit = max(1, max_tokens - special)
        for index, tokens in zip(waiting, counts, strict=True):
            pieces[index].tokens = max(0, tokens - special)
        divided: list[_Piece] = []
        waiting = []
        for piece in pieces:
            parts = 1 if piece.tokens <= limit else -(-piece.tokens // limit)
            cuts = _cut(text, piece.start, piece.end, max(parts, 2)) if parts > 1 else []
            if len(cuts) < 2:  # it fits, or is a single character
                divided.append(piece)
                continue
            for number, (start, end) in enumerate(cuts):
                waiting.append(len(divided))
                divided.append(_Piece(start, end, piece.heading, piece.paragraph and number == 0))
        pieces = divided
    return pieces


def _with_gap(text: str, pieces: Sequence[_Piece], index: int) -> str:
    """A piece with the white space up to the next one, which a chunk holding both will contain."""
    piece = pieces[index]
    following = pieces[index + 1].start if index + 1 < len(pieces) else piece.end
    return text[piece.start : min(following, piece.end + 8)]


def _cut(text: str, start: int, end: int, parts: int) -> list[Span]:
    """`text[start:end]` in about `parts` equal spans, cut after a line break, else a space, else anywhere.

    A combining mark or joiner stays with what is before it, unless nothing else fits.
    """
    if parts < 2 or end - start < 2:
        return [(start, end)]
    step = -(-(end - start) // parts)
    cuts, position = [start], start
    while end - position > step:
        position = _cut_point(text, position + 1, position + step)
        cuts.append(position)
    spans = [_trim(text, a, b) for a, b in pairwise([*cuts, end])]
    return [span for span in spans if span]


_MARK = regex.compile(r"[\p{M}\p{Emoji_Modifier}\u200c\u200d]")


def _cut_point(text: str, low: int, high: int) -> int:
    """The best place to cut in [low, high], near `high`: after a line break, a space, or between letters."""
    half = low + (high - low) // 2
    line = text.rfind("\n", half, high)
    if line >= 0:
        return line + 1
    space = max(text.rfind(blank, half, high) for blank in (" ", "\t", "\u3000", "\u00a0"))
    if space >= 0:
        return space + 1
    for position in range(high, max(low, high - 16) - 1, -1):
        if not _MARK.match(text, position) and text[position - 1] != "\u200d":
            return position
    return high


# --- step 3: packing -------------------------------------------------------------------------------


def _pack(pieces: Sequence[_Piece], options: ChunkingOptions) -> list[Span]:
    """Greedy packing of consecutive pieces into spans."""
    limit = options.max_tokens
    spans: list[Span] = []
    first = 0  # index of the current chunk's first piece
    used = 0
    paragraph_tokens = _paragraph_tokens(pieces)
    for index, piece in enumerate(pieces):
        if index > first:
            full = used + piece.tokens > limit
            heading = piece.heading and not all(p.heading for p in pieces[first:index]) and used > limit // 8
            paragraph = piece.paragraph and used > limit // 2 and used + paragraph_tokens[index] > limit
            if full or heading or paragraph:
                spans.append((pieces[first].start, pieces[index - 1].end))
                first = index if heading else _overlap_start(pieces, first, index, options, piece.tokens)
                used = sum(p.tokens for p in pieces[first:index])
        used += piece.tokens
    if pieces:
        spans.append((pieces[first].start, pieces[-1].end))
    return spans


def _paragraph_tokens(pieces: Sequence[_Piece]) -> list[int]:
    """For the first piece of a paragraph the tokens of the whole paragraph; 0 elsewhere."""
    totals = [0] * len(pieces)
    total = 0
    for index in range(len(pieces) - 1, -1, -1):
        total += pieces[index].tokens
        if pieces[index].paragraph:
            totals[index], total = total, 0
    return totals


def _overlap_start(
    pieces: Sequence[_Piece], first: int, index: int, options: ChunkingOptions, next_tokens: int
) -> int:
    """Where the chunk that begins at piece `index` starts, counting the sentences it repeats."""
    budget = min(options.overlap_tokens, options.max_tokens - next_tokens)
    start = index
    while start - 1 > first and pieces[start - 1].tokens <= budget:
        start -= 1
        budget -= pieces[start].tokens
    return start
