"""What happens to every request: an id, metrics, the key, the rate, the size of the body.

Plain ASGI, so that streams stream and a refused request is never read. Order, outermost first: `Observed`,
`Guarded`, `BodyLimit`.
"""

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import (
    ApiError,
    ForeignPage,
    NotAuthenticated,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    body,
    meaning,
)
from api.metrics import Metrics
from api.settings import Settings
from api.shapes import dumps
from indexer.errors import StoreLocked

log = logging.getLogger("api.requests")
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})  # hold nothing of the store
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
READING = frozenset({"GET", "HEAD", "OPTIONS"})  # methods that change nothing
RETRY_SECONDS = 5  # what a client is told to wait for another writer, or for a server that is restarted
_REQUEST_ID = re.compile(r"[\w.\-]{1,64}", re.ASCII)


class Observed:
    """An id for each request (the client's own, if harmless), its count and time, a 500 for our faults."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        started, status = time.perf_counter(), 0
        method = scope["method"] if scope["method"] in METHODS else "other"
        if method == "HEAD":  # FastAPI's routes know GET only; the HTTP server leaves the body out
            scope = {**scope, "method": "GET"}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:  # nobody is there to be answered
            log.info("%s left", request_id)
        except asyncio.CancelledError:  # the server stops and gives up what is not done in time
            if status:
                raise
            await refuse(
                send_with_id,
                NotReady(
                    "the server is stopping and did not finish this request; send it again when it is back",
                    retry_after=RETRY_SECONDS,
                ),
            )
        except Exception as error:
            log.exception("%s failed", request_id)
            if status:  # half an answer is out: end the connection, so that it is not taken for a whole one
                raise
            await refuse(send_with_id, error)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            log.info("%s %s %s %d %.1f ms", request_id, method, route, status, 1000 * seconds)


class Guarded:
    """No writes from other sites' pages, API keys, requests per minute."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._keys = [_digest(key.get_secret_value()) for key in settings.api_keys]
        self._rate = Rate(settings.requests_per_minute) if settings.requests_per_minute else None
        self._origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        preflight = scope.get("method") == "OPTIONS"
        if scope["type"] != "http" or _is_open(scope["path"]) or preflight:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if scope["method"] not in READING:
                self._check_page(headers)
            who = self._authenticate(headers) or (scope["client"] or ("unknown",))[0]
            if self._rate is not None:
                self._rate.count(who)
        except ApiError as error:
            await refuse(send, error)
            return
        await self._app(scope, receive, send)

    def _check_page(self, headers: Headers) -> None:
        """ForeignPage when a browser sends this for a page of another origin that is not allowed to.

        A form needs nobody's leave to post files to another site: CORS only keeps its page from the answer.
        """
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if site in ("same-origin", "none") or "*" in self._origins or origin in self._origins:
            return
        if site == "cross-site" or (origin is not None and origin.partition("://")[2] != headers.get("host")):
            raise ForeignPage(
                f"a page of {origin or 'another site'} may not change anything here; allow its origin in "
                "RWKV_EMBED_CORS_ORIGINS"
            )

    def _authenticate(self, headers: Headers) -> str | None:
        """The digest of the caller's key; None when the API is open; NotAuthenticated."""
        if not self._keys:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not given:
            raise NotAuthenticated(
                "an API key is needed: send `Authorization: Bearer KEY` or `x-api-key: KEY`"
            )
        digest = _digest(given)
        # Every key is compared, in constant time: how long it takes tells nothing.
        known = [hmac.compare_digest(digest, key) for key in self._keys]
        if not any(known):
            raise NotAuthenticated("this API key is not known; ask whoever runs the server for one")
        return digest.hex()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith("/static/")


class Rate:
    """At most `limit` requests of one caller in any fixed minute."""

    def __init__(self, limit: int) -> None:
        self._limit, self._minute, self._counts = limit, 0, dict[str, int]()

    def count(self, who: str) -> None:
        now = time.monotonic()
        if (minute := int(now // 60)) != self._minute:
            self._minute, self._counts = minute, {}
        self._counts[who] = self._counts.get(who, 0) + 1
        if self._counts[who] > self._limit:
            wait = 60 - int(now % 60)
            raise Overloaded(
                f"over {self._limit} requests in this minute; try again in {wait} s", retry_after=wait
            )


class BodyLimit:
    """Refuses bodies over the limit: at once when their length is declared, else when they get there."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        upload = headers.get("content-type", "").startswith("multipart/form-data")
        limit = self._settings.max_upload_bytes if upload else self._settings.max_body_bytes
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            await refuse(send, _too_large(limit))
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        await self._app(scope, counted, send)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is over this server's limit of {limit:,} bytes; send it in parts")


def error_headers(error: BaseException) -> dict[str, str]:
    """Retry-After and WWW-Authenticate, where they belong."""
    headers = {}
    if isinstance(error, ApiError) and error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, StoreLocked):
        headers["retry-after"] = str(RETRY_SECONDS)
    if isinstance(error, NotAuthenticated):
        headers["www-authenticate"] = "Bearer"
    return headers


async def refuse(send: Send, error: Exception) -> None:
    """Answer with an error, without reading the body."""
    content = dumps(body(error)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content))} | error_headers(error)
    raw: Iterable[tuple[bytes, bytes]] = [(key.encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": meaning(error).status, "headers": list(raw)})
    await send({"type": "http.response.body", "body": content})
