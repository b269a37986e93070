"""The scripts that fit and measure the extractive answers, on a made-up XQuAD of 48 articles in two languages."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fit_answers
from benchmarks.answers import measure, table
from benchmarks.xquad import BM25, Remembering, contains, load_tasks
from indexer.analysis import index_terms, query_terms
from indexer.answers import calibration as calibration_module
from tests.index.answering import HashEmbedder

FORMS = {
    "en": ("The mayor of {a}ville is called {b}. It is a quiet old place.", "Who is the mayor of {a}ville?"),
    "de": (
        "Bürgermeister in {a}stadt ist {b}. Der Ort ist alt und still.",
        "Wer ist Bürgermeister in {a}stadt?",
    ),
}


def name(i: int) -> str:
    """A made-up name of its own for each number."""
    return "".join(chr(97 + (i * 7 + 3 * k * k + i // 26 * k) % 26) for k in range(6)).capitalize() + str(i)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xquad")
    for language, (text, question) in FORMS.items():
        (folder / language / "qrels").mkdir(parents=True)
        corpus, queries, qrels = [], [], ["query-id\tcorpus-id\tscore"]
        for i in range(240):
            town, mayor = name(i), name(i + 1000)
            corpus.append({"_id": f"p{i}", "text": text.format(a=town, b=mayor)})
            queries.append(
                {"_id": f"q{i}", "text": question.format(a=town), "metadata": {"answers": [mayor]}}
            )
            qrels.append(f"q{i}\tp{i}\t1")
        for file, rows in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
            (folder / language / file).write_text("\n".join(map(json.dumps, rows)), "utf-8")
        (folder / language / "qrels" / "test.tsv").write_text("\n".join(qrels), "utf-8")
    return folder


def test_folds_share_no_article_and_questions_are_what_they_are_called(data: Path) -> None:
    within, _, across = load_tasks(data, ["en", "de"])
    assert within.within and not across.within and across.name == "de > en"
    for fold in (0, 1):
        kept = set(within.read.kept(fold))
        answerable, unanswerable = across.questions(fold, 10)
        assert len(answerable) == len(unanswerable) == 10
        assert all(question.paragraph in kept for question in answerable)
        assert not any(question.paragraph in kept for question in unanswerable)
        near, far = unanswerable[:5], unanswerable[5:]
        assert {question.fold for question in near} == {fold} and {question.fold for question in far} == {
            1 - fold
        }
    assert not set(within.read.kept(0)) & set(within.read.kept(1))


def test_bm25_is_the_formula() -> None:
    texts = ["a red cat", "a dog and a cat and a bird", "nothing"]
    terms = [[*index_terms(text).words, *index_terms(text).variants] for text in texts]
    mean = sum(map(len, terms)) / 3
    expected = []
    for own in terms:
        score = 0.0
        for term in query_terms("a cat flies"):
            found, n = own.count(term), sum(term in other for other in terms)
            idf = math.log(1 + (3 - n + 0.5) / (n + 0.5))
            score += idf * found * 2.2 / (found + 1.2 * (0.25 + 0.75 * len(own) / mean))
        expected.append(score)
    np.testing.assert_allclose(BM25(texts).scores(query_terms("a cat flies")), expected)
    assert expected[2] == 0


def test_an_answer_is_found_whatever_its_case_and_spaces() -> None:
    assert contains("It was  ADA\nLovelace.", ["ada lovelace"]) and not contains(
        "It was Ada.", ["ada lovelace"]
    )


def test_fitted_written_and_measured(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Remembering(HashEmbedder())
    tasks = load_tasks(data, ["en", "de"])
    own, unknown = fit_answers.fit(tasks, embedder, 6)
    assert set(own["same"]["sentence"]) == {"bias", *fit_answers.SENTENCE}
    assert set(own["other"]["support"]) == {"bias", *fit_answers.SUPPORT}
    assert set(unknown["sentence"]) == {"bias", *fit_answers.SENTENCE} - fit_answers.SCALED

    copy = tmp_path / "calibration.py"
    copy.write_text(Path(calibration_module.__file__).read_text("utf-8"), "utf-8")
    monkeypatch.setattr(calibration_module, "__file__", str(copy))
    monkeypatch.setattr(calibration_module, "MODELS", dict(calibration_module.MODELS))
    monkeypatch.setattr(calibration_module, "UNKNOWN_MODEL", dict(calibration_module.UNKNOWN_MODEL))
    fit_answers.write_calibration(embedder, own, unknown)
    spec = importlib.util.spec_from_file_location("written", copy)
    assert spec is not None and spec.loader is not None
    written = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(written)
    assert (written.MODELS[embedder.model_id], written.UNKNOWN_MODEL) == (own, unknown)
    assert set(written.MODELS) == set(calibration_module.MODELS)

    row = measure(tasks[0], embedder, 6)
    assert row["top 1"] == row["BM25 top 1"] == 1.0
    assert 0 <= row["answered"] <= 1 and row["right"] in (0.0, 1.0)
    assert table({"en": row, "de > en": row}).splitlines()[-2].startswith("| **within** | 1.000 | 1.000 |")
