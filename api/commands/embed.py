"""embed: texts to vectors, as JSON lines or a NumPy file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from api.errors import InvalidRequest
from api.terminal import BareModelOption, JsonOption, note, progress, say_json, text_argument

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rwkv_embed import Embedder

BATCH = 256  # texts handed to the embedder at once: enough for it to sort by length, little enough to stream


class Kind(str, Enum):
    document = "document"
    query = "query"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Models")(embed)


def embed(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts; from stdin, one a line, if not given."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Read texts from it, one a line.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="The input is one text, not one a line.")] = False,
    kind: Annotated[Kind, typer.Option(help="What the texts are.")] = Kind.document,
    dim: Annotated[
        int | None,
        typer.Option("--dim", min=1, help="Keep the first dimensions only; `models info` lists good sizes."),
    ] = None,
    npy: Annotated[
        Path | None,
        typer.Option("--npy", metavar="FILE", help="Write a NumPy array (texts, dim) of float32 instead."),
    ] = None,
    model: BareModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the vectors of texts, one a line: {"text", "embedding"}; with --json all in one object."""
    from rwkv_embed import Embedder

    inputs = _inputs(texts, file, whole)
    embedder = Embedder(model)
    if dim is not None and dim > embedder.dim:
        raise InvalidRequest(
            f"--dim {dim}: {embedder.model_id} has {embedder.dim} dimensions; ask for at most that"
        )
    with progress("Embedding", "texts") as advance:
        batches = _batches(embedder, inputs, kind, dim, advance)
        if npy is not None:
            written = _save(npy, batches, dim or embedder.dim)
            if as_json:
                shape = {"texts": written, "dim": dim or embedder.dim}
                say_json({"npy": str(npy), "model": embedder.model_id} | shape)
        elif as_json:
            vectors = [row for _, rows in batches for row in rows.tolist()]
            say_json({"model": embedder.model_id, "dim": dim or embedder.dim, "embeddings": vectors})
        else:
            for batch, rows in batches:
                for text, row in zip(batch, rows.tolist(), strict=True):
                    say_json({"text": text, "embedding": row})


def _inputs(texts: Sequence[str] | None, file: Path | None, whole: bool) -> Iterable[str]:
    if texts:
        if file is not None:
            raise InvalidRequest("give the texts either as arguments or with --file, not both")
        return texts
    if whole:
        return [text_argument(None, file)]
    if file is not None:
        return list(_lines(BytesIO(file.read_bytes()), str(file)))
    return _lines(sys.stdin.buffer, "standard input")


def _lines(stream: BinaryIO, source: str) -> Iterator[str]:
    """What "\\n" or "\\r\\n" ends: other line ends of Unicode are part of a text. InvalidRequest: not UTF-8."""
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"{source}: not UTF-8 text (byte {error.start} of line {number}); convert it with iconv first"
            ) from None
        yield text.removesuffix("\n").removesuffix("\r")


def _batches(
    embedder: Embedder, inputs: Iterable[str], kind: Kind, dim: int | None, advance: Any
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    encode = embedder.encode_query if kind is Kind.query else embedder.encode_document
    remaining, done = iter(inputs), 0
    while batch := list(islice(remaining, BATCH)):
        yield batch, encode(batch, truncate_dim=dim)
        done += len(batch)
        advance(done)


def _save(path: Path, batches: Iterable[tuple[list[str], NDArray[np.float32]]], dim: int) -> int:
    """How many vectors the file has."""
    import numpy as np

    rows = [rows for _, rows in batches]
    array = np.concatenate(rows) if rows else np.zeros((0, dim), np.float32)
    with path.open("wb") as stream:  # np.save would add .npy to the name that was asked for
        np.save(stream, array, allow_pickle=False)
    note(f"{path}: {array.shape[0]} vectors of {array.shape[1]} dimensions")
    return len(array)
