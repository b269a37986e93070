"""Labelled data sets in the formats people have them in.

folder with corpus.jsonl, queries.jsonl, qrels/*.tsv     BEIR: retrieval
folder of such folders                                   a retrieval set each
folder of files NAME.xx and NAME.yy, line by line        bitext (Tatoeba, LASER), en first if there
.tsv of columns headed by their languages                bitext of en (else the first) with each
.jsonl of {"en": …, "de": …}                             the same
.csv or .tsv: sentence1, sentence2, score                semantic similarity, with or without a header
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from indexer.errors import InvalidQuery


@dataclass(frozen=True, slots=True)
class RetrievalDataset:
    """Find the documents that answer a query."""

    name: str
    corpus: dict[str, str]  # id -> title and text
    queries: dict[str, str]
    qrels: dict[str, dict[str, float]]  # query id -> document id -> grade


@dataclass(frozen=True, slots=True)
class BitextDataset:
    """Find the translation: `first[i]` and `second[i]` mean the same."""

    name: str
    first: list[str]
    second: list[str]


@dataclass(frozen=True, slots=True)
class SimilarityDataset:
    """Say how alike two sentences are; people gave `scores`."""

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]


Dataset = RetrievalDataset | BitextDataset | SimilarityDataset


LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?")  # heads a column of a bitext


class InvalidDataset(InvalidQuery):
    """A data set is missing or not in a known format."""


def load_datasets(path: Path, split: str = "test") -> list[Dataset]:
    """The sets under `path`, one per language or pair. Raises InvalidDataset with what was expected."""
    if path.is_dir():
        sets = list(_folder(path, split))
    elif path.is_file():
        sets = list(_bitexts(list(_records(path))) if ".jsonl" in path.suffixes else _table(path))
    else:
        raise InvalidDataset(f"there is no data set at {path}")
    if not sets:
        raise InvalidDataset(
            f"{path} is no data set; expected a BEIR folder (corpus.jsonl, queries.jsonl, qrels/*.tsv), a "
            "bitext (.tsv, .jsonl or a folder of NAME.xx and NAME.yy) or a similarity table "
            "(sentence1, sentence2, score)"
        )
    return sets


def with_queries_of(documents: RetrievalDataset, queries: RetrievalDataset) -> RetrievalDataset:
    """Documents in one language, asked in another; ids must be the same in both, as in XQuAD."""
    return replace(documents, name=f"{queries.name}>{documents.name}", queries=queries.queries)


def _folder(path: Path, split: str) -> Iterator[Dataset]:
    if (path / "corpus.jsonl").is_file():
        yield _beir(path, split)
        return
    inner = sorted(folder for folder in path.iterdir() if (folder / "corpus.jsonl").is_file())
    if inner:
        yield from (_beir(folder, split) for folder in inner)
        return
    by_stem: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        if (
            file.is_file()
            and 2 <= len(file.suffix) - 1 <= 3
            and file.suffix not in (".md", ".txt", ".csv", ".tsv")
        ):
            by_stem.setdefault(file.stem, []).append(file)
    for files in by_stem.values():
        files.sort(key=lambda file: (not file.suffix.startswith(".en"), file.suffix))
        for other in files[1:]:
            first, second = _lines(files[0]), _lines(other)
            if len(first) != len(second):
                raise InvalidDataset(
                    f"{path}: {files[0].name} has {len(first)} lines, {other.name} {len(second)}; "
                    "line by line they must be translations of each other"
                )
            yield BitextDataset(f"{files[0].suffix[1:]}-{other.suffix[1:]}", first, second)


def _beir(path: Path, split: str) -> RetrievalDataset:
    qrels: dict[str, dict[str, float]] = {}
    judgements = path / "qrels" / f"{split}.tsv"
    if not judgements.is_file():
        raise InvalidDataset(
            f"{path} has no qrels/{split}.tsv; expected relevance judgements of the split {split!r}"
        )
    for row in _rows(judgements, "\t"):
        if len(row) >= 3 and _is_number(row[-1]):  # the header is not one
            qrels.setdefault(row[0], {})[row[-2]] = float(row[-1])
    corpus = {
        record["_id"]: "\n\n".join(part for part in (record.get("title"), record["text"]) if part)
        for record in _records(path / "corpus.jsonl", "_id", "text")
    }
    queries = {
        record["_id"]: record["text"]
        for record in _records(path / "queries.jsonl", "_id", "text")
        if record["_id"] in qrels
    }
    return RetrievalDataset(path.name, corpus, queries, qrels)


def _bitexts(records: Sequence[Mapping[str, Any]]) -> Iterator[BitextDataset]:
    """A bitext of English, or else the first language, and each other one; a record may lack some."""
    if not records:
        return
    pivot = "en" if "en" in records[0] else next(iter(records[0]))
    languages = dict.fromkeys(
        key for record in records for key, text in record.items() if isinstance(text, str)
    )
    for language in languages:
        if language != pivot:
            pairs = [
                (record[pivot], record[language]) for record in records if {pivot, language} <= record.keys()
            ]
            if pairs:
                yield BitextDataset(f"{pivot}-{language}", *(list(side) for side in zip(*pairs, strict=True)))


def _table(path: Path) -> Iterator[Dataset]:
    rows = list(_rows(path, "\t" if path.suffix == ".tsv" else ","))
    if not rows:
        return
    width = len(rows[0])
    if width >= 2 and all(LANGUAGE_CODE.fullmatch(name) for name in rows[0]):
        named = [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
        yield from _bitexts([{language: text for language, text in row.items() if text} for row in named])
    elif width == 2:
        yield BitextDataset("first-second", [row[0] for row in rows], [row[1] for row in rows])
    elif width >= 3:
        scored = [row for row in rows if len(row) >= 3 and _is_number(row[-1])]
        if len(scored) >= len(rows) - 1:
            first, second = [row[-3] for row in scored], [row[-2] for row in scored]
            yield SimilarityDataset(path.stem, first, second, [float(row[-1]) for row in scored])


def _records(path: Path, *needed: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InvalidDataset(f"{path}, line {number} is not JSON: {error}") from None
            if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in needed):
                expected = " with the texts " + " and ".join(needed) if needed else ""
                raise InvalidDataset(f"{path}, line {number} is not a JSON object{expected}")
            yield record


def _rows(path: Path, delimiter: str) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        plain = delimiter == "\t"  # in tab-separated files a quote is a quote
        reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
        yield from (row for row in reader if row)


def _lines(path: Path) -> list[str]:
    data = path.read_bytes()
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise InvalidDataset(f"{path} needs zstandard; pip install zstandard, or unpack it") from None
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data.decode("utf-8").rstrip("\n").split("\n")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
