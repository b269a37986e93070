"""Full text: analysis of every script, the query language, and both databases behind it."""

import random
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import column, create_engine, select, table, text

from indexer import fulltext_sqlite, postings
from indexer.analysis import MAX_TERM_CHARS, index_terms, query_terms
from indexer.db.database import open_database
from indexer.errors import StoreError
from indexer.fulltext import fulltext_for, parse_query

DOCUMENTS = {
    1: "The quick brown fox",
    2: "数据库系统的部署",
    3: "しりとりは楽しい",
    4: "게임을 하다",
    5: "ประเทศไทยสวยงาม",
    6: "Café noir and C++ deployment in C#",
    7: "brown the quick hare",
    8: "اجتمعت اللجنة في المدرسة الجديدة",
    9: "Die Bibliotheken der Städte",
}


@pytest.fixture(scope="module")
def postgresql(postgresql_database):
    """The one database of this file: each test finds it empty, as it takes back what it writes."""
    with postgresql_database() as url:
        database = open_database(url, True, 1.0)
        yield database
        database.engine.dispose()


def sqlite_connection():
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def postgresql_connection(database):
    options = {"postgresql_readonly": False}
    with database.engine.connect().execution_options(**options) as connection:
        yield connection


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request):
    """A connection to an empty database."""
    if request.param == "sqlite":
        yield from sqlite_connection()
    else:
        yield from postgresql_connection(request.getfixturevalue("postgresql"))


@pytest.fixture
def connection(empty):
    with_documents(empty)
    return empty


@pytest.fixture
def fts5():
    """The documents in SQLite, where a test is about FTS5 itself."""
    for connection in sqlite_connection():
        with_documents(connection)
        yield connection


@pytest.fixture
def tsvectors(postgresql):
    """The documents in PostgreSQL, where a test is about tsvectors."""
    for connection in postgresql_connection(postgresql):
        with_documents(connection)
        yield connection


def with_documents(connection):
    fulltext_for(connection.engine).create(connection, 1)
    fulltext_for(connection.engine).add(connection, 1, DOCUMENTS.items())


def found(connection, query, **options):
    return [id for id, _ in fulltext_for(connection.engine).search(connection, 1, query, 10, **options)]


def demanded(connection, query):
    name, id = {"sqlite": ("terms_1_docsize", "id"), "postgresql": ("terms_1", "chunk_id")}[
        connection.engine.dialect.name
    ]
    rows = table(name, column(id)).alias("rows")
    condition = fulltext_for(connection.engine).demanded(1, query, rows.c[id])
    return None if condition is None else set(connection.scalars(select(rows.c[id]).where(condition)))


def with_chunks(connection, chunks):
    connection.execute(text("DROP TABLE IF EXISTS chunks"))
    connection.execute(text("CREATE TABLE chunks (id INTEGER PRIMARY KEY, collection_id INTEGER, text TEXT)"))
    for id, (collection_id, chunk) in chunks.items():
        connection.execute(
            text("INSERT INTO chunks VALUES (:id, :collection, :text)"),
            {"id": id, "collection": collection_id, "text": chunk},
        )


@pytest.mark.parametrize(
    ("run", "words", "variants"),
    [
        ("Hello, World_2", ["hello", "world", "2"], []),
        ("Ｆｕｌｌ ｗｉｄｔｈ", ["full", "width"], []),
        ("Straßen", ["strassen"], ["＾stras"]),
        ("naïve résumé", ["naive", "resume"], ["naïve", "résumé", "＾resum"]),
        ("数据库", ["数", "数据", "据", "据库", "库"], []),
        ("게임을", ["게임을", "게임", "임을"], []),
        ("게임", ["게임"], []),
        ("ไทย", ["ไท", "ไทย", "ย"], []),
        ("हिन्दी", ["हिन्दी"], ["＾हिन्द"]),
        ("C++ c# C", ["c＋＋", "c＃", "c"], []),
        ("كِتَاب", ["كتاب"], []),
        ("x" * 1000, ["x" * MAX_TERM_CHARS], ["＾xxxxx"]),
        ("\x00 \ud800 😀 \"'()*:^-", [], []),
    ],
)
def test_terms(run, words, variants):
    assert index_terms(run) == (words, variants)


def test_query_terms_are_found_among_index_terms():
    for document in DOCUMENTS.values():
        stored = index_terms(document)
        assert set(query_terms(document)) <= {*stored.words, *stored.variants}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("部署", [2]),
        ("数据库", [2]),
        ("しりとり", [3]),
        ("게임", [4]),
        ("ไทย", [5]),
        ("cafe", [6]),
        ("CAFÉ", [6]),
        ("café noir?", [6]),
        ("deployments", [6]),
        ("C++", [6]),
        ("مدرسة", [8]),
        ("Bibliothek", [9]),
        ("stadte", [9]),
        ("qui*", [1, 7]),
        ('"quick brown"', [1]),
        ('"cafe noir"', [6]),
        ('"据库系"', [2]),
        ('"brown the" hare', [7]),
        ('brown -"quick brown"', [7]),
        ("brown -fox", [7]),
        ("-fox", []),
        ("absent", []),
    ],
)
def test_finds(connection, query, expected):
    assert sorted(found(connection, query)) == expected


def test_what_a_query_demands(connection):
    everything = set(DOCUMENTS)
    assert demanded(connection, "quick fox") is None
    assert demanded(connection, '"quick brown" hare') == {1}
    assert demanded(connection, "x -brown") == everything - {1, 7}
    assert demanded(connection, '"the quick" -hare') == {1}


def test_parsing_a_query():
    parsed = parse_query('find "brown fox" dep* -red -"dark blue" a-b "')
    assert parsed.text == 'find brown fox dep a-b "'
    assert parsed.terms == ("find", "a", "b")
    assert parsed.prefixes == ("dep",)
    assert parsed.phrases == (("brown", "fox"),)
    assert parsed.excluded == (("red",), ("dark", "blue"))


def test_a_rare_term_outranks_a_common_one(connection):
    assert found(connection, "quick fox") == [1, 7]
    scores = fulltext_for(connection.engine).search(connection, 1, "quick fox", 10)
    assert scores[0][1] > scores[1][1]


def test_only_allowed_chunks_are_found(connection):
    assert found(connection, "brown", allowed=np.array([7, 5])) == [7]
    assert [id for id, _ in fulltext_for(connection.engine).search(connection, 1, "brown", 1)] == [1]


def test_removed_chunks_are_gone(connection):
    full_text = fulltext_for(connection.engine)
    full_text.remove(connection, 1, [(1, DOCUMENTS[1])])
    assert found(connection, "brown") == [7]
    full_text.add(connection, 1, [(1, "a new brown text")])
    assert sorted(found(connection, "brown")) == [1, 7]
    full_text.optimize(connection, 1)
    assert sorted(found(connection, "brown")) == [1, 7]


def test_the_index_is_sound_for_fts5_after_changes(fts5):
    full_text = fulltext_for(fts5.engine)
    full_text.remove(fts5, 1, [(1, DOCUMENTS[1])])
    full_text.optimize(fts5, 1)
    fts5.execute(text("INSERT INTO terms_1(terms_1) VALUES ('integrity-check')"))


def test_a_sound_index_is_what_a_new_one_would_be(connection):
    is_sound = fulltext_for(connection.engine).is_sound
    with_chunks(connection, {id: (1, chunk) for id, chunk in DOCUMENTS.items()})
    assert is_sound(connection, 1)
    for damaged in ({1: (1, "The quick brown")}, {3: (2, DOCUMENTS[3])}, {100: (1, "")}):
        with_chunks(connection, {**{id: (1, chunk) for id, chunk in DOCUMENTS.items()}, **damaged})
        assert not is_sound(connection, 1), damaged


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE terms_1 SET length = length + 1 WHERE chunk_id = 4",
        "UPDATE terms_1 SET terms = ts_delete(terms, 'fox')",
        "UPDATE terms_1 SET terms = setweight(terms, 'B') WHERE chunk_id = 1",
        "UPDATE terms_1_totals SET rows = rows - 1",
        "UPDATE terms_1_totals SET length = length - 1",
    ],
)
def test_damaged_tsvectors_are_noticed(tsvectors, damage):
    with_chunks(tsvectors, {id: (1, chunk) for id, chunk in DOCUMENTS.items()})
    tsvectors.execute(text(damage))
    assert not fulltext_for(tsvectors.engine).is_sound(tsvectors, 1)


def test_the_callers_transaction_decides(empty):
    full_text = fulltext_for(empty.engine)
    with empty.begin():
        full_text.create(empty, 2)
    with pytest.raises(RuntimeError, match="changed my mind"), empty.begin():
        full_text.add(empty, 2, [(1, "lost")])
        assert len(full_text.search(empty, 2, "lost", 5)) == 1
        raise RuntimeError("changed my mind")
    assert full_text.search(empty, 2, "lost", 5) == []
    full_text.drop(empty, 2)
    full_text.drop(empty, 2)
    empty.commit()


HOSTILE = [
    '"', '""', '"""', "'", "''", "*", "**", "-", "--", '-"', '"*', "(", ")", "()", "(()", "^", "^a",
    ":", "words:a", "{words}:a", "{", "}", "a AND", "OR", "NOT", "NOT a", "AND OR NOT", "NEAR(",
    "NEAR(a b, 2)", "a NEAR b", "+", "a + b", "a,b", ";", "; DROP TABLE terms_1;", "' OR 1=1 --", "%",
    "_", "\\", "\\\"", "?", ":1", ":expression", "@x", "$x", "\x00", "a\x00b", '"a\x00b"', "\ud800",
    "a\udfff", "\ufeff", "\u202eabc", "\u200f\u200e", "\u0301", "😀", "👩‍👩‍👧", "a" * 1_000_000,
    "a " * 16_000, '"' * 1_000, "-" * 1_000, "* " * 1_000, "(" * 1_000, "漢" * 20_000, '"a" ' * 2_000,
    "-a " * 2_000, "a* " * 2_000, "\n\t\r\v", "\x1b[31m", "../../etc/passwd", "<script>", "${jndi:x}",
    "{{7*7}}", "terms_1", "rowid", "rank", "rank MATCH 'x'", 'a" OR "b', 'a" NOT "b', "-\"a b", "a -",
    "- a", "*a", "a*b*", '"a*"', '-"a*"', "NULL", "None", "nan", "0x00", "1e999", "\U0010ffff",
    "\ue000", "ﷺ", "ſ", "İ", "ß", "Ǆ", "ﬁ", "a\u00adb", "\u2028", "\u2029", "ก็", "၊။", "+++", "c++#",
    "##", "#", "x'00'", "/*", "*/", "--x", "[a]", "a/b", "~", "a & b", "a | b", "!a", "!", "&", "|", "a <-> b",
    "<->", "a <2> b", "fox:*", "fox:*A", "'fox':A", "\\'fox", "''fox''", "fox\\", '"fox & !brown"',
    '"the \\" | fox"',
    "%(q)s", "%s %%", ":query", "$1", "ก" + "่" * 5_000, '"' + "漢" * 20_000 + '"', '"' + "ﷺ" * 30_000 + '"',
    " ".join(f"a{n}*" for n in range(700)), " ".join(f'"a{n}" -b{n}' for n in range(700)),
]  # fmt: skip


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_no_query_reaches_the_syntax(connection, query):
    assert set(found(connection, query)) <= set(DOCUMENTS)
    demanded(connection, query)


def test_random_queries_reach_no_syntax(connection):
    chance = random.Random(7)
    pieces = ['"', "*", "-", "(", ")", "^", ":", "{", "AND", "NOT", " ", "fox", "数", "\x00", "+", "'", ","]
    for _ in range(500):
        found(connection, "".join(chance.choices(pieces, k=chance.randint(1, 12))))


def test_other_databases_are_refused_clearly():
    class Oracle:
        class dialect:
            name = "oracle"

    with pytest.raises(StoreError, match="no full text for 'oracle' databases; expected sqlite or postgresql"):
        fulltext_for(Oracle())


def test_common_terms_are_left_out_of_a_large_query(connection, monkeypatch):
    monkeypatch.setattr(f"indexer.fulltext_{connection.engine.dialect.name}.MATCH_BUDGET", 2)
    assert found(connection, "the quick brown fox") == [1]  # the rest is over the budget
    assert sorted(found(connection, "quick")) == [1, 7]  # the rarest term stays, whatever it costs


def test_strays_are_chunks_without_terms_and_terms_without_a_chunk(connection):
    strays = fulltext_for(connection.engine).strays
    with_chunks(connection, {})
    assert strays(connection, 1) == len(DOCUMENTS)
    with_chunks(connection, dict.fromkeys(DOCUMENTS, (1, "")))
    assert strays(connection, 1) == 0
    connection.execute(text("INSERT INTO chunks VALUES (100, 1, ''), (101, 2, '')"))
    connection.execute(text("DELETE FROM chunks WHERE id IN (3, 4)"))
    assert strays(connection, 1) == 3


WORDS = [
    "the",
    "of",
    "and",
    "bees",
    "honey",
    "make",
    "winter",
    "hive",
    "queen",
    "部署",
    "数据库",
    "deployments",
]
TEXTS = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=30
)


@settings(max_examples=40, deadline=None)
@given(
    first=TEXTS,
    second=TEXTS,
    gone=st.sets(st.integers(1, 30)),
    query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join),
    limit=st.integers(1, 8),
    allowed=st.none() | st.sets(st.integers(1, 60)),
    few=st.sampled_from([0.0, 1.0]),
)
def test_common_words_are_ranked_as_fts5_ranks_them(first, second, gone, query, limit, allowed, few):
    """The same rows and scores from memory as from FTS5, while rows come and go."""
    engine = create_engine("sqlite://")
    rows = dict(enumerate([*first, *second], start=1))
    chosen = None if allowed is None else np.array(sorted(allowed), np.int64)
    with pytest.MonkeyPatch.context() as patch, engine.connect() as connection:
        ranked = fulltext_for(engine)
        ranked.create(connection, 1)
        patch.setattr(postings, "NEWER_ROWS", 3)
        patch.setattr(postings, "FEW_SHARE", few)
        for change in (
            lambda: ranked.add(connection, 1, list(rows.items())[: len(first)]),
            lambda: ranked.add(connection, 1, list(rows.items())[len(first) :]),
            lambda: ranked.remove(connection, 1, [(id, rows[id]) for id in gone if id in rows]),
        ):
            change()
            connection.commit()
            patch.setattr(fulltext_sqlite, "RANKED_BY_FTS5", -1)
            quick = ranked.search(connection, 1, query, limit, chosen)
            patch.setattr(fulltext_sqlite, "RANKED_BY_FTS5", 10**9)
            slow = ranked.search(connection, 1, query, 100, chosen)
            assert [score for _, score in quick] == pytest.approx(
                [s for _, s in slow[:limit]], rel=1e-4, abs=1e-6
            )
            assert dict(quick) == pytest.approx({id: dict(slow)[id] for id, _ in quick}, rel=1e-4, abs=1e-6)
    engine.dispose()


UNUSUAL = ["Straßen", "Straße", "naïve", "naive", "المدرسة", "مدرسة", "C++", "게임을", "ไทย", "beeswax"]
PHRASES = st.lists(st.sampled_from(WORDS[:6] + UNUSUAL), min_size=1, max_size=4).map(" ".join)
QUERIES = st.lists(
    st.sampled_from(WORDS + UNUSUAL)
    | PHRASES.map('"{}"'.format)
    | PHRASES.map('-"{}"'.format)
    | st.sampled_from(["-queen", "-naïve", "be*", "h*", "naï*", "部*", "strass*"])
    | st.sampled_from(["absent", "absent*", '"absent"']),
    min_size=1,
    max_size=5,
).map(" ".join)
PASSAGES = st.lists(
    st.lists(st.sampled_from(WORDS + UNUSUAL), max_size=25).map(" ".join), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(
    texts=PASSAGES,
    gone=st.sets(st.integers(1, 12)),
    queries=st.lists(QUERIES, min_size=1, max_size=8),
    allowed=st.none() | st.sets(st.integers(1, 14)),
)
def test_both_databases_give_the_same(postgresql, texts, gone, queries, allowed):
    rows = dict(enumerate(texts, start=1))
    chosen = None if allowed is None else np.array(sorted(allowed), np.int64)
    both = [contextmanager(sqlite_connection)(), contextmanager(postgresql_connection)(postgresql)]
    with both[0] as sqlite, both[1] as other:
        full_texts = [(fulltext_for(connection.engine), connection) for connection in (sqlite, other)]
        for full_text, connection in full_texts:
            full_text.create(connection, 1)
            full_text.add(connection, 1, rows.items())
            full_text.remove(connection, 1, [(id, rows[id]) for id in gone if id in rows])
        for query in queries:
            expected, given = (
                dict(full_text.search(connection, 1, query, 100, chosen)) for full_text, connection in full_texts
            )
            assert given == pytest.approx(expected, rel=1e-6), query
            assert list(given.values()) == sorted(given.values(), reverse=True)
            assert demanded(other, query) == demanded(sqlite, query), query


def test_words_beside_a_phrase_count_in_every_row(empty):
    """A score is a sum: that of the phrase and, in rows that have them, those of the words."""
    draw = random.Random(0)
    rows = {id: " ".join(draw.choices("abcdefgh", k=draw.randint(3, 40))) for id in range(1, 501)}
    full_text = fulltext_for(empty.engine)
    full_text.create(empty, 1)
    full_text.add(empty, 1, rows.items())
    phrase, word, both = (dict(full_text.search(empty, 1, query, 500)) for query in ('"a b"', "c", '"a b" c'))
    assert 100 < len(phrase) < 400
    assert both == pytest.approx({id: score + word.get(id, 0) for id, score in phrase.items()}, rel=1e-6)


def test_ts_rank_cd_counts_what_unnest_counts(tsvectors):
    """Every frequency up to the 256 places of a lexeme, in words, variants, prefixes and phrases."""
    fulltext_for(tsvectors.engine).add(
        tsvectors, 1, [(1_000 + n, "naïve bees " * n + "bee beesting " * (n % 3)) for n in range(1, 301)]
    )
    counted = text(
        """
        SELECT chunk_id - 1000 AS n, length,
            ts_rank_cd('{1,1,1,1}', terms, CAST(:query AS tsquery)) AS counted,
            (SELECT sum(cardinality(positions)) FROM unnest(terms) WHERE lexeme = ANY(:lexemes)) AS there
        FROM terms_1 WHERE chunk_id > 1000 ORDER BY 1"""
    )
    for query, lexemes in (
        ("'bees':A", ["bees"]),
        ("'naïve'", ["naïve"]),
        ("'bee':*A", ["bees", "bee", "beesting"]),
        ("'naive':A <-> 'bees':A", ["bees"]),
    ):
        rows = tsvectors.execute(counted, {"query": query, "lexemes": lexemes}).all()
        assert [row.counted for row in rows] == [row.there for row in rows], query
        assert lexemes[1:] or [row.there for row in rows] == [min(row.n, 256) for row in rows]
    assert rows[-1].length == 3 * 300


def test_passages_beyond_the_limits_of_a_tsvector_are_found(tsvectors):
    full_text = fulltext_for(tsvectors.engine)
    full_text.add(
        tsvectors,
        1,
        [
            (100, " ".join(f"w{n}" for n in range(40_000))),
            (101, " ".join(f"{n:05}{'x' * 59}" for n in range(40_000))),
            (102, "ก" + "่" * 3_000),
        ],
    )
    assert found(tsvectors, '"w39998 w39999"') == [100]
    assert found(tsvectors, '"w16381 w16382"') == [100]
    assert found(tsvectors, f"00007{'x' * 59}") == [101]
    assert found(tsvectors, "ก" + "่" * 3_000) == [102]


def test_terms_that_the_last_analyze_found_everywhere_are_not_counted(tsvectors, monkeypatch):
    monkeypatch.setattr("indexer.fulltext_postgresql.MATCH_BUDGET", 20)
    full_text = fulltext_for(tsvectors.engine)
    full_text.add(tsvectors, 1, [(n, "common rare" if n % 20 == 0 else "common") for n in range(100, 300)])
    tsvectors.execute(text("ANALYZE terms_1"))
    assert len(full_text.search(tsvectors, 1, "common rare", 300)) == 10
    known = full_text._frequencies[1]
    assert known.exact == {"'rare'": 10}
    assert known.about["'common'"] == pytest.approx(200, abs=1)
    assert len(full_text.search(tsvectors, 1, "common", 300)) == 200
    assert known.exact["'common'"] == 200


def test_only_the_newest_of_very_many_rows_are_ranked(tsvectors, monkeypatch):
    monkeypatch.setattr("indexer.fulltext_postgresql.CANDIDATES", 1)
    assert found(tsvectors, "brown") == [7]


def test_the_commonest_terms_only_raise_candidates():
    """With the bound reached after the rare list, rows that only the common one has are not looked at."""
    common = postings.PostingList(np.arange(100, dtype=np.int32), np.ones(100, np.uint16))
    rare = postings.PostingList(np.array([3, 50], np.int32), np.array([1, 2], np.uint16))
    norms = np.ones(100, np.float32)
    for limit in (1, 2, 5):
        quick = postings.top_rows([rare, common], [5.0, 0.1], norms, np.zeros(100, np.float32), limit)
        shares = np.full(100, 0.1 * 2.2 / 2)
        shares[[3, 50]] += [5 * 2.2 / 2, 5 * 2 * 2.2 / 3]
        order = np.lexsort((np.arange(100), -shares))[:limit]
        assert quick[0].tolist() == order.tolist()
        assert quick[1].tolist() == pytest.approx(shares[order].tolist())
    assert [part.tolist() for part in postings.top_rows([], [], norms, np.zeros(100, np.float32), 3)] == [
        [],
        [],
    ]


def test_lengths_of_many_bytes_are_read():
    encoded = np.array([0x00, 0x7F, 0x81, 0x00, 0x88, 0x92, 0x20], np.uint8)
    assert postings._varints(encoded).tolist() == [0, 127, 128, 133_408]


def test_lists_that_were_not_used_for_long_are_forgotten(fts5, monkeypatch):
    monkeypatch.setattr("indexer.fulltext_sqlite.RANKED_BY_FTS5", -1)
    monkeypatch.setattr("indexer.postings.LIST_BYTES", 6)
    fts5.commit()
    ranked = fulltext_for(fts5.engine)
    for query in ("brown", "quick", "brown", "fox"):
        ranked.search(fts5, 1, query, 10)
    assert list(ranked._postings[1]._rows.lists) == ["fox"]


@pytest.mark.parametrize("values", [[4, 5, 6, 7], [4, 6, 7, 9], [5], []])
def test_places_with_and_without_gaps(values):
    places, there = postings._places(np.array(values, np.int32), np.arange(12))
    assert [n for n in range(12) if there[n]] == values
    assert places[there].tolist() == list(range(len(values)))
