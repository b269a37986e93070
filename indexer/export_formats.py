"""How an export is written down: JSON lines, or Parquet for data frames and databases.

JSON lines: the header, then a line per document; a vector is base64 of `dim` float16, little-endian. A name
that ends in ".gz" is compressed.

Parquet: a row per document with the same names; "metadata" is JSON text, "chunks" a list of structs, in which
"vector" is `dim` float32, because not every reader knows float16; the values are those of the float16. The
header is JSON in the file's key-value metadata, under "rwkv-embed". Pages have checksums.
"""

import base64
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Literal, cast

import numpy as np

from indexer.errors import StoreError
from rwkv_embed.errors import MissingDependency

ExportFormat = Literal["jsonl", "parquet"]
Record = dict[str, Any]
Writer = Callable[[Path, Record, Iterable[Record]], None]
Numbered = tuple[str, Record]  # where in the file it is, for messages; the record

_SUFFIXES: dict[str, ExportFormat] = {".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet"}
_HEADER_KEY = b"rwkv-embed"
_ROW_GROUP_BYTES = 16 << 20  # of text and vectors: what a reader needs in memory at once
_READ_ROWS = 64


def writer(path: Path, format: ExportFormat | None) -> Writer:
    """The function that writes `path`, in the format of its name unless one is given. StoreError."""
    if format is None:
        name = path.name.lower()
        format = next((known for suffix, known in _SUFFIXES.items() if name.endswith(suffix)), None)
    if format is None:
        raise StoreError(
            f"the name {path.name} does not say the format of the export; let it end in "
            f"{', '.join(_SUFFIXES)}, or give the format (`--format`)"
        )
    if format == "parquet":
        _parquet()  # fail before anything is written
        return _write_parquet
    return _write_jsonl


@contextmanager
def reader(path: Path) -> Iterator[tuple[Record, Iterator[Numbered]]]:
    """The header and the records of an export. Its first bytes tell the format.

    ValueError, OSError, EOFError, zlib.error: it is damaged or something else.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        with _parquet_file(path) as opened:
            yield opened
        return
    zipped = start.startswith(b"\x1f\x8b")
    with _open(path, "rt", zipped) as lines:
        records = (_parsed(number, line) for number, line in enumerate(lines, start=1))
        yield next(records, ("", {}))[1], records


def vector_bytes(value: bytes | str) -> bytes:
    """A vector as it is stored, from a record: JSON has base64."""
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


# JSON lines


def _write_jsonl(path: Path, header: Record, records: Iterable[Record]) -> None:
    with _open(path, "wt", path.suffix.lower() == ".gz") as file:
        file.write(json.dumps(header, ensure_ascii=False) + "\n")
        for record in records:
            for chunk in record["chunks"]:
                chunk["vector"] = base64.b64encode(chunk["vector"]).decode()
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _parsed(number: int, line: str) -> Numbered:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return f"line {number}", value


def _open(path: Path, mode: str, zipped: bool) -> IO[str]:
    return cast(IO[str], (gzip.open if zipped else open)(path, mode, encoding="utf-8"))


# Parquet


def _parquet() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency("Parquet needs pyarrow: pip install 'rwkv-embed[parquet]'") from error
    return cast(ModuleType, pyarrow)


def _schema(dim: int) -> Any:
    pa = _parquet()
    chunk = pa.struct(
        {
            "id": pa.int64(),
            "start": pa.int32(),
            "end": pa.int32(),
            "language": pa.string(),
            "checksum": pa.int64(),
            "vector": pa.list_(pa.float32(), dim),
        }
    )
    texts = ("id", "text", "title", "uri", "language", "metadata", "content_hash", "source", "source_stamp")
    columns = [(name, pa.string()) for name in texts]
    return pa.schema([*columns, ("checksum", pa.int64()), ("chunks", pa.list_(chunk))])


def _write_parquet(path: Path, header: Record, records: Iterable[Record]) -> None:
    pa = _parquet()
    schema = _schema(header["dim"])
    options = {
        "compression": "zstd",
        "write_page_checksum": True,
        "use_dictionary": ["language"],
        # the low bits of a float32 that was a float16 are zero: apart from the others they take no room
        "column_encoding": {"chunks.list.element.vector.list.element": "BYTE_STREAM_SPLIT"},
    }
    with pa.parquet.ParquetWriter(path, schema, **options) as file:
        file.add_key_value_metadata({_HEADER_KEY: json.dumps(header)})
        for group in _groups(records):
            columns = [
                _chunks_column(group, schema.field("chunks").type)
                if field.name == "chunks"
                else pa.array([_cell(record[field.name]) for record in group], field.type)
                for field in schema
            ]
            file.write_table(pa.table(columns, schema=schema))


def _cell(value: Any) -> str | None:
    return json.dumps(value) if isinstance(value, dict) else value


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record["text"]) + sum(len(chunk["vector"]) for chunk in record["chunks"])
        if size >= _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _chunks_column(group: list[Record], type: Any) -> Any:
    """The lists of chunks of some documents as one Arrow array."""
    pa = _parquet()
    chunks = [chunk for record in group for chunk in record["chunks"]]
    values = np.frombuffer(b"".join(chunk["vector"] for chunk in chunks), "<f2").astype(np.float32)
    fields = list(type.value_type)
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(values), type=field.type)
        if field.name == "vector"
        else pa.array([chunk[field.name] for chunk in chunks], field.type)
        for field in fields
    ]
    ends = np.cumsum([0, *(len(record["chunks"]) for record in group)])
    structs = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs, type=type)


@contextmanager
def _parquet_file(path: Path) -> Iterator[tuple[Record, Iterator[Numbered]]]:
    pa = _parquet()
    try:
        with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield _parquet_header(file), _parquet_records(file)
    except pa.ArrowException as error:
        raise ValueError(f"it is not a sound Parquet file ({error})") from error


def _parquet_header(file: Any) -> Record:
    header = json.loads((file.metadata.metadata or {}).get(_HEADER_KEY, b"{}"))
    dim = header.get("dim") if isinstance(header, dict) else None
    if not isinstance(dim, int) or dim < 1 or not file.schema_arrow.equals(_schema(dim)):
        raise ValueError("it is not an export of rwkv-embed")
    return header


def _parquet_records(file: Any) -> Iterator[Numbered]:
    number = 0
    for batch in file.iter_batches(batch_size=_READ_ROWS):
        for record in _unpacked(batch):
            number += 1
            yield f"row {number}", record


def _unpacked(batch: Any) -> Iterator[Record]:
    """The records of a batch, vectors as float16 again."""
    lists = batch.column("chunks")
    chunks = lists.flatten()
    vectors = chunks.field("vector")
    if lists.null_count or chunks.null_count or vectors.null_count:
        raise ValueError("a passage or a vector is missing")
    rows = vectors.flatten().to_numpy(zero_copy_only=False).astype("<f2").reshape(-1, vectors.type.list_size)
    names = [field.name for field in chunks.type if field.name != "vector"]
    columns = {name: chunks.field(name).to_pylist() for name in names}
    entries = [
        dict(zip(columns, values, strict=True)) | {"vector": row.tobytes()}
        for *values, row in zip(*columns.values(), rows, strict=True)
    ]
    documents = batch.drop_columns("chunks").to_pylist()
    start = 0
    for document, count in zip(documents, lists.value_lengths().to_pylist(), strict=True):
        document["metadata"] = json.loads(document["metadata"])
        yield document | {"chunks": entries[start : start + count]}
        start += count
