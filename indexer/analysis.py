"""Text to search terms, the same for documents and queries, in any script.

Terms hold only letters, digits, marks and `＋＃` (of `c++`, `c#`): nothing that a full-text engine's own
tokenizer could split and nothing that is syntax to it. NFKC and case folding come first; then, by script:

- words apart by spaces: the word without accents and vowel points; beside it, as variants, its accented
  spelling and, for a long word, its first letters, which do the work of a stemmer in every language
  (measured: docs/log.md);
- Han and Kana: every character and every pair of neighbours, so that 部署 finds its documents; Thai, Lao,
  Khmer, Burmese: the same over consonants with their vowel signs;
- Hangul: the word as written (with its particles) and every pair of syllables.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple
from unicodedata import normalize

import regex

MAX_TERM_CHARS = 64  # longer "words" are data; their beginning is enough to find them

_IDEOGRAPHIC = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\u3005"
_UNSPACED = (
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Javanese}\p{Balinese}\p{Tai_Tham}\p{Tai_Le}\p{New_Tai_Lue}"
)
_RUN = regex.compile(
    rf"""
      (?P<ideographic> [{_IDEOGRAPHIC}]++ )
    | (?P<unspaced>    [[{_UNSPACED}]&&[\p{{L}}\p{{M}}\p{{N}}]]++ )
    | (?P<hangul>      \p{{Hangul}}++ )
    | (?P<code>        \b[a-z](?:\+\+|\#)(?!\w) )
    | (?P<word>        [[\p{{L}}\p{{M}}\p{{N}}]--[{_IDEOGRAPHIC}{_UNSPACED}\p{{Hangul}}]]++ )
    """,
    regex.VERBOSE | regex.VERSION1,
)
_ASCII_RUN = regex.compile(r"\b(?P<code>[a-z](?:\+\+|\#)(?!\w))|(?P<word>[a-z0-9]++)")
_CLUSTER = regex.compile(
    r"[\u0e40-\u0e44\u0ec0-\u0ec4]?+.\p{M}*+", regex.DOTALL
)  # Thai and Lao write e, o, ai in front
_POINTS = regex.compile(
    "[\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0640]"
)  # and the tatweel
_ACCENTS = regex.compile(r"\p{Mn}++")
_FOLDED_SCRIPTS = regex.compile(r"[\p{Latin}\p{Greek}\p{Cyrillic}]")
_ARABIC_SPELLINGS = str.maketrans("أإآٱىةؤئیک", "اااايهوييك")  # one letter for those that writers mix up
_ARABIC_ARTICLE = regex.compile("^(?:[وفبك]?ال|لل)(?=..)")  # al-, with and-, so-, in-, like-, for- before it

# 4 letters gain 0.003 MRR@10 on the 240 paragraphs of XQuAD, but run words together in large collections.
PREFIX_CHARS = 5
PREFIX_MARK = "＾"  # stands before a prefix; NFKC never leaves it in a text


class IndexTerms(NamedTuple):
    """The terms of a text: `words` in reading order, so that phrases are found; `variants` in any order."""

    words: list[str]
    variants: list[str]


def index_terms(text: str) -> IndexTerms:
    """What a full-text index stores for a text."""
    words: list[str] = []
    variants: list[str] = []
    for kind, run in _runs(text):
        if kind in _SEQUENCES:
            words += _SEQUENCES[kind](run)
        elif word := _word(kind, run):
            words.append(word.folded)
            if word.folded != word.written:
                variants.append(word.written)
            variants += word.stems
    return IndexTerms(words, variants)


def query_terms(text: str) -> list[str]:
    """The terms of a question, each once: any of them is evidence.

    A word typed with accents is looked for as it is; one typed without finds both spellings.
    """
    terms: list[str] = []
    for kind, run in _runs(text):
        if kind in _SEQUENCES:
            terms += _SEQUENCES[kind](run)
        elif word := _word(kind, run):
            terms.append(word.written)
            terms += word.stems
    return list(dict.fromkeys(terms))


def _runs(text: str) -> Iterator[tuple[str, str]]:
    """(kind, run) for each run of one script."""
    text = normalize("NFKC", text).casefold()
    for match in (_ASCII_RUN if text.isascii() else _RUN).finditer(text):
        yield match.lastgroup or "word", match.group()


def _grams(units: list[str]) -> list[str]:
    """a b c -> a, ab, b, bc, c: the terms of a phrase follow each other wherever the phrase stands."""
    terms = []
    for first, second in pairwise(units):
        terms += [first, first + second]
    return [*terms, units[-1]]


def _hangul(run: str) -> list[str]:
    run = run[:MAX_TERM_CHARS]
    pairs = [first + second for first, second in pairwise(run)]
    return pairs if len(run) == 2 else [run, *pairs]


_SEQUENCES: dict[str, Callable[[str], list[str]]] = {
    "ideographic": lambda run: _grams(list(run)),
    "unspaced": lambda run: _grams(_CLUSTER.findall(run)),
    "hangul": _hangul,
}


class _Word(NamedTuple):
    """A word cleaned of points and cut to MAX_TERM_CHARS, without its accents, and what stands for its forms."""

    written: str
    folded: str
    stems: tuple[str, ...]


def _word(kind: str, run: str) -> _Word | None:
    """The terms of a run of the kind "word" or "code"; None when nothing is left of it."""
    # most words of a text are common ones; a long "word" is data, which would fill the memory
    return _remembered_word(kind, run) if len(run) <= MAX_TERM_CHARS else _analysed_word(kind, run)


def _analysed_word(kind: str, run: str) -> _Word | None:
    if kind == "code":
        run = run.replace("+", "＋").replace("#", "＃")
    elif not run.isascii():
        run = _POINTS.sub("", run).translate(_ARABIC_SPELLINGS)
    written = run[:MAX_TERM_CHARS]
    folded = _fold(written)
    return _Word(written, folded, tuple(_stems(folded))) if written else None


_remembered_word = lru_cache(maxsize=50_000)(_analysed_word)


def _fold(word: str) -> str:
    """Without accents, in scripts where an accent is one; elsewhere marks are vowels and stay."""
    if word.isascii() or not _FOLDED_SCRIPTS.match(word):
        return word
    return normalize("NFC", _ACCENTS.sub("", normalize("NFD", word)))


def _stems(word: str) -> list[str]:
    """What a word shares with its inflected forms: without the Arabic article, and its first letters."""
    bare = word if word.isascii() else _ARABIC_ARTICLE.sub("", word)
    stems = [bare] if bare != word else []
    return [*stems, PREFIX_MARK + bare[:PREFIX_CHARS]] if len(bare) > PREFIX_CHARS else stems
