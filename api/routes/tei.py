"""The endpoints of Text Embeddings Inference, which many clients speak."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.errors import InvalidRequest
from api.routes.embeddings import as_texts, check_count, check_dimensions, short_floats, shortened
from api.schemas import EmbedRequest, RerankRequest
from api.service import ServiceDependency, json_response, while_connected

router = APIRouter(tags=["embeddings"])


@router.post("/embed", summary="Texts to vectors, bare")
async def embed(request: Request, asked: EmbedRequest, service: ServiceDependency) -> Response:
    """A list of vectors, one for each input, of length 1."""
    check_dimensions(service, asked.dimensions, "dimensions")
    texts = as_texts(service, asked.inputs, "inputs")
    check_count(service, len(texts), "inputs")
    vectors = await while_connected(request, service.encode(texts))
    return await service.workers.run_admitted(
        lambda: json_response(short_floats(shortened(vectors, asked.dimensions)))
    )


@router.post("/rerank", summary="Order texts by how well they fit a query")
async def rerank(request: Request, asked: RerankRequest, service: ServiceDependency) -> Response:
    """`[{"index", "score"}]`, best first. The score is the cosine similarity of the embeddings."""
    if not asked.query.strip():
        raise InvalidRequest("the query is empty; send what the texts are to be compared with", param="query")
    check_count(service, len(asked.texts), "texts")
    query = await while_connected(request, service.encode([asked.query], "query"))
    vectors = await while_connected(request, service.encode(asked.texts))
    scores = (vectors @ query[0]).tolist()
    ranked: list[dict[str, Any]] = [{"index": i, "score": score} for i, score in enumerate(scores)]
    if asked.return_text:
        ranked = [entry | {"text": asked.texts[entry["index"]]} for entry in ranked]
    return json_response(sorted(ranked, key=lambda entry: -entry["score"]))
