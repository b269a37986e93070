"""Opens the store that this room talks to, with our embedder handed in. Heavy imports happen inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexer.store import Store
    from rwkv_embed import Embedder


def open_store(location: str, model: str | None = None, *, create: bool = True) -> Store:
    """The store at a directory or SQLAlchemy URL. No model is loaded before the first vector is needed.

    `model` is used for every collection (one built with another is refused with ModelMismatch); None means
    each collection's own model, and the bundled one for new collections.
    StoreError: with `create=False`, none is there.
    """
    from indexer import open_store

    def embedder(name: str | None) -> Embedder:
        from rwkv_embed import Embedder

        return Embedder(model or name)

    return open_store(location, embedder_factory=embedder, create=create)
