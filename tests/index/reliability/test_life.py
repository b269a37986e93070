"""The life of a collection from beginning to end: what people do to files, to the model and to the store."""

import os
import shutil
import time
from dataclasses import replace

import pytest
from fakes import PIPELINE, FakeEmbedder

from indexer import vectors
from indexer.errors import ModelMismatch
from indexer.pipeline import Pipeline
from indexer.search import search
from indexer.store import open_store, restore
from indexer.types import Document, SearchOptions

REAL_TERMS = replace(PIPELINE, fulltext=Pipeline().fulltext)
FILES, LINES = 240, 8


def line(file: int, n: int) -> str:
    return f"file{file} line{n} shared{n % 3} " + " ".join(f"w{(file * n + i) % 97}" for i in range(60))


def answers(collection) -> bytes:
    """Everything that searches give, as bytes."""
    options = [SearchOptions(mode=mode, top_k=100) for mode in ("dense", "lexical", "hybrid")]
    queries = ("shared1 w5", "file7 line3", "w90 w91 w92")
    return repr([search(collection, query, option) for query in queries for option in options]).encode()


def test_only_what_changed_is_embedded_and_a_restored_store_answers_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "SNAPSHOT_ROWS", 500)
    folder, embedder = tmp_path / "docs", FakeEmbedder()
    folder.mkdir()
    for n in range(FILES):
        (folder / f"{n:03}.txt").write_text("\n".join(line(n, i) for i in range(LINES)))

    def opened(directory, model=embedder):
        return open_store(directory, lambda model_id: model, pipeline=REAL_TERMS)

    def indexed(collection):
        """(added, updated, unchanged, deleted) and the passages that were embedded."""
        embedder.read.clear()
        report = collection.index_paths([folder], delete_missing=True)
        assert report.failed == []
        return (report.added, report.updated, report.unchanged, report.deleted), embedder.read

    with opened(tmp_path / "store") as store:
        collection = store.create_collection("default")
        counts, read = indexed(collection)
        assert (counts, len(read), len(set(read))) == ((FILES, 0, 0, 0), FILES * LINES, FILES * LINES)

        os.utime(folder / "000.txt", (1, 1))
        assert indexed(collection) == ((0, 0, FILES, 0), [])

        edited = (folder / "001.txt").read_text().replace(line(1, 4), "another paragraph")
        (folder / "001.txt").write_text(edited)
        assert indexed(collection) == ((0, 1, FILES - 1, 0), ["another paragraph"])

        (folder / "002.txt").rename(folder / "renamed.txt")
        assert indexed(collection) == ((1, 0, FILES - 1, 1), [])

        shutil.copy(folder / "003.txt", folder / "copy.txt")
        assert indexed(collection) == ((1, 0, FILES, 0), [])
        assert collection.get("copy.txt")["text"] == collection.get("003.txt")["text"]

        (folder / "004.txt").unlink()
        assert indexed(collection) == ((0, 0, FILES, 1), [])
        assert (collection.count(), collection.info.chunks) == (FILES, FILES * LINES)
        found = search(collection, "file4 line1", SearchOptions(top_k=1_000, mode="dense"))
        assert len({hit.chunk_id for hit in found}) == len(found)  # no duplicates
        assert not {"002.txt", "004.txt"} & {hit.document_id for hit in found}

        expected = answers(collection)
        store.backup(tmp_path / "backup.zip")

    with opened(tmp_path / "store", FakeEmbedder(name="another")) as store:
        with pytest.raises(
            ModelMismatch, match=r"was built with model 'fake' .* index into a new collection"
        ):
            store.collection("default").upsert([Document("new", "new text")])
        assert store.create_collection("other").index_paths([folder]).chunks_embedded == (FILES - 1) * LINES

    shutil.rmtree(tmp_path / "store")
    restore(tmp_path / "backup.zip", tmp_path / "store")
    with opened(tmp_path / "store") as store:
        collection = store.collection("default")
        assert answers(collection) == expected
        assert store.verify().problems == []
        assert indexed(collection) == ((0, 0, FILES, 0), [])

        full = store.compact().bytes_after
        kept = [document["id"] for document in collection.documents(limit=FILES)][::10]
        collection.delete({document["id"] for document in collection.documents(limit=FILES)} - set(kept))
        assert store.compact().bytes_after <= 0.2 * full
        found = search(collection, "shared1 w5", SearchOptions(top_k=1_000))
        assert {hit.document_id for hit in found} <= set(kept)
        assert store.verify().problems == []


@pytest.mark.slow
def test_a_hundred_thousand_passages_are_opened_in_five_seconds(tmp_path):
    """From opening to the first answer, with the snapshot and without it. In seconds of this process."""
    embedder = FakeEmbedder(dim=384)

    def opened():
        return open_store(tmp_path / "store", lambda model_id: embedder, pipeline=REAL_TERMS)

    def first_answer():
        begun = time.process_time()
        with opened() as store:
            collection = store.collection("default")
            assert len(search(collection, "w5 line3")) == 10
            seconds = time.process_time() - begun
            assert len(collection.vectors) == 100_000
        return seconds

    with opened() as store:
        store.create_collection("default").upsert(
            Document(f"d{n}", "\n".join(line(n, i) for i in range(LINES))) for n in range(100_000 // LINES)
        )
    with_snapshot = first_answer()
    shutil.rmtree(tmp_path / "store" / "faiss")
    without = first_answer()
    print(f"first answer after {with_snapshot:.2f} s with the snapshot, {without:.2f} s without")
    assert max(with_snapshot, without) <= 5
