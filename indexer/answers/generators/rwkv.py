"""Answers by an RWKV language model on this machine, which never reads the same passage twice.

The prompt is [rules][passage 1]...[passage n][history, question]. After each segment but the last the
model's state is kept under a key that chains the segments before it (a prefix tree). An RNN's state depends
on everything before it in this order, so a passage's state is reused only after the same rules and the same
earlier passages: exact, never approximate. The pipeline puts passages in reading order, so questions that
find the same passages share the whole prefix, whatever their ranks; the question and its answer are then
all that is read. Sets that share their first passages share that part.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from indexer.answers.generators.base import Request
from indexer.answers.prompts import WORLD, Template, completion_segments, load_template
from indexer.answers.words import silence
from indexer.errors import GeneratorError
from indexer.language import identify_language

END_OF_TEXT = 0  # the document separator of the World and the Pile vocabularies; a text begins after one
CACHE_BYTES = 256 * 1024**2  # about 100 states of a 0.1B model (12 layers x 768), 20 of a 0.4B
TOP_P = 0.5  # at a temperature above 0: an answer from passages needs no imagination
READ_TOKENS = 256  # tokens between two chances to stop while reading


class StateCache:
    """Least recently used states, bounded by their bytes. Safe to share between threads."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._states: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: str) -> Any | None:
        with self._lock:
            if key not in self._states:
                return None
            self._states.move_to_end(key)
            return self._states[key][0]

    def put(self, key: str, state: Any) -> None:
        """Keep `state`; what was not used for longest goes. One larger than the cache is not kept."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.tensors)
        if size > self.max_bytes:
            return
        with self._lock:
            if key in self._states:
                self.bytes -= self._states.pop(key)[1]
            self._states[key] = (state, size)
            self.bytes += size
            while self.bytes > self.max_bytes:
                self.bytes -= self._states.popitem(last=False)[1][1]


class RWKVGenerator:
    """A language model of `rwkv_embed.load_model` with a chat template and a cache of states."""

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        fingerprint: str,
        template: Template = WORLD,
        max_tokens: int = 400,
        temperature: float = 0.0,
        cache: StateCache | None = None,
    ) -> None:
        self.name = name
        self.cache = StateCache() if cache is None else cache
        self._model, self._fingerprint, self._template = model, fingerprint, template
        self._max_tokens, self._temperature = max_tokens, temperature

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        template: str | Path | None = None,
        max_tokens: int = 400,
        temperature: float = 0.0,
    ) -> "RWKVGenerator":
        """Load a checkpoint. G1 models are told by their file's name when no `template` is given."""
        from rwkv_embed import load_model

        chosen = load_template(template or ("g1" if "g1" in Path(path).name.lower() else "world"))
        model = load_model(path)
        if model.config.kind != "language-model":
            raise GeneratorError(f"{path} is an RWKV {model.config.kind}; answers need a language model")
        return cls(
            model,
            name=f"rwkv:{path}",
            fingerprint=_fingerprint(Path(path)),
            template=chosen,
            max_tokens=max_tokens,
            temperature=temperature,
        )

    def generate(self, request: Request) -> Iterator[str]:
        """Reads what was not read before, then writes token by token. Yields "" while it reads."""
        phrase = silence(identify_language(request.question))
        *known, tail = completion_segments(
            self._template, phrase, request.passages, request.history, request.question
        )
        state = yield from self._read(known)
        yield from self._write(tail, state)

    def _read(self, segments: Sequence[str]) -> Generator[str, None, Any]:
        """Returns the state after `segments`, starting from the longest known prefix; yields ""."""
        keys = _chain(self._fingerprint, segments)
        state, done = None, 0
        for i, key in enumerate(keys):  # from the front, so that a used prefix outlives what hangs off it
            if (kept := self.cache.get(key)) is None:
                break
            state, done = kept, i + 1
        for i in range(done, len(segments)):
            tokens = ([END_OF_TEXT] if i == 0 else []) + self._model.tokenizer.encode(segments[i])
            state = yield from self._feed(tokens, state)
            self.cache.put(keys[i], state)
        return state

    def _feed(self, tokens: Sequence[int], state: Any) -> Generator[str, None, Any]:
        """Returns the state after `tokens`; yields "" between pieces."""
        for start in range(0, len(tokens), READ_TOKENS):
            states = None if state is None else [state]
            _, (state,) = self._model.hidden([tokens[start : start + READ_TOKENS]], states)
            yield ""
        return state

    def _write(self, tail: str, state: Any) -> Iterator[str]:
        from rwkv_embed.generate import Sampling, generate

        options = Sampling(
            max_tokens=self._max_tokens, temperature=self._temperature, top_p=TOP_P, stop=self._template.stop
        )
        *tokens, last = self._model.tokenizer.encode(tail)
        state = yield from self._feed(tokens, state)
        pieces = generate(self._model, [last], state, options)
        first = next(pieces, "")
        yield first.lstrip()  # templates end with "Assistant:", the space after it is the model's
        yield from pieces


def _chain(fingerprint: str, segments: Sequence[str]) -> list[str]:
    """A key for each prefix of `segments`: the hash of the model and of every segment up to there."""
    keys, key = [], fingerprint
    for segment in segments:
        key = hashlib.sha256(f"{key}\n{segment}".encode("utf-8", "surrogatepass")).hexdigest()
        keys.append(key)
    return keys


def _fingerprint(path: Path) -> str:
    """Tells one checkpoint from another within a process: where it is, its size and its time."""
    stamp = path.stat() if path.exists() else None
    return f"{path.resolve()}:{stamp and stamp.st_size}:{stamp and stamp.st_mtime_ns}"
