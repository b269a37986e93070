"""`kill -9` at random moments: what was acknowledged is there, and nothing is half there.

The quick form kills a few times, `make torture` many times. The store is looked at by `checker.py`, which has
no code in common with it, in a process of its own; then it is opened again by the next victim.
"""

import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from fakes import PIPELINE, FakeEmbedder

from indexer.store import open_store
from indexer.types import Document
from tests.index.reliability.watch import ENVIRONMENT, HERE, ROOT, check_opened, look


def kill_at_random(arguments: list, seconds: float) -> None:
    """Start a writer, let it work for a random time, kill it."""
    command = [sys.executable, HERE / "indexer_process.py", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT) as process:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(random.uniform(0, seconds))
        process.kill()


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_while_writing(tmp_path, kills):
    store, log = tmp_path / "store", tmp_path / "log"
    log.touch()
    random.seed(kills)
    for n in range(kills):
        kill_at_random([store, n, log], 1.0)
        assert look(store, log) == "", f"after kill {n}"
        if n % 10 == 3:
            check_opened(store)
    assert log.read_text().count("done") > 8  # it did write


def has_a_dead_job(store) -> bool:
    """Whether a job that nobody works on any more is still marked as running."""
    database = store / "store.sqlite3"
    if not database.exists():
        return False
    with closing(sqlite3.connect(database)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        return "jobs" in tables and any(connection.execute("SELECT 1 FROM jobs WHERE status = 'running'"))


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_while_indexing_a_folder(tmp_path, kills):
    """Each run goes on where the one before was killed; in the end everything is there once."""
    folder, store = tmp_path / "docs", tmp_path / "store"
    folder.mkdir()
    for n in range(600):
        (folder / f"{n:04}.txt").write_text(f"word{n}\nline{n % 7} number{n}")
    random.seed(kills)
    for n in range(kills):
        kill_at_random([store, n, folder], 0.8)
        assert look(store) == "", f"after kill {n}"
    interrupted = has_a_dead_job(store)  # not when the last kill came before the run began or after it ended
    command = [sys.executable, HERE / "indexer_process.py", store, "0", folder]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, check=True)
    resumed, unchanged, added = done.stdout.split()[1:]
    assert int(unchanged) + int(added) == 600
    assert (resumed, look(store)) == (str(interrupted), "")
    check_opened(store)


def test_the_checker_sees_what_is_wrong(tmp_path):
    """A checker that finds nothing proves nothing unless it can find something."""
    embedder = FakeEmbedder()
    with open_store(tmp_path / "store", lambda model_id: embedder, pipeline=PIPELINE) as store:
        store.create_collection("default").upsert([Document("a", "one\ntwo"), Document("b", "three")])
        (tmp_path / "log").write_text(
            "intent a x\ndone a x\nintent b y\ndone b y\nintent b three\nintent c z\ndone c"
        )
        assert look(tmp_path / "store") == ""
        assert (
            look(tmp_path / "store", tmp_path / "log") == "lost: a should be one of {'x'}, it is 'one\\ntwo'"
        )
        for sql, problem in (
            (
                "UPDATE chunks SET vector = (SELECT vector FROM chunks WHERE id = 2) WHERE id = 1",
                "of another text",
            ),
            ("DELETE FROM fts_1 WHERE id = 3", "chunk 3: its terms are []"),
            ("DELETE FROM chunks WHERE id = 2", "a: its chunks are not its lines"),
        ):
            with store.write("test") as session:
                session.connection().exec_driver_sql(sql)
            assert problem in look(tmp_path / "store")
    (tmp_path / "store" / "store.sqlite3").write_bytes(b"no database" * 999)
    assert "file is not a database" in look(tmp_path / "store")
