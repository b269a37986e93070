"""A real server over a real store; only the embedder is a fake, so that vectors can be predicted."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from api.app import create_app
from api.settings import Settings
from indexer import open_store
from indexer.types import Document
from tests.service.fakes import WordEmbedder

LIBRARY = [
    Document(
        "en/bees",
        "Bees make honey. They live in hives.",
        "Bees",
        "https://example.org/bees",
        "en",
        {"year": 2020},
    ),
    Document("en/bread", "Bread is made of flour and water.", "Bread", None, "en", {"year": 2021}),
    Document(
        "de/bienen", "Bienen machen Honig. Sie wohnen in Stöcken.", "Bienen", None, "de", {"year": 2022}
    ),
    Document("ar/nahl", "النحل يصنع العسل.", "النحل", None, "ar", {"year": 2023}),
    Document("zh/mifeng", "蜜蜂酿造蜂蜜。", "<b>蜜蜂</b>", "javascript:alert(1)", "zh", {"year": 2024}),
]


@dataclass
class Running:
    """A server in a thread of this process."""

    url: str
    embedder: WordEmbedder
    app: Any

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)


@contextlib.contextmanager
def running(folder: Path, *, fill: bool = True, **settings: Any) -> Iterator[Running]:
    """A server on a free port whose collection `library` holds LIBRARY."""
    embedder = WordEmbedder()
    if fill:
        with open_store(folder, embedder_factory=lambda _: embedder) as store:
            store.create_collection("library", embedder).upsert(LIBRARY)

    def opened(location: str, model: str | None, reranker: str | None) -> Any:
        return open_store(location, embedder_factory=lambda _: embedder)

    app = create_app(Settings(store=str(folder), **settings), open_store=opened)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        wait_for(lambda: server.started and app.state.service._embedder is not None)
        yield Running(url, embedder, app)
    finally:
        embedder.hold.set()
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive(), "the server did not shut down"


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Shared by a module's tests, which leave `library` as it is."""
    with running(tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made
