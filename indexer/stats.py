"""What a collection holds, in numbers, and how its vectors are searched."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from indexer.ann import choose_index, free_memory
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
        "bytes": _bytes(collection),
        "index": index_stats(collection),
        "created_at": info.created_at.isoformat(),
    }
    if recall:
        result["recall@10"] = collection.index.recall()
    return result


def index_stats(collection: "Collection") -> dict[str, Any]:
    """The kind of the vector index, why it was chosen, and how much of the collection it covers."""
    view = collection.index.synchronised()
    dead = len(view.ids) - len(view)
    if view.ann is not None:
        return {
            "kind": view.ann.kind,
            "reason": view.ann.reason,
            "effort": view.ann.effort,
            "indexed": view.ann.count,
            "newer": len(view.ids) - view.ann.count,
            "dead": dead,
        }
    due = choose_index(len(view), view.dim, free_memory(), collection.store.index_kind)
    reason = (
        due.reason if due.kind == "exact" else f"{due.kind} is due; the next write or `compact` builds it"
    )
    return {"kind": "exact", "reason": reason, "indexed": 0, "newer": len(view), "dead": dead}


def _bytes(collection: "Collection") -> dict[str, int]:
    """Bytes of the whole store's database and of this collection's snapshots."""
    store = collection.store
    return {
        "database": total_size(store.directory.glob("store.sqlite3*")),
        "vectors": total_size(store.faiss_directory.glob(f"{collection.id}-*")),
    }


def total_size(paths: Any) -> int:
    """Bytes of those of some files that still exist."""
    total = 0
    for path in map(Path, paths):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
