"""Many writers and readers on one store: nobody is told "database is locked", nobody sees half a change."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes import PIPELINE, FakeEmbedder

from indexer import vectors
from indexer.store import open_store
from indexer.types import Document

ROOT = Path(__file__).parents[3]


def document(id: str, n: int) -> Document:
    """Three lines that say the same number: a reader that sees two numbers has seen half a change."""
    return Document(id, f"a{n}\nb{n}\nc{n}")


def is_whole(text: str) -> bool:
    return len({line[1:] for line in text.splitlines()}) == 1


@pytest.mark.parametrize("writes", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_eight_threads_write_into_one_store(store, collection, writes):
    def write(thread):
        for n in range(writes):
            collection.upsert([document(f"t{thread}-{n % 50}", n)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))  # raises what a thread raised
    assert collection.count() == 8 * min(writes, 50)
    assert len(collection.vectors) == 3 * collection.count()
    assert store.verify().problems == []


WRITER = """
import sys; sys.path.insert(0, "tests/index")
from fakes import *; from indexer.store import open_store
with open_store(sys.argv[1], lambda m: FakeEmbedder(), pipeline=PIPELINE) as store:
    collection = store.collection_or_create("default")
    for n in range(int(sys.argv[3])):
        collection.upsert([Document(f"{sys.argv[2]}-{n % 20}", f"a{n}\\nb{n}\\nc{n}")])
"""


@pytest.mark.parametrize("writes", [40, pytest.param(1_000, marks=pytest.mark.slow)])
def test_two_processes_create_and_write_one_store(tmp_path, writes):
    """Both make the store and the collection at the same moment, then write into it together."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path / "store", name, str(writes)],
            stderr=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
        )
        for name in ("x", "y")
    ]
    errors = [process.communicate()[1].decode() for process in processes]
    assert errors == ["", ""]
    with open_store(tmp_path / "store", lambda m: FakeEmbedder(), pipeline=PIPELINE) as store:
        assert store.collection("default").count() == 40
        assert store.verify().problems == []


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_readers_see_whole_generations(tmp_path, seconds, monkeypatch):
    """Readers with stores of their own, as in other processes, against a writer and a compaction."""
    monkeypatch.setattr(vectors, "SNAPSHOT_ROWS", 30)
    embedder, stop, seen = FakeEmbedder(), threading.Event(), []

    def opened():
        return open_store(tmp_path / "store", lambda m: embedder, pipeline=PIPELINE)

    def write(collection):
        n = 0
        while not stop.is_set():
            n += 1
            collection.upsert([document(f"d{n % 30}", n), document(f"e{n % 30}", n)])
            if n % 5 == 0:
                collection.delete([f"e{n % 30}"])

    def compact(store):
        while not stop.is_set():
            store.compact()
            time.sleep(0.05)

    def read():
        with opened() as store:
            collection = store.collection("default")
            while not stop.is_set():
                view = collection.vectors
                ids, _ = view.search(embedder.encode_query("a1 b1 c1"), 20)
                assert len(set(ids.tolist())) == len(ids)
                assert len(view) % 3 == 0  # documents come and go with all three of their chunks
                for listed in collection.documents(limit=5):
                    assert listed["chunks"] == 3
                whole = collection.get("d1")
                assert is_whole(whole["text"])
                assert [chunk["text"] for chunk in whole["chunks"]] == whole["text"].splitlines()
                seen.append(whole["text"])

    with opened() as store:
        collection = store.create_collection("default")
        collection.upsert([document("d1", 0)])
        with ThreadPoolExecutor(6) as pool:
            jobs = [
                pool.submit(write, collection),
                pool.submit(compact, store),
                *(pool.submit(read) for _ in range(4)),
            ]
            time.sleep(seconds)
            stop.set()
            for job in jobs:
                job.result()
        assert len(seen) > 4 * seconds
        assert store.verify().problems == []
