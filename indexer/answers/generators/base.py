"""What a generator is given and what it may give back. No logic."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from indexer.types import Embedder, Message, SearchHit


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved text and the number it has in the prompt, from 1. `hit.text` is verbatim document text.

    `text` is what is packed: the hit's text, or its beginning where the whole did not fit the budget.
    """

    n: int
    hit: SearchHit
    text: str


@dataclass(frozen=True, slots=True)
class Quote:
    """Passage text at [start, end), to be shown verbatim with a citation. `score` is in [0, 1]."""

    passage: Passage
    start: int
    end: int
    score: float

    @property
    def text(self) -> str:
        return self.passage.text[self.start : self.end]


@dataclass(frozen=True, slots=True)
class Request:
    """Everything a generator may use. `query` is the question made self-contained by the turns before it."""

    question: str
    query: str
    passages: Sequence[Passage]
    history: Sequence[Message]
    embedder: Embedder


class Generator(Protocol):
    """Turns a question and passages into text.

    Yields pieces of text, in which "[3]" cites passage 3, or `Quote`s, which the pipeline shows and cites
    itself. Yielding nothing means that the passages do not say. Closing the iterator must stop the work; a
    generator that reads for long before it writes yields "" now and then, so that it can be closed.
    """

    @property
    def name(self) -> str: ...  # as in make_generator: "extractive", "rwkv:PATH", "openai:MODEL"
    def generate(self, request: Request) -> Iterator[str | Quote]: ...
