"""A unigram vocabulary that is ready at once: for a few short texts, such as a query on the command line.

`tokenizers` builds a trie of all pieces whenever it reads a tokenizer.json: 0.3 s for the 110,000 of the bundled
model, more than all else that a search computes. Here the pieces lie sorted in one file of the user's cache,
made when the tokenizer.json is first read and named after its hash, and are found by bisection. The tokens are
the same; a character costs a hundred times more, so long texts are left to `tokenizers`.

The file is a .safetensors: `pieces` (uint8), UTF-8 in the order of bytes; `ends` (V,) int64, where each ends;
`ids` (V,) int64; `scores` (V,) float64; and in its metadata the tokenizer.json without the pieces.

Source of the algorithm: Kudo 2018, arXiv:1804.10959, as `tokenizers` has it (models/unigram/model.rs).
"""

import json
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1  # part of the file's name
UNKNOWN_PENALTY = 10.0  # an unknown character scores so much less than the worst piece


class UnigramTable(Sequence[bytes]):
    """The sorted pieces, and what their tokenizer does to a text before it looks for them."""

    def __init__(self, file: Path) -> None:
        """Raises OSError or SafetensorError when the file cannot be read."""
        from safetensors import safe_open
        from tokenizers import Tokenizer

        with safe_open(file, framework="numpy") as stored:
            self._pieces: bytes = stored.get_tensor("pieces").tobytes()
            scores = stored.get_tensor("scores")
            # A memoryview gives Python's own numbers, several times as fast as an array does.
            self._ends, self._ids = (memoryview(stored.get_tensor(name)) for name in ("ends", "ids"))
            frame = Tokenizer.from_str(stored.metadata()["frame"])
        self._normalizer, self._pre_tokenizer = frame.normalizer, frame.pre_tokenizer
        self._scores = memoryview(scores)
        self._unknown_score = float(scores.min()) - UNKNOWN_PENALTY
        self._byte_ids = [self._ids[bisect_left(self, b"<0x%02X>" % byte)] for byte in range(256)]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: Any) -> Any:
        return self._pieces[self._ends[row - 1] if row else 0 : self._ends[row]]

    def encode(self, text: str) -> list[int]:
        """Token ids, as `tokenizers` gives them."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        words = [text] if self._pre_tokenizer is None else self._words(text)
        return [token for word in words for token in self._best(word.encode())]

    def _words(self, text: str) -> list[str]:
        return [word for word, _ in self._pre_tokenizer.pre_tokenize_str(text)]

    def _best(self, text: bytes) -> Iterator[int]:
        """The ids of the segmentation with the highest sum of scores (Viterbi)."""
        ways: list[tuple[float, int, int] | None] = [None] * (
            len(text) + 1
        )  # score, start, row of the last piece
        score = 0.0
        for start in range(len(text)):
            if _inside_character(text, start):
                continue
            if start:
                score = ways[start][0]  # type: ignore[index]  # every character has at least the unknown piece
            next_character = _next_character(text, start)
            single = False
            for end, row in self._beginning(text, start):
                single = single or end == next_character
                way = ways[end]
                if way is None or self._scores[row] + score > way[0]:
                    ways[end] = (self._scores[row] + score, start, row)
            way = ways[next_character]
            if not single and (way is None or self._unknown_score + score > way[0]):
                ways[next_character] = (self._unknown_score + score, start, -1)
        return self._spelled(text, ways)

    def _beginning(self, text: bytes, start: int) -> Iterator[tuple[int, int]]:
        """(end, row) of each piece that the text has at `start`, the shortest first."""
        row, end = 0, start
        while end < len(text):
            end = _next_character(text, end)
            prefix = text[start:end]
            row = bisect_left(self, prefix, row)
            found = self[row] if row < len(self) else b""
            if found == prefix:
                yield end, row
            elif not found.startswith(prefix):
                return

    def _spelled(self, text: bytes, ways: Sequence[tuple[float, int, int] | None]) -> Iterator[int]:
        """Ids along the best way, from its end back to its beginning and then turned round."""
        ids: list[list[int]] = []
        end = len(text)
        while end:
            _, start, row = ways[end]  # type: ignore[misc]
            ids.append([self._ids[row]] if row >= 0 else [self._byte_ids[byte] for byte in text[start:end]])
            end = start
        return (token for part in reversed(ids) for token in part)


def _inside_character(text: bytes, place: int) -> bool:
    return text[place] & 0xC0 == 0x80


def _next_character(text: bytes, place: int) -> int:
    place += 1
    while place < len(text) and _inside_character(text, place):
        place += 1
    return place


def cached_table(tokenizer_json: Path) -> UnigramTable | None:
    """The table that `cache_table` made of this file; None when there is none, or a damaged one."""
    from safetensors import SafetensorError

    with suppress(OSError, SafetensorError):
        return UnigramTable(_cache_path(tokenizer_json.read_bytes()))
    return None


def cache_table(tokenizer_json: Path) -> None:
    """Write the table of a tokenizer.json, if it can have one; a cache that cannot be written is done without."""
    data = tokenizer_json.read_bytes()
    if b'"Unigram"' not in data:  # reading megabytes of JSON is slow
        return
    settings = json.loads(data)
    if _suits(settings):
        with suppress(OSError):
            _write(settings, _cache_path(data))


def _suits(settings: dict[str, Any]) -> bool:
    """Whether all there is to a tokenizer is a normalizer, a pre-tokenizer and unigrams that end in bytes."""
    model = settings.get("model", {})
    if model.get("type") != "Unigram" or not model.get("byte_fallback") or settings.get("added_tokens"):
        return False
    pieces = {piece for piece, _ in model["vocab"]}
    return len(pieces) == len(model["vocab"]) and pieces.issuperset(f"<0x{byte:02X}>" for byte in range(256))


def _write(settings: dict[str, Any], path: Path) -> None:
    from safetensors.numpy import save

    model = settings["model"]
    encoded = [piece.encode() for piece, _ in model["vocab"]]
    order = sorted(range(len(encoded)), key=encoded.__getitem__)
    pieces = [encoded[token] for token in order]
    tensors = {
        "pieces": np.frombuffer(b"".join(pieces), np.uint8),
        "ends": np.cumsum([len(piece) for piece in pieces]),
        "ids": np.array(order),
        "scores": np.array([model["vocab"][token][1] for token in order], np.float64),
    }
    frame = settings | {"model": model | {"vocab": [["", 0.0]], "unk_id": 0}}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(save(tensors, metadata={"frame": json.dumps(frame)}))
    temporary.replace(path)


def _cache_path(tokenizer_json: bytes) -> Path:
    from hashlib import sha256

    from platformdirs import user_cache_path

    name = f"{sha256(tokenizer_json).hexdigest()}-{FORMAT}.safetensors"
    return user_cache_path("rwkv-embed") / "tokenizers" / name
