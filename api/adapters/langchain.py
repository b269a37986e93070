"""LangChain: our embedder as `Embeddings`, a collection as `VectorStore`. Needs the extra `langchain`.

    from api.adapters.langchain import RWKVEmbeddings, RWKVVectorStore
    from api.backend import open_store

    with open_store("my-store") as store:
        vectors = RWKVVectorStore(store.collection("default"))
        retriever = vectors.as_retriever(search_kwargs={"k": 5, "filter": "year >= 2020"})
        documents = retriever.invoke("How do bees make honey?")

A search is the collection's own: hybrid, over passages; `page_content` is the passage and the metadata say
where it is. Scores are those of one search: larger is better, and not comparable between searches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from api.adapters.passages import metadata
from indexer.types import Document as Text
from indexer.types import SearchOptions
from rwkv_embed.errors import MissingDependency

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore
except ImportError as error:
    raise MissingDependency(
        "langchain-core is missing; install it: pip install 'rwkv-embed[langchain]'"
    ) from error

if TYPE_CHECKING:
    from indexer.collection import Collection
    from rwkv_embed import Embedder


class RWKVEmbeddings(Embeddings):
    """`embedder`: the bundled model if not given."""

    def __init__(self, embedder: Embedder | None = None) -> None:
        from rwkv_embed import Embedder

        self.embedder = embedder or Embedder()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.embedder.encode_document(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        vector: list[float] = self.embedder.encode_query(text).tolist()
        return vector


class RWKVVectorStore(VectorStore):
    """A collection. `options`: how it is searched when a call does not say otherwise."""

    def __init__(self, collection: Collection, options: SearchOptions | None = None) -> None:
        self.collection, self.options = collection, options or SearchOptions()

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add or replace documents, one a text; their ids, made up where none is given.

        ValueError names those that were not stored, and why; the others are.
        """
        texts = list(texts)
        named = [id or str(uuid4()) for id in ids or [None] * len(texts)]
        described = metadatas or [{}] * len(texts)
        report = self.collection.upsert(
            Text(id, text, metadata=about) for id, text, about in zip(named, texts, described, strict=True)
        )
        if report.failed:
            reasons = "; ".join(f"{failure['path']!r}: {failure['reason']}" for failure in report.failed)
            raise ValueError(f"{len(report.failed)} of {len(named)} texts were not stored: {reasons}")
        return named

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents by id; whether there were any."""
        return self.collection.delete(ids or []) > 0

    def similarity_search(self, query: str, k: int = 4, filter: Any = None, **options: Any) -> list[Document]:
        """The k best passages. `filter` as for `--where`; `options` are fields of `SearchOptions`."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **options)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Any = None, **options: Any
    ) -> list[tuple[Document, float]]:
        """The same with scores."""
        wanted = replace(self.options, top_k=k, where=filter or self.options.where, **options)
        return [
            (Document(id=hit.document_id, page_content=hit.text, metadata=metadata(hit)), hit.score)
            for hit in self.collection.search(query, wanted)
        ]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """k passages that differ; `lambda_mult` 1 is relevance only. `fetch_k` is the search's own affair."""
        return self.similarity_search(query, k, mmr_lambda=lambda_mult, **kwargs)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        store: str = "",
        collection: str = "default",
        **kwargs: Any,
    ) -> RWKVVectorStore:
        """Texts into a collection of the store at a directory, made if it is not there."""
        from indexer import open_store

        if not store or not isinstance(embedding, RWKVEmbeddings):
            raise ValueError("from_texts needs RWKVEmbeddings and store=DIR, the directory of the store")
        opened = open_store(store, embedder_factory=lambda _: embedding.embedder)
        made = cls(opened.collection_or_create(collection), **kwargs)
        made.add_texts(texts, metadatas, ids=ids)
        return made
