"""Opening stores, collections and their documents."""

import sqlite3
import subprocess
import sys

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from fakes import PIPELINE, FakeEmbedder
from sqlalchemy import inspect

from indexer.db.engine import SCHEMA_VERSION, alembic_config, schema_version
from indexer.db.tables import Base
from indexer.errors import (
    CollectionExists,
    CollectionNotFound,
    DocumentNotFound,
    InvalidCollection,
    ModelMismatch,
    StoreError,
    StoreLocked,
)
from indexer.store import open_store
from indexer.types import ChunkingOptions, Document

BOTH_DATABASES = True


@pytest.mark.sqlite_only
def test_a_new_store_has_the_settings_that_keep_it_safe(store):
    with store.engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
    assert sorted(path.name for path in store.database.directory.iterdir() if "-" not in path.name) == [
        "store.sqlite3",
        "writer.lock",
    ]


@pytest.mark.filterwarnings("ignore:Did not recognize type 'halfvec'")
def test_migrations_make_the_schema_of_the_tables(store):
    with store.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, *_: name is None or "fts" not in name}
        )
        differences = compare_metadata(context, Base.metadata)
        head = ScriptDirectory.from_config(alembic_config(connection)).get_current_head()
    if store.engine.dialect.name == "postgresql":  # Alembic does not know that this index is SQLite's
        assert [(change, index.name) for change, index in differences] == [("add_index", "ix_documents_filter")]
    else:
        assert differences == []
    assert head == SCHEMA_VERSION


@pytest.mark.sqlite_only
def test_an_older_store_is_upgraded_when_it_is_opened(store, collection, embedder):
    collection.upsert([Document("a", "one", metadata={"n": 1}), Document("b", "two")])
    with store.database.writing("going back") as connection:
        command.downgrade(alembic_config(connection), "0001")
    assert schema_version(store.engine) == "0001"
    store.close()
    with open_store(store.database.directory, lambda model_id: embedder, pipeline=PIPELINE) as again:
        assert schema_version(again.engine) == SCHEMA_VERSION
        indexes = {index["name"] for index in inspect(again.engine).get_indexes("documents")}
        assert "ix_documents_filter" in indexes
        assert [one["id"] for one in again.collection("default").documents(where="n = 1")] == ["a"]


def test_ids_are_never_used_twice(collection):
    collection.upsert([Document("a", "one\ntwo")])
    before = [chunk["id"] for chunk in collection.get("a")["chunks"]]
    collection.delete(["a"])
    collection.upsert([Document("a", "one\ntwo")])
    assert min(chunk["id"] for chunk in collection.get("a")["chunks"]) > max(before)


def test_what_cannot_be_opened_is_refused_with_one_sentence(tmp_path, embedder):
    def open_at(path, **options):
        return open_store(path, lambda model_id: embedder, pipeline=PIPELINE, **options)

    with pytest.raises(StoreError, match=r"there is no store at .*nowhere; make one with"):
        open_at(tmp_path / "nowhere", create=False)
    assert not (tmp_path / "nowhere").exists()

    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"file is a file, but a store is a directory"):
        open_at(tmp_path / "file")

    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "store.sqlite3").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match=r"cannot be read as a store .*not a database"):
        open_at(tmp_path / "garbage")

    (tmp_path / "other").mkdir()
    with sqlite3.connect(tmp_path / "other" / "store.sqlite3") as other:
        other.execute("CREATE TABLE shopping (item)")
    other.close()
    with pytest.raises(StoreError, match=r"is a database of something else \(it has a table 'shopping'\)"):
        open_at(tmp_path / "other")

    for url, kind in (("sqlite:///x.db", "sqlite"), ("mysql://h/x", "mysql")):
        expected = rf"{url} is a URL of '{kind}'; expected postgresql://user:password@host/name, or a directory"
        with pytest.raises(StoreError, match=expected):
            open_at(url)
    with pytest.raises(StoreError, match=r"^host/x://db is no URL of a database; expected postgresql://"):
        open_at("host/x://db")
    with pytest.raises(StoreError, match=r"^postgresql://host:x/db is no URL of a database") as caught:
        open_at("postgresql://me:pass/w@rd@host:x/db")
    assert "w@rd" not in str(caught.value)


@pytest.mark.sqlite_only
@pytest.mark.parametrize("left", [b"", None])
def test_a_store_that_lost_its_database_is_no_new_store(store, collection, embedder, left):
    collection.upsert([Document("a", "one")])
    collection.index.save()
    store.close()
    database = store.database.directory / "store.sqlite3"
    database.unlink()
    if left is not None:
        database.write_bytes(left)
    with pytest.raises(StoreError, match="is empty or gone, but its vector index is there; restore a backup"):
        open_store(store.database.directory, embedder_factory=lambda model_id: embedder)


def test_a_newer_schema_is_refused(location, store, embedder):
    store.close()
    with store.database.writing("pretending") as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()
    with pytest.raises(StoreError, match=r"written by a newer version of rwkv-embed .schema 9999"):
        open_store(location, lambda model_id: embedder, pipeline=PIPELINE)


def test_collections_are_listed_found_and_deleted(store):
    store.create_collection("b", chunking=ChunkingOptions(max_tokens=50), metadata={"for": "tests"})
    a = store.create_collection("a")
    a.upsert([Document("x", "one\ntwo"), Document("y", "three")])
    listed = [(c.name, c.documents, c.chunks, c.recipe.max_tokens, c.metadata) for c in store.collections()]
    assert listed == [("a", 2, 3, 200, {}), ("b", 0, 0, 50, {"for": "tests"})]

    with pytest.raises(CollectionExists, match="already a collection 'a'"):
        store.create_collection("a")
    with pytest.raises(CollectionNotFound, match="no collection 'c'; there are: a, b"):
        store.collection("c")
    store.delete_collection("a")
    assert [c.name for c in store.collections()] == ["b"]
    with store.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM chunks").scalar() == 0
    with pytest.raises(CollectionNotFound, match="was deleted"):
        a.upsert([Document("x", "one")])


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "x" * 65, "_a", "-a", "a\x00", "a\n"])
def test_bad_collection_names_are_refused(store, name):
    with pytest.raises(InvalidCollection, match="cannot be a collection name: up to 64 letters"):
        store.create_collection(name)


@pytest.mark.parametrize("overlap", [-1, 10, 50])
def test_a_collection_whose_documents_could_not_be_cut_is_refused(store, overlap):
    recipe = ChunkingOptions(max_tokens=10, overlap_tokens=overlap)
    with pytest.raises(InvalidCollection, match=f"is {overlap}; with max_tokens 10 it must be 0 to 9"):
        store.create_collection("a", chunking=recipe)
    assert store.collections() == []


@pytest.mark.parametrize("name", ["a", "2024", "日本語", "Документы", "a.b_c-d"])
def test_collection_names_may_be_in_any_script(store, name):
    assert store.create_collection(name).info.name == name


def test_another_model_is_refused_before_anything_is_written(location, store, collection):
    collection.upsert([Document("a", "one")])
    store.close()
    with open_store(location, lambda name: FakeEmbedder(16, "other"), pipeline=PIPELINE) as again:
        with pytest.raises(
            ModelMismatch, match=r"built with model 'fake' .32-d.* this model is 'other' .16-d"
        ):
            again.collection("default").upsert([Document("b", "two")])
        assert [d["id"] for d in again.collection("default").documents()] == ["a"]


def test_the_model_is_loaded_only_for_vectors(location, store, collection):
    collection.upsert([Document("a", "one")])
    store.close()

    def no_model(name):
        raise AssertionError("the model was loaded")

    with open_store(location, no_model, pipeline=PIPELINE) as again:
        same = again.collection("default")
        assert same.upsert([Document("a", "one")]).unchanged == 1
        assert same.stats()["chunks"] == 1
        assert same.get("a")["text"] == "one"
        assert same.delete(["a"]) == 1


def test_documents_are_described(collection):
    collection.upsert(
        [Document("a", "one\ntwo", title="A", uri="file:///a", metadata={"year": 2020}), Document("b", "三")]
    )
    first, second = collection.documents()
    times = first.pop("created_at"), first.pop("updated_at")
    assert all(time.endswith("+00:00") for time in times)
    assert first == {
        "id": "a",
        "title": "A",
        "uri": "file:///a",
        "language": "en",
        "chars": 7,
        "chunks": 2,
        "metadata": {"year": 2020},
        "content_hash": first["content_hash"],
    }
    assert (second["id"], second["language"]) == ("b", "zh")
    assert [d["id"] for d in collection.documents(offset=1, limit=1)] == ["b"]
    assert collection.count() == 2
    whole = collection.get("a")
    assert whole["text"] == "one\ntwo"
    assert [(c["ordinal"], c["start"], c["end"], c["text"]) for c in whole["chunks"]] == [
        (0, 0, 3, "one"),
        (1, 4, 7, "two"),
    ]
    with pytest.raises(DocumentNotFound, match="no document 'zz' in the collection"):
        collection.get("zz")


def test_stats_say_what_is_there(collection):
    collection.upsert([Document("a", "one\ntwo\n三")])
    stats = collection.stats(recall=True)
    assert (stats["documents"], stats["chunks"], stats["model"], stats["dim"]) == (1, 3, "fake", 32)
    assert stats["languages"] == {"en": 2, "zh": 1}
    assert stats["index"]["kind"] == "exact"
    assert stats["recall@10"] == 1.0
    assert stats["bytes"]["database"] > 50_000


@pytest.mark.sqlite_only
def test_a_second_writer_is_told_who_is_writing(store, tmp_path):
    script = (
        "import sys, pathlib; from indexer.locks import WriterLock\n"
        "with WriterLock(pathlib.Path(sys.argv[1])).hold('indexing for an hour'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, store.database.directory / "writer.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(
                StoreLocked, match=rf"written by process {holder.pid} on .* \(indexing for an hour\); gave up"
            ),
            open_store(
                store.database.directory, lambda m: FakeEmbedder(), pipeline=PIPELINE, lock_wait_s=0.2
            ) as other,
        ):
            other.create_collection("x")
        holder.kill()  # the lock goes with its holder
    store.create_collection("y")
    assert [c.name for c in store.collections()] == ["y"]


def test_a_collection_deleted_just_before_it_is_searched_is_not_found(store):
    collection = store.create_collection("short-lived")
    store.delete_collection("short-lived")
    with pytest.raises(CollectionNotFound, match="'short-lived' was deleted"):
        collection.search("x")


@pytest.mark.sqlite_only
def test_threads_of_one_process_take_turns(store):
    with (
        store.database.exclusive("a long task"),
        pytest.raises(StoreLocked, match="a long task"),
        store.database._writer.hold("another", wait_s=0.05),
    ):
        pass


def test_importing_and_opening_never_loads_faiss_or_torch(location, store):
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); from fakes import *; from indexer import open_store\n"
        "with open_store(sys.argv[1], lambda m: FakeEmbedder(), pipeline=PIPELINE) as s:\n"
        "    s.create_collection('c').upsert([Document('a', 'one two')])\n"
        "    s.collection('c').vectors.search(FakeEmbedder().encode_query('one'), 1)\n"
        "print([m for m in ('faiss', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, location, "tests/index"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


@pytest.mark.sqlite_only
def test_a_full_disk_is_one_sentence_and_loses_nothing(store, collection):
    collection.upsert([Document("a", "one")])
    with store.engine.connect() as connection:  # the pool hands the same connection out again
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(
        StoreError, match=r"could not be written while indexing into default \(database or disk is full\)"
    ):
        collection.upsert(Document(f"d{n}", f"word{n} " * 500) for n in range(200))
    assert [d["id"] for d in collection.documents()] == ["a"]
    assert store.verify().problems == []
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert collection.upsert([Document("b", "two")]).added == 1


@pytest.mark.sqlite_only
def test_a_store_damaged_while_open_is_one_sentence(store, collection):
    collection.upsert(Document(f"d{n}", f"word{n} " * 100) for n in range(100))
    store.close()
    path = store.database.directory / "store.sqlite3"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * (size - 8192))
    with pytest.raises(
        StoreError, match=r"cannot be read \(.*malformed.*\); check it with `rwkv-embed verify`"
    ):
        collection.get("d1")
    for write, purpose in ((lambda: collection.delete(["d1"]), "deleting"), (store.compact, "compacting")):
        with pytest.raises(
            StoreError, match=rf"not be written while {purpose}.* \(.*malformed.*\); check it with `rwkv-"
        ):
            write()
    with pytest.raises(StoreError, match=r"not be shrunk \(.*malformed.*\); check it with `rwkv-embed verify`"):
        store.database.shrink()
