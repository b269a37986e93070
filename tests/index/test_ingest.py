"""The one write path: what is embedded, what is kept, what is refused."""

import threading

import numpy as np
import pytest
from fakes import FakeEmbedder, counts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer import ingest, limits
from indexer.db.tables import ChunkRow
from indexer.errors import DocumentNotFound
from indexer.types import ChunkingOptions, Document

BOTH_DATABASES = True


def terms(collection, word):
    with collection.session() as session:
        hits = collection.store.fulltext.search(session.connection(), collection.id, word, 100)
    return [id for id, _ in hits]


def test_only_what_is_new_is_embedded(collection, embedder):
    assert counts(collection.upsert([Document("a", "one\ntwo\nthree"), Document("b", "four")])) == (
        2,
        0,
        0,
        0,
        4,
    )
    assert counts(collection.upsert([Document("a", "one\ntwo\nthree"), Document("b", "four")])) == (
        0,
        0,
        2,
        0,
        0,
    )
    ids = {chunk["text"]: chunk["id"] for chunk in collection.get("a")["chunks"]}
    embedder.read.clear()
    assert counts(collection.upsert([Document("a", "zero\none\nthree\ntwo")])) == (0, 1, 0, 0, 1)
    assert embedder.read == ["zero"]
    chunks = collection.get("a")["chunks"]
    assert [(c["ordinal"], c["start"], c["end"], c["text"]) for c in chunks] == [
        (0, 0, 4, "zero"),
        (1, 5, 8, "one"),
        (2, 9, 14, "three"),
        (3, 15, 18, "two"),
    ]
    assert {c["text"]: c["id"] for c in chunks if c["text"] != "zero"} == ids  # kept chunks keep their ids
    assert terms(collection, "zero") == [chunks[0]["id"]]


def test_known_text_under_another_id_is_not_embedded_again(collection, embedder):
    collection.upsert([Document("a", "one\ntwo")])
    embedder.read.clear()
    collection.upsert([Document("b", "one\ntwo")])
    assert embedder.read == []
    query = embedder.encode_query("one")
    ids, scores = collection.vectors.search(query, 2)
    assert len(ids) == 2
    assert scores == pytest.approx([1, 1], abs=1e-3)


def test_metadata_alone_embeds_nothing_but_is_an_update(collection):
    collection.upsert([Document("a", "one")])
    assert counts(collection.upsert([Document("a", "one", metadata={"x": 1})])) == (0, 1, 0, 0, 0)
    assert collection.get("a")["metadata"] == {"x": 1}


def languages(collection, id):
    whole = collection.get(id)
    return whole["language"], [chunk["language"] for chunk in whole["chunks"]]


def test_a_declared_language_is_that_of_kept_chunks_too(collection):
    collection.upsert([Document("a", "one\ntwo")])
    ids = [chunk["id"] for chunk in collection.get("a")["chunks"]]
    assert languages(collection, "a") == ("en", ["en", "en"])
    for declared, stored in (("de", "de"), ("pt-BR", "pt"), ("EN", "en"), ("zh_Hant", "zh"), (None, "en")):
        assert counts(collection.upsert([Document("a", "one\ntwo", language=declared)])) == (0, 1, 0, 0, 0)
        assert languages(collection, "a") == (stored, [stored, stored])
        assert [d["id"] for d in collection.documents(where=f"lang = {stored}")] == ["a"]
    assert [chunk["id"] for chunk in collection.get("a")["chunks"]] == ids
    assert collection.store.verify().problems == []  # the checksums are right


def test_equal_text_does_not_lend_a_declared_language(collection):
    collection.upsert([Document("a", "one", language="haw")])
    assert counts(collection.upsert([Document("b", "one")])) == (1, 0, 0, 0, 0)
    assert languages(collection, "b") == ("en", ["en"])


@pytest.mark.parametrize("context", ["chunk", "document"])
def test_what_is_appended_has_the_declared_language(store, context):
    collection = store.create_collection("c", chunking=ChunkingOptions(context=context))
    collection.upsert([Document("a", "one", language="haw"), Document("b", "one")])
    for _ in range(2):
        collection.append("a", "\ntwo")
        collection.append("b", "\n二")
    assert languages(collection, "a") == ("haw", ["haw"] * 3)
    assert languages(collection, "b") == ("en", ["en", "zh", "zh"])
    assert collection.upsert([Document("a", "one\ntwo\ntwo", language="haw")]).unchanged == 1


def test_of_equal_ids_the_last_wins(collection):
    assert counts(collection.upsert([Document("a", "one"), Document("a", "two")])) == (1, 0, 0, 0, 1)
    assert collection.get("a")["text"] == "two"


def test_documents_may_be_empty(collection):
    assert counts(collection.upsert([Document("a", ""), Document("b", "\n\n")])) == (2, 0, 0, 0, 0)
    assert collection.get("a")["chunks"] == []
    assert collection.upsert([]).added == 0


def test_a_generator_is_read_batch_by_batch(collection, monkeypatch):
    monkeypatch.setattr(ingest, "BATCH_DOCUMENTS", 64)
    seen = []

    def documents():
        for n in range(200):
            yield Document(f"d{n}", f"word{n}")
            seen.append(collection.count())

    told = []
    collection.upsert(
        documents(), progress=lambda done, total: told.append((done, total, collection.count()))
    )
    assert told == [
        (64, None, 64),
        (128, None, 128),
        (192, None, 192),
        (200, None, 200),
    ]  # told after the commit
    assert seen[70] == 64


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (Document("", "x"), "the id has 0 bytes, 1 to 1024 are allowed"),
        (Document("é" * 600, "x"), "the id has 1200 bytes, 1 to 1024 are allowed"),
        (Document("a", "x", title="t" * 1001), "the title has 1,001 characters, 1,000 are allowed"),
        (
            Document("a", "bad \ud800 text"),
            "the text has a lone surrogate, which is no text, at character 4; remove it",
        ),
        (Document("a", "x", metadata={"n": float("nan")}), "the metadata is not a JSON object: Out of range"),
        (
            Document("a", "x", metadata={"o": object()}),
            "the metadata is not a JSON object: Object of type object",
        ),
        (
            Document("a", "x", metadata={"m": "y" * 70_000}),
            "the metadata has 70,009 bytes, 65,536 are allowed",
        ),
        (
            Document("a", "x", metadata={"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {}}}}}}}}}),
            "the metadata is nested 9 deep, 8 levels are allowed",
        ),
    ],
)
def test_a_document_over_a_limit_fails_alone(collection, document, reason):
    report = collection.upsert([document, Document("good", "fine")])
    assert [failure["reason"][: len(reason)] for failure in report.failed] == [reason]
    assert [d["id"] for d in collection.documents()] == ["good"]


def test_a_text_over_the_limit_fails_alone(collection, monkeypatch):
    monkeypatch.setattr(limits, "MAX_DOCUMENT_CHARS", 10)
    report = collection.upsert([Document("a", "x" * 11), Document("b", "x" * 10)])
    assert report.failed == [{"path": "a", "reason": "the text has 11 characters, 10 may be; split it"}]
    assert report.added == 1


def test_a_failed_batch_changes_nothing(collection, embedder, monkeypatch):
    collection.upsert([Document("a", "one\ntwo")])
    before = collection.get("a")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(collection.store.fulltext, "add", fail)
    with pytest.raises(OSError, match="disk full"):
        collection.upsert([Document("a", "three\ntwo"), Document("b", "four")])
    assert collection.get("a") == before
    assert collection.count() == 1
    assert [len(terms(collection, word)) for word in ("one", "two", "three")] == [1, 1, 0]
    assert len(collection.vectors) == 2


def test_a_broken_model_is_noticed_before_anything_is_written(collection, embedder, monkeypatch):
    monkeypatch.setattr(
        embedder, "encode_document", lambda texts: np.full((len(texts), 32), np.nan, np.float32)
    )
    with pytest.raises(ValueError, match="a vector with NaN or infinity"):
        collection.upsert([Document("a", "one")])
    assert collection.count() == 0


def test_delete_takes_chunks_vectors_and_terms_along(collection, embedder):
    collection.upsert([Document("a", "one\ntwo"), Document("b", "two")])
    collection.vectors.search(embedder.encode_query("two"), 5)
    assert collection.delete(["a", "unknown", "a"]) == 1
    kept = collection.get("b")["chunks"][0]["id"]
    assert collection.vectors.search(embedder.encode_query("two"), 5)[0].tolist() == [kept]
    assert terms(collection, "two") == [kept]
    assert collection.delete(["a"]) == 0


def test_append_embeds_only_the_tail(collection, embedder):
    collection.upsert([Document("log", "first line\nsecond", title="Log", metadata={"k": 1})])
    embedder.read.clear()
    assert counts(collection.append("log", " line\nthird")) == (0, 1, 0, 0, 2)
    assert embedder.read == ["second line", "third"]
    whole = collection.get("log")
    assert whole["text"] == "first line\nsecond line\nthird"
    assert [whole["text"][c["start"] : c["end"]] for c in whole["chunks"]] == [
        "first line",
        "second line",
        "third",
    ]
    assert (whole["title"], whole["metadata"]) == ("Log", {"k": 1})
    assert counts(collection.append("log", "")) == (0, 0, 1, 0, 0)
    with pytest.raises(DocumentNotFound, match="no document 'x'"):
        collection.append("x", "text")


def test_append_resumes_the_state_of_the_document(store, embedder):
    collection = store.create_collection("d", chunking=ChunkingOptions(context="document"))
    collection.upsert([Document("log", "a b\nc")])
    collection.append("log", "\nd e")
    assert embedder.fed == ["a b\nc", "\nd e"]  # the first time, the text is read once
    embedder.fed.clear()
    collection.append("log", "\nf\ng")
    assert embedder.fed == ["\nf", "\ng"]  # now only what is new
    chunks = collection.get("log")["chunks"]
    assert [chunk["text"] for chunk in chunks] == ["a b", "c", "d e", "f", "g"]
    expected = embedder.encode_document(["a b", "a b c", "a b c d e", "a b c d e f", "a b c d e f g"])
    stored = collection.vectors.get(np.array([chunk["id"] for chunk in chunks]))
    np.testing.assert_allclose(stored, expected, atol=1e-3)
    again = store.create_collection("whole", chunking=ChunkingOptions(context="document"))
    again.upsert([Document("log", collection.get("log")["text"])])  # appended or read at once: the same
    whole = again.vectors.get(np.array([chunk["id"] for chunk in again.get("log")["chunks"]]))
    np.testing.assert_allclose(stored, whole, atol=1e-3)


def test_in_document_context_a_change_reaches_what_follows(store, embedder):
    collection = store.create_collection("d", chunking=ChunkingOptions(context="document"))
    collection.upsert([Document("a", "one\ntwo\nthree")])
    embedder.read.clear()
    collection.upsert([Document("a", "one\n2\nthree")])
    assert embedder.read == ["2", "three"]


def test_concurrent_appends_lose_nothing(collection):
    collection.upsert([Document("log", "start")])
    words = [f"w{n}" for n in range(12)]
    threads = [threading.Thread(target=collection.append, args=("log", f"\n{word}")) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(collection.get("log")["text"].split()) == sorted(["start", *words])


LINES = st.lists(st.sampled_from(["a", "b", "c", "a b", "d e f", "日本"]), max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("xyz"), LINES, st.booleans()), max_size=12))
def test_any_history_ends_like_a_dictionary(store, embedder, history):
    """Whatever is put and deleted: chunks, vectors and terms are those of the texts that remain."""
    name = f"h{len(store.collections())}"
    collection, expected = store.create_collection(name), {}
    for id, lines, remove in history:
        if remove:
            collection.delete([id])
            expected.pop(id, None)
        else:
            collection.upsert([Document(id, "\n".join(lines))])
            expected[id] = lines
    assert {d["id"]: d["chunks"] for d in collection.documents()} == {
        id: len(x) for id, x in expected.items()
    }
    ids, texts = [], []
    for id, lines in expected.items():
        chunks = collection.get(id)["chunks"]
        assert [chunk["text"] for chunk in chunks] == lines
        ids += [chunk["id"] for chunk in chunks]
        texts += lines
    view = collection.vectors
    assert len(view) == len(ids)
    if ids:
        np.testing.assert_allclose(view.get(np.array(ids)), embedder._vectors(texts), atol=1e-3)
    assert sorted(terms(collection, "a")) == sorted(
        id for id, text in zip(ids, texts, strict=True) if "a" in text.split()
    )


def test_vectors_are_stored_as_documented(collection, embedder):
    collection.upsert([Document("a", "one two")])
    with collection.session() as session:
        data = session.query(ChunkRow.vector).scalar()
    np.testing.assert_array_equal(
        np.frombuffer(data, "<f2"), embedder.encode_query("one two").astype(np.float16)
    )
    assert isinstance(embedder, FakeEmbedder)
