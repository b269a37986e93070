"""LangChain and LlamaIndex, with their real packages, over a real collection with an embedder of words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.adapters.passages import metadata
from indexer import open_store
from indexer.collection import Collection
from indexer.types import Document, SearchOptions
from rwkv_embed import Embedder
from tests.service.conftest import LIBRARY
from tests.service.fakes import WordEmbedder

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    embedder = WordEmbedder()
    with open_store(tmp_path / "s", embedder_factory=lambda _: embedder) as store:
        made = store.create_collection("library", embedder)
        made.upsert(LIBRARY)
        yield made


@pytest.fixture
def langchain() -> Any:
    pytest.importorskip(
        "langchain_core", reason="LANGCHAIN IS NOT INSTALLED: pip install 'rwkv-embed[langchain]'"
    )
    from api.adapters import langchain

    return langchain


@pytest.fixture
def llama_index() -> Any:
    reason = "LLAMAINDEX IS NOT INSTALLED: pip install 'rwkv-embed[llama-index]'"
    pytest.importorskip("llama_index.core", reason=reason)
    from api.adapters import llama_index

    return llama_index


def test_a_source_of_the_documents_own_is_kept(collection: Collection) -> None:
    collection.upsert([Document("wax", "Wax is soft.", uri="file:///wax", metadata={"source": "Pliny"})])
    (hit,) = collection.search("wax soft", SearchOptions(top_k=1))
    assert metadata(hit)["source"] == "Pliny"


def test_langchain_searches_as_the_collection_does(langchain: Any, collection: Collection) -> None:
    store = langchain.RWKVVectorStore(collection)
    expected = collection.search("bees make honey", SearchOptions(top_k=3))
    found = store.similarity_search_with_score("bees make honey", k=3)
    assert [(document.id, score) for document, score in found] == [(h.document_id, h.score) for h in expected]
    best = found[0][0]
    assert best.page_content == "Bees make honey. They live in hives."
    assert best.metadata == {
        "year": 2020,
        "document_id": "en/bees",
        "chunk_id": expected[0].chunk_id,
        "title": "Bees",
        "uri": "https://example.org/bees",
        "language": "en",
        "start": 0,
        "end": 36,
        "source": "https://example.org/bees",
    }


def test_langchain_retriever_filters_and_varies(langchain: Any, collection: Collection) -> None:
    store = langchain.RWKVVectorStore(collection)
    retriever = store.as_retriever(search_kwargs={"k": 2, "filter": "year >= 2022"})
    found = retriever.invoke("bees make honey")
    assert len(found) == 2 and all(document.metadata["year"] >= 2022 for document in found)
    varied = store.as_retriever(search_type="mmr", search_kwargs={"k": 3}).invoke("bees make honey")
    assert len({document.id for document in varied}) == 3
    lexical = langchain.RWKVVectorStore(collection, SearchOptions(mode="lexical"))
    assert [document.id for document in lexical.similarity_search("flour")] == ["en/bread"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'tok_k'"):
        store.similarity_search("bees", tok_k=3)


def test_langchain_adds_and_deletes(langchain: Any, collection: Collection) -> None:
    store = langchain.RWKVVectorStore(collection)
    known, made_up = store.add_texts(
        ["Wax is soft.", "Ants dig."], [{"year": 1}, {"year": 2}], ids=["wax", None]
    )
    assert known == "wax" and collection.get(made_up)["text"] == "Ants dig."
    assert store.similarity_search("wax soft", k=1)[0].metadata["year"] == 1
    assert store.delete(["wax", made_up]) is True and store.delete(["wax"]) is False
    assert collection.count() == len(LIBRARY)


def test_langchain_tells_what_was_not_stored(langchain: Any, collection: Collection) -> None:
    store = langchain.RWKVVectorStore(collection)
    with pytest.raises(ValueError, match=r"1 of 2 texts were not stored: 'x{200}': the id has 2000 bytes"):
        store.add_texts(["Wax is soft.", "Ants dig."], ids=["wax", "x" * 2000])
    assert collection.get("wax")["text"] == "Wax is soft."


def test_langchain_embeddings_and_from_texts(langchain: Any, tmp_path: Path) -> None:
    embeddings = langchain.RWKVEmbeddings(WordEmbedder())
    assert embeddings.embed_documents(["honey"]) == [embeddings.embed_query("honey")]
    store = langchain.RWKVVectorStore.from_texts(
        ["Bees make honey.", "Bread is baked."], embeddings, ids=["a", "b"], store=str(tmp_path / "new")
    )
    assert [document.id for document in store.similarity_search("honey", k=1)] == ["a"]
    store.collection.store.close()
    with pytest.raises(ValueError, match="from_texts needs RWKVEmbeddings and store=DIR"):
        langchain.RWKVVectorStore.from_texts(["x"], embeddings)


def test_llama_index_retrieves(llama_index: Any, collection: Collection) -> None:
    retriever = llama_index.RWKVRetriever(collection, SearchOptions(top_k=2, where="language = en"))
    best, other = retriever.retrieve("bees make honey")
    expected = collection.search("bees make honey", SearchOptions(top_k=2, where="language = en"))
    assert [best.score, other.score] == [hit.score for hit in expected]
    assert best.text == "Bees make honey. They live in hives."
    assert (best.node.start_char_idx, best.node.end_char_idx) == (0, 36)
    assert best.metadata["source"] == "https://example.org/bees"


def test_llama_index_embeds_like_the_bundled_model(llama_index: Any) -> None:
    embedding, embedder = llama_index.RWKVEmbedding(), Embedder()
    assert embedding.model_name == embedder.model_id
    assert np.allclose(embedding.get_query_embedding("honey"), embedder.encode_query("honey"), atol=1e-6)
    many = embedding.get_text_embedding_batch(["honey", "bread"])
    assert np.allclose(many, embedder.encode_document(["honey", "bread"]), atol=1e-6)
