"""Damaged files, in full: single bits, zeroed blocks and cut ends in every file of a store.

Damage to a snapshot is always noticed, and mended from SQL. Damage to the database is noticed by `verify`, or
the store is refused; only a bit that nothing depends on (free space in a page) may pass, and then every
document, passage, vector and answer is what it was.
"""

import logging
from dataclasses import replace

import numpy as np
import pytest
from fakes import PIPELINE, FakeEmbedder

from indexer import ann, vectors
from indexer.errors import StoreError
from indexer.pipeline import Pipeline
from indexer.search import search
from indexer.store import open_store
from indexer.types import Document, SearchOptions

FLIPS, CUTS = 200, 20
REAL_TERMS = replace(PIPELINE, fulltext=Pipeline().fulltext)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A store of 240 passages with the real full-text index and an HNSW snapshot."""
    directory = tmp_path_factory.mktemp("damage") / "store"
    with pytest.MonkeyPatch.context() as patch, opened(directory) as store:
        patch.setattr(vectors, "SNAPSHOT_ROWS", 50)
        patch.setattr(ann, "EXACT_VALUES", 32 * 100)
        collection = store.create_collection("default")
        collection.upsert(
            Document(f"d{n}", f"word{n} common text\nline{n % 7} number{n}", metadata={"n": n})
            for n in range(120)
        )
    assert list((directory / "faiss").glob("*.index"))
    assert not (directory / "store.sqlite3-wal").exists()
    return directory


def opened(directory):
    return open_store(directory, lambda model_id: FakeEmbedder(), pipeline=REAL_TERMS, index_kind="hnsw")


def picture(store):
    """Everything a user can see, with answers by meaning and by words."""
    collection = store.collection("default")
    view = collection.vectors
    answers = [
        [
            (hit.chunk_id, hit.score)
            for hit in search(collection, query, SearchOptions(mode=mode, top_k=300, exact=True))
        ]
        for query in ("common text", "number7", "line3")
        for mode in ("dense", "lexical")
    ]
    return (
        [collection.get(document["id"]) for document in collection.documents(limit=1_000)],
        view.ids.tolist(),
        view.get(view.ids).tobytes(),
        answers,
    )


def damages(data: bytes):
    """Copies of a file, each damaged in one place."""
    chance = np.random.default_rng(len(data))
    for place in chance.integers(0, len(data), FLIPS):
        yield (
            f"bit at {place}",
            data[:place] + bytes([data[place] ^ (1 << chance.integers(8))]) + data[place + 1 :],
        )
    for end in np.linspace(0, len(data) - 1, CUTS).astype(int):
        yield f"cut at {end}", data[:end]
    start = max(0, len(data) // 2 - 32)
    yield "64 zeros", data[:start] + bytes(64) + data[start + 64 :]


def put(files):
    """Make the folder of these files hold nothing else."""
    for file in next(iter(files)).parent.iterdir():
        file.unlink()
    for file, data in files.items():
        file.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".json", ".ids", ".vectors", ".index"])
def test_damage_to_a_snapshot_is_noticed_and_mended(directory, suffix, caplog):
    with opened(directory) as store:
        expected = picture(store)
    (path,) = (directory / "faiss").glob(f"*{suffix}")
    snapshot = {file: file.read_bytes() for file in path.parent.iterdir()}
    for what, damaged in damages(snapshot[path]):
        put(snapshot | {path: damaged})
        caplog.clear()
        with caplog.at_level(logging.WARNING), opened(directory) as store:
            assert picture(store) == expected, what
        assert caplog.records or damaged == snapshot[path], f"{what} of {path.name} was not noticed"
    put(snapshot)


@pytest.mark.slow
def test_damage_to_the_database_is_noticed_or_harmless(directory):
    path = directory / "store.sqlite3"
    sound = path.read_bytes()
    with opened(directory) as store:
        expected = picture(store)
    noticed = harmless = 0
    try:
        for what, damaged in damages(sound):
            path.write_bytes(damaged)
            try:
                with opened(directory) as store:
                    if not store.verify().ok:
                        noticed += 1
                        continue
                    assert picture(store) == expected, f"{what} was not noticed and changes answers"
                    harmless += 1
            except StoreError:
                noticed += 1
    finally:
        path.write_bytes(sound)
    print(f"{noticed} noticed, {harmless} harmless")
    assert noticed + harmless == FLIPS + CUTS + 1
