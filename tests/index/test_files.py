"""Files and folders: what is visited, known, resumed, missing, and what fails alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import PIPELINE, counts
from sqlalchemy import select

from indexer import ingest, limits
from indexer.db.tables import DocumentRow, JobRow
from indexer.errors import LoaderError, StoreLocked
from indexer.store import open_store
from indexer.types import Document

BOTH_DATABASES = True


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "docs"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("one\ntwo")
    (root / "sub" / "b.txt").write_text("three")
    (root / "table.rows").write_text("r0\nr1\nr2")
    (root / ".hidden.txt").write_text("no")
    (root / "image.png").write_bytes(b"\x89PNG")
    return root


def test_a_folder_is_indexed_in_order(collection, folder):
    report = collection.index_paths([folder])
    assert (counts(report), report.failed, report.resumed) == ((5, 0, 0, 0, 6), [], False)
    documents = collection.documents()
    assert [d["id"] for d in documents] == [
        "a.txt",
        "sub/b.txt",
        "table.rows#0",
        "table.rows#1",
        "table.rows#2",
    ]
    assert documents[1]["uri"] == (folder / "sub" / "b.txt").as_uri()
    assert documents[2]["uri"] == (folder / "table.rows").as_uri() + "#0"


def test_unchanged_files_are_not_even_read(location, store, folder, embedder):
    store.create_collection("default").index_paths([folder])
    store.close()

    def never(*_):
        raise AssertionError("a file was read")

    from dataclasses import replace

    with open_store(location, lambda m: embedder, pipeline=replace(PIPELINE, load=never)) as again:
        assert counts(again.collection("default").index_paths([folder])) == (0, 0, 5, 0, 0)


def test_touch_edit_rename_delete_and_copy(collection, folder, embedder):
    collection.index_paths([folder])
    embedder.read.clear()

    os.utime(folder / "a.txt", (1, 1))
    assert counts(collection.index_paths([folder])) == (0, 0, 5, 0, 0)
    (folder / "a.txt").write_text("one\n2")
    assert counts(collection.index_paths([folder])) == (0, 1, 4, 0, 1)
    assert embedder.read == ["2"]
    (folder / "a.txt").rename(folder / "c.txt")
    assert counts(collection.index_paths([folder], delete_missing=True)) == (1, 0, 4, 1, 0)
    (folder / "copy.txt").write_bytes((folder / "c.txt").read_bytes())
    assert counts(collection.index_paths([folder])) == (1, 0, 5, 0, 0)
    (folder / "table.rows").write_text("r0\nr1")
    assert counts(collection.index_paths([folder])) == (0, 0, 5, 1, 0)  # a row that left its file is gone
    assert [d["id"] for d in collection.documents()] == [
        "sub/b.txt",
        "table.rows#0",
        "table.rows#1",
        "c.txt",
        "copy.txt",
    ]


@pytest.mark.sqlite_only
def test_a_bad_file_fails_alone_and_keeps_what_it_had(collection, folder):
    collection.index_paths([folder])
    (folder / "a.txt").write_bytes(b"\xff\xfe broken")
    (folder / "out.txt").symlink_to("/etc/hostname")
    os.mkfifo(folder / "pipe.txt")
    report = collection.index_paths([folder], delete_missing=True)
    reasons = {failure["path"]: failure["reason"] for failure in report.failed}
    assert reasons == {
        str(folder / "a.txt"): "not UTF-8 text",
        str(folder / "out.txt"): "a symbolic link that leaves the indexed folder; not followed",
        str(folder / "pipe.txt"): "not a regular file",
    }
    assert collection.get("a.txt")["text"] == "one\ntwo"


def test_delete_missing_stays_inside_the_given_folders(collection, folder, tmp_path):
    other = tmp_path / "docs-other"  # its name begins with the name of the folder
    other.mkdir()
    (other / "x.txt").write_text("x")
    collection.index_paths([folder, other])
    collection.upsert([Document("by hand", "not a file")])
    (other / "x.txt").unlink()
    (folder / "a.txt").unlink()
    assert collection.index_paths([folder], delete_missing=True).deleted == 1
    ids = [d["id"] for d in collection.documents()]
    assert ("a.txt" not in ids, "x.txt" in ids, "by hand" in ids) == (True, True, True)


def test_two_folders_cannot_take_each_others_ids(collection, folder, tmp_path):
    collection.index_paths([folder])
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.txt").write_text("another")
    report = collection.index_paths([tmp_path / "more"])
    assert report.added == 0
    assert report.failed[0]["reason"].startswith(
        f"its id 'a.txt' already belongs to {(folder / 'a.txt').as_uri()}"
    )
    (folder / "a.txt").unlink()  # moved away: the id is free
    assert collection.index_paths([tmp_path / "more"]).updated == 1


@pytest.mark.sqlite_only
def test_include_exclude_and_metadata(collection, folder):
    collection.index_paths([folder], include=["*.txt"], exclude=["sub/*"], metadata={"team": "x"})
    assert [(d["id"], d["metadata"]) for d in collection.documents()] == [("a.txt", {"team": "x"})]


@pytest.mark.sqlite_only
def test_a_missing_path_is_refused_before_anything_happens(collection, folder, tmp_path):
    with pytest.raises(LoaderError, match=r"nowhere: no such file or directory; nothing was indexed"):
        collection.index_paths([folder, tmp_path / "nowhere"])
    assert collection.count() == 0


@pytest.mark.sqlite_only
def test_a_named_file_is_relative_to_its_folder(collection, folder):
    collection.index_paths([folder / "sub" / "b.txt"])
    assert [d["id"] for d in collection.documents()] == ["b.txt"]


def test_an_interrupted_run_is_resumed(collection, folder, monkeypatch):
    monkeypatch.setattr(ingest, "BATCH_DOCUMENTS", 64)
    for n in range(200):
        (folder / f"n{n:03}.txt").write_text(f"word{n}")
    write_batch, calls = ingest.write_batch, []

    def dies_in_the_second_batch(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write_batch(*arguments)

    monkeypatch.setattr(ingest, "write_batch", dies_in_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        collection.index_paths([folder])
    assert collection.count() == 64
    report = collection.index_paths([folder])
    assert report.resumed
    assert (report.unchanged, report.added) == (64, 141)
    assert not collection.index_paths([folder]).resumed
    with collection.session() as session:
        rows = session.query(JobRow.status, JobRow.total).all()
    assert [tuple(row) for row in rows] == [("done", 203), ("done", 203)]


def test_a_table_of_which_a_part_was_written_is_read_again(collection, folder, monkeypatch):
    (folder / "table.rows").write_text("\n".join(f"word{n}" for n in range(600)))  # three batches
    write_batch, calls = ingest.write_batch, []

    def dies_after_the_second_batch(*arguments):
        write_batch(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ingest, "write_batch", dies_after_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        collection.index_paths([folder])
    assert collection.count() == 512
    assert counts(collection.index_paths([folder])) == (90, 0, 512, 0, 90)
    assert counts(collection.index_paths([folder])) == (0, 0, 602, 0, 0)


def test_a_table_with_a_bad_row_reports_it_every_time(collection, folder, monkeypatch):
    monkeypatch.setattr(limits, "MAX_DOCUMENT_CHARS", 7)
    (folder / "table.rows").write_text("r0\ntoo long\nr2")
    for expected in ((4, 0, 0, 0, 5), (0, 0, 4, 0, 0)):
        report = collection.index_paths([folder])
        assert counts(report) == expected
        assert report.failed == [
            {"path": "table.rows#1", "reason": "the text has 8 characters, 7 may be; split it"}
        ]


@pytest.mark.parametrize("order", [1, -1])
def test_a_folder_and_one_inside_it_hold_each_file_once(collection, folder, order):
    roots = [folder, folder / "sub", folder / "sub" / "b.txt"][::order]
    assert counts(collection.index_paths(roots)) == (5, 0, 0, 0, 6)
    id = "sub/b.txt" if order == 1 else "b.txt"
    (folder / "sub" / "b.txt").write_text("three and more")
    assert counts(collection.index_paths(roots)) == (0, 1, 4, 0, 1)
    assert collection.get(id)["text"] == "three and more"


@pytest.mark.sqlite_only
def test_two_folders_of_one_run_cannot_take_each_others_ids(collection, folder, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.txt").write_text("another")
    for _ in range(2):
        report = collection.index_paths([folder, tmp_path / "more"])
        owner = (folder / "a.txt").as_uri()
        assert report.failed == [
            {
                "path": str(tmp_path / "more" / "a.txt"),
                "reason": f"its id 'a.txt' already belongs to {owner}; index a folder above both",
            }
        ]
        assert (collection.count(), collection.get("a.txt")["text"]) == (5, "one\ntwo")


@pytest.mark.sqlite_only
def test_what_may_not_be_looked_at_is_not_missing(collection, folder, monkeypatch):
    collection.index_paths([folder])
    lstat, forbidden = os.lstat, folder / "sub" / "b.txt"

    def refuses(path, **options):
        if os.fspath(path) == str(forbidden):
            raise PermissionError(13, "Permission denied", str(path))
        return lstat(path, **options)

    monkeypatch.setattr(os, "lstat", refuses)
    monkeypatch.setattr(Path, "is_symlink", lambda path: bool(refuses(path)) and os.path.islink(path))
    report = collection.index_paths([folder], delete_missing=True)
    assert (report.unchanged, report.deleted) == (4, 0)
    assert report.failed == [{"path": str(forbidden), "reason": "cannot be read: Permission denied"}]
    assert collection.get("sub/b.txt")["text"] == "three"


@pytest.mark.sqlite_only
def test_an_odd_entry_fails_alone(collection, folder):
    (folder / "circle.txt").symlink_to("circle.txt")
    report = collection.index_paths([folder])
    assert [(failure["path"], report.added) for failure in report.failed] == [(str(folder / "circle.txt"), 5)]
    assert report.failed[0]["reason"].startswith("cannot be read: ")


def test_metadata_reaches_files_that_are_known(collection, folder):
    collection.index_paths([folder])
    assert counts(collection.index_paths([folder], metadata={"team": "x"})) == (0, 5, 0, 0, 0)
    assert counts(collection.index_paths([folder], metadata={"team": "x"})) == (0, 0, 5, 0, 0)
    assert {d["metadata"]["team"] for d in collection.documents()} == {"x"}
    with collection.session() as session:
        stamps = session.scalars(select(DocumentRow.source_stamp)).all()
    assert len({stamp.split(":")[2] for stamp in stamps}) == 1
    assert counts(collection.index_paths([folder])) == (0, 5, 0, 0, 0)  # without, as it was at first
    assert collection.documents()[0]["metadata"] == {}


def test_a_second_run_beside_a_living_one_is_refused(collection, folder, monkeypatch):
    collection.index_paths([folder])
    with collection.store.write("test") as session:
        row = session.query(JobRow).one()
        row.status = "running"
        import psutil

        parent = psutil.Process(os.getppid())
        host = row.owner.split(":")[0]
        row.owner = f"{host}:{parent.pid}:{int(parent.create_time())}"
    with pytest.raises(
        StoreLocked, match=rf"process {os.getppid()} on .* has been indexing the same paths since"
    ):
        collection.index_paths([folder])


def test_shares_of_a_folder_are_indexed_by_processes_of_their_own(location, store, folder):
    for n in range(40):
        (folder / f"{n}.txt").write_text(f"text {n}")
    script = (
        "import sys; sys.path.insert(0, 'tests/index'); from fakes import *; from indexer import open_store\n"
        "with open_store(sys.argv[1], lambda m: FakeEmbedder(), pipeline=PIPELINE) as s:\n"
        "    c = s.collection_or_create('default')\n"
        "    print(c.index_paths([sys.argv[2]], part=(int(sys.argv[3]), 3), delete_missing=True).added)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, location, folder, str(k)], stdout=subprocess.PIPE)
        for k in (1, 2, 3)
    ]
    added = [int(process.communicate()[0]) for process in running]
    assert (sum(added), min(added) >= 5) == (45, True)
    collection = store.collection("default")
    assert counts(collection.index_paths([folder])) == (0, 0, 45, 0, 0)
    assert store.verify().problems == []


def test_a_share_forgets_only_what_was_its_own(collection, folder):
    for n in range(20):
        (folder / f"{n}.txt").write_text(f"text {n}")
    collection.index_paths([folder])
    for n in range(20):
        (folder / f"{n}.txt").unlink()
    deleted = [collection.index_paths([folder], part=(k, 2), delete_missing=True).deleted for k in (1, 2)]
    assert (sum(deleted), min(deleted) >= 4) == (20, True)
    assert collection.count() == 5
