"""What the tests of the index share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import fakes`

from fakes import PIPELINE, FakeEmbedder

from indexer.store import open_store


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
def store(tmp_path, embedder):
    with open_store(tmp_path / "store", lambda model_id: embedder, pipeline=PIPELINE) as store:
        yield store


@pytest.fixture
def collection(store):
    return store.create_collection("default")
