"""A store in PostgreSQL: the same answers as SQLite's, many writers, pgvector's index, hostile values.

What a store does whatever its database is tested in the other modules, which run on both (`BOTH_DATABASES`).
"""

import contextlib
import logging
import subprocess
import sys
import threading

import numpy as np
import pytest
from fakes import FakeEmbedder
from sqlalchemy import event, text
from sqlalchemy.exc import ProgrammingError

from indexer import pgvector
from indexer.db.database import open_database, without_password
from indexer.db.types import halfvec_bytes
from indexer.errors import CollectionNotFound, InvalidQuery, StoreError, StoreLocked
from indexer.store import open_store
from indexer.types import Document, SearchOptions

DIM = 32


@pytest.fixture
def url(new_store):
    with new_store("postgresql") as url:
        yield url


@pytest.fixture
def opened(url):
    with open_store(url, lambda model_id: FakeEmbedder(DIM), lock_wait_s=10) as store:
        yield store


@pytest.fixture
def collection(opened):
    return opened.create_collection("default")


def words(n):
    rng = np.random.default_rng(n)
    return " ".join(f"w{number}" for number in rng.zipf(1.5, 12) if number < 3_000) + f" text {n}"


def fill(collection, documents):
    collection.upsert(
        Document(f"d{n}", words(n), language=("de", "fr")[n % 2], metadata={"n": n}) for n in range(documents)
    )


# --- the same answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_searches_find_what_they_find_in_sqlite(opened, collection, new_store, mode):
    with (
        new_store("sqlite") as directory,
        open_store(directory, lambda model_id: FakeEmbedder(DIM)) as other,
    ):
        twin = other.create_collection("default")
        for one in (collection, twin):
            fill(one, 120)
            one.delete([f"d{n}" for n in range(30, 45)])
            one.upsert([Document("d7", words(7) + " and more", metadata={"n": 7})])
        for query in ("w1 w2 w9", "text 100", '"text 17" w3', "w5 -w1", "w2*", "unheard of"):
            for where in (None, "n < 20", "lang = fr and n >= 60"):
                options = SearchOptions(mode=mode, top_k=25, where=where, explain=True)
                mine, theirs = collection.search(query, options), twin.search(query, options)
                assert [hit.chunk_id for hit in mine] == [hit.chunk_id for hit in theirs], (query, where)
                np.testing.assert_allclose(
                    [hit.score for hit in mine], [hit.score for hit in theirs], rtol=1e-4, atol=1e-5
                )
        assert collection.stats()["languages"] == twin.stats()["languages"]


def test_vectors_are_the_bits_that_were_put_in(opened, collection):
    values = np.array([[0.0, -0.0, 6e-8, 1.0, -65504.0, 65504.0, 0.1, 1 / 3] * 4], "<f2")
    collection.upsert([Document("a", "one")])
    with opened.write("the test") as session:
        session.execute(
            text("UPDATE chunks SET vector = CAST(:vector AS halfvec)"), {"vector": str(values[0].tolist())}
        )
    ids = np.array([1, 99])
    np.testing.assert_array_equal(
        collection.vectors.get(ids), np.vstack([values[0], np.zeros(DIM)]).astype(np.float32)
    )
    assert halfvec_bytes(values.tobytes())[:6] == b"\0\x20\0\0\0\0"


# --- many processes --------------------------------------------------------------------------------------

WRITER = """
import sys
sys.path.insert(0, "tests/index")
from fakes import FakeEmbedder
from indexer.store import open_store
from indexer.types import Document
with open_store(sys.argv[1], lambda m: FakeEmbedder(32), lock_wait_s=60) as store:
    collection = store.collection_or_create("default")
    for n in range(int(sys.argv[3])):
        collection.upsert([Document(f"{sys.argv[2]}{n}", f"writer {sys.argv[2]} number {n}")])
"""


def test_processes_write_and_read_together(url):
    """Readers see each chunk once and never miss an older one than the newest that they know."""
    names = ["a", "b", "c"]
    running = [subprocess.Popen([sys.executable, "-c", WRITER, url, name, "25"]) for name in names]
    with open_store(url, lambda m: FakeEmbedder(DIM)) as store:
        collection = store.collection_or_create("default", FakeEmbedder(DIM))
        seen: set[int] = set()
        while any(process.poll() is None for process in running):
            found = [chunk.chunk_id for chunk in collection.search("writer number", SearchOptions(top_k=100))]
            assert len(found) == len(set(found))
            assert not {id for id in set(found) - seen if id < max(seen, default=0)}
            seen |= set(found)
        assert [process.wait() for process in running] == [0, 0, 0]
        assert collection.count() == len(collection.search("writer", SearchOptions(top_k=100))) == 75
        assert store.verify().problems == []


def test_a_writer_that_waits_too_long_is_told_for_whom(url, opened):
    with (
        opened.write("a long task"),
        open_store(url, lambda m: FakeEmbedder(DIM), lock_wait_s=0.1) as other,
        pytest.raises(
            StoreLocked, match=r"is being written by process \d+ on .* \(a long task\) since 20.* UTC; gave up"
        ),
    ):
        other.create_collection("x")
    opened.create_collection("y")
    assert [c.name for c in opened.collections()] == ["y"]


@pytest.fixture
def someone_else(url):
    """Gives another role rights to the tables of `url`, such as "SELECT"; its URL."""
    import psycopg

    def granted(rights):
        if rights:
            server.execute(f"GRANT {rights} ON ALL TABLES IN SCHEMA public TO someone_else")
        return url.replace("//postgres:@", "//someone_else@")

    with psycopg.connect(url, autocommit=True) as server:
        server.execute("CREATE ROLE someone_else LOGIN")
        yield granted
        server.execute("DROP OWNED BY someone_else")
        server.execute("DROP ROLE someone_else")


def test_a_writer_of_another_role_is_waited_for(opened, someone_else):
    """PostgreSQL does not tell one role since when another's statement runs."""
    with (
        opened.write("a long task"),
        open_store(someone_else("SELECT"), lambda m: FakeEmbedder(DIM), lock_wait_s=0.1) as other,
        pytest.raises(StoreLocked, match=r"is being written by process \d+ on .* \(a long task\); gave up"),
    ):
        other.create_collection("x")


def test_another_role_may_delete_what_it_cannot_drop(opened, collection, someone_else):
    fill(collection, 20)
    with open_store(someone_else("SELECT, INSERT, UPDATE, DELETE"), lambda m: FakeEmbedder(DIM)) as other:
        other.delete_collection("default")
    assert opened.collections() == []
    opened.compact()
    assert left(opened, "^terms_") == []


def left(opened, pattern):
    with opened.read() as session:
        relations = text("SELECT relname FROM pg_class WHERE relname ~ :pattern ORDER BY 1")
        return session.scalars(relations, {"pattern": pattern}).all()


def test_deleting_a_collection_waits_for_nobody_who_reads_it(opened, collection):
    """Its tables are dropped when they are not read any more, with the next collection or by `compact`."""
    fill(collection, 20)
    with opened.read() as session:
        assert opened.fulltext.search(session.connection(), collection.id, "w1", 5)
        opened.delete_collection("default")
        with pytest.raises(CollectionNotFound):
            opened.collection("default")
        assert opened.fulltext.search(session.connection(), collection.id, "w1", 5)
        assert left(opened, "^terms_[0-9]+(_totals)?$") == ["terms_1", "terms_1_totals"]
    opened.compact()
    assert left(opened, "^terms_") == []


def test_searches_and_a_deletion_never_wait_for_each_other(opened, collection):
    """A search reads one table of the full-text index, then the other."""
    fill(collection, 20)
    with opened.read() as session:
        session.execute(text("SELECT FROM terms_1_totals")).all()
        deletion = threading.Thread(target=opened.delete_collection, args=("default",))
        deletion.start()
        deletion.join(10)
        assert not deletion.is_alive()
        with contextlib.suppress(ProgrammingError):  # it may be gone
            session.execute(text("SELECT FROM terms_1")).all()


def test_a_collection_deleted_while_it_is_read_is_not_found(opened, collection):
    fill(collection, 20)
    with pytest.raises(CollectionNotFound, match="was deleted while it was read"), opened.read() as session:
        session.execute(text("SELECT FROM collections")).all()
        opened.delete_collection("default")
        opened.fulltext.search(session.connection(), collection.id, "w1", 5)


def test_collections_deleted_meanwhile_stop_neither_verify_nor_compact(monkeypatch, opened, collection):
    fill(collection, 20)
    strays, shrink = opened.fulltext.strays, opened.database.shrink

    def deleting(work):
        def then(*arguments):
            if opened.collections():
                opened.delete_collection("default")
            return work(*arguments)

        return then

    monkeypatch.setattr(opened.fulltext, "strays", deleting(strays))
    report = opened.verify()
    assert report.problems == []
    assert "was deleted while it was read" in report.notes[0]
    opened.create_collection("default")
    monkeypatch.setattr(opened.database, "shrink", deleting(shrink))
    opened.compact()
    assert left(opened, "^terms_") == []


def test_more_searches_than_connections_are_told_to_try_again(monkeypatch, opened, collection):
    monkeypatch.setattr(opened.engine.pool, "_timeout", 0.1)
    with contextlib.ExitStack() as readers:
        for _ in range(15):
            readers.enter_context(opened.read()).connection()
        with pytest.raises(StoreError, match="all connections of this process are in use; try again"):
            collection.count()
        with pytest.raises(StoreError, match="all connections"):
            opened.create_collection("x")


def test_compacting_keeps_no_writer_waiting(url, opened, collection):
    with open_store(url, lambda m: FakeEmbedder(DIM), lock_wait_s=0.5) as other, opened.read() as session:
        session.execute(text("LOCK TABLE chunks IN ACCESS SHARE MODE"))
        with opened.engine.connect().execution_options(postgresql_readonly=False) as building:
            building.execute(text("LOCK TABLE states IN SHARE UPDATE EXCLUSIVE MODE"))  # VACUUM waits for it
            compacting = threading.Thread(target=other.compact)
            compacting.start()
            compacting.join(1)
            assert compacting.is_alive()
            opened.create_collection("x")
        compacting.join()


def test_a_lost_connection_is_one_sentence_and_the_next_call_works(url, opened, collection, postgresql_server):
    import psycopg

    collection.upsert([Document("a", "one")])

    verbs = ["SELECT"]

    def cut(connection, cursor, statement, *_):
        """The server ends all connections just before the next statement that begins with one of `verbs`."""
        if statement.startswith(tuple(verbs)):
            verbs.clear()
            with psycopg.connect(postgresql_server, autocommit=True) as server:
                server.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                    [opened.engine.url.database],
                )

    event.listen(opened.engine, "before_cursor_execute", cut)
    with pytest.raises(StoreError, match=r"cannot be read \(.*connection.*\); try again, and check that"):
        collection.get("a")
    assert collection.get("a")["text"] == "one"
    verbs.append("INSERT")
    with pytest.raises(StoreError, match=r"could not be written while indexing into default \(.*connection"):
        collection.upsert([Document("b", "two")])
    assert collection.upsert([Document("b", "two")]).added == 1
    assert collection.count() == 2
    assert opened.verify().problems == []


# --- pgvector's index ------------------------------------------------------------------------------------


def finished(collection):
    collection.index.close()  # waits for what runs in the background
    return collection.stats()["index"]


def test_a_large_collection_gets_an_index_that_finds_the_same(monkeypatch, opened, collection):
    monkeypatch.setattr(pgvector, "EXACT_ROWS", 500)
    other = opened.create_collection("other")
    fill(other, 50)
    fill(collection, 400)
    assert finished(collection)["kind"] == "exact"
    fill(collection, 700)
    assert finished(collection) == {
        "kind": "hnsw",
        "reason": "pgvector's HNSW is faster than comparing all vectors from 500 on",
        "indexed": 700,
        "newer": 0,
        "dead": 0,
    }
    view = collection.vectors
    query = FakeEmbedder(DIM).encode_query(words(3))
    with opened.read() as session:
        session.execute(text("SET LOCAL enable_sort = off"))  # so few rows would be sorted
        values = {"rounded": str([1] * DIM), "query": str([1] * DIM), "near": 9, "k": 9}
        plan = session.scalars(text("EXPLAIN " + collection.index.statement(True, False).text), values).all()
        assert any("using vectors_1" in line for line in plan)
    exact, scores = view.search(query, 20, exact=True)
    near, near_scores = view.search(query, 20)
    assert len(np.intersect1d(exact, near)) >= 18
    np.testing.assert_allclose(near_scores[:5], scores[:5], atol=1e-6)
    assert collection.stats(recall=True)["recall@10"] > 0.9
    assert collection.stats()["bytes"]["vectors"] > 10_000
    collection.delete([f"d{n}" for n in range(0, 700, 2)])
    assert not {id for id in view.search(query, 50)[0].tolist() if id % 2 == 1} - set(
        collection.vectors.search(query, 700, exact=True)[0].tolist()
    )
    with opened.read() as session:  # HNSW finds the deleted ones as well: what it leaves of them is not enough
        session.execute(text("SET LOCAL enable_sort = off"))
        assert len(collection.index.synchronised(session).search(query, 300)[0]) == 300
    opened.compact()
    assert finished(collection)["indexed"] == 350
    assert other.stats()["index"]["kind"] == "exact"
    opened.delete_collection("default")
    with opened.read() as session:
        assert session.scalar(text("SELECT to_regclass('vectors_1')")) is None


def test_an_index_that_was_not_finished_is_told_and_made_again(monkeypatch, opened, collection):
    monkeypatch.setattr(pgvector, "EXACT_ROWS", 50)
    fill(collection, 100)
    assert finished(collection)["kind"] == "hnsw"
    with opened.write("the test") as session:
        session.execute(text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'vectors_1'::regclass"))
    with opened.write("the test") as session:
        session.execute(
            text(
                "CREATE INDEX vectors_1_ccnew ON chunks USING hnsw ((vector::halfvec(32)) halfvec_ip_ops)"
                " WHERE collection_id = 1"
            )
        )
        session.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'vectors_1_ccnew'::regclass")
        )
    with opened.database.maintaining():
        assert opened.verify().problems == []  # it may well be in the making
    assert sorted(opened.verify().problems) == [
        f"the index {name} is not complete; nothing is lost, `rwkv-embed compact` makes it again"
        for name in ("vectors_1", "vectors_1_ccnew")
    ]
    assert len(collection.search("text", SearchOptions(mode="dense", top_k=100))) == 100
    opened.compact()
    assert (opened.verify().problems, finished(collection)["kind"]) == ([], "hnsw")
    with opened.engine.connect().execution_options(postgresql_readonly=False) as connection, connection.begin():
        connection.execute(text("CREATE INDEX vectors_1_ccnew ON chunks (id)"))
        connection.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'vectors_1_ccnew'::regclass")
        )
    assert "vectors_1_ccnew is not complete" in opened.verify().problems[0]
    opened.compact()
    assert (opened.verify().problems, finished(collection)["kind"]) == ([], "hnsw")


def test_an_index_of_a_collection_that_is_deleted_meanwhile_does_not_stay(monkeypatch, opened, collection):
    fill(collection, 30)
    monkeypatch.setattr(pgvector, "EXACT_ROWS", 10)
    made = []

    def delete_first(connection, cursor, statement, *_):
        if statement.startswith("CREATE INDEX"):
            made.append(statement.split()[6])
            opened.delete_collection("default")  # does not wait for the index

    event.listen(opened.engine, "before_cursor_execute", delete_first)
    collection.index._build()
    assert made == ["vectors_1"]
    assert left(opened, "^(terms|vectors)_") == []


def test_an_export_with_an_id_twice_is_refused_in_one_sentence(opened, collection, tmp_path):
    collection.upsert([Document("a", "one")])
    collection.export(tmp_path / "c.jsonl")
    header, document = (tmp_path / "c.jsonl").read_text().splitlines()
    (tmp_path / "c.jsonl").write_text("\n".join([header, document, document, ""]))
    with pytest.raises(StoreError, match=r'duplicate key value .*chunks_pkey"; nothing was imported$'):
        opened.import_collection(tmp_path / "c.jsonl", "copy")
    assert [info.name for info in opened.collections()] == ["default"]


def test_ids_of_deleted_passages_are_not_given_again_after_an_import(opened, collection, tmp_path):
    collection.export(tmp_path / "empty.jsonl")
    collection.upsert([Document("a", "one"), Document("b", "two")])
    collection.delete(["a", "b"])
    opened.import_collection(tmp_path / "empty.jsonl", "copy")
    collection.upsert([Document("c", "three")])
    assert [chunk["id"] for chunk in collection.get("c")["chunks"]] == [3]


def test_one_process_builds_at_a_time(monkeypatch, caplog, opened, collection):
    """Indexes of different collections, too: two that are built at once wait for each other's snapshots."""
    monkeypatch.setattr(pgvector, "EXACT_ROWS", 50)
    monkeypatch.setattr(pgvector, "BUILD_POLL_S", 0.1)
    with opened.database.maintaining():
        with caplog.at_level(logging.INFO):
            fill(collection, 100)
            collection.index.close()
        assert "another process is building a vector index" in caplog.messages
        assert collection.stats()["index"]["reason"] == "hnsw is due; the next write or `compact` builds it"
        collection.index.maintain()
    collection.index._builder.join(10)
    assert collection.stats()["index"]["kind"] == "hnsw"


def test_the_index_of_a_collection_that_was_deleted_meanwhile_goes_with_the_next(monkeypatch, opened, collection):
    monkeypatch.setattr(pgvector, "EXACT_ROWS", 50)
    fill(collection, 100)
    assert finished(collection)["kind"] == "hnsw"
    with opened.database.maintaining():
        opened.delete_collection("default")
    assert left(opened, "^(terms|vectors)_1$") == ["terms_1", "vectors_1"]
    opened.create_collection("other")
    opened.delete_collection("other")
    assert left(opened, "^(terms|vectors)_[0-9]") == []


def test_the_kind_of_index_can_be_chosen(url):
    for kind, found in (("hnsw", "hnsw"), ("exact", "exact")):
        with open_store(url, lambda m: FakeEmbedder(DIM), index_kind=kind) as store:
            collection = store.create_collection(kind)
            fill(collection, 20)
            assert finished(collection)["kind"] == found
            assert "as asked for" in collection.stats()["index"]["reason"] or kind == "hnsw"
    with (
        open_store(url, lambda m: FakeEmbedder(DIM), index_kind="ivf") as store,
        pytest.raises(StoreError, match="PostgreSQL has no ivf index; expected auto, exact or hnsw"),
    ):
        store.collection("exact").stats()


def test_a_sample_is_drawn_from_all_and_always_the_same(opened, collection):
    fill(collection, 300)
    ids, vectors = collection.vectors.sample(50)
    assert 20 < len(ids) < 100
    assert (ids.min() < 60, ids.max() > 240) == (True, True)
    np.testing.assert_array_equal(vectors, collection.vectors.get(ids))
    np.testing.assert_array_equal(collection.vectors.sample(50)[0], ids)
    assert len(collection.vectors.sample(1_000)[0]) == 300


# --- what people get wrong -------------------------------------------------------------------------------


def test_nul_is_refused_where_postgresql_would(opened, collection):
    report = collection.upsert(
        [
            Document("a", "one\0two"),
            Document("b\0", "x"),
            Document("c", "x", metadata={"k": ["\0"]}),
            Document("d", "x", metadata={"k": "\\u0000"}),
        ]
    )
    assert report.added == 1
    assert [one["reason"] for one in report.failed] == [
        f"the {name} has a NUL character, which PostgreSQL does not store; remove it"
        for name in ("text", "id", "metadata")
    ]
    with pytest.raises(InvalidQuery, match=r"cannot look for that: PostgreSQL text fields cannot contain NUL"):
        collection.get("a\0")
    assert collection.documents(where=r'k = "\\u0000"')[0]["metadata"] == {"k": "\\u0000"}
    assert collection.search("one\0two") != []


def test_metadata_comes_back_as_it_was(collection):
    metadata = {"b": 1e300, "a": -0.0, "n": 2**70, "t": "é\u2028", "l": [1.0, True, None, {"z": 1, "y": 2}]}
    collection.upsert([Document("a", "x", metadata=metadata)])
    assert repr(collection.get("a")["metadata"]) == repr(metadata)
    assert collection.store.verify().problems == []


def test_a_url_that_leads_nowhere_is_one_sentence_without_the_password(postgresql_url):
    for url, match in (
        ("postgresql://me:s3cret@127.0.0.1:1/x", r"^postgresql://127.0.0.1:1/x cannot be read as .*refused"),
        (postgresql_url.replace("/test_", "/nowhere_"), r"database .*does not exist\); check that the server"),
    ):
        with pytest.raises(StoreError, match=match) as caught:
            open_store(url, lambda m: FakeEmbedder(DIM))
        assert "s3cret" not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match=r"there is no store at postgresql:///test_.*; make one with"):
        open_store(postgresql_url, lambda m: FakeEmbedder(DIM), create=False)


def test_no_part_of_a_password_is_shown():
    for url, shown in (
        ("postgresql://u:p@h/d?password=x", "postgresql://h/d"),
        ("postgresql://u:p@h/d?password=s@cret", "postgresql://..."),
        ("postgresql://u:s@c?r@h/d", "postgresql://..."),
        ("postgresql://u:p@x@h/d", "postgresql://h/d"),
        ("postgresql:///d?host=/tmp&password=s@cret", "postgresql://..."),
        ("postgresql://u:s?cret@h/d", "postgresql://..."),
    ):
        assert without_password(url) == shown


def test_a_socket_may_be_the_host_of_a_url(postgresql_url):
    address, _, folder = postgresql_url.partition("?host=")
    url = address.replace("@/", f"@{folder.replace('/', '%2F')}/")
    open_store(url, lambda m: FakeEmbedder(DIM)).close()


def test_a_store_that_may_not_be_read_is_not_of_something_else(url, someone_else):
    with pytest.raises(StoreError, match="permission denied for table alembic_version"):
        open_store(someone_else(""), lambda m: FakeEmbedder(DIM))


def test_a_database_of_something_else_is_left_alone(postgresql_url):
    database = open_database(postgresql_url, True, 1.0)
    with database.writing("the test") as connection:
        connection.execute(text("CREATE TABLE shopping (item text)"))
    with pytest.raises(StoreError, match=r"is a database of something else \(it has a table 'shopping'\)"):
        open_store(postgresql_url, lambda m: FakeEmbedder(DIM))
    database.engine.dispose()


def test_two_processes_make_the_store_at_once(postgresql_url):
    failed = []

    def make():
        try:
            open_store(postgresql_url, lambda m: FakeEmbedder(DIM)).close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_backup_is_postgresqls_own(opened, tmp_path):
    with pytest.raises(StoreError, match="is a PostgreSQL database; back it up with pg_dump, or one"):
        opened.backup(tmp_path / "b.zip")
