"""Measures the rule for follow-up questions: when is the turn before it searched for too?

    python -m benchmarks.follow_ups --data XQUAD

For languages with spaces between words, because follow-ups are made by leaving words out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.xquad import Dataset, Paragraphs, Question, load_embedder
from indexer.answers.evidence import content_words, text_terms
from indexer.types import Embedder, SearchOptions


def measure_follow_ups(dataset: Dataset, embedder: Embedder, count: int) -> dict[str, tuple[float, float]]:
    """MRR of the gold paragraph for each rule, on follow-ups and on changes of topic.

    A follow-up is the second question of a paragraph without the words it shares with the first one, as a
    speaker would leave them out. A change of topic is a whole question after one about another article.
    """
    collection = Paragraphs(dataset.paragraphs, range(len(dataset.paragraphs)), embedder)
    by_paragraph: dict[int, list[Question]] = {}
    for question in dataset.questions:
        by_paragraph.setdefault(question.paragraph, []).append(question)
    pairs = [(group[0], group[1]) for group in by_paragraph.values() if len(group) > 1]
    pairs = pairs[:: max(1, len(pairs) // count)]

    def mrr(query: str, paragraph: int) -> float:
        ids = [hit.chunk_id for hit in collection.search(query, SearchOptions(top_k=10))]
        return 1 / (1 + ids.index(paragraph)) if paragraph in ids else 0.0

    def combined(limit: int, before: str, question: str) -> str:
        return f"{before}\n{question}" if content_words(question) <= limit else question

    rules = {"never": -1, **{f"<= {n} content words": n for n in (1, 2, 3, 4, 5, 6, 8)}, "always": 10**6}
    report = {}
    for name, limit in rules.items():
        follow = [mrr(combined(limit, a.text, shortened(a.text, b.text)), b.paragraph) for a, b in pairs]
        others = pairs[len(pairs) // 2 :] + pairs[: len(pairs) // 2]
        switch = [
            mrr(combined(limit, a.text, b.text), b.paragraph)
            for (a, _), (_, b) in zip(others, pairs, strict=True)
        ]
        report[name] = (float(np.mean(follow)), float(np.mean(switch)))
    return report


def shortened(before: str, question: str) -> str:
    """`question` without the words whose terms `before` has; with spaces between words only."""
    known = text_terms(before)
    return " ".join(word for word in question.split() if not text_terms(word) & known) or question


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with one BEIR folder per language")
    parser.add_argument("--model", help="as for Embedder; default: bundled")
    parser.add_argument("--languages", default="ar,de,en,es,hi,ru,vi")
    parser.add_argument("--questions", type=int, default=40, help="per language")
    options = parser.parse_args(arguments)
    embedder = load_embedder(options.model)
    for language in options.languages.split(","):
        dataset = Dataset.load(options.data / language)
        for rule, (follow, switch) in measure_follow_ups(dataset, embedder, options.questions).items():
            print(f"{language} {rule:20} follow-ups {follow:.3f}  changes of topic {switch:.3f}")


if __name__ == "__main__":
    main()
