"""What a question is about: its content terms, and how much of their weight a text contains.

Terms are those of the full-text index (`indexer.analysis`): words with their first letters as a stem, and
characters and pairs where a script has no spaces, so that one rule serves every language.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain, pairwise

import regex

from indexer.analysis import index_terms, query_terms
from indexer.answers.words import QUESTION_WORDS, UNSPACED_QUESTION_WORDS
from indexer.language import identify_language
from indexer.types import Message

# A question with at most so many content words needs the turns before it (measured: docs/log.md).
FOLLOW_UP_WORDS = 3
MAX_TURNS = 3
_UNSPACED_LANGUAGES = frozenset({"ja", "km", "lo", "my", "th", "zh"})
# `re` would cut words of Devanagari, Bengali and others at their vowel signs.
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]++")
_IDEOGRAPHS = r"\p{Han}\p{Hiragana}\p{Katakana}ー々"
_SPACED_OR_NOT = regex.compile(
    rf"(?P<ideographic>[{_IDEOGRAPHS}]++)|[[\p{{L}}\p{{M}}\p{{N}}]--[{_IDEOGRAPHS}]]++", regex.VERSION1
)


@lru_cache(maxsize=4096)
def term_counts(text: str) -> Mapping[str, int]:
    """Every term by which the full-text index would find `text`, and how often it has it."""
    return Counter(chain(*index_terms(text)))


@lru_cache(maxsize=4096)
def text_terms(text: str) -> frozenset[str]:
    """Every term by which the full-text index would find `text`."""
    return frozenset(term_counts(text))


@lru_cache(maxsize=4096)
def distinct_words(text: str) -> tuple[str, ...]:
    """The words of a text, each once, in its order; in Chinese and Japanese every pair of characters."""
    found: list[str] = []
    for match in _SPACED_OR_NOT.finditer(text):
        run = match.group()
        pairs = [first + second for first, second in pairwise(run)] if match["ideographic"] else []
        found += pairs or [run]
    return tuple(dict.fromkeys(found))


def content(question: str) -> str:
    """The question without its question words; the whole if nothing is left."""
    rest = _content(question)
    return rest if _WORD.search(rest) else question


def content_terms(question: str) -> list[str]:
    """The distinct terms of a question without its question words; of the whole if nothing is left."""
    return query_terms(_content(question)) or query_terms(question)


def _content(question: str) -> str:
    """The question without question words, articles and the like, as far as we know its language's.

    English ones always count: short English questions are easily taken for another language.
    """
    known = QUESTION_WORDS["en"] | QUESTION_WORDS.get(identify_language(question) or "en", frozenset())
    text = question.casefold()
    for word in UNSPACED_QUESTION_WORDS:
        text = text.replace(word, " ")
    return _WORD.sub(lambda word: "" if word[0] in known else word[0], text)


def content_words(question: str) -> float:
    """How much a question says: its content words; two characters count as one where words are not spaced."""
    rest = _content(question)
    if identify_language(question) in _UNSPACED_LANGUAGES:
        return sum(map(len, _WORD.findall(rest))) / 2
    return len(_WORD.findall(rest))


def standalone_query(question: str, history: Sequence[Message]) -> str:
    """The question, preceded by the user's earlier turns when it says too little by itself.

    "And when was it built?" after "Who designed the Eiffel Tower?" searches for both. The rule looks at the
    number of content words only, so it works in every language and costs nothing.
    """
    turns = [question]
    earlier = [message.content for message in history if message.role == "user" and message.content.strip()]
    while earlier and len(turns) < MAX_TURNS and content_words(turns[0]) <= FOLLOW_UP_WORDS:
        turns.insert(0, earlier.pop())
    return "\n".join(turns)


def idf(term_sets: Sequence[frozenset[str]]) -> dict[str, float]:
    """The weight of each term among the given texts (BM25's form, always positive)."""
    counts = Counter(term for present in term_sets for term in present)
    total = len(term_sets)
    return {term: math.log(1 + (total - n + 0.5) / (n + 0.5)) for term, n in counts.items()}


def coverage(
    question_terms: Sequence[str], present: frozenset[str], weights: Mapping[str, float], unseen: float
) -> float:
    """The share, in [0, 1], of the question's term weight that `present` has; `unseen` weighs new terms."""
    total = sum(weights.get(term, unseen) for term in question_terms)
    return (
        sum(weights.get(term, unseen) for term in question_terms if term in present) / total if total else 0.0
    )
