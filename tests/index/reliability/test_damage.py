"""Damaged files, in full: single bits, zeroed blocks and cut ends in every file of a store and in its backup.

Damage to a snapshot is always noticed, and mended from SQL. Damage to the database is noticed by `verify`, or
the store is refused; only a bit that nothing depends on may pass, and then every document, passage, vector and
answer is what it was. Where in the file such bits lie is printed. The model's files: `tests/embedder/test_hub.py`.
"""

import logging
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import PIPELINE, FakeEmbedder

from indexer import ann, vectors
from indexer.errors import StoreError
from indexer.pipeline import Pipeline
from indexer.search import search
from indexer.store import open_store, restore
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
    """Everything a user can see but times, with answers by meaning and by words. Times have no checksum: another
    digit is another time."""
    collection = store.collection("default")
    documents = [collection.get(document["id"]) for document in collection.documents(limit=1_000)]
    for document in documents:
        del document["created_at"], document["updated_at"]
    return documents, vectors_of(collection), answers(collection, "lexical")


def vectors_of(collection):
    """What comes from a snapshot: ids, vectors and answers by meaning."""
    view = collection.vectors
    return view.ids.tolist(), view.get(view.ids).tobytes(), answers(collection, "dense")


def answers(collection, mode):
    options = SearchOptions(mode=mode, top_k=300, exact=True)
    return [
        [(hit.chunk_id, hit.score) for hit in search(collection, query, options)]
        for query in ("common text", "number7", "line3")
    ]


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
    start = len(data) // 2
    while not any(data[start : start + 64]):  # zeros already
        start -= 64
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
        expected = vectors_of(store.collection("default"))
    (path,) = (directory / "faiss").glob(f"*{suffix}")
    snapshot = {file: file.read_bytes() for file in path.parent.iterdir()}
    for what, damaged in damages(snapshot[path]):
        put(snapshot | {path: damaged})
        caplog.clear()
        with caplog.at_level(logging.WARNING), opened(directory) as store:
            assert vectors_of(store.collection("default")) == expected, what
        assert caplog.records or damaged == snapshot[path], f"{what} of {path.name} was not noticed"
    put(snapshot)


PAGE = 4_096
BTREE_PAGES = {2: 12, 5: 12, 10: 8, 13: 8}  # kind: bytes of its head (https://sqlite.org/fileformat.html)


def owners(path: Path) -> dict[int, str]:
    """Page number -> the table or index it belongs to."""
    with closing(sqlite3.connect(path)) as database:
        return dict(database.execute("SELECT pageno, name FROM dbstat"))


def what_lies_at(data: bytes, place: int, owners: dict[int, str]) -> str:
    """What a byte of an SQLite file is for."""
    number, offset = place // PAGE + 1, place % PAGE
    page = data[(number - 1) * PAGE : number * PAGE]
    start = 100 if number == 1 else 0
    owner = owners.get(number, "no table")
    if offset < start:
        return "head of the file"
    if number not in owners or page[start] not in BTREE_PAGES:
        return f"page of {owner}"
    word = [int.from_bytes(page[at : at + 2], "big") for at in range(start + 1, start + 7, 2)]
    block, cells, content = word
    while block:
        following, size = (int.from_bytes(page[at : at + 2], "big") for at in (block, block + 2))
        if block <= offset < block + size:
            return "free block in a page"
        block = following
    pointers = start + BTREE_PAGES[page[start]]
    if pointers + 2 * cells <= offset < content:
        return "free space in a page"
    return f"{'head of a page' if offset < pointers + 2 * cells else 'row'} of {owner}"


@pytest.mark.slow
def test_damage_to_the_database_is_noticed_or_harmless(directory):
    path = directory / "store.sqlite3"
    sound = path.read_bytes()
    known = owners(path)
    with opened(directory) as store:
        expected = picture(store)
    noticed, harmless = 0, Counter()
    try:
        for what, damaged in damages(sound):
            path.write_bytes(damaged)
            try:
                with opened(directory) as store:
                    if not store.verify().ok:
                        noticed += 1
                        continue
                    assert picture(store) == expected, f"{what} was not noticed and changes answers"
            except StoreError:
                noticed += 1
                continue
            assert what.startswith("bit at "), f"{what} was not noticed"
            harmless[what_lies_at(sound, int(what.removeprefix("bit at ")), known)] += 1
    finally:
        path.write_bytes(sound)
    print(f"{noticed} noticed, {harmless.total()} harmless: {dict(harmless)}")
    assert noticed + harmless.total() == FLIPS + CUTS + 1


@pytest.mark.slow
def test_damage_to_a_backup_is_noticed_or_harmless(directory, tmp_path):
    """What is restored is the store that was backed up, or nothing."""
    with opened(directory) as store:
        expected = picture(store)
        store.backup(tmp_path / "backup.zip")
    sound = (tmp_path / "backup.zip").read_bytes()
    noticed = harmless = 0
    for what, damaged in damages(sound):
        (tmp_path / "backup.zip").write_bytes(damaged)
        try:
            restore(tmp_path / "backup.zip", tmp_path / "restored")
        except StoreError:
            noticed += 1
            assert not (tmp_path / "restored").exists()
            continue
        with opened(tmp_path / "restored") as store:
            assert picture(store) == expected, f"{what} was not noticed and changes answers"
        shutil.rmtree(tmp_path / "restored")
        harmless += 1  # such as a time in the archive's directory
    print(f"{noticed} noticed, {harmless} harmless")
    assert noticed + harmless == FLIPS + CUTS + 1
