"""Embedding a text that is still being written: feed it piece by piece, read a vector at any moment.

What is guaranteed about tokens at the seams. Text is cut only where a letter or digit is followed by white
space; the last, incomplete word is held back. So the pieces in which a text arrives never matter: for
tokenizers that do not join a word with the white space after it (World, GPT-NeoX and the default model's
unigram vocabulary are such) the tokens are those of the whole text, and `vector()` equals
`encode_document(text)`. One exception: a run of more than `HOLD` characters without such a place (usual in
Chinese, Japanese and Thai) is cut after its last sentence mark, or at `HOLD` characters when there is none.
The tokens on either side of that cut may differ from the whole text's; they still do not depend on the
pieces.
"""

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rwkv_embed import reading
from rwkv_embed.errors import StateError

if TYPE_CHECKING:
    from rwkv_embed.embedder import Embedder

HOLD = 512  # characters held back at most
# To Python U+001C ... U+001F are white space; to tokenizers they are characters like others.
WORD_END = re.compile(r"(?<=[^\W_])(?=(?![\x1c-\x1f])\s)")
SENTENCE_MARK = re.compile(r"[.!?。！？｡؟।॥…\n]")


def split_complete(text: str) -> tuple[list[str], str]:
    """Cut what is complete into parts to be tokenised one by one; the rest has to wait for more text.

    Almost always one part: there are more only where the text has to be cut inside a long run.
    """
    parts: list[str] = []
    start = last = 0  # where the current part began, and the last place where cutting is allowed
    for end in [match.start() for match in WORD_END.finditer(text)] + [len(text)]:
        while end - last > HOLD:
            marks = [match.end() for match in SENTENCE_MARK.finditer(text, last, last + HOLD)]
            last = marks[-1] if marks else last + HOLD
            parts.append(text[start:last])
            start = last
        if end < len(text):
            last = end
    if last > start:
        parts.append(text[start:last])
    return parts, text[last:]


class EmbeddingStream:
    """Made by `Embedder.stream`. Not for use from several threads at once."""

    def __init__(self, embedder: "Embedder", state: bytes | None = None) -> None:
        self._embedder = embedder
        if state is None:
            self._reading, self._pending = embedder.begin()
        else:
            self._reading, facts = reading.from_bytes(embedder.backend, state, embedder.fingerprint)
            if not isinstance(facts.get("pending"), str):
                raise StateError(
                    "the saved state is not of a stream (it has no held text); give what state_bytes() returned"
                )
            self._pending = facts["pending"]

    def feed(self, text: str) -> None:
        """Read more text. Costs its tokens, however long the text before it was."""
        parts, self._pending = split_complete(self._pending + self._embedder.clean(text))
        for part in parts:
            self._reading = self._embedder.read_on(self._reading, part)

    def vector(self) -> NDArray[np.float32]:
        """The vector (dim,) of everything fed so far. Disturbs nothing: feeding may go on."""
        return self._embedder.finish([self._embedder.read_on(self._reading, self._pending)])[0]

    @property
    def tokens(self) -> int:
        """How many tokens there are: START of a language model, the prompt, and all fed, even those held back."""
        return self._reading.tokens + len(self._embedder.tokenizer.encode(self._pending))

    def state_bytes(self) -> bytes:
        """What is needed to go on later, elsewhere: a safetensors file of fixed size plus the held text."""
        return reading.to_bytes(
            self._embedder.backend, self._reading, self._embedder.fingerprint, pending=self._pending
        )
