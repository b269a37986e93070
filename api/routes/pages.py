"""The search page, the description of the API, and what operators ask: /health, /ready, /metrics."""

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, Response

from api.service import ServiceDependency, json_response
from rwkv_embed import __version__

router = APIRouter()
STATIC = Path(__file__).parent.parent / "static"
STATIC_FILES = ("app.js", "style.css", "docs.js", "docs.css", "icon.svg")
HEADERS = {
    # Whatever a document says, the pages load nothing from elsewhere and run no script but their own.
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@router.get("/", include_in_schema=False)
def search_page() -> FileResponse:
    return FileResponse(STATIC / "index.html", headers=HEADERS)


@router.get("/docs", include_in_schema=False)
def docs_page() -> FileResponse:
    return FileResponse(STATIC / "docs.html", headers=HEADERS)


@router.get("/static/{name}", include_in_schema=False)
def static_file(name: str) -> FileResponse:
    if name not in STATIC_FILES:
        raise HTTPException(404)
    return FileResponse(STATIC / name, headers=HEADERS)


@router.get("/health", tags=["operation"], summary="Is the process alive?")
async def health() -> dict[str, str]:
    """Answers at once, whatever the server is busy with."""
    return {"status": "ok"}


@router.get("/ready", tags=["operation"], summary="Can it answer?")
async def ready(service: ServiceDependency) -> dict[str, str]:
    """503 while the model is loading, or when the store could not be opened or does not answer, with the reason
    where no key is needed."""
    await service.check_ready(tell=not service.settings.api_keys)  # no key is asked for here
    return {"status": "ready"}


@router.get("/metrics", tags=["operation"], summary="Prometheus metrics")
async def metrics(service: ServiceDependency) -> Response:
    """Requests and their times per route, texts embedded, inputs in the queue."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/info", tags=["embeddings"], summary="The model and the limits of this server")
async def info(service: ServiceDependency) -> Response:
    """As Text Embeddings Inference has it."""
    embedder, settings = service.embedder, service.settings
    return json_response(
        {
            "model_id": embedder.model_id,
            "model_sha": embedder.fingerprint,
            "dim": embedder.dim,
            "model_type": {"embedding": {"pooling": embedder.pooling}},
            "max_concurrent_requests": settings.queue_limit,
            "max_client_batch_size": settings.max_inputs,
            "max_body_bytes": settings.max_body_bytes,
            "version": __version__,
        }
    )
