"""The openai generator against a real HTTP server on 127.0.0.1 that behaves, and misbehaves, like others."""

import json
import logging
import select
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from indexer.answers import answer, make_generator
from indexer.answers.generators.openai import OpenAIGenerator, _retry_after
from indexer.errors import GeneratorError
from indexer.types import Message
from tests.index.answering import FakeCollection, request

KEY = "sk-secret-0123456789"


def chunk(text: str | None, finish_reason: str | None = None) -> bytes:
    event = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}],
    }
    return b"data: " + json.dumps(event).encode() + b"\n\n"


DONE = chunk(None, "stop") + b"data: [DONE]\n\n"


class Server:
    """Answers each request with the next scripted reply; keeps what it was sent."""

    def __init__(self) -> None:
        self.replies: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.requests: list[dict[str, Any]] = []
        self.gone = threading.Event()  # a client hung up
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
                outer.replies.pop(0)(self)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def stream(*parts: bytes, length: int | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """A 200 with the parts; `length` promises that many bytes, so that fewer are a broken connection."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        for part in parts:
            handler.wfile.write(part)
            handler.wfile.flush()

    return reply


def status(code: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def generator(server: Server, **options: Any) -> tuple[OpenAIGenerator, list[float]]:
    pauses: list[float] = []
    patient = {"timeout": 5.0, "first_timeout": 5.0, "heartbeat": 100.0}
    made = OpenAIGenerator("tiny", server.url, KEY, sleep=pauses.append, **{**patient, **options})
    return made, pauses


ASK = request("Who wrote it?", "Ann wrote it.")


def said(made: OpenAIGenerator) -> list[str]:
    """The answer's pieces without the signs of life between them."""
    return [piece for piece in made.generate(ASK) if piece]


def test_a_streamed_answer_with_citations(server: Server) -> None:
    server.replies = [
        stream(
            chunk("The Nile is"), b": keep-alive\n\n", chunk(" the longest river [1"), chunk("] [8]."), DONE
        )
    ]
    collection = FakeCollection(["The Nile is the longest river of Africa."])
    result = answer(collection, "Which river is the longest?", generator=generator(server)[0])
    assert result.answer == "The Nile is the longest river [1]."
    assert [(c.n, c.quote) for c in result.citations] == [(1, "The Nile is the longest river of Africa.")]


def test_the_request_is_what_the_api_documents(server: Server) -> None:
    server.replies = [stream(chunk("ok"), DONE)]
    made, _ = generator(server, max_tokens=7, temperature=0.5)
    asked = request(
        "When?", "Ann wrote it.", history=[Message("user", "Who?"), Message("assistant", "Ann [1].")]
    )
    assert list(made.generate(asked)) == ["ok"]
    (sent,) = server.requests
    assert sent["path"] == "/v1/chat/completions"
    assert sent["headers"]["Authorization"] == f"Bearer {KEY}"
    body = sent["body"]
    assert (body["model"], body["stream"], body["max_tokens"], body["temperature"]) == ("tiny", True, 7, 0.5)
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert '<passage n="1" source="Title 1">\nAnn wrote it.\n</passage>' in body["messages"][-1]["content"]


def test_without_a_key_no_authorization_is_sent(server: Server) -> None:
    server.replies = [stream(chunk("ok"), DONE)]
    assert list(OpenAIGenerator("tiny", server.url).generate(ASK)) == ["ok"]
    assert "Authorization" not in server.requests[0]["headers"]


@pytest.mark.parametrize("code", [429, 500, 502, 503])
def test_passing_failures_are_tried_again_with_growing_pauses(server: Server, code: int) -> None:
    server.replies = [status(code), status(code), stream(chunk("ok"), DONE)]
    made, pauses = generator(server, first_pause=0.5)
    assert said(made) == ["ok"]
    assert 0.375 <= pauses[0] <= 0.625 and 0.75 <= pauses[1] <= 1.25


def test_retry_after_is_obeyed(server: Server) -> None:
    server.replies = [status(429, Retry_After="7"), stream(chunk("ok"), DONE)]
    made, pauses = generator(server)
    assert (said(made), pauses) == (["ok"], [7.0])


def test_a_long_retry_after_is_reported_instead_of_waited_for(server: Server) -> None:
    server.replies = [status(429, b'{"error": {"message": "quota exceeded"}}', Retry_After="3600")]
    made, pauses = generator(server)
    with pytest.raises(
        GeneratorError, match=r"openai:tiny at http.*: HTTP 429: quota exceeded \(tried 1 times\)"
    ):
        list(made.generate(ASK))
    assert pauses == []


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert _retry_after("Fri, 21 Oct 2095 07:28:00 GMT") > 1e9  # type: ignore[operator]
    assert _retry_after("soon") is None and _retry_after(None) is None and _retry_after("-5") == 0.0


def test_retries_end(server: Server) -> None:
    server.replies = [status(503, b"busy")] * 3
    made, pauses = generator(server, retries=2)
    with pytest.raises(GeneratorError, match=r"HTTP 503: busy \(tried 3 times\)"):
        list(made.generate(ASK))
    assert len(pauses) == 2 and len(server.requests) == 3


def test_a_refused_key_is_not_retried_and_not_shown(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.replies = [
        status(401, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}}).encode())
    ]
    made, _ = generator(server)
    with pytest.raises(
        GeneratorError, match=r"HTTP 401: Incorrect API key provided: \*\*\*\.; check OPENAI_API_KEY"
    ) as caught:
        list(made.generate(ASK))
    assert len(server.requests) == 1
    assert KEY not in str(caught.value) and KEY not in repr(made) and KEY not in caplog.text


def test_an_unknown_model_says_what_to_check(server: Server) -> None:
    server.replies = [status(404, b'{"error": "model \'tiny\' not found"}')]
    with pytest.raises(GeneratorError, match="HTTP 404: model 'tiny' not found; check the model's name"):
        list(generator(server)[0].generate(ASK))


def test_no_server_is_retried_and_named() -> None:
    pauses: list[float] = []
    made = OpenAIGenerator("tiny", "http://127.0.0.1:9/v1", retries=1, sleep=pauses.append, heartbeat=100.0)
    with pytest.raises(
        GeneratorError, match=r"openai:tiny at http://127.0.0.1:9/v1: connection failed: .*\(tried 2 times\)"
    ):
        list(made.generate(ASK))
    assert len(pauses) == 1


@pytest.mark.parametrize(
    "reply",
    [stream(chunk("Half an"), length=10_000), stream(chunk("Half an"))],
    ids=["connection breaks", "stream just ends"],
)
def test_a_cut_answer_is_an_error_and_is_not_repeated(server: Server, reply) -> None:
    server.replies = [reply]
    pieces = generator(server)[0].generate(ASK)
    assert next(pieces) == "Half an"
    with pytest.raises(GeneratorError, match="the answer broke off: connection failed"):
        next(pieces)
    assert len(server.requests) == 1


def test_a_break_before_the_first_token_is_tried_again(server: Server) -> None:
    server.replies = [stream(length=10), stream(chunk("ok"), DONE)]
    assert said(generator(server)[0]) == ["ok"]


def test_servers_that_never_say_done_are_understood(server: Server) -> None:
    server.replies = [stream(chunk("ok"), chunk(None, "stop"))]
    assert said(generator(server)[0]) == ["ok"]


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b"null", b'{"choices": 5}', b'{"choices": [{"delta": {"content": 5}}]}', b"{}", b"\xff"],
)
def test_a_malformed_event_is_named(server: Server, data: bytes) -> None:
    server.replies = [stream(b"data: " + data + b"\n\n")]
    with pytest.raises(
        GeneratorError, match="the server sent an event that is not a chat completion chunk: "
    ):
        list(generator(server)[0].generate(ASK))


def test_an_error_inside_the_stream_is_shown(server: Server) -> None:
    server.replies = [stream(chunk("Half"), b'data: {"error": {"message": "out of memory"}}\n\n')]
    with pytest.raises(GeneratorError, match="the server reported: out of memory"):
        list(generator(server)[0].generate(ASK))


def test_a_usage_event_is_no_text(server: Server) -> None:
    server.replies = [
        stream(
            chunk("ok"), chunk(None, "stop"), b'data: {"choices": [], "usage": {}}\n\n', b"data: [DONE]\n\n"
        )
    ]
    assert said(generator(server)[0]) == ["ok"]


def test_silence_is_reported_and_not_asked_again(server: Server) -> None:
    server.replies = [lambda handler: time.sleep(0.5)]
    made, pauses = generator(server, first_timeout=0.1)
    with pytest.raises(GeneratorError, match=r"no reply within 0.1 s; let it read less \(--top-k\)"):
        list(made.generate(ASK))
    assert pauses == []


def test_silence_in_the_middle_is_a_broken_answer(server: Server) -> None:
    def stops(handler: BaseHTTPRequestHandler) -> None:
        stream(chunk("Half"))(handler)
        time.sleep(0.5)

    server.replies = [stops]
    pieces = generator(server, timeout=0.1)[0].generate(ASK)
    assert next(pieces) == "Half"
    with pytest.raises(GeneratorError, match=r"the answer broke off: nothing came for 0.1 s"):
        list(pieces)


def test_comments_are_signs_of_life(server: Server) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        stream()(handler)
        for _ in range(6):
            time.sleep(0.1)
            handler.wfile.write(b": reading\n\n")
        handler.wfile.write(chunk("ok") + DONE)

    server.replies = [slow]
    assert said(generator(server, first_timeout=0.4)[0]) == ["ok"]


def test_while_it_waits_it_can_be_closed_and_hangs_up(server: Server) -> None:
    def reading(handler: BaseHTTPRequestHandler) -> None:  # the socket is readable when the client has left
        select.select([handler.connection], [], [], 5)
        if not handler.connection.recv(1):
            server.gone.set()

    server.replies = [reading]
    pieces = generator(server, heartbeat=0.02)[0].generate(ASK)
    while not server.requests:
        assert next(pieces) == ""
    start = time.monotonic()
    pieces.close()  # type: ignore[attr-defined]
    assert server.gone.wait(2) and time.monotonic() - start < 1


def test_a_pause_gives_signs_of_life(server: Server) -> None:
    server.replies = [status(503, Retry_After="2.5"), stream(chunk("ok"), DONE)]
    made, pauses = generator(server, heartbeat=1.0)
    assert list(made.generate(ASK)) == ["", "", "", "ok"]
    assert pauses == [1.0, 1.0, 0.5]


def test_closing_hangs_up_within_a_token(server: Server) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        stream(chunk("a"))(handler)
        try:
            for _ in range(1000):
                handler.wfile.write(chunk("b"))
                time.sleep(0.005)
        except OSError:
            server.gone.set()

    server.replies = [endless]
    pieces = generator(server)[0].generate(ASK)
    assert next(pieces) == "a"
    pieces.close()  # type: ignore[attr-defined]
    assert server.gone.wait(2)


def test_settings_come_from_arguments_then_the_environment() -> None:
    environ = {"OPENAI_BASE_URL": "http://localhost:11434/v1/", "OPENAI_API_KEY": "from-env"}
    made = make_generator("openai:llama", environ=environ)
    assert made == OpenAIGenerator("llama", "http://localhost:11434/v1", "from-env")
    made = make_generator("openai:org/model:7b", base_url="https://x/v1", api_key="given", environ=environ)
    assert made == OpenAIGenerator("org/model:7b", "https://x/v1", "given")
    assert made.name == "openai:org/model:7b"


def test_missing_settings_are_explained() -> None:
    with pytest.raises(
        GeneratorError, match=r"openai:gpt-x needs OPENAI_API_KEY .* or OPENAI_BASE_URL of a local server"
    ):
        make_generator("openai:gpt-x", environ={})
    with pytest.raises(GeneratorError, match="base URL 'localhost:1234' must begin with http:// or https://"):
        make_generator("openai:x", base_url="localhost:1234", environ={})


def test_a_password_in_the_url_is_not_shown() -> None:
    made = OpenAIGenerator("tiny", "http://me:hush@127.0.0.1:9/v1", retries=0)
    with pytest.raises(GeneratorError) as caught:
        list(made.generate(ASK))
    assert "hush" not in str(caught.value) and "http://127.0.0.1:9/v1" in str(caught.value)
