"""Passages as points on a plane: principal components of their vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from indexer.collection import Collection

TEXT_CHARS = 160  # of a passage, enough to recognise it


def draw(collection: Collection, limit: int) -> dict[str, Any]:
    """At most `limit` passages, evenly spread over the collection, with their place on the map."""
    from sqlalchemy import select

    from indexer.db.tables import ChunkRow, DocumentRow

    document = (DocumentRow.external_id, DocumentRow.title)
    columns = (ChunkRow.id, *document, ChunkRow.language, ChunkRow.text, ChunkRow.vector)
    with collection.session() as session:
        mine = ChunkRow.collection_id == collection.id
        ids = session.scalars(select(ChunkRow.id).where(mine).order_by(ChunkRow.id)).all()
        chosen = [ids[place] for place in np.linspace(0, len(ids) - 1, min(limit, len(ids))).astype(int)]
        query = (
            select(*columns)
            .join(DocumentRow, DocumentRow.id == ChunkRow.document_id)
            .where(ChunkRow.id.in_(chosen))
        )
        rows = session.execute(query).all()
    vectors = np.array([np.frombuffer(row.vector, "<f2") for row in rows], np.float32)
    points = [
        {
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "chunk_id": row.id,
            "document_id": row.external_id,
            "title": row.title,
            "language": row.language,
            "text": row.text[:TEXT_CHARS],
        }
        for row, (x, y) in zip(rows, plane(vectors), strict=True)
    ]
    return {"points": points, "total": len(ids)}


def plane(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, dim) -> (n, 2): coordinates along the two directions of largest variance, scaled into [-1, 1].

    The sign of a direction is arbitrary; its largest entry is made positive, so that the map stays put.
    """
    if len(vectors) < 2:
        return np.zeros((len(vectors), 2))
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)  # ascending
    best = directions[:, :-3:-1]
    best = best * np.sign(best[np.abs(best).argmax(axis=0), range(best.shape[1])])
    points = np.zeros((len(vectors), 2))
    points[:, : best.shape[1]] = centred @ best
    largest = np.abs(points).max()
    return points / largest if largest > 0 else points
