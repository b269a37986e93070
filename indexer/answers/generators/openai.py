"""Answers by any OpenAI-compatible chat endpoint: Ollama, llama.cpp, vLLM, LM Studio, OpenAI itself.

One streaming POST to `{base_url}/chat/completions`, read as server-sent events with httpx. What fails before
the first token for a passing reason (no connection, 408, 429, 5xx) is tried again with growing pauses;
after the first token nothing is repeated, because the reader has seen it. The key is never shown.
https://platform.openai.com/docs/api-reference/chat/create
"""

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
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


class _Passing(Exception):
    """A failure that may go away by itself; `pause` is what the server asked for, in seconds."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class OpenAIGenerator:
    """A chat model behind an HTTP endpoint. `retries` counts the attempts after the first one."""

    model: str
    base_url: str = field(default=DEFAULT_BASE_URL, repr=False)  # may hold a password
    api_key: str | None = field(default=None, repr=False)
    max_tokens: int = 400
    temperature: float = 0.0
    timeout: float = 60.0  # seconds between two pieces of the stream; a slow prompt counts as one
    connect_timeout: float = 5.0
    retries: int = 3
    first_pause: float = 0.5  # doubles with each retry
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
        timeout = httpx.Timeout(self.timeout, connect=self.connect_timeout)
        with httpx.Client(timeout=timeout) as client:
            for attempt in range(self.retries + 1):
                try:
                    yield from self._attempt(client, body)
                    return
                except _Passing as failure:
                    pause = failure.pause
                    if pause is None:
                        pause = self.first_pause * 2**attempt * random.uniform(0.75, 1.25)
                    if attempt == self.retries or pause > LONGEST_PAUSE:
                        raise self._error(f"{failure} (tried {attempt + 1} times)") from None
                    self.sleep(pause)

    def _attempt(self, client: httpx.Client, body: Mapping[str, Any]) -> Iterator[str]:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        started = False
        try:
            url = f"{self.base_url}/chat/completions"
            with client.stream("POST", url, json=body, headers=headers) as response:
                self._check(response)
                for text in self._texts(response):
                    started = True
                    yield text
        except httpx.TimeoutException as error:
            seconds = self.connect_timeout if isinstance(error, httpx.ConnectTimeout) else self.timeout
            raise self._interrupted(started, f"no reply within {seconds:g} s") from None
        except httpx.TransportError as error:
            raise self._interrupted(started, f"connection failed: {error or type(error).__name__}") from None
        except (httpx.InvalidURL, httpx.HTTPError, UnicodeError) as error:
            raise self._error(str(error)) from None

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
        """The texts of the events. The stream must say that it is over: a cut answer is an error."""
        finished = False
        for line in response.iter_lines():
            if len(line) > MAX_LINE_CHARS:
                raise self._error(f"the server sent a line of {len(line)} characters")
            if not line.startswith("data:"):
                continue  # comments, event names, blank lines
            data = line[5:].strip()
            if data == "[DONE]":
                return
            text, finish_reason = self._read_event(data)
            finished = finished or finish_reason is not None
            if text:
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

    def _interrupted(self, started: bool, reason: str) -> Exception:
        return self._error(f"the answer broke off: {reason}") if started else _Passing(reason)

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
