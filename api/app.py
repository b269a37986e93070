"""The HTTP server: `create_app(settings)` puts together middleware, routes and error handling. No globals.

The model loads in the background: `/health` answers from the first moment, `/ready` says when it is there.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from api import backend
from api.errors import EXPECTED, ApiError, NotReady, body, meaning, shape
from api.middleware import BodyLimit, Guarded, Observed, error_headers
from api.routes import answers, collections, documents, embeddings, pages, search, tei, vector_map
from api.service import ClientGone, OpenStore, Service, json_response
from api.settings import Settings
from api.validation import problem, unreadable
from rwkv_embed import __version__

log = logging.getLogger(__name__)
UNPARSED_BODY = "There was an error parsing the body"  # as FastAPI says it
CLIENT_CLOSED_REQUEST = 499  # as nginx has it; nobody reads it, metrics count it

DESCRIPTION = """Semantic search and cited answers over your own documents, in any language, on a CPU.

* **Search and ask**: make a collection, put documents in, search it, ask it. Queries and documents may be
  in different languages.
* **OpenAI's API**: `/v1/embeddings`, `/v1/models` and `/v1/chat/completions` work with OpenAI's clients;
  a chat *model* is a collection.
* **Text Embeddings Inference**: `/embed`, `/rerank` and `/info`.

Where the server has keys, send one as `Authorization: Bearer KEY` or `x-api-key: KEY`. Every error has
OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`; 429, and a 503 that ends by itself (the
model is loading, another process writes), say in `Retry-After` when to come back. Every answer has an
`x-request-id`."""


def create_app(settings: Settings | None = None, *, open_store: OpenStore = backend.open_store) -> FastAPI:
    """An ASGI application that serves one store. `open_store(location, model, reranker)` is for tests."""
    settings = settings or Settings()
    service = Service(settings, open_store)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start())
        yield
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await service.stop()

    app = FastAPI(
        title="rwkv-embed",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    for room in (pages, search, answers, collections, documents, vector_map, embeddings, tei):
        app.include_router(room.router)
    _handle_errors(app)
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Guarded, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Observed, metrics=service.metrics)
    return app


def _handle_errors(app: FastAPI) -> None:
    """Every answer that is not a success has OpenAI's error shape."""

    async def expected(request: Request, error: Exception) -> Response:
        if meaning(error).status >= 500 and not isinstance(error, NotReady):  # its cause was logged once
            log.error("%s: %s", type(error).__name__, error)
        return json_response(body(error), meaning(error).status, error_headers(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, ApiError):  # raised while FastAPI was reading the body
            return await expected(request, error.__cause__)
        message = str(error.detail)
        if message == UNPARSED_BODY:
            message = unreadable(error.__cause__)
        elif error.status_code == 404:
            message = f"there is nothing at {request.method} {request.url.path}; /docs lists what there is"
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}; /docs lists what it takes"
        return json_response(shape(message, "invalid_request_error"), error.status_code, error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            message = f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
            return json_response(shape(message, "invalid_request_error"), 422)
        message, field = problem(error.errors())
        return json_response(shape(message, "invalid_request_error", field), 422)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    for kind in EXPECTED:
        app.add_exception_handler(kind, expected)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientGone, gone)
