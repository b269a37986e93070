"""Text in, vectors out: the public face of the tensor room, with the names of sentence-transformers.

    embedder = Embedder()                        # the bundled multilingual model
    vectors = embedder.encode_document(texts)    # (n, dim) float32, each of length 1
    query = embedder.encode_query("…")           # (dim,)

Differs from sentence-transformers where an RNN allows more: `encode_chunks` reads a document once and gives a
vector for each of its passages that knows everything before it; `stream` embeds a text that is still growing.
A text's vector never depends on the other texts of the call. Nothing here imports torch; some back ends do.
"""

import hashlib
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.backends import DEFAULT_EOS, Backend, open_backend
from rwkv_embed.config import Dtype
from rwkv_embed.hub import resolve
from rwkv_embed.pooling import SUMMARY_PROMPT, Pooling, state_dim, state_vector
from rwkv_embed.quantize import (
    Int8Ranges,
    Precision,
    check_precision,
    check_ranges,
    check_truncation,
    quantize,
    truncate,
)
from rwkv_embed.reading import Reading, go_on
from rwkv_embed.stream import EmbeddingStream
from rwkv_embed.tokenizer import WORLD_VOCABULARY, Tokenizer
from rwkv_embed.whitening import Whitening

Floats = NDArray[np.float32]

BATCH_TOKENS = 16_384  # a batch holds at most this many tokens, counted at the length of its longest text …
BATCH_TEXTS = 128  # … and this many texts: each has a state of some hundred kilobytes
START_TOKEN = 0  # "a document begins", in the vocabulary of every RWKV language model
# Part of every fingerprint: to be raised when the meaning of a pooling changes. Of language models it is 2 since
# Hugging Face folders of them are read from START on, like other files, and not to an EOS.
RECIPE = {"embedder": 1, "language model": 2}
SURROGATES = re.compile("[\ud800-\udfff]")


class Embedder:
    """Turns texts into vectors.

    `model`: None for the bundled default, a path, a hub name (see `hub`), or an opened back end.
    `pooling`: how a vector is read off a run (see `pooling`); by default the trained head of an embedder,
    `last` for a language model.
    `truncate_dim`, `precision`: what `encode` does when it is not told otherwise.
    `dtype`: of large products, float32, bfloat16 or int8; by default the faster of the first two (docs/models.md).
    `threads`: for the model's arithmetic.
    `tokenizer`: instead of the model's own: "world", "neox", "byte" or the path of a tokenizer.json.
    `whitening`, `int8_ranges`: fitted earlier, the object or its file.

    Raises ModelNotFound or DownloadError (see `hub`), CheckpointError for a damaged file, TokenizerError without a
    fitting tokenizer, and ValueError for an argument that is unknown or does not fit the model.
    """

    def __init__(
        self,
        model: str | Path | Backend | None = None,
        *,
        pooling: Pooling | None = None,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        dtype: Dtype | None = None,
        threads: int | None = None,
        tokenizer: str | Path | None = None,
        whitening: Whitening | str | Path | None = None,
        int8_ranges: Int8Ranges | str | Path | None = None,
    ) -> None:
        self.precision = check_precision(precision)
        if model is None or isinstance(model, str | Path):
            self.backend = open_backend(replace(resolve(model), tokenizer=tokenizer), dtype, threads)
        else:
            self.backend = model
        info = self.backend.info
        self.model_id: str = info.model_id
        self.prompts: dict[str, str] = {"query": "", "document": "", **info.prompts}
        self.pooling = self._choose_pooling(pooling)
        self.sentence_share = info.sentence_share if self.pooling == self._choose_pooling(None) else 0.0
        self.whitening = Whitening.load(whitening) if isinstance(whitening, str | Path) else whitening
        if int8_ranges is None and self.whitening is None and self.pooling == self._choose_pooling(None):
            int8_ranges = info.int8_ranges  # they were fitted to the model's own vectors
        self.int8_ranges = (
            Int8Ranges.load(int8_ranges) if isinstance(int8_ranges, str | Path) else int8_ranges
        )
        self._before, self._after = self._frame()
        check_truncation(truncate_dim, self._full_dim)
        self.truncate_dim = truncate_dim

    # --- facts

    @property
    def dim(self) -> int:
        """Components of a vector, after truncation."""
        return self.truncate_dim or self._full_dim

    @property
    def tokenizer(self) -> Tokenizer:
        return self.backend.tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that decides what a vector is: different ones cannot be compared."""
        info = self.backend.info
        facts = {
            "recipe": RECIPE["language model" if info.eos is None else "embedder"],
            "model": info.identity,
            "pooling": self.pooling,
            "prompts": self.prompts,
            "dim": self.dim,
            "whitening": self.whitening.fingerprint if self.whitening else None,
        }
        # Only what is unusual: these facts came later, and most stores are older.
        if info.eos not in (None, DEFAULT_EOS if info.config.vocab_size == WORLD_VOCABULARY else 0):
            facts["eos"] = info.eos
        if info.config.unusual_epsilons:
            facts["epsilons"] = info.config.unusual_epsilons
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    # --- encoding

    def encode(
        self,
        inputs: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        precision: Precision | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = True,
    ) -> NDArray[Any]:
        """(n, dim) for a list of texts, (dim,) for one text; float32 unless `precision` says otherwise.

        `prompt`, or the model's prompt called `prompt_name`, is put before each text. `batch_size` limits the
        texts of a batch; batches are made by token budget anyway. `truncate_dim` keeps the first components
        and normalises them again. No texts give (0, dim).

        Raises ValueError for an argument that is unknown or does not fit the model, before anything is read, and
        TypeError for what is no text.
        """
        precision = check_precision(self.precision if precision is None else precision)
        truncate_dim = self.truncate_dim if truncate_dim is None else truncate_dim
        check_truncation(truncate_dim, self._full_dim)
        check_ranges(precision, truncate_dim or self._full_dim, self.int8_ranges)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        prefix = self._prompt(prompt_name, prompt)
        tokens = self._tokenize([prefix + self.clean(text) for text in texts])
        vectors = np.empty((len(texts), self._full_dim), dtype=np.float32)
        with _progress(len(texts), show_progress_bar) as advance:
            for rows in _batches([len(row) for row in tokens], BATCH_TEXTS if batch_size is None else batch_size):
                vectors[rows] = self._read_whole([tokens[row] for row in rows])
                advance(len(rows))
        vectors = truncate(vectors, truncate_dim, normalize_embeddings)
        result = quantize(vectors, precision, self.int8_ranges)
        return result[0] if isinstance(inputs, str) else result

    def encode_query(
        self,
        inputs: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        precision: Precision | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = True,
    ) -> NDArray[Any]:
        """`encode` with the model's prompt for queries; raises what it raises."""
        return self.encode(
            inputs,
            prompt_name="query" if prompt_name is None else prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            precision=precision,
            truncate_dim=truncate_dim,
            normalize_embeddings=normalize_embeddings,
        )

    def encode_document(
        self,
        inputs: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        precision: Precision | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = True,
    ) -> NDArray[Any]:
        """`encode` with the model's prompt for documents; raises what it raises."""
        return self.encode(
            inputs,
            prompt_name="document" if prompt_name is None else prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            precision=precision,
            truncate_dim=truncate_dim,
            normalize_embeddings=normalize_embeddings,
        )

    def encode_chunks(self, text: str, spans: Sequence[tuple[int, int]]) -> Floats:
        """One vector (len(spans), dim) for each span of `text`, read off the state that knows all text before
        it.

        The document is read once: at each span's end the state is forked, and what ends a text (EOS) is read
        by the fork alone. So the cost is the document's tokens and one more for each span. `mean` averages a
        span's own tokens. The span (0, len(text)) gives `encode_document(text)`. Raises ValueError for a span that
        is not inside the text.
        """
        text = self.clean(text)
        for start, end in spans:
            if not 0 <= start <= end <= len(text):
                raise ValueError(f"span ({start}, {end}) is not inside the text of {len(text)} characters")
        vectors = np.empty((len(spans), self._full_dim), dtype=np.float32)
        waiting: list[tuple[int, Reading]] = []
        for row, reading in self._read_spans(text, spans):
            waiting.append((row, reading))
            if len(waiting) == BATCH_TEXTS:  # states are large: forks are finished as we go
                vectors[[row for row, _ in waiting]] = self._pool([reading for _, reading in waiting])
                waiting = []
        if waiting:
            vectors[[row for row, _ in waiting]] = self._pool([reading for _, reading in waiting])
        return truncate(vectors, self.truncate_dim)

    def stream(self, state: bytes | None = None) -> EmbeddingStream:
        """A text to be fed piece by piece; `state` is what `EmbeddingStream.state_bytes` gave earlier.

        Raises StateError when that is damaged, or another model's.
        """
        return EmbeddingStream(self, state)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without prompt and end-of-text token."""
        return [len(tokens) for tokens in self._tokenize([self.clean(text) for text in texts])]

    # --- fitting

    def fit_int8(self, texts: Sequence[str], dims: Sequence[int] = ()) -> Int8Ranges:
        """Fit the ranges of int8 and uint8 on typical texts and use them from now on; save the result.

        Raises ValueError for fewer than two texts, or a dimension of `dims` that the model has not.
        """
        vectors = self.encode_document(texts, precision="float32", truncate_dim=self._full_dim)
        wanted = [*dims, *([self.truncate_dim] if self.truncate_dim else [])]
        self.int8_ranges = Int8Ranges.fit(vectors, wanted)
        return self.int8_ranges

    # --- reading, also used by streams

    @staticmethod
    def clean(text: str) -> str:
        """Lone surrogates, which no tokenizer takes, become U+FFFD. The length, and so offsets, stay."""
        if not isinstance(text, str):
            raise TypeError(f"expected a text, got {type(text).__name__}; pass a str or a list of str")
        return SURROGATES.sub("\ufffd", text)

    def begin(self) -> tuple[Reading, str]:
        """A document before its first word: a reading, and the prompt, to be tokenised with the text."""
        return self.read_tokens(Reading(), self._before), self.prompts["document"]

    def read_on(self, reading: Reading, text: str) -> Reading:
        return self.read_tokens(reading, self.tokenizer.encode(text) if text else [])

    def read_tokens(self, reading: Reading, tokens: Sequence[int]) -> Reading:
        return go_on(self.backend, [reading], [tokens], sums=self.pooling == "mean")[0]

    def finish(self, readings: Sequence[Reading]) -> Floats:
        """End each text here, without disturbing the readings: (n, dim)."""
        return truncate(self._pool(readings), self.truncate_dim)

    # --- inside

    @cached_property
    def _full_dim(self) -> int:
        if self.whitening:
            return self.whitening.dim
        config = self.backend.info.config
        return state_dim(config) if self.pooling == "state" else config.n_embd

    def _choose_pooling(self, pooling: Pooling | None) -> Pooling:
        has_head = self.backend.info.head is not None
        if pooling is None:
            return "head" if has_head else "last"
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling is {pooling!r}, expected one of {', '.join(get_args(Pooling))}")
        if pooling == "head" and not has_head:
            raise ValueError(
                f"{self.model_id} is a language model without an embedding head; use last, mean or state"
            )
        if pooling == "summary" and self.backend.info.eos is not None:
            raise ValueError(f"{self.model_id} is an embedder and cannot be asked for a summary; use head")
        return pooling

    def _frame(self) -> tuple[list[int], list[int]]:
        """Tokens before and after each text. At least one in all, so that the empty text has a vector."""
        info = self.backend.info
        if info.eos is not None:
            return [], [info.eos]
        if self.pooling == "summary":
            before, after = (self.tokenizer.encode(part) for part in SUMMARY_PROMPT)
            return [START_TOKEN, *before], after
        return [START_TOKEN], []

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(
                f"{self.model_id} has no prompt called {name!r}; it has {', '.join(self.prompts)}"
            )
        return self.prompts[name]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer.encode_batch(texts) if texts else []

    def _read_whole(self, batch: list[list[int]]) -> Floats:
        """Vectors (n, full dim) of whole texts."""
        framed = [[*self._before, *tokens, *self._after] for tokens in batch]
        return self._vectors(self._last_steps([Reading()] * len(batch), framed))

    def _pool(self, readings: Sequence[Reading]) -> Floats:
        """Read what ends a text on from each reading: (n, full dim)."""
        return self._vectors(self._last_steps(readings, [self._after] * len(readings)))

    def _last_steps(self, readings: Sequence[Reading], batch: Sequence[Sequence[int]]) -> list[Reading]:
        """Only `state` looks at states after the end of a text."""
        return go_on(self.backend, readings, batch, sums=self.pooling == "mean", keep=self.pooling == "state")

    def _vectors(self, readings: Sequence[Reading]) -> Floats:
        info = self.backend.info
        if self.pooling == "state":
            rows = [state_vector(info.config.version, self.backend.arrays(r.state)) for r in readings]
        elif self.pooling == "mean":
            rows = [(r.total / r.tokens).astype(np.float32) for r in readings if r.total is not None]
        else:
            rows = [r.hidden for r in readings if r.hidden is not None]
        vectors = np.stack(rows)
        if self.pooling == "head" and info.head is not None:
            vectors = info.head(vectors)
        return self.whitening(vectors) if self.whitening else vectors

    def _read_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Reading]]:
        """Read `text` once and yield (row, reading at the end of span `row`), in order of the ends."""
        reading, pending = self.begin()
        position = 0
        starts: dict[int, Reading] = {0: Reading()}  # the first span owns the tokens before the text
        wanted = {start for start, _ in spans} if self.pooling == "mean" else set()
        by_end = deque(sorted(range(len(spans)), key=lambda row: spans[row][1]))
        for mark in sorted(wanted | {end for _, end in spans}):
            reading = self.read_on(reading, pending + text[position:mark])
            pending, position = "", mark
            if mark in wanted:
                starts.setdefault(mark, reading)
            while by_end and spans[by_end[0]][1] == mark:
                row = by_end.popleft()
                yield row, (_difference(reading, starts[spans[row][0]]) if wanted else reading)


def _difference(end: Reading, start: Reading) -> Reading:
    """`end` with only the tokens after `start` in its sum; an empty span has the one token it stands on."""
    if end.hidden is None or end.total is None:
        return end  # nothing has been read yet; an EOS will be
    if end.tokens == start.tokens:
        return Reading(1, end.hidden, end.hidden.astype(np.float64), end.state)
    total = end.total - (0 if start.total is None else start.total)
    return Reading(end.tokens - start.tokens, end.hidden, total, end.state)


def _batches(lengths: Sequence[int], batch_texts: int) -> Iterator[list[int]]:
    """Row numbers, longest texts first, in batches within the token budget; a longer text is alone."""
    rows: list[int] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if rows and (len(rows) == batch_texts or longest * (len(rows) + 1) > BATCH_TOKENS):
            yield rows
            rows = []
        longest = longest if rows else lengths[row]
        rows.append(row)
    if rows:
        yield rows


@contextmanager
def _progress(total: int, show: bool) -> Iterator[Any]:
    """A function to be told how many texts are done; it draws a bar on stderr if `show`."""
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Embedding", total=total)
        yield lambda done: progress.advance(task, done)
