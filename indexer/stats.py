"""What a collection holds, in numbers, and how its vectors are searched."""

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from indexer.db.tables import ChunkRow

if TYPE_CHECKING:
    from indexer.collection import Collection


def stats(collection: "Collection", recall: bool = False) -> dict[str, Any]:
    """Counts, model, languages of the chunks, bytes on disk and the vector index.

    With `recall`, "recall@10" of the vector index against exact search is measured on 100 stored vectors.
    """
    info = collection.info
    languages = select(ChunkRow.language, func.count()).where(ChunkRow.collection_id == collection.id)
    with collection.session() as session:
        counted = session.execute(languages.group_by(ChunkRow.language).order_by(func.count().desc())).all()
    result: dict[str, Any] = {
        "collection": info.name,
        "documents": info.documents,
        "chunks": info.chunks,
        "model": info.model_id,
        "fingerprint": info.fingerprint,
        "dim": info.dim,
        "context": info.recipe.context,
        "languages": {language or "unknown": count for language, count in counted},
        "bytes": {"database": collection.store.database.size(), "vectors": collection.index.size()},
        "index": collection.index.describe(),
        "created_at": info.created_at.isoformat(),
    }
    if recall:
        result["recall@10"] = collection.index.recall()
    return result
