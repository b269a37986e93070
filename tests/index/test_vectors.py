"""The vector index: exact search as ground truth, snapshots, catching up, approximate search."""

import logging
import os
import threading

import numpy as np
import pytest
from fakes import PIPELINE, FakeEmbedder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from indexer import ann, snapshots, vectors
from indexer.ann import choose_index
from indexer.errors import StoreError
from indexer.store import open_store
from indexer.types import Document
from indexer.view import View, merged, to_float32


def clustered(count, dim, seed=0):
    """Unit vectors around 50 centres, rounded to float16."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((50, dim))
    points = centres[rng.integers(0, 50, count)] + 0.5 * rng.standard_normal((count, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


def view_of(matrix, dead=(), index=None, first_id=10):
    ids = np.arange(first_id, first_id + 2 * len(matrix), 2)
    alive = np.ones(len(ids), bool)
    alive[list(dead)] = False
    return View(1, ids, alive, (matrix,), matrix.shape[1], index)


def plain_search(view, query, k, allowed=None):
    """The obvious way."""
    matrix = np.concatenate([np.asarray(block, np.float32) for block in view.blocks])
    scored = [
        (-float(row @ query), int(id))
        for id, row, alive in zip(view.ids, matrix, view.alive, strict=True)
        if alive and (allowed is None or id in allowed)
    ]
    return [id for _, id in sorted(scored)[:k]]


@given(npst.arrays(np.uint16, (3, 5)))
def test_float16_is_converted_exactly(bits):
    halves = bits.view(np.float16)
    halves = np.where(np.isfinite(halves), halves, np.float16(0))
    converted = to_float32(halves)
    assert converted.dtype == np.float32
    np.testing.assert_array_equal(converted.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_exact_search_is_the_obvious_search(dtype, count):
    view = view_of(clustered(count, 8).astype(dtype), dead=range(0, count, 3))
    query = clustered(1, 8, seed=1)[0].astype(np.float32)
    for k in (0, 1, 10, 1000):
        ids, scores = view.search(query, k)
        assert ids.tolist() == plain_search(view, query, k)
        assert (ids.dtype, scores.dtype) == (np.int64, np.float32)
        allowed = set(range(0, 400, 5))
        found, _ = view.search(query, k, allowed=np.array([*allowed, 11, 10**12]))
        assert found.tolist() == plain_search(view, query, k, allowed)


def test_ties_are_broken_by_id():
    matrix = np.tile(clustered(1, 8), (20, 1))
    assert view_of(matrix).search(matrix[0].astype(np.float32), 3)[0].tolist() == [10, 12, 14]


def test_a_query_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match=r"the query vector has shape \(7,\), the collection needs \(8,\)"):
        view_of(clustered(3, 8)).search(np.zeros(7, np.float32), 1)


def test_get_gives_vectors_in_the_asked_order_and_zeros_for_what_is_gone():
    matrix = clustered(3, 8)
    got = view_of(matrix, dead=[1]).get(np.array([14, 12, 10, 999]))
    np.testing.assert_array_equal(got[[0, 2]], matrix[[2, 0]].astype(np.float32))
    assert not got[[1, 3]].any()


# catching up


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 500), max_size=20))
def test_blocks_are_merged_without_changing_rows(sizes):
    blocks = [np.full((size, 1), n, np.float32) for n, size in enumerate(sizes)]
    joined = merged(blocks)
    if sizes:
        np.testing.assert_array_equal(np.concatenate(joined), np.concatenate(blocks))
    assert len(joined) <= 10


def test_another_process_sees_every_committed_change(store, collection, embedder):
    collection.upsert([Document("a", "one\ntwo"), Document("b", "three")])
    with open_store(store.database.directory, lambda m: embedder, pipeline=PIPELINE) as reader:
        seen = reader.collection("default")
        query = embedder.encode_query("two")
        assert len(seen.vectors) == 3
        for change in (
            lambda: collection.upsert([Document("c", "two")]),
            lambda: collection.delete(["b"]),
            lambda: collection.upsert([Document("a", "one")]),
            lambda: store.compact(),
            lambda: collection.upsert([Document("d", "two two")]),
        ):
            change()
            mine, theirs = collection.vectors.search(query, 10), seen.vectors.search(query, 10)
            assert mine[0].tolist() == theirs[0].tolist()
        assert len(seen.vectors) == 3


def test_a_reader_behind_forgotten_tombstones_compares_all_ids(store, collection, embedder):
    collection.upsert([Document(f"d{n}", f"w{n}") for n in range(20)])
    with open_store(store.database.directory, lambda m: embedder, pipeline=PIPELINE) as reader:
        seen = reader.collection("default")
        assert len(seen.vectors) == 20
        collection.delete([f"d{n}" for n in range(10)])
        store.compact()  # forgets which were deleted
        collection.upsert([Document("new", "new")])
        assert len(seen.vectors) == 11


# snapshots


@pytest.fixture
def small_snapshots(monkeypatch):
    monkeypatch.setattr(vectors, "SNAPSHOT_ROWS", 50)


@pytest.fixture
def filled(small_snapshots, store, collection):
    """A collection of 300 chunks with a snapshot of 200, some of them deleted since."""
    collection.upsert(Document(f"d{n}", f"word{n} common") for n in range(200))
    store.close()
    collection.upsert(Document(f"d{n}", f"word{n} common") for n in range(200, 240))
    collection.delete([f"d{n}" for n in range(0, 9)])
    store.close()
    assert [m.count for m in snapshots.manifests(store.database.snapshots, collection.id)] == [200]
    return collection


def reopened(store, embedder=None):
    return open_store(store.database.directory, lambda m: embedder or FakeEmbedder(), pipeline=PIPELINE)


def all_vectors(collection):
    view = collection.vectors
    ids = view.ids[view.alive]
    return ids.tolist(), view.get(ids)


def test_a_snapshot_and_its_replay_are_what_sql_says(filled, store, caplog):
    with reopened(store) as again:
        ids, matrix = all_vectors(again.collection("default"))
    for path in store.database.snapshots.iterdir():
        path.unlink()
    with reopened(store) as rebuilt:
        expected_ids, expected = all_vectors(rebuilt.collection("default"))
    assert ids == expected_ids
    assert len(ids) == 231
    np.testing.assert_array_equal(matrix, expected)
    assert caplog.records == []


@pytest.mark.parametrize("suffix", ["ids", "vectors", "json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "zero", "remove", "grow"])
def test_a_damaged_snapshot_is_noticed_and_rebuilt(filled, store, caplog, suffix, damage):
    with reopened(store) as again:
        expected = all_vectors(again.collection("default"))
    (path,) = store.database.snapshots.glob(f"*.{suffix}")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if damage == "truncate":
        data = data[:middle]
    elif damage == "flip":
        data[middle] ^= 4
    elif damage == "zero":
        data[middle : middle + 64] = bytes(64)
    elif damage == "grow":
        data += b"x"
    path.write_bytes(data)
    if damage == "remove":
        path.unlink()
    with caplog.at_level(logging.WARNING), reopened(store) as again:
        ids, matrix = all_vectors(again.collection("default"))
    assert ids == expected[0]
    np.testing.assert_array_equal(matrix, expected[1])
    if (suffix, damage) != ("json", "remove"):  # without a manifest there is no snapshot
        assert caplog.records


def test_a_snapshot_of_another_history_is_not_believed(filled, store, caplog):
    """Somebody puts an older database beside newer snapshots: same ids and versions, other vectors."""
    with store.write("test") as session:
        session.connection().exec_driver_sql("UPDATE chunks SET vector = zeroblob(64) WHERE id = 200")
    with caplog.at_level(logging.WARNING), reopened(store) as again:
        assert not again.collection("default").vectors.get(np.array([200])).any()
    assert "is of another store; the vector index is rebuilt from SQL" in caplog.text


def test_a_snapshot_newer_than_the_database_is_ignored(filled, store):
    (manifest,) = snapshots.manifests(store.database.snapshots, filled.id)
    rows = np.zeros((3, manifest.dim), np.float16)
    ids = np.array([1, 2, 3])
    snapshots.write_snapshot(store.database.snapshots, filled.id, 99, manifest.recipe, ids, [rows], manifest.dim)
    with reopened(store) as again:
        assert len(again.collection("default").vectors) == 231


def test_a_snapshot_of_nothing_can_be_opened(small_snapshots, store, collection):
    collection.upsert(Document(f"d{n}", f"word{n}") for n in range(60))
    store.close()
    collection.delete(f"d{n}" for n in range(60))
    store.close()
    assert [m.count for m in snapshots.manifests(store.database.snapshots, collection.id)] == [0]
    with reopened(store) as again:
        seen = again.collection("default")
        assert (len(seen.vectors), seen.search("word1"), seen.stats()["chunks"]) == (0, [], 0)
        again.compact()
        seen.upsert([Document("new", "new word")])
        assert [hit.document_id for hit in seen.search("new")] == ["new"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(5, "Input/output error")])
@pytest.mark.parametrize("nth", range(1, 13))
def test_a_fault_while_saving_leaves_a_sound_snapshot(filled, store, monkeypatch, nth, error, caplog):
    """Every file is written, fsynced, renamed, and its directory fsynced: 12 places where a disk can fail."""
    calls = 0

    def failing(function):
        def wrapped(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == nth:
                raise error
            return function(*arguments, **options)

        return wrapped

    with reopened(store) as again:
        collection = again.collection("default")
        expected = all_vectors(collection)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync))
            patch.setattr(os, "replace", failing(os.replace))
            patch.setattr(snapshots, "_write", failing(snapshots._write))
            with pytest.raises(StoreError, match=f"could not be written .*{error.strerror}.*nothing is lost"):
                collection.index.save()
        assert calls == nth
        assert all_vectors(collection)[0] == expected[0]
    assert not list(store.database.snapshots.glob(".*.tmp"))
    with reopened(store) as again:
        ids, matrix = all_vectors(again.collection("default"))
    assert ids == expected[0]
    np.testing.assert_array_equal(matrix, expected[1])
    assert caplog.records == []  # whichever generation was read was a sound one


def test_a_full_disk_does_not_fail_an_acknowledged_write(filled, store, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots, "_write", full)
    with caplog.at_level(logging.WARNING), reopened(store) as again:
        report = again.collection("default").upsert(Document(f"e{n}", f"extra{n}") for n in range(100))
    assert report.added == 100
    assert "not saved: the vector snapshot could not be written ([Errno 28] No space left" in caplog.text


def test_deleted_bytes_come_back(small_snapshots, store, collection):
    collection.upsert(Document(f"d{n}", f"word{n} " * 200) for n in range(500))
    collection.index.save()
    report = store.compact()
    full = report.bytes_after
    collection.delete([f"d{n}" for n in range(450)])
    report = store.compact()
    assert report.bytes_after < 0.3 * full
    assert len(collection.vectors) == 50
    assert store.verify().problems == []


def test_compacting_waits_for_a_save_that_has_begun(small_snapshots, store, collection, monkeypatch):
    collection.upsert(Document(f"d{n}", f"word{n}") for n in range(5))
    index, writing, go_on = collection.index, threading.Event(), threading.Event()
    write = snapshots._write

    def slowly(path, arrays):
        writing.set()
        assert go_on.wait(10)
        return write(path, arrays)

    monkeypatch.setattr(snapshots, "_write", slowly)
    saving = threading.Thread(target=index.save)
    saving.start()
    assert writing.wait(10)
    compacting = threading.Thread(target=index.compact)
    compacting.start()
    compacting.join(0.2)
    assert compacting.is_alive()
    go_on.set()
    saving.join(10)
    compacting.join(10)
    assert index.saved() is None and not list(index.directory.glob("*.vectors"))
    assert store.verify().problems == [] and len(collection.vectors) == 5


# approximate search


@pytest.mark.parametrize(
    ("rows", "memory_gb", "wanted", "kind", "words"),
    [
        (1_000, 8, "auto", "exact", "exact search over 1,000 vectors of 384 takes about 0.2 ms"),
        (62_500, 8, "auto", "exact", "takes about 10.0 ms"),
        (62_501, 8, "auto", "ivf", "IVF with 512 lists over 62,501 vectors of 384, 7 MB"),
        (1_000_000, 24, "auto", "ivf", "IVF with 2,048 lists over 1,000,000 vectors of 384, 104 MB"),
        (1_000_000, 0.2, "auto", "exact", "no memory for an index over 1,000,000 vectors of 384 (208 MB)"),
        (1_000, 8, "hnsw", "hnsw", "hnsw, as asked for"),
    ],
)
def test_the_policy_can_be_read_from_its_reasons(rows, memory_gb, wanted, kind, words):
    choice = choose_index(rows, 384, int(memory_gb * 1e9), wanted)
    assert choice.kind == kind
    assert words in choice.reason


@pytest.fixture(scope="module", params=["hnsw", "ivf"])
def approximate(request):
    """A view of 6,000 rows of which an index covers 5,500 and 300 are dead."""
    matrix = clustered(6_000, 32)

    def parts():
        yield from (to_float32(matrix[start : min(start + 700, 5_500)]) for start in range(0, 5_500, 700))

    choice = choose_index(5_500, 32, 10**9, request.param)
    built = ann.build(parts, 5_500, 32, choice, None, threading.Event())
    dead = np.random.default_rng(5).choice(6_000, 300, replace=False)
    return view_of(matrix, dead=dead, index=built)


def recall(view, k, allowed=None):
    queries = clustered(60, 32, seed=9).astype(np.float32)  # around other centres: no stored vector is near
    found = total = 0
    for query in queries:
        true, scores = view.search(query, k, allowed=allowed, exact=True)
        near, near_scores = view.search(query, k, allowed=allowed)
        assert len(near) == len(true)
        assert (np.diff(near_scores) <= 0).all()
        shared, here, there = np.intersect1d(near, true, return_indices=True)
        np.testing.assert_allclose(near_scores[here], scores[there], rtol=1e-5)
        found, total = found + len(shared), total + len(true)
    return found / total


def test_approximate_search_finds_what_exact_search_finds(approximate):
    assert recall(approximate, 10) >= 0.95
    dead = set(approximate.ids[~approximate.alive].tolist())
    query = approximate.gather(np.flatnonzero(~approximate.alive)[:1])[0]
    assert not dead & set(approximate.search(query, 200)[0].tolist())


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.01, 0.001])
def test_a_filter_gives_k_results_at_every_selectivity(approximate, share, monkeypatch):
    monkeypatch.setattr("indexer.view.SUBSET_ROWS", 20)
    live = approximate.ids[approximate.alive]
    allowed = np.random.default_rng(3).permutation(live)[: max(1, int(share * len(live)))]
    assert recall(approximate, 10, allowed) >= 0.95
    found, _ = approximate.search(clustered(1, 32, seed=4)[0].astype(np.float32), 10, allowed=allowed)
    assert set(found.tolist()) <= set(allowed.tolist())


def test_an_index_survives_its_snapshot(approximate):
    data, facts = approximate.ann.packed()
    again = ann.read_ann(data, facts)
    query = clustered(1, 32, seed=2)[0].astype(np.float32)
    assert again.search(query, 40, None).tolist() == approximate.ann.search(query, 40, None).tolist()
    with pytest.raises(snapshots.DamagedSnapshot, match="the FAISS index cannot be read"):
        ann.read_ann(data[: len(data) // 2], facts)
    with pytest.raises(snapshots.DamagedSnapshot, match=r"holds 5500 rows .*, its manifest says 5"):
        ann.read_ann(data, facts | {"count": 5})


def test_a_large_collection_gets_its_index_and_keeps_it(
    small_snapshots, store, collection, monkeypatch, embedder
):
    monkeypatch.setattr(ann, "EXACT_VALUES", 32 * 100)
    collection.upsert(Document(f"d{n}", f"word{n} w{n % 7} v{n % 11}") for n in range(500))
    store.close()  # waits for the index
    with reopened(store, embedder) as again:
        same = again.collection("default")
        stats = same.stats(recall=True)
        assert (stats["index"]["kind"], stats["index"]["indexed"]) == ("ivf", 500)
        assert stats["recall@10"] >= 0.95
        same.upsert([Document("new", "unheard of")])
        same.delete(["d3"])
        query = embedder.encode_query("unheard of")
        new = same.get("new")["chunks"][0]["id"]
        assert same.vectors.search(query, 1)[0].tolist() == [new]
        assert len(same.vectors) == 500


def test_closing_without_waiting_gives_a_build_up(small_snapshots, store, collection, monkeypatch):
    monkeypatch.setattr(ann, "EXACT_VALUES", 32 * 100)
    collection.index._stop.set()
    collection.upsert(Document(f"d{n}", f"word{n}") for n in range(300))
    store.close(wait=False)
    assert snapshots.manifests(store.database.snapshots, collection.id) == []
    with reopened(store) as again:
        assert again.collection("default").stats()["index"]["reason"] == (
            "ivf is due; the next write or `compact` builds it"
        )
        assert len(again.collection("default").vectors) == 300
