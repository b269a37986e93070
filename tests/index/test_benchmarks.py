"""The measuring scripts: what they count, checked by hand on a few made-up results."""

import json

import pytest

from benchmarks.fine_tuning import write_pairs
from benchmarks.sample_answers import Case, counts, shown
from benchmarks.tune_fusion import Asked, Task, best, dense, lexical, mean_gain, ranks, report, scores
from indexer.types import Answer, Citation

DOCUMENTS = {1: "a", 2: "a", 3: "b", 4: "c"}


def asked(dense, lexical, right, found=()):
    return Asked(dense, lexical, 1, list(found), {right: 1.0})


@pytest.fixture
def task():
    """Words are right in both questions, meaning in neither; the second question is the reported one."""
    near = [(1, 0.9), (2, 0.8), (3, 0.7), (4, 0.1)]
    return Task("x", DOCUMENTS, [asked(near, [(3, 5.0)], "b"), asked(near, [(4, 9.0)], "c", ["c", "a"])])


def test_a_document_ranks_where_its_best_chunk_does(task):
    assert task.mrr(dense, 0) == 1 / 2  # a, b, c
    assert task.mrr(dense, 1) == 1 / 3
    assert task.mrr(lexical, 0) == task.mrr(lexical, 1) == 1.0


def test_reciprocal_rank_fusion_by_hand(task):
    fused = ranks(k=1, weight=1.0)(task.questions[0])
    assert fused == [(3, pytest.approx(1 / 4 + 1 / 2)), (1, 1 / 2), (2, pytest.approx(1 / 3)), (4, 1 / 5)]


def test_the_fusion_that_gains_most_is_best(task):
    weak, strong = scores(0.0, 4), scores(2.5, 4)
    assert mean_gain([task], weak, 0) == 1 / 2 - 1
    assert mean_gain([task], strong, 0) == 0
    assert best([task], {"weak": weak, "strong": strong}) == ("strong", strong)


def test_the_report_has_a_row_per_task(task):
    lines = report([task]).splitlines()
    assert lines[2].startswith("| x | 0.333 | 1.000 | ")
    assert lines[2].endswith("| 1.000 | +0.000 |")
    assert "shipped: LEXICAL_WEIGHT" in lines[-1]


def case(language, expected, quote, document):
    citations = [Citation(1, document, 1, "T", None, quote, 0, len(quote), 0.9)] if quote else []
    answer = Answer(f"{quote} [1]" if quote else "The collection does not say.", not quote, citations)
    return Case("q", language, "Who?", expected, frozenset({"right.md"}), answer)


def test_answers_are_counted():
    cases = [
        case("en", ("Ada",), "It was Ada | Lovelace.", "right.md"),
        case("en", ("Ada",), "It was Bob.", "other.md"),
        case("de", ("Ada",), "", ""),
        case("de", (), "", ""),
        case("de", (), "It was Bob.", "other.md"),
    ]
    assert [one.right for one in cases] == [True, False, False, True, False]
    assert counts(cases).splitlines()[2:] == [
        "| de | 1 | 0 | 0 | 1 | 2 | 1 |",
        "| en | 2 | 1 | 1 | 0 | 0 | 0 |",
        "| **all** | 3 | 1 | 1 | 1 | 2 | 1 |",
    ]
    assert shown(cases[:1]).splitlines()[2] == "| Who? | It was Ada \\| Lovelace. | T (`right.md`) | ✓ |"


def test_questions_of_three_languages_validate_and_passages_are_titles_and_first_paragraphs(tmp_path):
    assert write_pairs(tmp_path) == {"train": 413, "validation": 165}
    pairs = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("train", "validation")
    }
    assert {len(pairs[name]) for name in pairs} == {413, 165}
    assert not {pair["query"] for pair in pairs["train"]} & {pair["query"] for pair in pairs["validation"]}
    asked = [pair["positive"] for pair in pairs["train"] if pair["query"].startswith("How does water travel")]
    assert "El ciclo del agua\n" in "".join(asked) and len(asked) > 3
    assert all(len(text.split("\n", 1)[1]) <= 400 and "#" not in text for text in asked)
