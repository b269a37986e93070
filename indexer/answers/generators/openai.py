"""Answers by any OpenAI-compatible chat endpoint: Ollama, llama.cpp, vLLM, LM Studio, OpenAI itself.

One streaming POST to `{base_url}/chat/completions`, read as server-sent events with httpx. What fails before
the first token for a passing reason (no connection, 408, 429, 5xx) is tried again with growing pauses;
after the first token nothing is repeated, because the reader has seen it. Nor is a silent server asked again:
it may still be reading the first prompt, and would have to begin anew. The key is never shown.

A model on a processor reads a long prompt for minutes before its first token. So the reply is read in a thread
of its own: meanwhile the generator yields "" now and then, and when it is closed it hangs up at once.
https://platform.openai.com/docs/api-reference/chat/create
"""

import json
import os
import queue
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from indexer.answers.generators.base import Request
from indexer.answers.prompts import chat_messages
from indexer.answers.words import silence
from indexer.errors import GeneratorError
from indexer.language import identify_language

DEFAULT_BASE_URL = "https://api.openai.com/v1"
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
LONGEST_PAUSE = 30.0  # seconds; a server that asks for more than this is reported instead of waited for
MAX_ERROR_CHARS = 300
MAX_LINE_CHARS = 1_000_000
QUEUED_PIECES = 64  # that a slow reader may leave waiting before the server is made to wait


class _Passing(Exception):
    """A failure that may go away by itself; `pause` is what the server asked for, in seconds."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _Call:
    """The connection of a request, so that another thread can hang up at any moment."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._socket: socket.socket | None = None

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpcore tells of the socket when it is there, and again when TLS has wrapped it."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
        if self.ended.is_set():
            self.hang_up()

    def hang_up(self) -> None:
        self.ended.set()
        if self._socket is not None:
            with suppress(OSError):  # the other side was first
                self._socket.shutdown(socket.SHUT_RDWR)


class _Reading:
    """Runs `read(call)` in a thread; `next` gives its items, then None, or the exception that ended it."""

    def __init__(self, read: Callable[[_Call], Iterator[str]]) -> None:
        self._call = _Call()
        self._items: queue.Queue[str | Exception | None] = queue.Queue(maxsize=QUEUED_PIECES)
        self._read = read
        threading.Thread(target=self._run, name="openai-reply", daemon=True).start()

    def next(self, timeout: float) -> str | Exception | None:
        """Raises queue.Empty after `timeout` seconds."""
        return self._items.get(timeout=timeout)

    def _run(self) -> None:
        try:
            for item in self._read(self._call):
                if not self._put(item):
                    return
            self._put(None)
        except Exception as error:  # goes to the reader of `next`
            self._put(error)

    def _put(self, item: str | Exception | None) -> bool:
        """Waits for room; False when nobody will read it."""
        while not self._call.ended.is_set():
            with suppress(queue.Full):
                self._items.put(item, timeout=0.1)
                return True
        return False

    def __enter__(self) -> "_Reading":
        return self

    def __exit__(self, *_: object) -> None:
        self._call.hang_up()


@dataclass(frozen=True)
class OpenAIGenerator:
    """A chat model behind an HTTP endpoint. `retries` counts the attempts after the first one."""

    model: str
    base_url: str = field(default=DEFAULT_BASE_URL, repr=False)  # may hold a password
    api_key: str | None = field(default=None, repr=False)
    max_tokens: int = 400
    temperature: float = 0.0
    timeout: float = 60.0  # seconds of silence in the middle of the answer
    first_timeout: float = 300.0  # seconds of silence before it: the model is loaded and reads the passages
    connect_timeout: float = 5.0
    retries: int = 3
    first_pause: float = 0.5  # doubles with each retry
    heartbeat: float = 1.0  # seconds between two signs of life while waiting
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    @classmethod
    def from_environment(
        cls,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        environ: Mapping[str, str] | None = None,
        max_tokens: int = 400,
        temperature: float = 0.0,
    ) -> "OpenAIGenerator":
        """Arguments first, then OPENAI_BASE_URL and OPENAI_API_KEY. Raises GeneratorError without a URL."""
        known = os.environ if environ is None else environ
        url = base_url or known.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
        key = api_key or known.get("OPENAI_API_KEY") or None
        if not url.startswith(("http://", "https://")):
            raise GeneratorError(
                f"base URL {url!r} must begin with http:// or https://, like http://localhost:11434/v1"
            )
        if url == DEFAULT_BASE_URL and key is None:
            raise GeneratorError(
                f"openai:{model} needs OPENAI_API_KEY for {DEFAULT_BASE_URL}, "
                "or OPENAI_BASE_URL of a local server, like http://localhost:11434/v1"
            )
        return cls(model, url.rstrip("/"), key, max_tokens, temperature)

    @property
    def name(self) -> str:
        return f"openai:{self.model}"

    def generate(self, request: Request) -> Iterator[str]:
        """Pieces of text as the server sends them; closing it hangs up. Raises GeneratorError."""
        phrase = silence(identify_language(request.question))
        body = {
            "model": self.model,
            "messages": chat_messages(phrase, request.passages, request.history, request.question),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
        }
        for attempt in range(self.retries + 1):
            try:
                yield from self._attempt(body)
                return
            except _Passing as failure:
                pause = failure.pause
                if pause is None:
                    pause = self.first_pause * 2**attempt * random.uniform(0.75, 1.25)
                if attempt == self.retries or pause > LONGEST_PAUSE:
                    raise self._error(f"{failure} (tried {attempt + 1} times)") from None
            while pause > 0:
                self.sleep(min(pause, self.heartbeat))
                pause -= self.heartbeat
                yield ""

    def _attempt(self, body: Mapping[str, Any]) -> Iterator[str]:
        """The texts of one request, "" while there is none."""
        started, heard = False, time.monotonic()
        with _Reading(lambda call: self._read(call, body)) as reading:
            while True:
                limit = self.timeout if started else self.first_timeout
                left = limit - (time.monotonic() - heard)
                if left <= 0:
                    raise self._silent(started, limit)
                try:
                    item = reading.next(min(self.heartbeat, left))
                except queue.Empty:
                    yield ""
                    continue
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise self._failed(started, item) from None
                heard = time.monotonic()
                if item:
                    started = True
                    yield item

    def _read(self, call: "_Call", body: Mapping[str, Any]) -> Iterator[str]:
        """Runs in the reading thread: the texts as they arrive, "" for a sign of life without one."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        timeout = httpx.Timeout(None, connect=self.connect_timeout)
        with (
            httpx.Client(timeout=timeout) as client,
            client.stream(
                "POST",
                f"{self.base_url}/chat/completions",
                json=body,
                headers=headers,
                extensions={"trace": call.trace},
            ) as response,
        ):
            self._check(response)
            yield from self._texts(response)

    def _failed(self, started: bool, error: Exception) -> Exception:
        """The error to raise for one that the reading thread met."""
        if isinstance(error, httpx.ConnectTimeout):
            return _Passing(f"no connection within {self.connect_timeout:g} s")
        if isinstance(error, httpx.TransportError):
            reason = f"connection failed: {error or type(error).__name__}"
            return self._error(f"the answer broke off: {reason}") if started else _Passing(reason)
        if isinstance(error, (httpx.InvalidURL, httpx.HTTPError, UnicodeError)):
            return self._error(str(error))
        return error

    def _silent(self, started: bool, limit: float) -> GeneratorError:
        if started:
            return self._error(f"the answer broke off: nothing came for {limit:g} s")
        return self._error(f"no reply within {limit:g} s; let it read less (--top-k) or use a smaller model")

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        response.read()
        reason = f"HTTP {response.status_code}: {_message(response.text)}"
        if response.status_code in PASSING:
            raise _Passing(reason, _retry_after(response.headers.get("Retry-After")))
        if response.status_code in (401, 403):
            reason += "; check OPENAI_API_KEY"
        if response.status_code == 404:
            reason += "; check the model's name and that the base URL ends as the server expects (often /v1)"
        raise self._error(reason)

    def _texts(self, response: httpx.Response) -> Iterator[str]:
        """The texts of the events, "" for a comment. The stream must say that it is over."""
        finished = False
        for line in response.iter_lines():
            if len(line) > MAX_LINE_CHARS:
                raise self._error(f"the server sent a line of {len(line)} characters")
            if not line.startswith("data:"):  # comments, event names, blank lines
                yield ""
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            text, finish_reason = self._read_event(data)
            finished = finished or finish_reason is not None
            yield text
        if not finished:
            raise httpx.RemoteProtocolError("the stream ended in the middle of the answer")

    def _read_event(self, data: str) -> tuple[str, str | None]:
        try:
            event = json.loads(data)
            if "error" in event:
                raise self._error(f"the server reported: {_message(data)}")
            if not event["choices"]:
                return "", None  # the usage event at the end
            choice = event["choices"][0]
            text = choice.get("delta", {}).get("content") or ""
            if not isinstance(text, str):
                raise TypeError
            return text, choice.get("finish_reason")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise self._error(
                f"the server sent an event that is not a chat completion chunk: {data[:100]!r}"
            ) from None

    def _error(self, reason: str) -> GeneratorError:
        place = re.sub(r"//[^/@]*@", "//", self.base_url)  # a password in the URL is a secret too
        text = f"{self.name} at {place}: {reason}"
        return GeneratorError(text.replace(self.api_key, "***") if self.api_key else text)


def _message(body: str) -> str:
    """The `error.message` of an OpenAI-style error body, or the beginning of whatever came."""
    try:
        error = json.loads(body)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        text = body
    return " ".join(str(text).split())[:MAX_ERROR_CHARS] or "no explanation"


def _retry_after(value: str | None) -> float | None:
    """Seconds, from the header's number or date; None when there is no such header or it cannot be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    now = datetime.now(timezone.utc)
    return max(
        0.0, (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp() - now.timestamp()
    )
