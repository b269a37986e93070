"""The commands with the bundled model, the kernels that run here, and no fakes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from api.cli import app
from rwkv_embed import hub
from rwkv_embed.ops.fast import FastRWKV7


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_EMBED_STORE", str(tmp_path / "store"))


def run_json(*arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout)


def test_a_document_is_found_appended_to_and_quoted() -> None:
    run_json("add", "bees", "Bees make honey.")
    run_json("add", "bread", "Bread is made of flour and water.")
    assert run_json("search", "Who makes honey?")["hits"][0]["document_id"] == "bees"
    assert run_json("append", "bees", " They live in hives.")["updated"] == 1
    answer = run_json("ask", "Where do bees live?")
    assert {cited["document_id"] for cited in answer["citations"]} <= {"bees"}
    assert answer["abstained"] is (answer["citations"] == [])
    assert answer["abstained"] or "They live in hives." in answer["answer"]  # alone or after what "they" are


def test_the_sentence_that_answers_in_another_language_is_highlighted() -> None:
    text = "The harbour is deep. The old church was built in 1240. Bees make honey in summer. Fog is rare here."
    run_json("add", "town", text)
    for query, sentence in (
        ("Wann wurde die Kirche gebaut?", "The old church was built in 1240."),
        ("蜜蜂在夏天做什么？", "Bees make honey in summer."),
        ("Какова глубина гавани?", "The harbour is deep."),
    ):
        hit = run_json("search", query, "--explain")["hits"][0]
        assert [hit["text"][start:end] for start, end in hit["highlights"]] == [sentence]
        assert hit["explain"]["dense"]["sentence"] > hit["explain"]["dense"]["cosine"]
        assert "lexical" not in hit["explain"]


def test_a_collection_finds_the_model_it_was_built_with(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    shutil.copytree(hub.DEFAULT, folder)
    run_json("add", "bees", "Bees make honey.", "--model", str(folder))
    (collection,) = run_json("list", "--collections")["collections"]
    assert collection["model"] == str(folder)
    assert run_json("search", "honey")["hits"][0]["document_id"] == "bees"
    shutil.rmtree(folder)
    result = CliRunner().invoke(app, ["search", "honey"])
    assert result.exit_code == 31 and f"no model {str(folder)!r}" in result.stderr


def test_info_tells_what_runs_here() -> None:
    bundled = hub.resolve(None)
    told, running = run_json("models", "info"), FastRWKV7.from_file(bundled.weights)
    assert told == run_json("models", "info", bundled.name)
    assert told["backend"] == {"c": "c kernels", "numpy": "numpy"}[running.kernels.name]
    assert told["flops_per_token"] == running.flops_per_token
    assert (told["name"], told["generation"], told["precision"]) == (bundled.name, "RWKV-7 Goose", "float32")
    assert told["uses"][0] == "embed (trained head)"
