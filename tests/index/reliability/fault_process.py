"""Does a store's work once for every place where the disk can fail, and looks at what is left each time.

`LD_PRELOAD=faults.so python fault_process.py FOLDER EVERY`: tries every EVERY-th write, sync and rename, prints
what went wrong, then one line that says what was tried. Each trial is a fork, on a copy of the same store.
"""

import ctypes
import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import PIPELINE, FakeEmbedder

from indexer import ann, vectors
from indexer.errors import IndexerError
from indexer.store import open_store, restore
from indexer.types import Document
from tests.index.reliability.checker import problems_of

FAULTS = ((errno.ENOSPC, True), (errno.EIO, False))  # a disk that stays full; one that fails once
TRIAL_S = 120
OLD = {f"d{n}": f"old word{n}\nline{n % 7}" for n in range(90)}
CHANGED = {f"d{n}": f"new word{n}\nline{n % 5}\nmore" for n in range(0, 90, 3)}
GONE = [f"d{n}" for n in range(1, 60, 3)]

libc = ctypes.CDLL(None)


def opened(directory):
    return open_store(directory, lambda model_id: FakeEmbedder(), pipeline=PIPELINE, index_kind="hnsw")


def work(directory: Path) -> list[str]:
    """Everything that writes. The steps that were acknowledged; an error that is not ours is not caught."""
    done = []
    try:
        with opened(directory) as store:
            collection = store.collection("default")
            steps = {
                "upsert": lambda: collection.upsert([Document(id, text) for id, text in CHANGED.items()]),
                "delete": lambda: collection.delete(GONE),
                "save": lambda: collection.index.save(),
                "compact": lambda: store.compact(),
                "backup": lambda: store.backup(directory / "backup.zip"),
                "jsonl": lambda: collection.export(directory / "export.jsonl"),
                "parquet": lambda: collection.export(directory / "export.parquet"),
            }
            for name, step in steps.items():
                try:
                    step()
                except IndexerError:
                    continue
                done.append(name)
    except IndexerError:
        pass
    return done


def permitted(done: list[str]) -> dict[str, set[str | None]]:
    """What each document may be: what it was acknowledged to be, or either when it was not."""
    texts: dict[str, set[str | None]] = {id: {text} for id, text in OLD.items()}
    for step, changes in (("upsert", CHANGED), ("delete", dict.fromkeys(GONE))):
        for id, text in changes.items():
            texts[id] = {text} if step in done else texts[id] | {text}
    return texts


def look(directory: Path, done: list[str]) -> list[str]:
    """What is wrong with what is left."""
    problems = problems_of(directory, permitted(done))
    for name in ("backup.zip", "export.jsonl", "export.parquet"):
        file = directory / name
        step = file.suffix[1:] if file.stem == "export" else file.stem
        if not file.exists():
            if step in done:
                problems.append(f"{name} was acknowledged and is not there")
        elif name == "backup.zip":
            restore(file, directory / "restored")
            problems += problems_of(directory / "restored", permitted(done))
        else:
            with opened(directory) as store:
                store.import_collection(file, f"copy-{step}")
    with opened(directory) as store:
        problems += store.verify().problems
        view = store.collection("default").vectors
        if len(view) != store.collection("default").info.chunks:
            problems.append(f"{len(view)} vectors of {store.collection('default').info.chunks}")
        store.collection("default").index.save()
    problems += [f"{path} was left behind" for path in directory.rglob("*.tmp")]
    return problems


def trial(template: Path, directory: Path, place: int, error: int, lasting: bool) -> tuple[int, list[str]]:
    """The number of places, and what went wrong when number `place` failed."""
    shutil.copytree(template, directory)
    libc.fault_arm(os.fsencode(directory), ctypes.c_long(place), error, lasting)
    done = work(directory)
    places = libc.fault_disarm()
    return places, look(directory, done)


def forked(name: str, work: Callable[[], list[str]]) -> None:
    """`work` in a process of its own; the problems that it returns, or what ended it, on stdout.

    Nothing else may start a thread: a fork of a process whose FAISS or Arrow threads run waits for them forever.
    """
    child = os.fork()
    if child == 0:
        signal.alarm(TRIAL_S)
        problems = ["the process ended"]
        try:
            problems = work()
        except BaseException as unexpected:
            problems = [repr(unexpected)]
        finally:
            print(*(f"{name}: {p}\n" for p in problems), sep="", end="", flush=True)
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        print(f"{name}: killed by signal {-status}", flush=True)


def main() -> None:
    folder, every = Path(sys.argv[1]), int(sys.argv[2])
    vectors.SNAPSHOT_ROWS = 20
    ann.EXACT_VALUES = 32 * 60
    template, copy, counted = folder / "template", folder / "trial", folder / "places"

    def prepare() -> list[str]:
        with opened(template) as store:
            store.create_collection("default").upsert(Document(id, text) for id, text in OLD.items())
        places, problems = trial(template, folder / "sound", 0, errno.EIO, False)
        counted.write_text(str(places))
        return problems

    forked("without a fault", prepare)
    tried = range(1, int(counted.read_text()) + 1, every)
    for error, lasting in FAULTS:
        for place in tried:
            fault = (template, copy, place, error, lasting)
            forked(f"{os.strerror(error)} at {place}", lambda fault=fault: trial(*fault)[1])
            shutil.rmtree(copy)
    print(f"{counted.read_text()} places, {len(tried) * len(FAULTS)} faults")


if __name__ == "__main__":
    main()
