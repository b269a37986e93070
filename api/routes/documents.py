"""Documents of a collection: put in, upload, list, read, append to, delete."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
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
MAX_FILE_NAME_BYTES = 200
FOLDED_ID = (
    "the id has a part that is `.` or `..`, which clients take out of an address before they send it; "
    "choose another id"
)


@router.post("", summary="Put documents in")
async def upsert(request: Request, collection: str, asked: OneOrMany, service: ServiceDependency) -> Response:
    """One document, a list, or `{"documents": [...]}`. Known ids are replaced, at no cost if unchanged."""
    from indexer.types import Document

    check_count(service, len(asked.documents), "documents")
    documents = [Document(**document.model_dump()) for document in asked.documents]
    done = await service.use(
        request, collection, lambda chosen: _put(chosen, documents), inputs=len(documents), writes=True
    )
    service.metrics.embedded.inc(done["chunks_embedded"])
    return json_response(done)


@router.post("/upload", summary="Upload files")
async def upload(
    request: Request, collection: str, files: list[UploadFile], service: ServiceDependency
) -> Response:
    """Multipart form, field `files`: text, Markdown, HTML, PDF, Word, CSV and so on.

    A document's id is the file's name. A file that cannot be read is in `failed`; the others are taken.
    """
    check_count(service, len(files), "files")
    names = [_name(file) for file in files]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(
                f"two files are called {name!r}; their names are the ids, so they must differ", param="files"
            )
    with tempfile.TemporaryDirectory(prefix="rwkv-embed-") as folder:
        uploads = {
            name: await _save(file, name, Path(folder, str(number)))
            for number, (file, name) in enumerate(zip(files, names, strict=True))
        }
        done = await service.use(
            request, collection, lambda chosen: _index(chosen, uploads), inputs=len(uploads), writes=True
        )
    service.metrics.embedded.inc(done["chunks_embedded"])
    return json_response(done)


def _name(file: UploadFile) -> str:
    """The last part of an upload's name, whatever path the client made up."""
    name = PureWindowsPath(PurePosixPath(file.filename or "").name).name
    name = "".join(character for character in name if character.isprintable())[-200:]
    if not name.strip(". "):
        raise InvalidRequest(
            f"the file name {file.filename!r} has no last part; name the file", param="files"
        )
    return name


async def _save(file: UploadFile, name: str, folder: Path) -> Path:
    """Write an upload to a folder of its own. A file system counts a name's bytes: the end says the format."""
    folder.mkdir()
    path = folder / name.encode()[-MAX_FILE_NAME_BYTES:].decode(errors="ignore")
    with path.open("wb") as stream:
        while block := await file.read(COPY_BYTES):
            stream.write(block)
    return path


def _index(chosen: Collection, uploads: Mapping[str, Path]) -> dict[str, Any]:
    from indexer.errors import LoaderError
    from indexer.loaders import load

    documents: list[Document] = []
    failed: list[dict[str, str]] = []
    for name, path in uploads.items():
        try:
            for found in load(path, path.parent):
                own = name + found.id.removeprefix(path.name)
                title = name if found.title == path.name else found.title
                documents.append(replace(found, id=own, uri=own, title=title))
        except LoaderError as error:
            failed.append({"path": name, "reason": error.reason})
    report = _put(chosen, documents)
    return report | {"failed": failed + report["failed"]}


def _put(chosen: Collection, documents: Sequence[Document]) -> dict[str, Any]:
    """The report of putting them in, but for ids that no client could send as part of an address.

    Clients fold `.` and `..` away before they send a path: DELETE of the document `..` deletes the collection.
    """
    folded = {document.id for document in documents if {".", ".."} & set(re.split(r"[/\\]", document.id))}
    report = shapes.report(chosen.upsert(document for document in documents if document.id not in folded))
    failed = [{"path": id[:200], "reason": FOLDED_ID} for id in sorted(folded)]
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
    deleted = await service.use(request, collection, lambda chosen: chosen.delete(asked.ids), writes=True)
    return json_response({"deleted": deleted})


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
    done = await service.use(
        request, collection, lambda chosen: chosen.append(document_id, asked.text), writes=True
    )
    service.metrics.embedded.inc(done.chunks_embedded)
    return json_response(shapes.report(done))


@router.delete("/{document_id:document_id}", summary="Delete a document")
async def delete_document(
    request: Request, collection: str, document_id: str, service: ServiceDependency
) -> Response:
    """404 when it is not there."""

    def work(chosen: Collection) -> int:
        chosen.get(document_id)
        return chosen.delete([document_id])

    return json_response({"deleted": await service.use(request, collection, work, writes=True)})
