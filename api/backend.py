"""Opens the store that this room talks to, with our embedder handed in. Heavy imports happen inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexer.store import Store
    from indexer.types import Reranker
    from rwkv_embed import Embedder


def open_store(
    location: str, model: str | None = None, reranker: str | None = None, *, create: bool = True
) -> Store:
    """The store at a directory or PostgreSQL URL. No model is loaded before the first vector is needed.

    `model` is used for every collection (one built with another is refused with ModelMismatch); None means
    each collection's own model, and the bundled one for new collections.
    `reranker` is loaded when a search asks to rerank.
    StoreError: with `create=False`, none is there.
    """
    from indexer import open_store

    def embedder(name: str | None) -> Embedder:
        from rwkv_embed import Embedder

        return Embedder(model or name)

    factory = None if reranker is None else lambda embedder: load_reranker(reranker, embedder)
    return open_store(location, embedder_factory=embedder, create=create, reranker_factory=factory)


def load_reranker(name: str, embedder: Embedder) -> Reranker:
    """The reranker called `name`: one trained with `embedder`, or any language model."""
    from rwkv_embed import load_model
    from rwkv_embed.checkpoint import open_checkpoint
    from rwkv_embed.errors import CheckpointError
    from rwkv_embed.hub import resolve
    from rwkv_embed.rerank import LikelihoodReranker, StateReranker

    files = resolve(name, progress=True)
    kind = open_checkpoint(files.weights).config.kind
    if kind == "embedder":
        raise CheckpointError(f"{name} is an embedder, which cannot rerank; name a reranker or a language model")
    if kind == "reranker":
        return StateReranker.load(embedder, files.weights)
    return LikelihoodReranker(load_model(name))
