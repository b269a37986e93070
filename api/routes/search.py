"""Search of a collection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api import shapes
from api.schemas import SearchRequest
from api.service import Service, ServiceDependency, json_response

if TYPE_CHECKING:
    from indexer.collection import Collection
    from indexer.types import SearchHit

router = APIRouter(prefix="/v1/collections/{collection}/search", tags=["search"])


@router.post("", summary="Search")
async def search(
    request: Request, collection: str, asked: SearchRequest, service: ServiceDependency
) -> Response:
    """Passages that answer the query, best first, whatever language they are in.

    `start` and `end` place a passage in its document, `highlights` the matching sentences in the passage.
    """
    return await _search(request, collection, asked, service)


@router.get("", summary="Search, from an address bar")
async def search_by_address(
    request: Request,
    collection: str,
    service: ServiceDependency,
    q: Annotated[str, Query(description="the query, in any language", examples=["right to schooling"])],
    top_k: Annotated[int, Query(ge=1, lt=2**31)] = 10,
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    mode: Literal["dense", "lexical", "hybrid"] = "hybrid",
    where: str | None = None,
    group_by: Literal["chunk", "document"] = "chunk",
) -> Response:
    """The most used options of `POST`."""
    asked = SearchRequest(query=q, top_k=top_k, offset=offset, mode=mode, where=where, group_by=group_by)
    return await _search(request, collection, asked, service)


async def _search(request: Request, collection: str, asked: SearchRequest, service: Service) -> Response:
    from indexer.types import SearchOptions

    options = SearchOptions(**asked.model_dump(exclude={"query"}))
    started = time.perf_counter()

    def work(chosen: Collection) -> list[SearchHit]:
        return chosen.search(asked.query, options)

    hits = await service.use(request, collection, work)
    milliseconds = round(1000 * (time.perf_counter() - started), 1)
    return json_response({"hits": [shapes.hit(hit) for hit in hits], "took_ms": milliseconds})
