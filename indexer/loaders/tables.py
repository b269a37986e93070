"""Tables and JSON: one part per row or object, its text from the text columns, the rest as metadata."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from indexer.loaders.part import Part, UnreadableFile
from indexer.loaders.plain import decode

TEXT_COLUMNS = ("text", "content", "body", "abstract", "description")  # the first that a row has is its text
TITLE_COLUMNS = ("title", "name", "subject", "headline")
ID_COLUMNS = ("id", "_id", "doc_id", "document_id", "key")
MAX_ROWS = 1_000_000
_MAX_CELL_CHARS = 2**31 - 1


def parse_csv(data: bytes, name: str) -> list[Part]:
    """A table whose first row names the columns; commas, semicolons, tabs or bars between them.

    Only metadata has numbers: a text, title or id such as 1.10 stays as it is written.
    """
    csv.field_size_limit(_MAX_CELL_CHARS)
    text = decode(data)
    delimiter = _delimiter(text[:65_536]) if not name.lower().endswith(".tsv") else "\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = _columns(next(reader, []))
    parts = _rows(_cells(columns, row, delimiter) for row in reader if any(cell.strip() for cell in row))
    for part in parts:
        part.metadata = {column: _number(cell) for column, cell in part.metadata.items()}
    return parts


def _columns(header: list[str]) -> list[str]:
    """A name for each column, none of them twice: `note`, `note 2`."""
    names: dict[str, None] = {}
    times: Counter[str] = Counter()
    for number, column in enumerate(header, start=1):
        name = wanted = column.strip() or f"column {number}"
        while name in names:
            times[wanted] += 1
            name = f"{wanted} {times[wanted] + 1}"
        names[name] = None
    return list(names)


def _cells(columns: list[str], row: list[str], delimiter: str) -> dict[str, str]:
    """The row's cells by column. More cells than columns are one text that has the delimiter without quotes."""
    if columns and any(cell.strip() for cell in row[len(columns) :]):
        last = len(columns) - 1
        row = [*row[:last], delimiter.join(row[last:])]
    return dict(zip(columns, row, strict=False))


def parse_jsonl(data: bytes, name: str) -> list[Part]:
    """One JSON object per line."""
    return _rows(_objects(decode(data)))


def parse_json(data: bytes, name: str) -> list[Part]:
    """A list of objects is a table. Any other JSON is one document: its strings and numbers, one per line."""
    value = _json(decode(data), "the file")
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return _rows(value)
    if isinstance(value, dict) and _first(value, TEXT_COLUMNS):
        part = _part(value, 1)
        part.key = None
        return [part]
    return [Part("\n".join(_leaves(value, "")))]


def _objects(text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            value = _json(line, f"line {number}")
            if not isinstance(value, dict):
                raise UnreadableFile(f"line {number} is not a JSON object")
            yield value


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UnreadableFile(f"{where} is not JSON: {error}") from None


def _rows(rows: Iterable[dict[str, Any]]) -> list[Part]:
    """A part per row. The key is the row's id, or its number when the id is missing or already used."""
    parts, used = [], set()
    for number, row in enumerate(rows, start=1):
        if number > MAX_ROWS:
            raise UnreadableFile(f"it has more than {MAX_ROWS:,} rows; split the file")
        part = _part(row, number)
        if part.key in used:
            part.key = f"row{number}"
        used.add(part.key)
        parts.append(part)
    return parts


def _part(row: dict[str, Any], number: int) -> Part:
    key, title, text = (_first(row, names) for names in (ID_COLUMNS, TITLE_COLUMNS, TEXT_COLUMNS))
    taken = {column for column in (key, title, text) if column}
    if isinstance(row.get("metadata"), dict):  # as in BEIR corpora: its fields are the row's
        row = {**row.pop("metadata"), **row}
    if text:
        content = str(row[text])
        metadata = {
            column: value for column, value in row.items() if column not in taken and value not in (None, "")
        }
    else:  # a table of facts: the row itself is the text
        content = "\n".join(f"{column}: {value}" for column, value in row.items() if value not in (None, ""))
        metadata = {
            column: value for column, value in row.items() if column != key and value not in (None, "")
        }
    return Part(
        content,
        title=str(row[title]) if title else None,
        key=str(row[key]) if key else str(number),
        metadata=metadata,
    )


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The row's own spelling of the first of `names` that has a value which is text or a number."""
    by_name = {column.lower(): column for column in reversed(row) if isinstance(column, str)}
    for name in names:
        column = by_name.get(name)
        if column is not None and isinstance(row[column], (str, int, float)) and str(row[column]).strip():
            return column
    return None


def _leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, path)
    elif value is not None:
        yield f"{path}: {value}" if path else str(value)


def _delimiter(sample: str) -> str:
    """The candidate that the header has most of."""
    header = sample.split("\n", 1)[0]
    return max(",;\t|", key=header.count)


def _number(value: str) -> Any:
    """A cell that looks like a plain number is one, so that `--where 'year >= 2020'` works on tables."""
    text = value.strip()
    digits = text.lstrip("-")
    if not digits or len(text) > 15 or (digits[0] == "0" and digits[1:2].isdigit()):
        return value
    if digits.isascii() and digits.isdigit() and len(text) - len(digits) <= 1:
        return int(text)
    whole, _, fraction = digits.partition(".")
    if whole.isascii() and whole.isdigit() and fraction.isascii() and fraction.isdigit():
        return float(text)
    return value
