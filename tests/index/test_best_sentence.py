"""The best sentence of a passage in dense and hybrid searches."""

from pathlib import Path

import numpy as np
import pytest

from indexer import open_store
from indexer.best_sentence import SentenceReader, raised, worth_reading
from indexer.types import Document, SearchOptions
from tests.index.fakes import FakeEmbedder

BOTH_DATABASES = True

LONG = "The harbour is deep. Ships from nine countries come here each summer. Bees sleep at night. Fog is rare."
SHORT = "Bees are insects and honey is sweet and wax is soft."


def test_sentences_that_were_read_are_remembered_and_equal_a_call_for_each(monkeypatch) -> None:
    reader, embedder = SentenceReader(), FakeEmbedder()
    first = reader.read(embedder, [LONG, SHORT, LONG, "  "])
    assert embedder.read == [LONG[a:b] for a, b in first[0].spans] + [SHORT]
    assert [len(one.spans) for one in first] == [4, 1, 4, 0]
    for passage, one in zip((LONG, SHORT), first, strict=False):
        for (a, b), vector in zip(one.spans, one.vectors, strict=True):
            assert (vector == FakeEmbedder().encode_document([passage[a:b]])[0]).all()
    embedder.read.clear()
    assert reader.read(embedder, [SHORT, LONG])[1].vectors is first[0].vectors and embedder.read == []
    assert reader.read(embedder, []) == []

    monkeypatch.setattr("indexer.best_sentence.REMEMBERED_PASSAGES", 1)
    reader.read(embedder, [SHORT])  # the only one that is kept
    reader.read(embedder, [SHORT])
    assert embedder.read == []
    reader.read(embedder, [LONG])
    assert len(embedder.read) == 4


def test_the_best_sentence_is_the_nearest() -> None:
    (passage, empty) = SentenceReader().read(FakeEmbedder(256), [LONG, ""])
    query = FakeEmbedder(256).encode_query("bees sleep at night.")
    cosine, (start, end) = passage.best(query) or (0.0, (0, 0))
    assert LONG[start:end] == "Bees sleep at night." and cosine == pytest.approx(1.0)
    assert empty.best(query) is None


def test_what_is_read_is_near_or_has_the_best_words(monkeypatch) -> None:
    monkeypatch.setattr("indexer.best_sentence.READ_NEAREST", 2)
    monkeypatch.setattr("indexer.best_sentence.READ_BEST_WORDS", 3)
    dense = [(5, 0.9), (3, 0.8), (8, 0.7), (1, 0.6)]
    assert worth_reading(dense, [(1, 7.0), (5, 6.0), (99, 5.0), (8, 4.0)]) == [5, 3, 1]
    assert worth_reading(dense, []) == [5, 3] and worth_reading([], [(1, 7.0)]) == []


def test_the_others_get_the_least_that_a_sentence_added() -> None:
    dense = [(5, 0.9), (3, 0.8), (8, 0.7), (1, 0.6)]
    assert raised(dense, {5: 0.1, 3: 0.5}, 0.4) == [
        (3, pytest.approx(1.0)),
        (5, pytest.approx(0.94)),
        (8, pytest.approx(0.74)),
        (1, pytest.approx(0.64)),
    ]
    assert raised([(2, 0.5), (1, 0.5)], {}, 0.4) == [(1, 0.5), (2, 0.5)]


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_a_search_finds_the_passage_with_the_sentence_and_shows_it(tmp_path: Path, mode) -> None:
    embedder = FakeEmbedder(256)
    with open_store(tmp_path, embedder_factory=lambda name: embedder) as store:
        collection = store.create_collection("c")
        collection.upsert([Document("long", LONG), Document("short", SHORT)])
        query, options = "bees sleep at night.", SearchOptions(mode=mode, explain=True, group_by="document")
        plain = collection.search(query, options)
        embedder.sentence_share = 0.5
        hits = {hit.document_id: hit for hit in collection.search(query, options)}
        told = (hits["long"].explain or {})["dense"]
        passage, asked = (FakeEmbedder(256).encode_query(text) for text in (hits["long"].text, query))
        assert told["cosine"] == pytest.approx(float(np.float16(passage) @ asked), abs=1e-3)
        assert told["sentence"] == pytest.approx(1.0)
        assert told["score"] == pytest.approx(0.5 * told["cosine"] + 0.5, abs=1e-3)
        assert next(iter(hits)) == "long"
        start, end = hits["long"].highlights[0]
        assert hits["long"].text[start:end] == "Bees sleep at night."
        before = {hit.document_id: hit for hit in plain}
        assert (before["long"].explain or {})["dense"].keys() == {"rank", "score"}


def test_a_passage_without_a_word_of_the_query_shows_its_nearest_sentence(tmp_path: Path, monkeypatch) -> None:
    embedder = FakeEmbedder(256)
    embedder.sentence_share = 0.5
    query = FakeEmbedder(256).encode_query("fog is rare.")
    monkeypatch.setattr(embedder, "encode_query", lambda text: query)  # as if translated
    with open_store(tmp_path, embedder_factory=lambda name: embedder) as store:
        collection = store.create_collection("c")
        collection.upsert([Document("long", LONG)])
        hit = collection.search("Nebel", SearchOptions(mode="dense"))[0]
    assert [hit.text[a:b] for a, b in hit.highlights] == ["Fog is rare."]
