"""The indexer's values as JSON: shapes that scripts and clients rely on, the same in terminal and HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexer.types import Answer, Citation, IngestReport, SearchHit


def hit(found: SearchHit) -> dict[str, Any]:
    shape = {
        "score": found.score,
        "document_id": found.document_id,
        "chunk_id": found.chunk_id,
        "title": found.title,
        "uri": found.uri,
        "language": found.language,
        "text": found.text,
        "start": found.start,
        "end": found.end,
        "metadata": dict(found.metadata),
        "highlights": [list(span) for span in found.highlights],
    }
    return shape if found.explain is None else shape | {"explain": dict(found.explain)}


def citation(cited: Citation) -> dict[str, Any]:
    return {
        "n": cited.n,
        "document_id": cited.document_id,
        "chunk_id": cited.chunk_id,
        "title": cited.title,
        "uri": cited.uri,
        "quote": cited.quote,
        "start": cited.start,
        "end": cited.end,
        "score": cited.score,
    }


def answer(given: Answer) -> dict[str, Any]:
    return {
        "answer": given.answer,
        "abstained": given.abstained,
        "citations": [citation(cited) for cited in given.citations],
    }


def report(done: IngestReport) -> dict[str, Any]:
    return {
        "added": done.added,
        "updated": done.updated,
        "unchanged": done.unchanged,
        "deleted": done.deleted,
        "failed": [dict(failure) for failure in done.failed],
        "chunks_embedded": done.chunks_embedded,
        "resumed": done.resumed,
    }


def collection(info: Any) -> dict[str, Any]:
    """CollectionInfo -> {"name", "model", "dim", "documents", "chunks", "chunking", "metadata", …}."""
    return {
        "object": "collection",
        "name": info.name,
        "model": info.model_id,
        "fingerprint": info.fingerprint,
        "dim": info.dim,
        "documents": info.documents,
        "chunks": info.chunks,
        "chunking": info.recipe,
        "metadata": dict(info.metadata),
        "created_at": info.created_at,
    }


def _plain(value: Any) -> Any:
    """What `json` does not know: times as ISO 8601, mappings, NumPy scalars and arrays."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if hasattr(value, "__fspath__"):
        return value.__fspath__()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def dumps(value: Any, *, indent: int | None = None) -> str:
    """JSON text. A lone surrogate, which UTF-8 cannot carry, is written as its \\u escape."""
    text = json.dumps(value, ensure_ascii=False, default=_plain, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
