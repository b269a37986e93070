"""What a document is to the store: hashes, bytes, and whether it is within the limits."""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from indexer import limits
from indexer.errors import LimitExceeded
from indexer.language import declared_language
from indexer.types import Chunk, Document, Vectors

_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # behind backslashes that are text


def content_hash(document: Document) -> str:
    """sha256 of everything a caller can say about a document."""
    fields = [document.text, document.title, document.uri, document.language, document.metadata]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def text_hashes(text: str, chunks: Sequence[Chunk], context: str) -> list[str]:
    """128 bits of sha256 of what each chunk's vector depends on: its text, or all text up to its end."""
    if context == "chunk":
        return [hashlib.sha256(chunk.text.encode()).hexdigest()[:32] for chunk in chunks]
    hashes, read, position = [], hashlib.sha256(), 0
    for chunk in chunks:
        read.update(text[position : chunk.end].encode())
        position = max(position, chunk.end)
        here = read.copy()
        here.update(f"\0{chunk.start}:{chunk.end}".encode())
        hashes.append(here.hexdigest()[:32])
    return hashes


def pack_vectors(vectors: Vectors) -> list[bytes]:
    """(n, dim) float32 -> n rows of little-endian float16, as they are stored."""
    if not np.isfinite(vectors).all():
        raise ValueError("the embedder gave a vector with NaN or infinity; its weights may be damaged")
    return [row.tobytes() for row in np.ascontiguousarray(vectors, dtype="<f2")]


def body_bytes(text: str) -> bytes:
    return zlib.compress(text.encode(), level=1)


def body_text(body: bytes) -> str:
    return zlib.decompress(body).decode() if body else ""


def check_new(document: Document, takes_nul: bool) -> None:
    """As `check`; LimitExceeded, too, for a language that no filter would find. Stored ones are left alone."""
    check(document, takes_nul)
    if document.language is not None and declared_language(document.language) is None:
        raise LimitExceeded(
            f"the language {document.language[:40]!r} is no ISO 639 code; give one such as en or zh, or none"
        )


def check(document: Document, takes_nul: bool) -> None:
    """LimitExceeded when a document is over one of `indexer.limits` or is not Unicode text and JSON.

    `takes_nul`: whether its database stores the character NUL.
    """
    for name in ("id", "title", "uri", "language", "text"):
        value = getattr(document, name) or ""
        if "\0" in value and not takes_nul:
            raise LimitExceeded(f"the {name} has a NUL character, which PostgreSQL does not store; remove it")
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            raise LimitExceeded(
                f"the {name} has a lone surrogate, which is no text, at character {error.start}; remove it"
            ) from None
        if name == "id" and not 0 < size <= limits.MAX_DOCUMENT_ID_BYTES:
            raise LimitExceeded(f"the id has {size} bytes, 1 to {limits.MAX_DOCUMENT_ID_BYTES} are allowed")
    if len(document.text) > limits.MAX_DOCUMENT_CHARS:
        raise LimitExceeded(
            f"the text has {len(document.text):,} characters, {limits.MAX_DOCUMENT_CHARS:,} may be; split it"
        )
    if len(document.title or "") > limits.MAX_TITLE_CHARS:
        raise LimitExceeded(
            f"the title has {len(document.title or ''):,} characters, {limits.MAX_TITLE_CHARS:,} are allowed"
        )
    _check_metadata(document.metadata, takes_nul)


def _check_metadata(metadata: Mapping[str, Any], takes_nul: bool) -> None:
    try:
        written = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
        size = len(written.encode())
        if not isinstance(metadata, Mapping) or not _keys_are_text(metadata):
            raise ValueError("it must be an object, and its keys text")
    except (TypeError, ValueError, RecursionError) as error:
        raise LimitExceeded(f"the metadata is not a JSON object: {error}") from None
    if not takes_nul and _ESCAPED_NUL.search(written):
        raise LimitExceeded("the metadata has a NUL character, which PostgreSQL does not store; remove it")
    if size > limits.MAX_METADATA_BYTES:
        raise LimitExceeded(f"the metadata has {size:,} bytes, {limits.MAX_METADATA_BYTES:,} are allowed")
    if _depth(metadata) > limits.MAX_METADATA_DEPTH:
        raise LimitExceeded(
            f"the metadata is nested {_depth(metadata)} deep, {limits.MAX_METADATA_DEPTH} levels are allowed"
        )


def _keys_are_text(value: Any) -> bool:
    """JSON would make text of other keys, and what comes back would not be what was put in."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) for key in value) and all(map(_keys_are_text, value.values()))
    return not isinstance(value, list | tuple) or all(map(_keys_are_text, value))


def _depth(value: Any) -> int:
    if isinstance(value, Mapping):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list | tuple):
        return 1 + max(map(_depth, value), default=0)
    return 0
