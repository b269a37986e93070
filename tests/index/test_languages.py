"""What a collection of several languages takes off its cosines, held against the obvious sums."""

import hashlib

import numpy as np
import pytest
from fakes import FakeEmbedder

from indexer import ann, languages
from indexer.store import open_store
from indexer.types import Document, SearchOptions

BOTH_DATABASES = True

SUBJECTS = ("bees", "bread", "water", "stars", "books")
DENSE = SearchOptions(mode="dense", top_k=500, explain=True)


class LeaningEmbedder(FakeEmbedder):
    """Bags of words with a strong direction of its own for each language: the first word of a text names it."""

    def _vectors(self, texts):
        vectors = super()._vectors([text.partition(" ")[2] for text in texts])
        for row, text in zip(vectors, texts, strict=True):
            seed = int(hashlib.sha256(text.partition(" ")[0].encode()).hexdigest()[:8], 16)
            row += np.random.default_rng(seed).standard_normal(self.dim) / 8
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def passages(language, count):
    for n in range(count):
        text = f"{language} {SUBJECTS[n % len(SUBJECTS)]} number{n}"
        yield Document(f"{language}/{n}", text, language=language, metadata={"n": n})


@pytest.fixture
def collection(tmp_path):
    with open_store(tmp_path, lambda model_id: LeaningEmbedder(dim=64)) as store:
        yield store.create_collection("default")


def obvious(collection, query):
    """Chunk id -> (score, cosine), from what is in SQL."""
    chunks = [(chunk["id"], chunk["language"]) for row in collection.documents(limit=10_000)
              for chunk in collection.get(row["id"])["chunks"]]  # fmt: skip
    vectors = collection.vectors.get(np.array([id for id, _ in chunks]))
    cosines = vectors @ collection.embedder.encode_query(query)
    leaning = {}
    for language in {language for _, language in chunks}:
        own = [cosine for cosine, (_, other) in zip(cosines, chunks, strict=True) if other == language]
        if len(own) >= languages.LEAST_PASSAGES:
            difference = np.mean(own) - np.mean(cosines)
            leaning[language] = difference * len(own) / (len(own) + languages.PRIOR_PASSAGES)
    return {
        id: (cosine - leaning.get(language, 0.0), cosine)
        for (id, language), cosine in zip(chunks, cosines.tolist(), strict=True)
    }


def test_what_a_language_gives_is_taken_off_each_cosine(collection):
    for language, count in (("de", 60), ("fr", 30), ("sw", languages.LEAST_PASSAGES - 1)):
        collection.upsert(passages(language, count))
    hits = collection.search("de bees", DENSE)
    expected = obvious(collection, "de bees")
    assert len(hits) == len(expected) == 109
    assert {hit.chunk_id: hit.score for hit in hits} == pytest.approx(
        {id: score for id, (score, _) in expected.items()}, abs=1e-5
    )
    assert {hit.chunk_id: hit.explain["dense"]["cosine"] for hit in hits} == pytest.approx(
        {id: cosine for id, (_, cosine) in expected.items()}, abs=1e-5
    )
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    taken_off = {hit.language: hit.explain["dense"]["cosine"] - hit.score for hit in hits}
    assert taken_off["de"] > 0.03 > taken_off["fr"] and taken_off["sw"] == 0
    threshold = hits[10].score
    above = collection.search("de bees", SearchOptions(mode="dense", top_k=500, score_threshold=threshold))
    assert [hit.chunk_id for hit in above] == [hit.chunk_id for hit in hits[:11]]


def test_a_collection_of_one_language_is_searched_by_cosines(collection):
    collection.upsert([*passages("de", 60), *passages("fr", languages.LEAST_PASSAGES - 1)])
    hits = collection.search("de bees", DENSE)
    assert [(hit.chunk_id, hit.score) for hit in hits] == list(
        zip(*map(np.ndarray.tolist, collection.vectors.search(collection.embedder.encode_query("de bees"), 500)),
            strict=True)
    )  # fmt: skip
    assert all(set(hit.explain["dense"]) == {"rank", "score"} for hit in hits)


def test_it_follows_what_is_added_and_deleted(collection):
    collection.upsert(passages("de", 40))
    with collection.session() as session:
        assert collection.index.memory.leanings(session, collection.vectors).languages == ()
    collection.upsert(passages("fr", 25))
    with collection.session() as session:
        assert collection.index.memory.leanings(session, collection.vectors).languages == ("de", "fr")
    collection.delete([f"fr/{n}" for n in range(6)])
    with collection.session() as session:
        assert collection.index.memory.leanings(session, collection.vectors).languages == ()


def test_filters_and_an_approximate_index_rank_alike(collection, monkeypatch):
    monkeypatch.setattr(ann, "EXACT_VALUES", 64 * 100)
    collection.upsert([*passages("de", 400), *passages("fr", 300)])
    collection.index.save()
    assert collection.vectors.ann is not None
    for where in (None, "n < 40", "lang = fr"):
        options = SearchOptions(mode="dense", top_k=20, where=where)
        near = collection.search("de bees", options)
        exact = collection.search("de bees", SearchOptions(mode="dense", top_k=20, where=where, exact=True))
        assert [hit.chunk_id for hit in near] == [hit.chunk_id for hit in exact]
        assert [hit.score for hit in near] == pytest.approx([hit.score for hit in exact], abs=1e-6)


def test_a_sample_stands_for_a_large_collection(collection, monkeypatch):
    collection.upsert(one for pair in zip(passages("de", 300), passages("fr", 300), strict=True) for one in pair)
    with collection.session() as session:
        whole = languages.leanings(session, collection.vectors)
        monkeypatch.setattr(languages, "SAMPLE_ROWS", 200)
        sample = languages.leanings(session, collection.vectors)
    query = collection.embedder.encode_query("de bees")
    assert sample.languages == whole.languages == ("de", "fr")
    assert sample.of(query) == pytest.approx(whole.of(query), abs=0.05)
