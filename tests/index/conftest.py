"""What the tests of the index share."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import fakes`

from fakes import PIPELINE, FakeEmbedder

from indexer.store import open_store


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A store without collections, made once: running the migrations takes longer than most tests."""
    directory = tmp_path_factory.mktemp("empty") / "store"
    open_store(directory, lambda model_id: FakeEmbedder(), pipeline=PIPELINE).close()
    return directory


@pytest.fixture
def store(tmp_path, embedder, empty_store):
    shutil.copytree(empty_store, tmp_path / "store")
    with open_store(tmp_path / "store", lambda model_id: embedder, pipeline=PIPELINE) as store:
        yield store


@pytest.fixture
def collection(store):
    return store.create_collection("default")
