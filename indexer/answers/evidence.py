"""What a question is about: its content terms, and how much of their weight a text contains.

Terms are those of the full-text index (`indexer.analysis`): lower-cased words, and unigrams and bigrams where
a script has no spaces, so that one rule serves every language.
"""

import math
from collections import Counter
from collections.abc import Sequence

from indexer.analysis import terms
from indexer.answers.words import QUESTION_WORDS, UNSPACED_QUESTION_WORDS
from indexer.language import identify_language
from indexer.types import Message

FOLLOW_UP_TERMS = 2  # a question with at most so many content terms needs the turns before it; measured, docs/log.md
MAX_TURNS = 3


def content_terms(question: str) -> list[str]:
    """The distinct terms of a question without its question words, in order; all its terms if nothing is left."""
    asked = QUESTION_WORDS.get(identify_language(question) or "en", QUESTION_WORDS["en"])
    bare = question.casefold()
    for word in UNSPACED_QUESTION_WORDS:
        bare = bare.replace(word, " ")
    kept = [term for term in dict.fromkeys(terms(bare)) if term not in asked]
    return kept or list(dict.fromkeys(terms(question)))


def standalone_query(question: str, history: Sequence[Message]) -> str:
    """The question, preceded by the user's earlier turns when it says too little by itself.

    "And when was it built?" after "Who designed the Eiffel Tower?" searches for both. The rule looks at the
    number of content terms only, so it works in every language and costs nothing.
    """
    turns = [question]
    earlier = [message.content for message in history if message.role == "user" and message.content.strip()]
    while earlier and len(turns) < MAX_TURNS and len(content_terms(turns[0])) <= FOLLOW_UP_TERMS:
        turns.insert(0, earlier.pop())
    return "\n".join(turns)


def idf(term_sets: Sequence[frozenset[str]]) -> dict[str, float]:
    """The weight of each term among the given texts (BM25's form, always positive)."""
    counts = Counter(term for present in term_sets for term in present)
    total = len(term_sets)
    return {term: math.log(1 + (total - n + 0.5) / (n + 0.5)) for term, n in counts.items()}


def coverage(question_terms: Sequence[str], present: frozenset[str], weights: dict[str, float], unseen: float) -> float:
    """The share, in [0, 1], of the question's term weight that `present` contains. `unseen` weighs unknown terms."""
    total = sum(weights.get(term, unseen) for term in question_terms)
    return sum(weights[term] for term in question_terms if term in present) / total if total else 0.0
