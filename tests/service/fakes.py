"""An embedder that can be predicted: a text is the bag of its words, each word a dimension of its own."""

import threading
import time
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DIM = 64


class WordTokenizer:
    """Token ids are code points."""

    vocab_size = 0x10000

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


class WordStream:
    def __init__(self, embedder: "WordEmbedder", text: str) -> None:
        self._embedder, self._text = embedder, text

    def feed(self, text: str) -> None:
        self._text += text

    def vector(self) -> NDArray[np.float32]:
        return self._embedder.encode_document([self._text])[0]

    def state_bytes(self) -> bytes:
        return self._text.encode()


class WordEmbedder:
    """Counts texts and calls; `seconds` makes it slow, `hold` makes it wait."""

    model_id = "words"
    fingerprint = "f" * 64
    dim = DIM
    sentence_share = 0.0
    pooling = "mean"
    tokenizer = WordTokenizer()

    def __init__(self, model: object = None) -> None:
        self.batches: list[list[str]] = []
        self.seconds = 0.0
        self.hold = threading.Event()
        self.hold.set()

    def encode_document(
        self, inputs: str | Sequence[str], *, truncate_dim: int | None = None
    ) -> NDArray[np.float32]:
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        self.hold.wait(30)
        time.sleep(self.seconds)
        self.batches.append(texts)
        if any("POISON" in text for text in texts):
            raise ValueError("poisoned")
        vectors = np.zeros((len(texts), DIM), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, zlib.crc32(word.strip(".,?!").encode()) % DIM] += 1
        vectors[:, 0] += 1e-3  # no text is nothing
        vectors = vectors[:, :truncate_dim]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors[0] if isinstance(inputs, str) else vectors

    encode_query = encode_document

    def encode_chunks(self, text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        return self.encode_document([text[start:end] for start, end in spans])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + 1 for text in texts]  # one ends the text

    def stream(self, state: bytes | None = None) -> WordStream:
        return WordStream(self, (state or b"").decode())
