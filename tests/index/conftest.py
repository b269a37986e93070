"""What the tests of the index share."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

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


@pytest.fixture(scope="session")
def empty_database(postgresql_database) -> Iterator[str]:
    """The same on PostgreSQL: the name of a database to copy."""
    with postgresql_database() as url:
        open_store(url, lambda model_id: FakeEmbedder(), pipeline=PIPELINE).close()
        yield make_url(url).database


@pytest.fixture(scope="session")
def new_store(request, tmp_path_factory, empty_store):
    """Makes a store without collections on a database, "sqlite" or "postgresql"; gives its location."""

    @contextmanager
    def made(database: str) -> Iterator[str]:
        if database == "sqlite":
            directory = tmp_path_factory.mktemp("a") / "store"
            shutil.copytree(empty_store, directory)
            yield str(directory)
        else:
            template = request.getfixturevalue("empty_database")
            with request.getfixturevalue("postgresql_database")(template) as url:
                yield url

    return made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module that says `BOTH_DATABASES = True` has its tests of a store run on each, but for `sqlite_only`."""
    if "location" in metafunc.fixturenames:
        both = getattr(metafunc.module, "BOTH_DATABASES", False)
        only = next(metafunc.definition.iter_markers("sqlite_only"), None)
        databases = ["sqlite", "postgresql"] if both and only is None else ["sqlite"]
        metafunc.parametrize("location", databases, indirect=True)


@pytest.fixture
def location(new_store, request) -> Iterator[str]:
    """Where `store` is."""
    with new_store(request.param) as location:
        yield location


@pytest.fixture
def store(location, embedder):
    with open_store(location, lambda model_id: embedder, pipeline=PIPELINE) as store:
        yield store


@pytest.fixture
def collection(store):
    return store.create_collection("default")
