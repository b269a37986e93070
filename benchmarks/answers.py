"""Measures the extractive answers on XQuAD, and fits their coefficients.

    python -m benchmarks.answers --data XQUAD                 measure; Markdown on stdout
    python -m benchmarks.answers --data XQUAD --fit           first write indexer/answers/calibration.py

Coefficients are fitted on the first half of the articles and everything is measured on the second (see
`xquad.Task`). "de > en" asks in German what only English text says. Columns: the answer is inside the first
sentence, or one of the first three; the same for sentences ranked by BM25 over the whole collection; which
share of the refused questions was unanswerable (precision) and which of the unanswerable was refused (recall);
which share of the answerable was answered, and how often the first sentence then holds the answer (right).
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.fit_answers import fit, write_calibration
from benchmarks.xquad import LANGUAGES, Paragraphs, Question, Task, contains, load_embedder, load_tasks
from indexer.analysis import query_terms
from indexer.answers.generators.extractive import Ranking, distinct_quotes, rank_sentences
from indexer.types import Embedder


def measure(task: Task, embedder: Embedder, count: int) -> dict[str, float]:
    """Fold 1: answer found in the best one and three sentences, ours and BM25's, and abstention."""
    collection = task.collection(1, embedder)
    answerable, unanswerable = task.questions(1, count)
    rankings = [_ranking(question, collection, embedder) for question in answerable]
    ours = np.array(
        [_found(ranking, question) for ranking, question in zip(rankings, answerable, strict=True)]
    )
    lexical = np.array([_found_by_bm25(collection, question) for question in answerable])
    answered = np.array([ranking.supported for ranking in rankings])
    refused = np.array([not _ranking(question, collection, embedder).supported for question in unanswerable])
    near = len(unanswerable) // 2
    return {
        "top 1": ours[:, 0].mean(),
        "top 3": ours[:, 1].mean(),
        "BM25 top 1": lexical[:, 0].mean(),
        "BM25 top 3": lexical[:, 1].mean(),
        "precision": refused.sum() / max(1, refused.sum() + (~answered).sum()),
        "recall": refused.mean(),
        "recall near": refused[:near].mean(),
        "recall far": refused[near:].mean(),
        "answered": answered.mean(),
        "right": ours[answered, 0].mean() if answered.any() else 0.0,
    }


def _ranking(question: Question, collection: Paragraphs, embedder: Embedder) -> Ranking:
    return rank_sentences(question.text, collection.passages(question.text), embedder)


def _found(ranking: Ranking, question: Question) -> tuple[bool, bool]:
    return _in_one_of(question, [quote.text for quote in distinct_quotes(ranking.quotes, 3)])


def _found_by_bm25(collection: Paragraphs, question: Question) -> tuple[bool, bool]:
    order = np.argsort(-collection.sentence_bm25.scores(query_terms(question.text)), kind="stable")[:3]
    return _in_one_of(question, [collection.sentences[i] for i in order])


def _in_one_of(question: Question, texts: Sequence[str]) -> tuple[bool, bool]:
    """Whether the first of the texts contains the answer, and whether any does."""
    found = [contains(text, question.answers) for text in texts]
    return any(found[:1]), any(found)


def table(rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + " |" for name, row in rows.items()
    ]
    for kind, names in (
        ("within", [n for n in rows if ">" not in n]),
        ("across", [n for n in rows if ">" in n]),
    ):
        if names:
            means = [float(np.mean([rows[name][c] for name in names])) for c in columns]
            lines.append(f"| **{kind}** | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with one BEIR folder per language")
    parser.add_argument("--model", help="as for Embedder; default: bundled")
    parser.add_argument("--languages", default=LANGUAGES)
    parser.add_argument("--questions", type=int, default=40, help="per language and kind")
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    embedder = load_embedder(options.model)
    start = time.perf_counter()
    tasks = load_tasks(options.data, options.languages.split(","))
    if options.fit:
        print(f"wrote {write_calibration(embedder, *fit(tasks, embedder, options.questions))}\n")
    print(table({task.name: measure(task, embedder, options.questions) for task in tasks}))
    print(
        f"\n{embedder.model_id}, {options.questions} questions per row and kind, "
        f"{time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
