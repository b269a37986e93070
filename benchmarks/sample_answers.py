"""Answers over the sample: the README's twelve questions, and how many of all seventy are answered rightly.

Run from the repository root:

    python -m benchmarks.sample_answers [--store .demo] [--model NAME] [--all]

The questions are data/eval/sample-answers: 48 that the articles answer, in 24 languages, and 22 that nothing in
the sample answers. They are asked of the whole sample (the Universal Declaration in 74 languages included),
with the default search and the extractive generator. Right means that a cited quote contains the answer. Twelve
fixed questions in nine languages go to stdout as Markdown, then the counts; `--all` adds every question.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.sample_table import ROOT, json_lines, sample_collection
from benchmarks.xquad import contains
from indexer.types import Answer

DATASET = ROOT / "data" / "eval" / "sample-answers"
# Examples in nine languages, two of which fail; the measurement is the table of counts.
SHOWN = (
    "a01",
    "a02",
    "a08",
    "a09",
    "a10",
    "a38",
    "a37",
    "a26",
    "a14",
    "a07",
    "a32",
    "a20",
)
QUOTE_CHARS = 240


class Case(NamedTuple):
    """A question, what would be right, and what was said."""

    id: str
    language: str
    question: str
    expected: tuple[str, ...]  # answer strings; none: the sample does not say
    documents: frozenset[str]  # that answer it
    answer: Answer

    @property
    def right(self) -> bool:
        """The answer is inside a cited quote, or there is none and none was given."""
        if not self.expected:
            return self.answer.abstained
        return any(contains(citation.quote, self.expected) for citation in self.answer.citations)

    @property
    def cited(self) -> bool:
        """The first citation is of a document that answers."""
        return bool(self.answer.citations) and self.answer.citations[0].document_id in self.documents


def ask_all(dataset: Path, store: Path | None, model: str | None) -> list[Case]:
    """Every question of the set, asked of the sample."""
    documents: dict[str, set[str]] = defaultdict(set)
    with (dataset / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            documents[row["query-id"]].add(row["corpus-id"])
    with sample_collection(store, model) as collection:
        return [
            Case(
                row["_id"],
                row["metadata"]["lang"],
                row["text"],
                tuple(row["metadata"]["answers"]),
                frozenset(documents[row["_id"]]),
                collection.ask(row["text"]),
            )
            for row in json_lines(dataset / "queries.jsonl")
        ]


def shown(cases: list[Case]) -> str:
    """Questions with the quotes and their sources, as a Markdown table."""
    lines = ["| question | answer, quoted | source | |", "|---|---|---|---|"]
    for case in cases:
        first = case.answer.citations[0] if case.answer.citations else None
        quote = " ".join((first.quote if first else case.answer.answer).split()).replace("|", "\\|")
        quote = quote if len(quote) <= QUOTE_CHARS else quote[: QUOTE_CHARS - 1] + "…"
        source = f"{first.title} (`{first.document_id}`)" if first else ""
        lines.append(f"| {case.question} | {quote} | {source} | {'✓' if case.right else '✗'} |")
    return "\n".join(lines)


def counts(cases: list[Case]) -> str:
    """One line per language and one for all."""
    by_language: Mapping[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_language[case.language].append(case)
    lines = [
        "| language | answerable | right | first citation right | abstained | unanswerable | abstained |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for language, group in [*sorted(by_language.items()), ("**all**", cases)]:
        answerable = [case for case in group if case.expected]
        silent = [case for case in group if not case.expected]
        cells = (
            len(answerable),
            sum(case.right for case in answerable),
            sum(case.cited for case in answerable),
            sum(case.answer.abstained for case in answerable),
            len(silent),
            sum(case.right for case in silent),
        )
        lines.append(f"| {language} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, help="a store that has data/sample in it, or an empty one")
    parser.add_argument("--model", help="another embedding model than the bundled one")
    parser.add_argument("--all", action="store_true", help="show every question, not twelve")
    arguments = parser.parse_args()
    cases = ask_all(DATASET, arguments.store, arguments.model)
    print(shown([case for case in cases if arguments.all or case.id in SHOWN]), counts(cases), sep="\n\n")


if __name__ == "__main__":
    main()
