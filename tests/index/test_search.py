"""Search over a real store: modes, filters, grouping, variety, pages, hostile queries."""

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
from fakes import PIPELINE, FakeEmbedder
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, select

from indexer import search
from indexer.analysis import query_terms
from indexer.db.tables import DocumentRow
from indexer.errors import InvalidFilter, InvalidQuery, LimitExceeded
from indexer.filters import matches, parse, to_sql
from indexer.fusion import fuse, maximal_marginal_relevance
from indexer.search import highlights
from indexer.store import open_store
from indexer.types import Document, SearchOptions


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def collection(new_store, request):
    embedder = FakeEmbedder(dim=64)
    with new_store(request.param) as location, open_store(location, lambda model_id: embedder) as store:
        collection = store.create_collection("default")
        collection.upsert(
            [
                Document(
                    "fox", "The quick brown fox jumps. It sleeps now.", language="en", metadata={"year": 2020}
                ),
                Document("hare", "The brown hare runs away.", language="en", metadata={"year": 2021}),
                Document("db", "数据库系统的部署很重要。我们今天学习。", metadata={"year": 2022}),
                *(
                    Document(f"filler{n:03}", f"filler text number {n}", metadata={"n": n})
                    for n in range(200)
                ),
            ]
        )
        yield collection


def ids(hits):
    return [hit.document_id for hit in hits]


def test_lexical_finds_words_and_dense_finds_neighbours(collection):
    assert ids(collection.search("quick fox", SearchOptions(mode="lexical"))) == ["fox"]
    dense = collection.search("the brown hare runs away.", SearchOptions(mode="dense", top_k=2))
    assert ids(dense)[0] == "hare"
    assert dense[0].score == pytest.approx(1.0, abs=1e-3)
    assert dense[0].explain is None


def test_a_two_character_query_finds_its_document_and_sentence(collection):
    hit = collection.search("部署", SearchOptions(top_k=1, mode="lexical"))[0]
    assert hit.document_id == "db"
    assert [hit.text[start:end] for start, end in hit.highlights] == ["数据库系统的部署很重要。"]


def test_explain_says_which_arm_found_a_hit(collection):
    hit = collection.search("quick brown fox", SearchOptions(top_k=1, explain=True))[0]
    assert hit.document_id == "fox"
    assert hit.explain["lexical"]["rank"] == 1
    assert set(hit.explain["dense"]) == {"rank", "score"}


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_a_filter_never_costs_results(collection, mode):
    options = SearchOptions(mode=mode, top_k=5, where="n >= 190")
    hits = collection.search("filler text", options)
    assert len(hits) == 5
    assert all(hit.metadata["n"] >= 190 for hit in hits)
    exactly_one = collection.search("filler text", SearchOptions(mode=mode, top_k=5, where="n = 7"))
    assert ids(exactly_one) == ["filler007"]
    assert collection.search("filler text", SearchOptions(mode=mode, where="n = 1000")) == []


FILTERS = [
    "n = 1",
    "n = true",
    "n >= 2 and tags = a",
    "not tags in (a, b)",
    'language = "en" and n < 3',
    "o.x = 1",
]
METADATA = st.fixed_dictionaries(
    {},
    optional={
        "n": st.sampled_from([0, 1, 2, 3, True, None, "1"]),
        "tags": st.lists(st.sampled_from("abc"), max_size=2),
        "o": st.fixed_dictionaries({"x": st.sampled_from([1, 2])}),
    },
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def changing(new_store, request):
    with (
        new_store(request.param) as location,
        open_store(location, lambda _: FakeEmbedder(), pipeline=PIPELINE) as store,
    ):
        yield store.create_collection("default")


@settings(max_examples=12, deadline=None)
@given(metadata=st.lists(METADATA, min_size=12, max_size=12), where=st.sampled_from(FILTERS))
def test_listed_filters_are_the_obvious_ones_while_documents_change(changing, metadata, where):
    """All that pass, from the list of passing chunks: each example changes the same documents."""
    documents = [
        Document(f"d{n}", "word", language="en" if n % 2 else "de", metadata=fields)
        for n, fields in enumerate(metadata)
    ]
    changing.upsert(documents)
    passing = {
        one.id
        for one in documents
        if matches(parse(where), {"language": one.language, "metadata": one.metadata})
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MIN_DEPTH", 1)  # so that the first ranking never holds enough
        patch.setattr(search, "DEPTH_PER_HIT", 0)
        for _ in range(2):
            options = SearchOptions(mode="dense", top_k=50, where=where)
            assert set(ids(changing.search("word", options))) == passing


@pytest.mark.parametrize("collection", ["sqlite"], indirect=True)
def test_filters_on_metadata_and_language_are_read_from_their_index(collection):
    condition = to_sql(parse('n >= 190 and language = "en"'), collection.store.engine.dialect)
    statement = select(DocumentRow.id).where(DocumentRow.collection_id == 1, condition)
    with collection.store.engine.connect() as connection:
        sql = statement.compile(connection, compile_kwargs={"literal_binds": True})
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}").all()
    assert plan[0].detail.startswith("SEARCH documents USING COVERING INDEX ix_documents_filter")


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_phrases_and_exclusions_hold_in_every_mode(collection, mode):
    assert ids(collection.search('"quick brown"', SearchOptions(mode=mode))) == ["fox"]
    assert "fox" not in ids(collection.search("brown -jumps", SearchOptions(mode=mode, top_k=300)))


@pytest.mark.parametrize(
    "options",
    [
        SearchOptions(mmr_lambda=0.5),
        SearchOptions(mmr_lambda=0.5, mode="lexical"),
        SearchOptions(where="n = 5"),
    ],
)
def test_a_search_needs_one_connection(collection, monkeypatch, options):
    """With a second one each, as many searches as the pool has connections would wait for each other."""
    alone = create_engine(collection.store.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    monkeypatch.setattr(collection.store, "engine", alone)
    fresh = collection.store.collection("default")  # has looked nothing up yet
    assert "filler005" in ids(fresh.search("filler text number 5", options))
    alone.dispose()


def test_pages_follow_each_other(collection):
    everything = ids(collection.search("filler text number 5", SearchOptions(top_k=30)))
    pages = [
        ids(collection.search("filler text number 5", SearchOptions(top_k=10, offset=n))) for n in (0, 10, 20)
    ]
    assert [id for page in pages for id in page] == everything
    assert len(set(everything)) == 30


class Lengths:
    def score(self, query, passages):
        return np.array([len(passage) for passage in passages], np.float32)


@settings(max_examples=15, deadline=None)
@given(
    options=st.builds(
        SearchOptions,
        top_k=st.sampled_from([20, 30]),
        mode=st.sampled_from(["dense", "lexical", "hybrid"]),
        group_by=st.sampled_from(["chunk", "document"]),
        where=st.sampled_from([None, "n >= 150", "year >= 2020 or n < 90"]),
        mmr_lambda=st.sampled_from([None, 0.5]),
        rerank=st.booleans(),
    ),
    query=st.sampled_from(["filler text number 5", "brown text -fox"]),
    offset=st.integers(0, 60),
)
def test_pages_are_cut_from_one_sequence(collection, options, query, offset):
    with pytest.MonkeyPatch.context() as patch:
        # so that pages need several depths and blocks
        for name, value in {"MIN_DEPTH": 5, "DEPTH_PER_HIT": 1, "MMR_DEPTH": 2, "RERANK_DEPTH": 50}.items():
            patch.setattr(search, name, value)
        patch.setitem(vars(collection), "reranker", Lengths())

        def found(start):
            return ids(collection.search(query, replace(options, offset=start)))

        pages = [found(start) for start in range(0, 220, options.top_k)]
        whole = [id for page in pages for id in page]
        everything = collection.search(query, replace(options, top_k=1000, mmr_lambda=None, rerank=False))
        assert len(set(whole)) == len(whole)
        assert set(whole) == set(ids(everything))
        assert found(offset) == whole[offset : offset + options.top_k]


def test_reranking_one_hit_per_document_finds_as_many_as_without(tmp_path):
    with open_store(tmp_path, lambda model_id: FakeEmbedder(), reranker_factory=lambda _: Lengths()) as store:
        collection = store.create_collection("long")
        long = "\n\n".join(f"# Part {n}\n\n" + "same words again. " * 60 for n in range(80))
        collection.upsert([Document("long", long), Document("other", "same thing once")])
        hits = collection.search("same words", SearchOptions(group_by="document", rerank=True))
        assert ids(hits) == ["long", "other"]


def test_every_chunk_is_a_candidate_in_dense_mode(collection):
    assert len(collection.search("anything", SearchOptions(mode="dense", top_k=1000))) == 203


def test_one_hit_per_document(tmp_path):
    embedder = FakeEmbedder()
    with open_store(tmp_path, lambda model_id: embedder) as store:
        collection = store.create_collection("long")
        long = "\n\n".join(f"# Part {n}\n\n" + "same words again. " * 60 for n in range(80))
        collection.upsert([Document("long", long), Document("other", "same thing once")])
        assert ids(collection.search("same words", SearchOptions(group_by="chunk", top_k=3))) == ["long"] * 3
        assert sorted(ids(collection.search("same words", SearchOptions(group_by="document")))) == [
            "long",
            "other",
        ]


def test_score_threshold(collection):
    hits = collection.search("quick fox", SearchOptions(mode="dense", score_threshold=0.2))
    assert hits and all(hit.score >= 0.2 for hit in hits)
    assert collection.search("quick fox", SearchOptions(mode="dense", score_threshold=1.1)) == []


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_a_score_threshold_is_a_number(collection, threshold):
    with pytest.raises(InvalidQuery, match=f"score_threshold is {threshold}; expected a finite number"):
        collection.search("quick fox", SearchOptions(score_threshold=threshold))


def test_variety_moves_a_near_duplicate_down():
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert maximal_marginal_relevance([1.0, 0.9, 0.5], vectors, 1.0, 3) == [0, 1, 2]
    assert maximal_marginal_relevance([1.0, 0.9, 0.5], vectors, 0.3, 2) == [0, 2]
    assert maximal_marginal_relevance([], vectors[:0], 0.5, 3) == []


def test_variety_in_a_search_gives_distinct_hits(collection):
    hits = collection.search("filler text", SearchOptions(top_k=10, mmr_lambda=0.5))
    assert len(set(ids(hits))) == 10


def test_fusion_by_hand():
    # cosines 0.9 and 0.5: mean 0.7, deviation 0.2, so 1 and -1; the best BM25, 4, over the root of 4 terms is 2
    fused = fuse([(1, 0.9), (2, 0.5)], [(2, 4.0), (3, 2.0)], terms=4, weight=2.0, sharpness=3)
    assert fused == [(2, pytest.approx(-1 + 4)), (1, pytest.approx(1)), (3, pytest.approx(-1 + 4 / 8))]


def test_fusion_without_one_arm_or_both():
    assert fuse([], [], terms=0) == []
    assert fuse([], [(7, 2.0), (5, 1.0)], terms=1, weight=1.0, sharpness=2) == [(7, 2.0), (5, 0.5)]
    assert fuse([(7, 0.5)], [(7, 0.0)], terms=1) == [(7, 0.0)]
    assert [id for id, _ in fuse([(7, 0.9), (5, 0.8)], [], terms=3)] == [7, 5]
    assert fuse([(9, 0.5), (8, 0.5)], [], terms=1) == [(8, 0.0), (9, 0.0)]  # no spread: ties by id


def test_fusion_does_not_depend_on_the_scale_of_cosines():
    cosines = [(n, 1.0 / n) for n in range(1, 40)]
    squeezed = [(n, 0.9 + 0.1 * score) for n, score in cosines]
    lexical = [(30, 3.0), (50, 1.0)]
    for (a, x), (b, y) in zip(fuse(cosines, lexical, 2), fuse(squeezed, lexical, 2), strict=True):
        assert (a, x) == (b, pytest.approx(y))


def test_highlights():
    text = "Nothing here. The quick brown fox jumps. A fox."
    assert [text[a:b] for a, b in highlights(frozenset(query_terms("quick foxes jump")), text)] == [
        "The quick brown fox jumps."
    ]
    assert highlights(frozenset(query_terms("absent")), text) == []
    common = "What the fox is, the hare is. Is the owl the king? Wisdom."
    assert [common[a:b] for a, b in highlights(frozenset(query_terms("is the owl wise")), common)] == [
        "Is the owl the king?"
    ]


def test_highlights_of_a_passage_that_was_analysed_before_are_those_of_one_that_was_not():
    texts = [f"Passage {n} says {n % 7}. Another sentence about {n % 5} foxes." for n in range(20)]
    wanted = [frozenset(query_terms(query)) for query in ("foxes", "says 3", "absent", "passage 12")]
    search._analysed_sentences.cache_clear()
    first = [highlights(terms, text) for text in texts for terms in wanted]
    assert first == [highlights(terms, text) for text in texts for terms in wanted]
    assert search._analysed_sentences.cache_info().hits == 7 * len(texts)


@pytest.mark.parametrize(
    ("query", "options", "error", "message"),
    [
        ("", SearchOptions(), InvalidQuery, "the query is empty"),
        (" \n", SearchOptions(), InvalidQuery, "the query is empty"),
        ("-fox", SearchOptions(), InvalidQuery, "the query only excludes"),
        ("x" * 40_000, SearchOptions(), LimitExceeded, "40,000 characters; at most 32,768"),
        ("x", SearchOptions(top_k=0), InvalidQuery, "top_k is 0; expected 1 to 1000"),
        ("x", SearchOptions(offset=-1), InvalidQuery, "offset is -1; expected 0 to 10000"),
        ("x", SearchOptions(mmr_lambda=2), InvalidQuery, "mmr_lambda is 2; expected 0"),
        ("x", SearchOptions(mode="magic"), InvalidQuery, "mode is 'magic'; expected dense"),
        ("x", SearchOptions(group_by="page"), InvalidQuery, "group_by is 'page'; expected chunk"),
        ("x", SearchOptions(rerank=True), InvalidQuery, "no reranker is named; name one with --reranker"),
        ("x", SearchOptions(where="year >"), InvalidFilter, "expected a value"),
    ],
)
def test_refuses_what_makes_no_sense(collection, query, options, error, message):
    with pytest.raises(error, match=message):
        collection.search(query, options)


@pytest.mark.parametrize("query", ["*", "***", '""', '"" *', '-""'])
def test_operators_of_nothing_are_text(collection, query):
    assert len(collection.search(query)) == 10
    assert collection.search(query, SearchOptions(mode="lexical")) == []


@pytest.mark.parametrize(
    "query", ['"', "\x00", "\ud800", "a\x00b", "(((", 'x" OR "y', "\u202e", "* - *", "NEAR(", "😀"]
)
def test_hostile_queries_are_only_text(collection, query):
    for mode in ("dense", "lexical", "hybrid"):
        with contextlib.suppress(InvalidQuery):
            collection.search(query, SearchOptions(mode=mode))
