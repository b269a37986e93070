"""Keys, pages of other sites, limits, overload and disconnects."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from api.metrics import Metrics
from api.middleware import Observed
from indexer import open_store
from indexer.store import Store
from tests.service.conftest import Running, running, wait_for
from tests.service.fakes import WordEmbedder

KEYS = "first-key,second-key"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("guarded")
    with running(folder, api_keys=KEYS, max_body_bytes=4096, max_upload_bytes=8192, max_inputs=4) as server:
        yield server


def routes(server: Running) -> list[tuple[str, str]]:
    """(method, path) of every route that is described."""
    paths = server.app.openapi()["paths"]
    return [
        (method.upper(), path.replace("{", "").replace("}", "")) for path in paths for method in paths[path]
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer first-ke"},
        {"authorization": "Bearer first-key-and-more"},
        {"authorization": "Bearer FIRST-KEY"},
        {"authorization": "Basic first-key"},
        {"authorization": "first-key"},
        {"authorization": f"Bearer {KEYS}"},
        {"x-api-key": "wrong"},
        {"x-api-key": "\xff"},
    ],
)
def test_every_route_but_the_open_ones_wants_a_key(guarded: Running, headers: dict[str, str]) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    with guarded.client(headers=raw) as client:
        for method, path in routes(guarded):
            reply = client.request(method, path)
            if path in ("/health", "/ready"):
                assert reply.status_code == 200
            else:
                assert reply.status_code == 401, (method, path)
                assert reply.json()["error"]["type"] == "authentication_error"
                assert reply.headers["www-authenticate"] == "Bearer"
        assert client.get("/nowhere").status_code == 401


def test_each_key_opens_either_way(guarded: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for headers in (
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer second-key"},
        {"x-api-key": "second-key"},
    ):
        with guarded.client(headers=headers) as client:
            assert client.get("/v1/models").status_code == 200
            metrics = client.get("/metrics").text
    assert all(key not in metrics + caplog.text for key in KEYS.split(","))
    assert "first-key" not in repr(guarded.app.state.service.settings)


@pytest.fixture
def client(guarded: Running) -> Iterator[httpx.Client]:
    with guarded.client(headers={"x-api-key": "first-key"}) as made:
        yield made


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://localhost:1", "sec-fetch-site": "same-site"}, 403),
        ({"origin": "https://friend.example", "sec-fetch-site": "cross-site"}, 200),
        ({"origin": "https://behind.a.proxy", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "SELF"}, 200),
        ({}, 200),
    ],
)
def test_pages_of_other_sites_change_nothing(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    from fastapi.testclient import TestClient

    from api.app import create_app
    from api.settings import Settings

    def opened(location: str, model: str | None, reranker: str | None) -> Store:
        return open_store(location, embedder_factory=WordEmbedder)

    app = create_app(Settings(store=str(tmp_path / "s"), cors_origins="https://friend.example"), open_store=opened)
    with TestClient(app) as client:
        wait_for(lambda: app.state.service._embedder is not None)
        if headers.get("origin") == "SELF":
            headers = {"origin": str(client.base_url)}
        client.post("/v1/collections", json={"name": "mine"})
        files = {"files": ("a.txt", b"Bees.")}
        reply = client.post("/v1/collections/mine/documents/upload", files=files, headers=headers)
        assert reply.status_code == status, reply.text
        if status == 403:
            assert reply.json()["error"]["code"] == "foreign_page"
            assert reply.json()["error"]["message"].endswith(
                "may not change anything here; allow its origin in RWKV_EMBED_CORS_ORIGINS"
            )
        assert client.get("/v1/collections/mine", headers=headers).json()["documents"] == (status == 200)


def test_a_request_that_the_stopping_server_gives_up_is_answered() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def stop() -> None:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        request = asyncio.create_task(Observed(app, Metrics())(scope, receive, send))
        await asyncio.sleep(0.01)
        request.cancel()
        await request

    asyncio.run(stop())
    start, content = sent
    assert start["status"] == 503 and (b"retry-after", b"5") in start["headers"]
    assert json.loads(content["body"])["error"] == {
        "message": "the server is stopping and did not finish this request; send it again when it is back",
        "type": "server_error",
        "param": None,
        "code": "not_ready",
    }


@pytest.mark.parametrize("declared", [True, False])
def test_bodies_over_the_limit_are_refused(client: httpx.Client, declared: bool) -> None:
    body = json.dumps({"query": "x" * 5000}).encode()
    content = body if declared else iter([body[:3000], body[3000:]])
    reply = client.post(
        "/v1/collections/library/search", content=content, headers={"content-type": "application/json"}
    )
    assert reply.status_code == 413
    assert "over this server's limit of 4,096 bytes" in reply.json()["error"]["message"]


def test_uploads_have_a_limit_of_their_own(client: httpx.Client) -> None:
    path = "/v1/collections/library/documents/upload"
    assert client.post(path, files={"files": ("a.txt", b"x" * 9000)}).status_code == 413


def test_too_many_inputs_are_refused(client: httpx.Client) -> None:
    documents = [{"id": str(n), "text": "a"} for n in range(5)]
    reply = client.post("/v1/collections/library/documents", json=documents)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "documents")
    assert client.post("/embed", json={"inputs": ["a"] * 5}).status_code == 400
    assert client.post("/rerank", json={"query": "a", "texts": ["a"] * 5}).status_code == 400


def test_rate_of_a_key(tmp_path: Path) -> None:
    with running(tmp_path / "s", fill=False, api_keys=KEYS, requests_per_minute=3) as server:
        with server.client(headers={"x-api-key": "first-key"}) as client:
            replies = [client.get("/v1/models") for _ in range(5)]
        statuses = [reply.status_code for reply in replies]
        assert statuses in ([200, 200, 200, 429, 429], [200] * 5)  # five when a minute ended in between
        if 429 in statuses:
            assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
        with server.client(headers={"x-api-key": "second-key"}) as client:
            assert client.get("/v1/models").status_code == 200
            assert client.get("/health").status_code == 200


def test_overload_is_refused_counts_inputs_and_leaves_health_alone(tmp_path: Path) -> None:
    with running(tmp_path / "s", fill=False, queue_limit=8, batch_inputs=4) as server:

        def embed(count: int) -> httpx.Response:
            with server.client() as client:
                return client.post("/embed", json={"inputs": ["a b"] * count})

        def load() -> int:
            return int(server.app.state.service.workers.load)

        server.embedder.hold.clear()
        with ThreadPoolExecutor(20) as pool:
            six = pool.submit(embed, 6)
            wait_for(lambda: load() == 6)
            refused = embed(3)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            two = [pool.submit(embed, 1) for _ in range(2)]
            wait_for(lambda: load() == 8)
            assert embed(1).status_code == 429
            with server.client() as client:
                times = [client.get("/health").elapsed.total_seconds() for _ in range(20)]
            assert sorted(times)[-2] < 0.1
            server.embedder.hold.set()
            assert [future.result().status_code for future in (six, *two)] == [200, 200, 200]
        wait_for(lambda: load() == 0)
        assert embed(8).status_code == 200


def test_writes_that_wait_do_not_keep_searches_waiting(tmp_path: Path) -> None:
    with running(tmp_path / "s") as server:
        service = server.app.state.service

        def post(path: str, body: dict) -> httpx.Response:
            with server.client() as client:
                return client.post(f"/v1/collections/library/{path}", json=body)

        with ThreadPoolExecutor(4) as pool:
            with service.store.database.exclusive("the test"):
                writes = [pool.submit(post, "documents", {"id": str(n), "text": "a"}) for n in range(4)]
                wait_for(lambda: service.workers.load == 4)
                assert len(post("search", {"query": "bees"}).json()["hits"]) == 5
                assert not any(write.done() for write in writes)
            assert [write.result().json()["added"] for write in writes] == [1] * 4


def test_waiting_requests_share_a_batch_and_take_turns(tmp_path: Path) -> None:
    with running(tmp_path / "s", fill=False, batch_inputs=4) as server:

        def embed(texts: list[str]) -> list[list[float]]:
            with server.client() as client:
                return client.post("/embed", json={"inputs": texts}).json()

        server.embedder.hold.clear()
        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(embed, ["first"])
            wait_for(lambda: server.app.state.service.workers.load == 1)
            time.sleep(0.05)  # the first is being worked on
            long = pool.submit(embed, [f"long {n}" for n in range(8)])
            wait_for(lambda: server.app.state.service.workers.load == 9)
            short = pool.submit(embed, ["short"])
            wait_for(lambda: server.app.state.service.workers.load == 10)
            server.embedder.batches.clear()
            server.embedder.hold.set()
            results = [future.result() for future in (first, long, short)]
        batches = list(server.embedder.batches)
        assert batches[:2] == [["first"], ["long 0", "long 1", "short"]]  # not behind all of the long one
        assert all(len(batch) <= 4 for batch in batches)
        expected = server.embedder.encode_document([f"long {n}" for n in range(8)])
        assert results[1] == pytest.approx(expected, abs=1e-7)


def test_a_bad_text_fails_its_own_request_only(tmp_path: Path) -> None:
    with running(tmp_path / "s", fill=False) as server:

        def embed(text: str) -> int:
            with server.client() as client:
                return client.post("/embed", json={"inputs": [text]}).status_code

        server.embedder.hold.clear()
        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(embed, "first")
            wait_for(lambda: server.app.state.service.workers.load == 1)
            time.sleep(0.05)
            others = [pool.submit(embed, text) for text in ("good", "POISON", "fine")]
            wait_for(lambda: server.app.state.service.workers.load == 4)
            server.embedder.hold.set()
            assert [future.result() for future in (first, *others)] == [200, 200, 500, 200]


def abandon(server: Running, path: str, body: dict) -> socket.socket:
    """Send a request over a bare socket."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_work_of_a_client_that_left_is_dropped(tmp_path: Path) -> None:
    with running(tmp_path / "s", fill=False, batch_inputs=4) as server:
        workers = server.app.state.service.workers
        server.embedder.hold.clear()
        connections = [abandon(server, "/embed", {"inputs": [f"{n}"] * 20}) for n in range(10)]
        wait_for(lambda: workers.load == 200)
        for connection in connections:
            connection.close()
        wait_for(lambda: workers.load == 0)
        server.embedder.hold.set()
        time.sleep(0.2)
        assert sum(map(len, server.embedder.batches)) <= 4  # the batch that was being worked on, and no more


CHAT = {"model": "library", "stream": True, "messages": [{"role": "user", "content": "What do bees make?"}]}
ASK = {"question": "What do bees make?", "stream": True}


@pytest.mark.parametrize("piece", ["word ", ""], ids=["writing", "reading"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/collections/library/ask", ASK)]
)
def test_an_answer_stops_when_its_reader_leaves(
    tmp_path: Path, path: str, body: dict, stream: bool, piece: str
) -> None:
    with running(tmp_path / "s") as server:
        written, closed = [], threading.Event()

        class Endless:
            def generate(self, request: object) -> Iterator[str]:
                try:
                    while True:
                        written.append(1)
                        yield piece
                        time.sleep(0.01)
                finally:
                    closed.set()

        server.app.state.service._generators["extractive"] = Endless()
        connection = abandon(server, path, {**body, "stream": stream})
        wait_for(lambda: len(written) > 5)
        connection.close()
        assert closed.wait(5)
        wait_for(lambda: server.app.state.service.workers.load == 0)
