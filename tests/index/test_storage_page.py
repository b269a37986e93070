"""docs/storage.md is true: its example runs, and its limits and tables are those of the code."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from indexer import limits
from indexer.db.tables import Base
from indexer.types import Document

PAGE = (Path(__file__).parents[2] / "docs" / "storage.md").read_text(encoding="utf-8")


def test_the_example_reads_a_store_without_our_code(store, collection, embedder):
    collection.upsert([Document("a", "one two\nthree four"), Document("b", "one two six")])
    example, _ = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    code = f"{example}\nprint([texts[i] for i in nearest], vectors.dtype, vectors.shape)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=store.database.directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "one two",
        "['one two', 'one two six', 'three four'] float32 (3, 32)",
    ]


def test_the_example_reads_an_export_without_our_code(collection, tmp_path, monkeypatch):
    collection.upsert([Document("a", "one two\nthree four"), Document("b", "one two six")])
    collection.export(tmp_path / "collection.parquet")
    _, example = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    known = {}
    monkeypatch.chdir(tmp_path)
    exec(example, known)
    np.testing.assert_array_equal(known["vectors"], collection.vectors.get(np.array([1, 2, 3])))


def test_every_limit_is_listed_with_its_value():
    listed = dict(re.findall(r"\(`([A-Z_]+)`\) \| ([\d,]+) \|", PAGE))
    assert listed == {name: f"{value:,}" for name, value in vars(limits).items() if name.isupper()}


def test_every_table_is_listed():
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert listed == set(Base.metadata.tables)
