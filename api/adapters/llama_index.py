"""LlamaIndex: our embedder as `BaseEmbedding`, a collection as retriever. Needs the extra `llama-index`.

from api.adapters.llama_index import RWKVEmbedding, RWKVRetriever
from api.backend import open_store
from indexer.types import SearchOptions

with open_store("my-store") as store:
    retriever = RWKVRetriever(store.collection("default"), SearchOptions(top_k=5))
    nodes = retriever.retrieve("How do bees make honey?")
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from api.adapters.passages import metadata
from indexer.types import SearchOptions
from rwkv_embed.errors import MissingDependency

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
except ImportError as error:
    raise MissingDependency(
        "llama-index-core is missing; install it: pip install 'rwkv-embed[llama-index]'"
    ) from error

if TYPE_CHECKING:
    from indexer.collection import Collection
    from rwkv_embed import Embedder


class RWKVEmbedding(BaseEmbedding):
    """`embedder`: the bundled model if not given."""

    _embedder: Any = PrivateAttr()

    def __init__(self, embedder: Embedder | None = None, **settings: Any) -> None:
        from rwkv_embed import Embedder

        embedder = embedder or Embedder()
        super().__init__(model_name=embedder.model_id, **settings)
        self._embedder = embedder

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._embedder.encode_query(query).tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.encode_document(texts).tolist()
        return vectors


class RWKVRetriever(BaseRetriever):
    """The passages that a search of the collection finds, as text nodes with scores."""

    def __init__(self, collection: Collection, options: SearchOptions | None = None, **settings: Any) -> None:
        self.collection, self.options = collection, options or SearchOptions()
        super().__init__(**settings)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(
                    id_=f"{hit.document_id}#{hit.chunk_id}",
                    text=hit.text,
                    metadata=metadata(hit),
                    start_char_idx=hit.start,
                    end_char_idx=hit.end,
                ),
                score=hit.score,
            )
            for hit in self.collection.search(query_bundle.query_str, self.options)
        ]
