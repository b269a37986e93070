"""An embedder, or the whole search around it, as a model of MTEB (https://github.com/embeddings-benchmark/mteb).

    import mteb
    from indexer.evaluation.mteb import MTEBEncoder, MTEBSearch
    from rwkv_embed import Embedder

    mteb.evaluate(MTEBEncoder(Embedder()), mteb.get_tasks(["STS22.v2"]))        # any text task
    mteb.evaluate(MTEBSearch(Embedder()), mteb.get_tasks(["MIRACLRetrieval"]))  # retrieval and reranking

The encoder is compared by cosine; the search finds what users find: passages, full text, fusion. MTEB keeps
results by name and revision: ours are the model's name, the mode of search, and the embedder's fingerprint.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer.collection import Collection
from indexer.limits import MAX_TOP_K
from indexer.store import open_store
from indexer.types import Document, Reranker, SearchMode, SearchOptions
from rwkv_embed.errors import MissingDependency

try:
    from mteb.models import ModelMeta
    from mteb.types import PromptType
except ImportError as error:
    raise MissingDependency("mteb is not installed; pip install 'rwkv-embed[eval]'") from error

if TYPE_CHECKING:
    from rwkv_embed import Embedder

Vectors = NDArray[np.float32]


class MTEBEncoder:
    """MTEB's `EncoderProtocol`. Queries are encoded as queries, all other texts as documents."""

    def __init__(self, embedder: "Embedder") -> None:
        self._embedder = embedder
        self.mteb_model_meta = _meta(embedder, "dense")

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> Vectors:
        """(n, dim) of unit length. `inputs`: MTEB's loader of batches, {"text": [...]} each."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type == PromptType.query:
            return self._embedder.encode_query(texts)
        return self._embedder.encode_document(texts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines (n, m), a torch tensor, of vectors of unit length."""
        first, second = (np.atleast_2d(np.asarray(part, np.float32)) for part in (embeddings1, embeddings2))
        return _tensor(first @ second.T)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines (n,) of corresponding vectors."""
        first, second = (np.atleast_2d(np.asarray(part, np.float32)) for part in (embeddings1, embeddings2))
        return _tensor(np.einsum("nd,nd->n", first, second))


class MTEBSearch:
    """MTEB's `SearchProtocol`: each corpus is indexed into a temporary store and searched as users search.

    `close` removes the store of the last corpus.
    """

    def __init__(
        self, embedder: "Embedder", mode: SearchMode = "hybrid", *, reranker: Reranker | None = None
    ) -> None:
        self._embedder, self._mode, self._reranker = embedder, mode, reranker
        self.mteb_model_meta = _meta(embedder, f"{mode}-rerank" if reranker else mode)
        self._open = ExitStack()
        self._collection: Collection | None = None

    def close(self) -> None:
        self._open.close()

    def index(self, corpus: Any, **_: Any) -> None:
        """Index a corpus, rows {"id", "text"[, "title"]}; the one before is forgotten."""
        self.close()
        folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="rwkv-embed-mteb-"))
        store = self._open.enter_context(open_store(folder, embedder_factory=lambda _: self._embedder))
        self._collection = store.create_collection("mteb")
        if self._reranker is not None:
            self._collection.reranker = self._reranker
        self._collection.upsert(
            Document(id=row["id"], text="\n\n".join(part for part in (row.get("title"), row["text"]) if part))
            for row in corpus
        )

    def search(
        self, queries: Any, *, top_k: int, top_ranked: dict[str, list[str]] | None = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """query id -> document id -> score. `top_ranked`: the documents that may be found for a query."""
        assert self._collection is not None, "MTEB indexes before it searches"
        options = SearchOptions(
            min(top_k, MAX_TOP_K), mode=self._mode, rerank=self._reranker is not None, group_by="document"
        )
        found = {}
        for row in queries:
            if top_ranked is not None:
                options = replace(options, where={"field": "id", "op": "in", "value": top_ranked[row["id"]]})
            hits = self._collection.search(row["text"], options)
            found[row["id"]] = {hit.document_id: hit.score for hit in hits}
        return found


def _meta(embedder: "Embedder", kind: str) -> ModelMeta:
    """What MTEB files results under: `organisation/model` and a revision."""
    name = f"rwkv-embed/{Path(embedder.model_id).name}-{kind}"
    return ModelMeta.create_empty({"name": name, "revision": embedder.fingerprint, "embed_dim": embedder.dim})


def _tensor(values: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(values)
