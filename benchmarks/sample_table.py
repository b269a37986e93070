"""The README's table: in how many other languages does a question find the article about its subject?

Run from the repository root:

    python -m benchmarks.sample_table [--store .demo] [--mode hybrid|dense|lexical] [--top-k 10]

The questions and the list of right articles are data/eval/sample-crosslingual. Ten subjects have
articles in five or six languages each; every one is asked in English, Chinese, Arabic, Hindi and
Swahili. A cell is "found/there are": of the languages that have the article, not counting the
question's own, how many are among the first `top-k` documents of the whole sample (the Universal
Declaration in 74 languages included). Without --store the sample is indexed into a temporary
directory first. Markdown goes to stdout.
"""

import argparse
import csv
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from indexer.types import SearchMode, SearchOptions

if TYPE_CHECKING:
    from indexer.collection import Collection

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"
DATASET = ROOT / "data" / "eval" / "sample-crosslingual"
LANGUAGES = {"en": "English", "zh": "Chinese", "ar": "Arabic", "hi": "Hindi", "sw": "Swahili"}
MIN_ARTICLES = 4  # subjects with fewer articles cannot be found in three other languages


class Question(NamedTuple):
    """A question, and the right articles by language."""

    subject: str
    language: str
    text: str
    articles: Mapping[str, str]  # language -> document id


def read_questions(dataset: Path) -> list[Question]:
    """The questions of a BEIR folder about subjects that have at least `MIN_ARTICLES` articles."""
    language_of = {row["_id"]: row["metadata"]["lang"] for row in json_lines(dataset / "corpus.jsonl")}
    relevant: dict[str, dict[str, str]] = defaultdict(dict)
    with (dataset / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            relevant[row["query-id"]][language_of[row["corpus-id"]]] = row["corpus-id"]
    questions = (
        Question(row["metadata"]["topic"], row["metadata"]["lang"], row["text"], relevant[row["_id"]])
        for row in json_lines(dataset / "queries.jsonl")
    )
    return [question for question in questions if len(question.articles) >= MIN_ARTICLES]


def json_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def other_languages(question: Question, found: Iterable[str] | None = None) -> set[str]:
    """Languages other than the question's that have the article; of `found` document ids only, if given."""
    wanted = {language: id for language, id in question.articles.items() if language != question.language}
    return set(wanted) if found is None else {language for language, id in wanted.items() if id in set(found)}


def table(questions: Iterable[Question], results: Mapping[str, list[str]]) -> str:
    """Markdown; `results` maps a question's text to the ids of the documents found."""
    cells: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for question in questions:
        if question.language in LANGUAGES:
            found = other_languages(question, results[question.text])
            cells[question.subject][question.language] = (len(found), len(other_languages(question)))
    lines = [
        "| article about | " + " | ".join(f"asked in {name}" for name in LANGUAGES.values()) + " |",
        "|---|" + "--:|" * len(LANGUAGES),
    ]
    for subject, by_language in cells.items():
        row = [f"{found}/{there}" for found, there in (by_language[language] for language in LANGUAGES)]
        lines.append(f"| {subject.replace('-', ' ')} | " + " | ".join(row) + " |")
    totals = []
    for language in LANGUAGES:
        hits, wanted = map(sum, zip(*(row[language] for row in cells.values()), strict=True))
        totals.append(f"**{hits}/{wanted}**")
    lines.append("| **all** | " + " | ".join(totals) + " |")
    return "\n".join(lines)


def search(
    collection: "Collection", questions: Iterable[Question], mode: SearchMode, top_k: int
) -> dict[str, list[str]]:
    """Ids of the first `top_k` documents by the text of the question."""
    options = SearchOptions(top_k=top_k, mode=mode, group_by="document")
    hits = {question.text: collection.search(question.text, options) for question in questions}
    return {text: [hit.document_id for hit in found] for text, found in hits.items()}


@contextmanager
def sample_collection(location: Path | None, model: str | None) -> "Iterator[Collection]":
    """The collection `default` of a store, or without one data/sample indexed into a temporary directory."""
    from indexer import open_store
    from rwkv_embed import Embedder

    with tempfile.TemporaryDirectory() as temporary:
        place = location or Path(temporary) / "store"
        with open_store(place, embedder_factory=lambda name: Embedder(name or model)) as store:
            collection = store.collection_or_create("default")
            if collection.count() == 0:
                collection.index_paths([SAMPLE])
            yield collection


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the README's table of searches across languages.")
    parser.add_argument("--store", type=Path, help="a store that has data/sample in it, or an empty one")
    parser.add_argument("--model", help="another embedding model than the bundled one")
    parser.add_argument("--mode", default="hybrid", choices=["hybrid", "dense", "lexical"])
    parser.add_argument("--top-k", type=int, default=10)
    arguments = parser.parse_args()

    questions = read_questions(DATASET)
    with sample_collection(arguments.store, arguments.model) as collection:
        print(table(questions, search(collection, questions, arguments.mode, arguments.top_k)))


if __name__ == "__main__":
    main()
