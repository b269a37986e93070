"""Collections: list, create, look at, delete."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import shapes
from api.schemas import NewCollection
from api.service import ServiceDependency, json_response, while_connected

router = APIRouter(prefix="/v1/collections", tags=["collections"])


@router.get("", summary="All collections")
async def list_collections(request: Request, service: ServiceDependency) -> Response:
    """Names, models, sizes."""
    found = await while_connected(request, service.workers.run(service.store.collections))
    return json_response({"object": "list", "data": [shapes.collection(info) for info in found]})


@router.post("", status_code=201, summary="Make a collection")
async def create_collection(request: Request, asked: NewCollection, service: ServiceDependency) -> Response:
    """It is bound to the server's model. 409 when the name is taken."""
    from indexer.types import ChunkingOptions

    chunking = ChunkingOptions(**asked.chunking.model_dump())
    store = service.store
    created = await service.workers.run(
        lambda: store.create_collection(asked.name, chunking=chunking, metadata=asked.metadata).info,
        writes=True,
    )
    return json_response(shapes.collection(created), 201)


@router.get("/{collection}", summary="One collection")
async def get_collection(request: Request, collection: str, service: ServiceDependency) -> Response:
    """Its model, chunking and sizes."""
    return json_response(
        await service.use(request, collection, lambda chosen: shapes.collection(chosen.info))
    )


@router.get("/{collection}/stats", summary="Index, sizes and recall of a collection")
async def stats(
    request: Request, collection: str, service: ServiceDependency, recall: bool = False
) -> Response:
    """Which index is used and why; with `recall`, how much of what exact search finds it finds."""
    return json_response(await service.use(request, collection, lambda chosen: chosen.stats(recall=recall)))


@router.delete("/{collection}", summary="Delete a collection with all its documents")
async def delete_collection(collection: str, service: ServiceDependency) -> Response:
    """There is no way back, except a backup."""
    store = service.store
    await service.workers.run(lambda: store.delete_collection(collection), writes=True)
    return json_response({"object": "collection", "name": collection, "deleted": True})
