"""Documents of a collection: put in, upload, list, read, append to, delete."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, UploadFile
from fastapi.responses import Response
from starlette.convertors import PathConvertor, register_url_convertor

from api import shapes
from api.errors import InvalidRequest
from api.routes.embeddings import check_count
from api.schemas import Appended, DocumentIds, OneOrMany
from api.service import ServiceDependency, json_response

if TYPE_CHECKING:
    from indexer.collection import Collection
    from indexer.types import Document


class _DocumentId(PathConvertor):
    """The rest of an address, newlines and all; `path` would take the id "a\\n" for "a"."""

    regex = "(?s:.*)"


register_url_convertor("document_id", _DocumentId())
router = APIRouter(prefix="/v1/collections/{collection}/documents", tags=["documents"])
COPY_BYTES = 1 << 20


@router.post("", summary="Put documents in")
async def upsert(request: Request, collection: str, asked: OneOrMany, service: ServiceDependency) -> Response:
    """One document, a list, or `{"documents": [...]}`. Known ids are replaced, at no cost if unchanged."""
    from indexer.types import Document

    check_count(service, len(asked.documents), "documents")
    documents = [Document(**document.model_dump()) for document in asked.documents]
    done = await service.use(
        request, collection, lambda chosen: chosen.upsert(documents), inputs=len(documents)
    )
    return json_response(shapes.report(done))


@router.post("/upload", summary="Upload files")
async def upload(
    request: Request, collection: str, files: list[UploadFile], service: ServiceDependency
) -> Response:
    """Multipart form, field `files`: text, Markdown, HTML, PDF, Word, CSV and so on.

    A document's id is the file's name. A file that cannot be read is in `failed`; the others are taken.
    """
    check_count(service, len(files), "files")
    with tempfile.TemporaryDirectory(prefix="rwkv-embed-") as folder:
        paths = [await _save(file, Path(folder)) for file in files]
        done = await service.use(request, collection, lambda chosen: _index(chosen, paths), inputs=len(paths))
    return json_response(done)


async def _save(file: UploadFile, folder: Path) -> Path:
    """Write an upload under the last part of its name, whatever path the client made up."""
    name = PureWindowsPath(PurePosixPath(file.filename or "").name).name
    name = "".join(character for character in name if character.isprintable())[-200:]
    if not name.strip(". "):
        raise InvalidRequest(
            f"the file name {file.filename!r} has no last part; name the file", param="files"
        )
    path = folder / name
    if path.exists():
        raise InvalidRequest(
            f"two files are called {name!r}; their names are the ids, so they must differ", param="files"
        )
    with path.open("wb") as stream:
        while block := await file.read(COPY_BYTES):
            stream.write(block)
    return path


def _index(chosen: Collection, paths: Sequence[Path]) -> dict[str, Any]:
    from indexer.errors import LoaderError
    from indexer.loaders import load

    documents: list[Document] = []
    failed: list[dict[str, str]] = []
    for path in paths:
        try:
            documents += [replace(found, uri=found.id) for found in load(path, path.parent)]
        except LoaderError as error:
            failed.append({"path": path.name, "reason": error.reason})
    report = shapes.report(chosen.upsert(documents))
    return report | {"failed": failed + report["failed"]}


@router.get("", summary="List documents")
async def list_documents(
    request: Request,
    collection: str,
    service: ServiceDependency,
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    where: str | None = None,
) -> Response:
    """In a stable order, without their texts; `total` counts all that match `where`."""

    def work(chosen: Collection) -> dict[str, Any]:
        rows = chosen.documents(offset=offset, limit=limit, where=where)
        return {"object": "list", "data": rows, "total": chosen.count(where=where)}

    return json_response(await service.use(request, collection, work))


@router.post("/delete", summary="Delete several documents")
async def delete_many(
    request: Request, collection: str, asked: DocumentIds, service: ServiceDependency
) -> Response:
    """`deleted` counts those that were there."""
    return json_response(
        {"deleted": await service.use(request, collection, lambda chosen: chosen.delete(asked.ids))}
    )


@router.get("/{document_id:document_id}", summary="Read a document")
async def get_document(
    request: Request, collection: str, document_id: str, service: ServiceDependency
) -> Response:
    """With its text and its passages. Encode `?`, `#` and `%` of the id; slashes may stay."""
    return json_response(await service.use(request, collection, lambda chosen: chosen.get(document_id)))


@router.post("/{document_id:document_id}/append", summary="Append to a document")
async def append(
    request: Request, collection: str, document_id: str, asked: Appended, service: ServiceDependency
) -> Response:
    """Embeds the new text and the passage that it continues, no more. With context "document" only the new text
    is read: the RNN's state remembers the rest."""
    done = await service.use(request, collection, lambda chosen: chosen.append(document_id, asked.text))
    return json_response(shapes.report(done))


@router.delete("/{document_id:document_id}", summary="Delete a document")
async def delete_document(
    request: Request, collection: str, document_id: str, service: ServiceDependency
) -> Response:
    """404 when it is not there."""

    def work(chosen: Collection) -> int:
        chosen.get(document_id)
        return chosen.delete([document_id])

    return json_response({"deleted": await service.use(request, collection, work)})
