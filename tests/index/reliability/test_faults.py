"""The disk fails at every write, sync and rename: what was acknowledged is there, and every file is old or new.

`faults.c` makes the n-th such call below the store fail, whether SQLite, Arrow or Python makes it;
`fault_process.py` does a store's work (open, upsert, delete, snapshot, compact, backup, both exports) for each n.
"""

import shutil
import subprocess
import sys

import pytest

from tests.index.reliability.watch import ENVIRONMENT, HERE, ROOT

COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.mark.skipif(not COMPILER or sys.platform != "linux", reason="needs a C compiler and LD_PRELOAD")
@pytest.mark.parametrize("every", [100, pytest.param(1, marks=pytest.mark.slow)])
def test_the_disk_fails_at_any_moment(tmp_path, every):
    library = tmp_path / "faults.so"
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"], check=True
    )
    done = subprocess.run(
        [sys.executable, HERE / "fault_process.py", tmp_path, str(every)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"LD_PRELOAD": str(library)},
        cwd=ROOT,
    )
    *problems, summary = done.stdout.splitlines()
    print(summary)
    assert problems == []
    assert done.returncode == 0, done.stderr
    assert summary.split()[1] == "places,"
