"""The map of a collection: its passages in two dimensions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.service import ServiceDependency, json_response
from api.vector_map import draw

router = APIRouter(prefix="/v1/collections/{collection}/map", tags=["search"])


@router.get("", summary="Map of the passages")
async def get_map(
    request: Request,
    collection: str,
    service: ServiceDependency,
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
) -> Response:
    """`{"points": [{"x", "y", "chunk_id", "document_id", "title", "language", "text"}], "total"}`.

    The two directions in which the vectors differ most (PCA), scaled to -1 … 1. Passages close together mean
    alike, whatever their language. Of larger collections an evenly spread sample is shown.
    """
    return json_response(await service.use(request, collection, lambda chosen: draw(chosen, limit)))
