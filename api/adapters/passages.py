"""What the frameworks are told of a passage besides its text."""

from typing import Any

from api import shapes
from indexer.types import SearchHit


def metadata(hit: SearchHit) -> dict[str, Any]:
    """The document's own metadata, and where the passage is; `source` is what to show as its origin, unless
    the document has a source of its own."""
    place = {
        name: value
        for name, value in shapes.hit(hit).items()
        if name not in ("text", "metadata", "score", "highlights") and value is not None
    }
    return {"source": hit.uri or hit.document_id, **hit.metadata, **place}
