"""OpenAI's /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.errors import InvalidRequest, ModelNotServed
from api.schemas import EmbeddingsRequest
from api.service import Service, ServiceDependency, json_response, while_connected

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post("/embeddings", summary="Texts to vectors")
async def create_embeddings(
    request: Request, asked: EmbeddingsRequest, service: ServiceDependency
) -> Response:
    """Takes and gives what OpenAI's endpoint does. `usage` counts the tokens that the model reads."""
    check_model(service, asked.model)
    check_dimensions(service, asked.dimensions, "dimensions")
    texts = await service.workers.run(lambda: as_texts(service, asked.input))
    check_count(service, len(texts), "input")
    vectors = await while_connected(request, service.encode(texts, asked.input_type))

    def shape() -> Response:
        tokens = sum(service.embedder.count_tokens(texts))
        rows = _encoded(shortened(vectors, asked.dimensions), asked.encoding_format)
        return json_response(
            {
                "object": "list",
                "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
                "model": service.embedder.model_id,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    return await service.workers.run_admitted(shape)  # thousands of numbers take a while to write


def check_model(service: Service, name: str) -> None:
    names = ("default", service.embedder.model_id, *service.settings.model_aliases)
    if name not in names:
        raise ModelNotServed(
            f"model {name!r} is not served here; use {service.embedder.model_id!r}, or allow the name in "
            "RWKV_EMBED_MODEL_ALIASES",
            param="model",
        )


def check_dimensions(service: Service, dimensions: int | None, param: str) -> None:
    dim = service.embedder.dim
    if dimensions is not None and dimensions > dim:
        raise InvalidRequest(
            f"{param} is {dimensions}, but {service.embedder.model_id} has {dim}; ask for 1 to {dim}",
            param=param,
        )


def check_count(service: Service, count: int, param: str) -> None:
    limit = service.settings.max_inputs
    if not 1 <= count <= limit:
        raise InvalidRequest(f"{param} has {count} entries; send 1 to {limit} in one request", param=param)


def as_texts(service: Service, given: str | Sequence[Any], param: str = "input") -> list[str]:
    """The texts of an OpenAI `input`; token ids are decoded with the model's own tokenizer."""
    if isinstance(given, str):
        texts = [given]
    elif given and isinstance(given[0], int):
        texts = [_decode(service, [int(token) for token in given], 0)]
    else:
        texts = [
            entry if isinstance(entry, str) else _decode(service, entry, i) for i, entry in enumerate(given)
        ]
    for i, text in enumerate(texts):
        if not text:
            raise InvalidRequest(f"{param}[{i}] is empty; leave it out", param=param)
    return texts


def _decode(service: Service, ids: Sequence[int], place: int) -> str:
    tokenizer = service.embedder.tokenizer
    if any(token >= tokenizer.vocab_size for token in ids):
        raise InvalidRequest(
            f"input[{place}] has token id {max(ids)}, of another model's vocabulary (ours has "
            f"{tokenizer.vocab_size}); send text, or ids of this model's tokenizer "
            "(for LangChain: check_embedding_ctx_length=False)",
            param="input",
        )
    return tokenizer.decode(list(ids))


def shortened(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The leading dimensions, normalised again: the same as truncating before the first normalisation."""
    import numpy as np

    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    short = vectors[:, :dimensions]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    return short / np.maximum(lengths, np.finfo(np.float32).tiny)


def _encoded(vectors: NDArray[np.float32], encoding: str) -> list[Any]:
    if encoding == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    return short_floats(vectors)


def short_floats(vectors: NDArray[np.float32]) -> list[list[float]]:
    """Rows for JSON with 8 decimals, half the bytes of the full doubles: off by 5e-9 at most."""
    rows: list[list[float]] = vectors.astype("f8").round(8).tolist()
    return rows


@router.get("/models", summary="The embedding model and the collections")
async def list_models(service: ServiceDependency) -> Response:
    """The embedding model first; then each collection, which is a *model* for `/v1/chat/completions`."""
    return json_response({"object": "list", "data": await _models(service)})


@router.get("/models/{name:path}", summary="One of them")
async def get_model(name: str, service: ServiceDependency) -> Response:
    for model in await _models(service):
        if model["id"] == name:
            return json_response(model)
    raise ModelNotServed(f"model {name!r} is not served here; GET /v1/models lists what is", param="model")


async def _models(service: Service) -> list[dict[str, Any]]:
    store = service.store
    collections = await service.workers.run(store.collections)
    embedding = {"id": service.embedder.model_id, "object": "model", "created": 0, "owned_by": "rwkv-embed"}
    return [embedding] + [
        {
            "id": info.name,
            "object": "model",
            "created": int(info.created_at.timestamp()),
            "owned_by": "collection",
        }
        for info in collections
    ]
