"""The files under data/: the labelled sets agree with the sample, the README's table is counted correctly."""

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.sample_table import DATASET, LANGUAGES, Question, other_languages, read_questions, table

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "sample"
EVAL = ROOT / "data" / "eval"
FRONT_MATTER = re.compile(
    r"---\ntitle: .+\nlang: (\S+)\ntopic: .+\nyear: -?\d+\n(?:license: CC0-1.0\n)?---\n\n# "
)


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def qrels(folder: Path) -> dict[str, set[str]]:
    relevant: dict[str, set[str]] = {}
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            assert row["score"] == "1"
            relevant.setdefault(row["query-id"], set()).add(row["corpus-id"])
    return relevant


def article_ids() -> set[str]:
    """The ids the index gives to the documents under data/sample/articles."""
    ids = set()
    for path in (SAMPLE / "articles").rglob("*.*"):
        name = path.relative_to(SAMPLE).as_posix()
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                ids |= {f"{name}#{row['id']}" for row in csv.DictReader(file)}
        elif path.suffix == ".jsonl":
            ids |= {f"{name}#{row['id']}" for row in json_lines(path)}
        else:
            ids.add(name)
    return ids


def test_data_is_small() -> None:
    sizes = [path.stat().st_size for folder in (SAMPLE, EVAL) for path in folder.rglob("*") if path.is_file()]
    assert max(sizes) < 400_000
    assert sum(sizes) < 4_000_000


def test_declarations_are_complete() -> None:
    paths = sorted((SAMPLE / "udhr").glob("*.md"))
    assert len(paths) == 74
    for path in paths:
        text = path.read_text(encoding="utf-8")
        front = FRONT_MATTER.match(text)
        assert front is not None, path
        assert front.group(1) == path.stem
        assert text.count("\n## ") in (30, 31), path  # thirty articles, most with a headed preamble
        assert not re.search("[\ufffd\u0080-\u009f\ue000-\uf8ff]|&#", text), path


def test_markdown_articles_have_front_matter_of_their_folder() -> None:
    for path in (SAMPLE / "articles").rglob("*.md"):
        front = FRONT_MATTER.match(path.read_text(encoding="utf-8"))
        assert front is not None, path
        assert front.group(1) == path.parent.name


@pytest.mark.parametrize("name", ["sample-crosslingual", "sample-answers"])
def test_labelled_sets_name_documents_of_the_sample(name: str) -> None:
    corpus = {row["_id"] for row in json_lines(EVAL / name / "corpus.jsonl")}
    assert corpus == article_ids()
    queries = {row["_id"]: row for row in json_lines(EVAL / name / "queries.jsonl")}
    relevant = qrels(EVAL / name)
    assert set().union(*relevant.values()) <= corpus
    assert set(relevant) == {id for id, row in queries.items() if row["metadata"].get("answers") != []}


def test_every_relevant_document_states_an_accepted_answer() -> None:
    folder = EVAL / "sample-answers"
    texts = {row["_id"]: row["text"] for row in json_lines(folder / "corpus.jsonl")}
    relevant = qrels(folder)
    answerable = [row for row in json_lines(folder / "queries.jsonl") if row["metadata"]["answers"]]
    assert len(answerable) == 48
    for row in answerable:
        for document in relevant[row["_id"]]:
            assert any(answer in texts[document] for answer in row["metadata"]["answers"]), (row, document)


def test_crosslingual_questions_have_answers_in_three_other_languages() -> None:
    questions = read_questions(DATASET)
    assert len(questions) == 100
    assert {question.language for question in questions} >= set(LANGUAGES)
    assert min(len(other_languages(question)) for question in questions) >= 3


def test_bitext_has_fifty_rows_of_twelve_different_sentences() -> None:
    with (EVAL / "bitext" / "udhr.tsv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    assert header == ["en", "zh", "ar", "hi", "sw", "es", "fr", "ru", "de", "ja", "ko", "vi"]
    assert len(rows) == 50
    assert all(len(set(row)) == len(header) and all(row) for row in rows)
    assert all(len(set(column)) == len(rows) for column in zip(*rows, strict=True))


def test_table_counts_other_languages_only() -> None:
    articles = {"en": "a/en.md", "zh": "a/zh.md", "fr": "a/fr.md"}
    questions = [Question("tea", language, language, articles) for language in LANGUAGES]
    some, all_three = ["a/en.md", "a/fr.md"], [*articles.values()]
    results = {"en": some, "zh": ["a/zh.md"], "ar": all_three, "hi": ["b"], "sw": []}
    assert table(questions, results).splitlines()[2:] == [
        "| tea | 1/2 | 0/2 | 3/3 | 0/3 | 0/3 |",
        "| **all** | **1/2** | **0/2** | **3/3** | **0/3** | **0/3** |",
    ]


def test_demo_runs_from_anywhere_in_a_path_with_spaces(tmp_path: Path) -> None:
    home = tmp_path / "a clone"
    (home / "data").mkdir(parents=True)
    demo = home / "data" / "demo.sh"
    demo.write_bytes((ROOT / "data" / "demo.sh").read_bytes())
    program = home / "rwkv-embed"
    program.write_text('#!/bin/sh\nprintf "%s|" "$PWD" "$@"; echo\n')
    program.chmod(0o755)
    command = ["bash", str(demo), str(program)]
    first, second = (
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True) for _ in range(2)
    )
    assert first.stdout == second.stdout
    calls = [line.split("|")[1:-1] for line in first.stdout.splitlines() if line.startswith(f"{home}|")]
    assert calls[0] == ["index", "--store", ".demo", "data/sample"]
    assert [call[0] for call in calls] == ["index"] + ["search"] * 6 + ["ask", "stats"]
    assert first.stdout.splitlines()[-1] == "$ ./rwkv-embed serve --store .demo"


def test_demo_without_the_program_says_what_to_do(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "data" / "demo.sh"), str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "run 'make demo', or give the path of rwkv-embed" in done.stderr
