"""The tokenizer of the bundled model in C: ready at once, and several times as fast as `tokenizers`.

`tokenizers` builds a trie of all pieces whenever it reads a tokenizer.json, which takes longer than all else
that a search on the command line does. Here the trie is a file in the user's cache, made when the tokenizer.json
is first read and named after its hash, and `unigram.c` finds the best segmentation in it. The tokens are the same.

The file is a .safetensors: `bytes`, `children`, `tokens` (the trie of unigram.c) and `scores` (V,) by id.
"""

import ctypes
import json
import os
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 2  # part of the file's name
UNKNOWN_PENALTY = 10.0  # an unknown character scores so much less than the worst piece
NORMALIZER = {
    "type": "Sequence",
    "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}],
}
PRE_TOKENIZER = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


class _Vocabulary(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_void_p),
        ("children", ctypes.c_void_p),
        ("tokens", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("of_byte", ctypes.c_void_p),
        ("unknown", ctypes.c_double),
    )


@cache
def _library() -> Any:
    """The compiled functions; None where they were not built."""
    spec = find_spec("rwkv_embed._unigram")
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    size: type[ctypes._SimpleCData[Any]] = ctypes.c_int64
    pointer: type[ctypes._SimpleCData[Any]] = ctypes.c_void_p
    library.unigram_build.restype = size
    library.unigram_build.argtypes = [size] + [pointer] * 9
    library.unigram_encode.restype = None
    library.unigram_encode.argtypes = [pointer, size] + [pointer] * 8
    return library


class UnigramTable:
    """A vocabulary that gives the tokens of texts."""

    def __init__(self, file: Path) -> None:
        """Raises OSError or SafetensorError when the file cannot be read, ValueError when it is no such table."""
        from safetensors import safe_open

        with safe_open(file, framework="numpy") as stored:
            names = ("bytes", "children", "tokens", "scores", "of_byte")
            self._arrays: dict[str, NDArray[Any]] = {name: stored.get_tensor(name) for name in names}
        if not _is_sound(**self._arrays):
            raise ValueError(f"{file} is damaged")
        pointers = {name: array.ctypes.data for name, array in self._arrays.items()}
        unknown = float(self._arrays["scores"].min()) - UNKNOWN_PENALTY
        self._vocabulary = _Vocabulary(**pointers, unknown=unknown)
        self.vocab_size = len(self._arrays["scores"])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, as `tokenizers` gives them."""
        encoded = [_normalized(text).encode() for text in texts]
        lengths = np.array([len(text) for text in encoded], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        room = 3 * int(lengths.max(initial=0)) + 4
        tokens, counts = np.empty(3 * (starts[-1] + len(texts)), np.int32), np.empty(len(texts), np.int64)
        spaced, score = np.empty(room, np.uint8), np.empty(room, np.float64)
        start, token = np.empty(room, np.int32), np.empty(room, np.int32)
        arrays = (starts, tokens, counts, spaced, score, start, token)
        _library().unigram_encode(
            ctypes.byref(self._vocabulary),
            len(texts),
            b"".join(encoded),
            *(array.ctypes.data for array in arrays),
        )
        ends = np.cumsum(counts)
        ids: list[int] = tokens[: int(counts.sum())].tolist()
        return [ids[end - count : end] for end, count in zip(ends.tolist(), counts.tolist(), strict=True)]


def _is_sound(
    bytes: NDArray[Any],
    children: NDArray[Any],
    tokens: NDArray[Any],
    scores: NDArray[Any],
    of_byte: NDArray[Any],
) -> bool:
    """Whether unigram.c, which looks at no bounds, stays inside the arrays: 5 ms for the bundled vocabulary."""
    arrays = (bytes, children, tokens, scores, of_byte)
    nodes, V = len(bytes), len(scores)
    shapes = ((nodes,), (nodes + 1,), (nodes,), (V,), (256,))
    types = (np.uint8, np.int32, np.int32, np.float64, np.int32)
    fits = (a.shape == shape and a.dtype == dtype for a, shape, dtype in zip(arrays, shapes, types, strict=True))
    if nodes == 0 or V == 0 or not all(fits):
        return False
    return bool(
        children[0] >= 0
        and children[-1] <= nodes
        and (children[1:] >= children[:-1]).all()
        and tokens.min() >= -1
        and tokens.max() < V
        and of_byte.min() >= 0
        and of_byte.max() < V
    )


def _normalized(text: str) -> str:
    """NFKC as `tokenizers` has it; most texts are in it already, which is quick to see."""
    if text.isascii() or unicodedata.is_normalized("NFKC", text):
        return text
    from tokenizers import normalizers

    normalized: str = normalizers.NFKC().normalize_str(text)
    return normalized


def cached_table(tokenizer_json: Path) -> UnigramTable | None:
    """The table that `cache_table` made of this file; None when there is none, or a damaged one."""
    from safetensors import SafetensorError

    if _library() is not None:
        with suppress(OSError, SafetensorError, ValueError):
            return UnigramTable(_cache_path(tokenizer_json.read_bytes()))
    return None


def cache_table(tokenizer_json: Path) -> bool:
    """Write the table of a tokenizer.json; False where it can have none, or the cache cannot be written."""
    data = tokenizer_json.read_bytes()
    if _library() is None or b'"Unigram"' not in data:  # reading megabytes of JSON is slow
        return False
    # Whatever is wrong with the file: the library that reads it then says so.
    with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        settings = json.loads(data)
        if _suits(settings):
            _write(settings["model"]["vocab"], _cache_path(data))
            return True
    return False


def _suits(settings: dict[str, Any]) -> bool:
    """Whether it is a tokenizer as `training.vocabulary.build_tokenizer` makes it: unigram.c knows no other."""
    model = settings.get("model", {}) if isinstance(settings, dict) else {}
    if model.get("type") != "Unigram" or not model.get("byte_fallback") or settings.get("added_tokens"):
        return False
    if settings.get("normalizer") != NORMALIZER or settings.get("pre_tokenizer") != PRE_TOKENIZER:
        return False
    if not all(isinstance(piece, str) and isinstance(score, float | int) for piece, score in model["vocab"]):
        return False
    pieces = {piece for piece, _ in model["vocab"]}
    return len(pieces) == len(model["vocab"]) and pieces.issuperset(f"<0x{byte:02X}>" for byte in range(256))


def _write(vocabulary: Sequence[tuple[str, float]], path: Path) -> None:
    from safetensors.numpy import save

    encoded = [piece.encode() for piece, _ in vocabulary]
    order = sorted(range(len(encoded)), key=encoded.__getitem__)
    tensors = _trie([encoded[token] for token in order], np.array(order, np.int32))
    token_of = {piece: token for token, piece in enumerate(encoded)}
    tensors["scores"] = np.array([score for _, score in vocabulary], np.float64)
    tensors["of_byte"] = np.array([token_of[b"<0x%02X>" % byte] for byte in range(256)], np.int32)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(save(tensors))
    temporary.replace(path)


def _trie(pieces: Sequence[bytes], ids: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    """`bytes`, `children` and `tokens` of unigram.c for pieces in the order of their bytes."""
    joined = b"".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    bytes_ = np.empty(len(joined) + 1, np.uint8)
    children, tokens, first, last, depth = (np.empty(len(joined) + 2, np.int32) for _ in range(5))
    nodes = _library().unigram_build(
        len(pieces),
        joined,
        *(array.ctypes.data for array in (ends, ids, bytes_, children, tokens, first, last, depth)),
    )
    return {"bytes": bytes_[:nodes], "children": children[: nodes + 1], "tokens": tokens[:nodes]}


def _cache_path(tokenizer_json: bytes) -> Path:
    from hashlib import sha256

    from platformdirs import user_cache_path

    name = f"{sha256(tokenizer_json).hexdigest()}-{FORMAT}.safetensors"
    return user_cache_path("rwkv-embed") / "tokenizers" / name
