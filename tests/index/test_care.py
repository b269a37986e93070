"""Verify, compact, backup and restore."""

import json
import sqlite3
import threading
import zipfile
from contextlib import closing

import numpy as np
import pytest
from fakes import PIPELINE, FakeEmbedder

from indexer import snapshots, vectors
from indexer.errors import StoreError
from indexer.store import open_store, restore
from indexer.types import ChunkingOptions, Document

DOCUMENTS = [
    Document("a", "one two\nthree", title="A", uri="file:///a", metadata={"year": 2020}),
    Document("b", "数据库\n部署", language="zh"),
    Document("empty", ""),
]


@pytest.fixture
def filled(collection):
    collection.upsert(DOCUMENTS)
    return collection


def database(store):
    store.close()
    return closing(sqlite3.connect(store.database.directory / "store.sqlite3", isolation_level=None))


def picture(store):
    """Everything a user can see of a store, with its answers."""
    seen = []
    for info in store.collections():
        collection = store.collection(info.name)
        query = FakeEmbedder().encode_query("one")
        ids, scores = collection.vectors.search(query, 10)
        documents = [collection.get(d["id"]) for d in collection.documents()]
        seen.append((info, documents, ids.tolist(), scores.tolist()))
    return seen


# verify


def test_a_sound_store_verifies(filled, store, monkeypatch):
    report = store.verify()
    assert (report.ok, report.problems, report.notes) == (True, [], [])
    assert report.checked == {"documents": 3, "chunks": 4, "embedded again": 4, "collections": 1}


def test_a_sound_store_with_document_context_verifies(store):
    store.create_collection("d", chunking=ChunkingOptions(context="document")).upsert(DOCUMENTS)
    assert store.verify().problems == []


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        (
            "UPDATE chunks SET ordinal = 7 WHERE id = 2",
            "chunks of document row 1 are not numbered without gaps",
        ),
        ("UPDATE chunks SET vector = zeroblob(64) WHERE id = 1", "chunk 1 has a vector of length 0.0000"),
        (
            "UPDATE chunks SET vector = zeroblob(6) WHERE id = 1",
            "chunk 1 has a vector of another dimension",
        ),
        (
            "UPDATE chunks SET text = 'x' WHERE id = 1",
            "chunk 1 has another checksum than it was written with",
        ),
        ("UPDATE chunks SET start = 1 WHERE id = 1", "chunk 1 is not what its document says at its offsets"),
        (
            "UPDATE documents SET title = 'B' WHERE id = 1",
            "document 'a' has another checksum than it was written",
        ),
        ("UPDATE documents SET chars = 9 WHERE id = 2", "the text of document 'b' is not whole"),
        (
            "UPDATE chunks SET document_id = 99 WHERE id = 1",
            "row 1 of chunks belongs to a row of documents that is",
        ),
        ("INSERT INTO tombstones VALUES (3, 1, 1)", "chunk 3 is there but recorded as deleted"),
        (
            "DELETE FROM fts_1 WHERE id = 2",
            "entries of the full-text index do not match (1 without the other)",
        ),
    ],
)
def test_verify_names_what_is_wrong(filled, store, embedder, sql, problem):
    with database(store) as damaged:
        damaged.execute(sql)
    with open_store(store.database.directory, lambda m: embedder, pipeline=PIPELINE) as again:
        report = again.verify()
    assert not report.ok
    assert any(problem in found for found in report.problems), report.problems


def test_verify_compares_with_fresh_vectors(filled, store, embedder, monkeypatch):
    monkeypatch.setattr(
        embedder, "encode_document", lambda texts: np.roll(embedder._vectors(texts), 1, axis=1)
    )
    problems = store.verify().problems
    assert len(problems) == 4
    assert problems[0].startswith("default: chunk 1 has cosine ")


def test_verify_without_the_model_says_so(filled, store):
    store.close()

    def gone(name):
        raise FileNotFoundError(f"no model {name}")

    with open_store(store.database.directory, gone, pipeline=PIPELINE) as again:
        report = again.verify()
    assert report.ok
    assert report.notes == ["default: no vector was compared with a fresh one (no model fake)"]


def test_verify_checks_the_snapshots(filled, store, monkeypatch):
    filled.index.save()
    assert store.verify().checked["snapshots"] == 1
    (path,) = store.database.snapshots.glob("*.vectors")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    (problem,) = store.verify().problems
    assert ".vectors does not match its checksum; nothing is lost" in problem


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_database_is_detected_or_refused_and_never_crashes(store, collection, embedder, seed):
    collection.upsert(Document(f"d{n}", f"word{n} " * 50) for n in range(60))
    store.close()
    path = store.database.directory / "store.sqlite3"
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        del data[int(rng.integers(100, len(data))) :]
    elif seed % 3 == 1:
        start = int(rng.integers(0, len(data) - 4096))
        data[start : start + 4096] = bytes(4096)
    else:
        for place in rng.integers(0, len(data), 50):
            data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    try:
        with open_store(store.database.directory, lambda m: embedder, pipeline=PIPELINE) as again:
            assert not again.verify().ok
    except StoreError as refused:
        assert "cannot be read as a store" in str(refused)


# compact


def test_compact_forgets_tombstones_and_finished_jobs(filled, store, tmp_path):
    (tmp_path / "x.txt").write_text("x")
    filled.index_paths([tmp_path / "x.txt"])
    filled.delete(["a"])
    before = [info.documents for info in store.collections()], filled.get("b")
    store.compact()
    with store.read() as session:
        run = session.connection().exec_driver_sql
        assert [run(f"SELECT count(*) FROM {table}").scalar() for table in ("tombstones", "jobs")] == [0, 0]
    assert ([info.documents for info in store.collections()], filled.get("b")) == before


def test_compact_mends_a_damaged_snapshot(store, collection, monkeypatch):
    monkeypatch.setattr(vectors, "SNAPSHOT_ROWS", 10)
    collection.upsert(Document(f"d{n}", f"w{n}") for n in range(50))
    store.close()
    for path in store.database.snapshots.glob("*.ids"):
        path.write_bytes(b"damaged")
    assert not store.verify().ok
    store.compact()
    assert store.verify().problems == []


# backup and restore


def test_restored_is_what_was_backed_up(filled, store, tmp_path, embedder):
    expected = picture(store)
    manifest = store.backup(tmp_path / "b.zip")
    assert manifest["collections"] == {"default": 4}
    filled.delete(["a"])  # later changes do not reach the backup
    assert restore(tmp_path / "b.zip", tmp_path / "new") == manifest
    with open_store(tmp_path / "new", lambda m: embedder, create=False, pipeline=PIPELINE) as again:
        assert picture(again) == expected
        assert again.verify().problems == []
        again.collection("default").upsert([Document("c", "more")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.zip", "new"]


def test_a_backup_is_of_one_moment_while_others_write(store, collection, tmp_path, embedder):
    """Each document has two lines; no backup may hold half of one."""
    stop = threading.Event()

    def write():
        n = 0
        while not stop.is_set():
            collection.upsert([Document(f"d{n % 40}", f"first{n}\nsecond{n}")])
            n += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for n in range(5):
            store.backup(tmp_path / f"{n}.zip")
    finally:
        stop.set()
        writer.join()
    for n in range(5):
        restore(tmp_path / f"{n}.zip", tmp_path / f"r{n}")
        with open_store(tmp_path / f"r{n}", lambda m: embedder, pipeline=PIPELINE) as again:
            assert again.verify().problems == []


def test_nothing_is_overwritten(filled, store, tmp_path):
    store.backup(tmp_path / "b.zip")
    with pytest.raises(StoreError, match=r"b\.zip exists; give another name, a backup never overwrites"):
        store.backup(tmp_path / "b.zip")
    with pytest.raises(StoreError, match="store is not empty; restore into a new directory"):
        restore(tmp_path / "b.zip", store.database.directory)
    with pytest.raises(StoreError, match=r"there is no directory .*nowhere; create it"):
        store.backup(tmp_path / "nowhere" / "b.zip")
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "b.zip", tmp_path / "empty")


def test_damaged_backups_are_refused_and_leave_nothing(filled, store, tmp_path):
    store.backup(tmp_path / "b.zip")
    data = (tmp_path / "b.zip").read_bytes()
    rng = np.random.default_rng(0)
    damaged = [data[: int(at)] for at in np.linspace(0, len(data) - 1, 20)]
    for place in rng.integers(0, len(data), 60):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    refused = 0
    for n, content in enumerate(damaged):
        (tmp_path / "bad.zip").write_bytes(content)
        try:
            restore(tmp_path / "bad.zip", tmp_path / f"r{n}")
        except StoreError:
            refused += 1
            assert not (tmp_path / f"r{n}").exists()
        else:  # a bit that means nothing, such as a time in the archive's directory: what came out is whole
            assert snapshots_free_copy(tmp_path / f"r{n}") == snapshots_free_copy(store.database.directory)
    assert refused >= 70
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def snapshots_free_copy(directory):
    """The rows of a store's tables, by the standard library alone."""
    with closing(sqlite3.connect(directory / "store.sqlite3")) as connection:
        return [
            connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
            for table in ("collections", "documents", "chunks")
        ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "9999"}, "is of a newer version of rwkv-embed .schema 9999"),
        ({"format": "other"}, "is damaged or of an unknown format"),
        ({"sha256": "0" * 64}, "does not match its checksum"),
        ({"bytes": 1}, "is damaged or of an unknown format"),
        ({"schema": None, "format": None}, "is damaged or of an unknown format"),
    ],
)
def test_a_backup_that_lies_is_refused(filled, store, tmp_path, change, message):
    store.backup(tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as good, zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        manifest = json.loads(good.read("manifest.json")) | change
        bad.writestr("manifest.json", json.dumps(manifest))
        bad.writestr("store.sqlite3", good.read("store.sqlite3"))
    with pytest.raises(StoreError, match=message):
        restore(tmp_path / "bad.zip", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_no_backup_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"there is no file .*gone\.zip; nothing was restored"):
        restore(tmp_path / "gone.zip", tmp_path / "new")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(StoreError, match=r"text\.zip is damaged or not a backup"):
        restore(tmp_path / "text.zip", tmp_path / "new")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("../evil", "x")
    with pytest.raises(StoreError, match=r"other\.zip is not a backup of rwkv-embed"):
        restore(tmp_path / "other.zip", tmp_path / "new")


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [(8, 99, "That compression method is not supported"), (6, 1, "File 'manifest.json' is encrypted")],
)
def test_an_archive_packed_in_another_way_is_refused(filled, store, tmp_path, place, value, reason):
    store.backup(tmp_path / "b.zip")
    data = bytearray((tmp_path / "b.zip").read_bytes())
    data[place] = data[data.index(b"PK\1\2") + place + 2] = value  # of the file and of the archive's directory
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(StoreError, match=rf"b\.zip is damaged or not a backup \({reason}.*\); nothing was re"):
        restore(tmp_path / "b.zip", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_manifests_of_another_format_are_ignored(filled, store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "FORMAT", 99)
        filled.index.save()
        assert len(snapshots.manifests(store.database.snapshots, filled.id)) == 1
    assert snapshots.manifests(store.database.snapshots, filled.id) == []
    store.close()
    assert len(filled.vectors) == 4
