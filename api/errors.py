"""One table from exception class to HTTP status, exit code and OpenAI error type; nothing else decides these.

ApiError                 what only this room can find wrong
├── InvalidRequest       the request makes no sense (a value, a combination)
├── ModelNotServed       the request names a model or collection@generator that this server does not have
├── NotAuthenticated     no API key, or not one of ours
├── ForeignPage          a web page of another site tries to change something
├── PayloadTooLarge      the body is over a limit of the settings
├── Overloaded           the queue is full, or the key used up its minute; carries the seconds to wait
├── NotReady             the model or the store is still loading, or could not be opened
├── CannotListen         the address or port of `serve` is not to be had
└── SomeFilesFailed      an ingestion went through, but some files could not be read

Exit codes: 0 success, 1 a fault of ours, 2 wrong usage (as click has it), the table below, 130 Ctrl-C.
"""

import errno
from dataclasses import dataclass
from typing import Any

from indexer import errors as index
from rwkv_embed import errors as tensors


class ApiError(Exception):
    """Base of the errors of this room. `param` names the offending field, as OpenAI's errors do."""

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.param, self.retry_after = param, retry_after


class InvalidRequest(ApiError):
    """The request makes no sense."""


class ModelNotServed(ApiError):
    """The request names a model that this server does not have."""


class NotAuthenticated(ApiError):
    """No API key, or not one of ours."""


class ForeignPage(ApiError):
    """A web page of another site tries to change something."""


class PayloadTooLarge(ApiError):
    """The body is over a limit of the settings."""


class Overloaded(ApiError):
    """The queue is full, or the key used up its minute."""


class NotReady(ApiError):
    """The model or the store is still loading, or could not be opened."""


class CannotListen(ApiError):
    """The address or port of `serve` is not to be had."""


class SomeFilesFailed(ApiError):
    """An ingestion went through, but some files could not be read."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an exception class means outside: `kind` is OpenAI's error type, `code` is for programs."""

    status: int
    exit_code: int
    kind: str
    code: str | None = None


_INVALID, _SERVER = "invalid_request_error", "server_error"

MEANINGS: dict[type[BaseException], Meaning] = {
    # this room
    InvalidRequest: Meaning(400, 2, _INVALID),
    ModelNotServed: Meaning(404, 3, _INVALID, "model_not_found"),
    NotAuthenticated: Meaning(401, 4, "authentication_error", "invalid_api_key"),
    ForeignPage: Meaning(403, 23, "permission_error", "foreign_page"),
    PayloadTooLarge: Meaning(413, 5, _INVALID, "request_too_large"),
    Overloaded: Meaning(429, 6, "rate_limit_error", "rate_limit_exceeded"),
    NotReady: Meaning(503, 7, _SERVER, "not_ready"),
    CannotListen: Meaning(503, 9, _SERVER, "cannot_listen"),
    SomeFilesFailed: Meaning(422, 8, _INVALID, "some_files_failed"),
    # indexer
    index.StoreError: Meaning(503, 10, _SERVER, "store_error"),
    index.StoreLocked: Meaning(503, 11, _SERVER, "store_locked"),
    index.CollectionNotFound: Meaning(404, 12, _INVALID, "collection_not_found"),
    index.CollectionExists: Meaning(409, 13, _INVALID, "collection_exists"),
    index.DocumentNotFound: Meaning(404, 14, _INVALID, "document_not_found"),
    index.ModelMismatch: Meaning(409, 15, _INVALID, "model_mismatch"),
    index.InvalidQuery: Meaning(400, 16, _INVALID, "invalid_query"),
    index.InvalidFilter: Meaning(400, 17, _INVALID, "invalid_filter"),
    index.LimitExceeded: Meaning(413, 18, _INVALID, "limit_exceeded"),
    index.LoaderError: Meaning(422, 19, _INVALID, "unreadable_file"),
    index.GeneratorError: Meaning(502, 20, _SERVER, "generator_error"),
    index.InvalidCollection: Meaning(400, 22, _INVALID, "invalid_collection"),
    index.IndexerError: Meaning(500, 21, _SERVER),
    # rwkv_embed
    tensors.CheckpointError: Meaning(500, 30, _SERVER, "checkpoint_error"),
    tensors.ModelNotFound: Meaning(404, 31, _INVALID, "model_not_found"),
    tensors.DownloadError: Meaning(502, 32, _SERVER, "download_failed"),
    tensors.TokenizerError: Meaning(400, 33, _INVALID, "tokenizer_error"),
    tensors.StateError: Meaning(409, 34, _INVALID, "state_error"),
    tensors.MissingDependency: Meaning(501, 35, _SERVER, "missing_dependency"),
    tensors.RWKVEmbedError: Meaning(500, 36, _SERVER),
    tensors.TrainingDataError: Meaning(422, 37, _INVALID, "invalid_training_data"),
    tensors.NotImproved: Meaning(500, 38, _SERVER, "not_improved"),
    # the machine
    FileNotFoundError: Meaning(404, 40, _INVALID, "file_not_found"),
    PermissionError: Meaning(403, 41, _INVALID, "permission_denied"),
    OSError: Meaning(503, 42, _SERVER, "io_error"),
}
EXPECTED = (
    ApiError,
    index.IndexerError,
    tensors.RWKVEmbedError,
    OSError,
)  # everything else is a fault of ours
INTERNAL = Meaning(500, 1, _SERVER, "internal_error")


def meaning(error: BaseException) -> Meaning:
    """The entry of the nearest class in the exception's own line of descent."""
    return next((MEANINGS[cls] for cls in type(error).__mro__ if cls in MEANINGS), INTERNAL)


def sentence(error: BaseException) -> str:
    """The message for people: the error's own, or for system errors what happened to which file."""
    if isinstance(error, OSError) and error.strerror:
        subject = f"{error.filename}: " if error.filename is not None else ""
        hint = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
        return f"{subject}{error.strerror}{hint}"
    if isinstance(error, EXPECTED):
        return str(error)
    return f"internal error ({type(error).__name__}); the log has the details"


def body(error: BaseException) -> dict[str, Any]:
    """The error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""
    known = meaning(error)
    param = error.param if isinstance(error, ApiError) else None
    # A path of the server's file system is nobody's business over HTTP.
    text = error.strerror if isinstance(error, OSError) and error.strerror else sentence(error)
    return shape(text, known.kind, param, known.code)


def shape(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
