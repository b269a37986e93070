"""The lm-eval adapter: its three methods against a direct computation, and a task of local items."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.embedder.tiny_language_model import TinyLanguageModel

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'rwkv-embed[eval]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

from rwkv_embed import lm_eval as adapter  # noqa: E402  after the check that lm-eval is there


def requests(*arguments: tuple[Any, ...]) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=args) for args in arguments]


def test_loglikelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TinyLanguageModel()
    pairs = [
        ("The sun is", " hot"),
        ("The sun is", " a very long answer"),
        ("", "x"),
        ("trailing ", "space"),
        ("a", ""),
    ]
    monkeypatch.setattr(adapter, "WINDOW", 4)
    results = adapter.RWKVLM(model).loglikelihood(requests(*pairs))
    for (context, continuation), (log_probability, greedy) in zip(pairs, results, strict=True):
        tokens = [0, *model.tokenizer.encode(context + continuation)]
        first = 1 + len(model.tokenizer.encode(context.rstrip()))
        assert log_probability == pytest.approx(model.log_probability(tokens, first), abs=1e-4)
        best = [int(model.forward(tokens[:i])[0].argmax()) for i in range(first, len(tokens))]
        assert greedy == (best == tokens[first:])


def test_a_context_with_many_choices_is_read_once() -> None:
    model = TinyLanguageModel()
    context = "a long context " * 10
    adapter.RWKVLM(model).loglikelihood(requests(*[(context, f"{n}") for n in range(5)]))
    assert model.tokens_read == len(context.rstrip()) + 5 * len(" 1")


def test_rolling_loglikelihood_has_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TinyLanguageModel()
    text = "All of this text counts, from its first byte."
    expected = model.log_probability([0, *model.tokenizer.encode(text)], 1)
    for window in (2048, 7, 1):
        monkeypatch.setattr(adapter, "WINDOW", window)
        results = adapter.RWKVLM(model).loglikelihood_rolling(requests((text,), ("",)))
        assert results == [pytest.approx(expected, abs=1e-4), 0.0]


def test_generate_until() -> None:
    model = TinyLanguageModel()
    tokens = [0, *model.tokenizer.encode("Once")]
    for _ in range(12):
        tokens.append(int(model.forward(tokens)[0].argmax()))
    text = model.tokenizer.decode(tokens[5:])
    language_model = adapter.RWKVLM(model)
    assert language_model.generate_until(requests(("Once", {"until": [], "max_gen_toks": 12}))) == [text]
    stop = text[4]
    results = language_model.generate_until(
        requests(("Once", {"until": [stop, "never"], "max_gen_toks": 12}))
    )
    assert results == [text[: text.index(stop)]]
    with pytest.raises(ValueError, match="generates greedily"):
        language_model.generate_until(requests(("Once", {"do_sample": True})))


def test_without_lm_eval_the_install_command_is_named() -> None:
    code = "import sys; sys.modules['lm_eval'] = None; import rwkv_embed.lm_eval"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependency: lm-eval is not installed; pip install 'rwkv-embed[eval]'" in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_runs_a_task_of_local_items(tmp_path: Path) -> None:
    from lm_eval import simple_evaluate

    items = [
        {"context": "The sun is", "choices": [" hot", " cold"], "label": 0},
        {"context": "Ice is", "choices": [" hot", " cold"], "label": 1},
        {"context": "Two and two are", "choices": [" four", " nine", " ten"], "label": 0},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    task = {
        "task": "local_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}, "cache_dir": str(tmp_path)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    model = TinyLanguageModel()
    results = simple_evaluate(adapter.RWKVLM(model), tasks=[task], bootstrap_iters=0)
    right = 0
    for item in items:
        before = [0, *model.tokenizer.encode(item["context"])]
        scores = [
            model.log_probability(before + model.tokenizer.encode(choice), len(before))
            for choice in item["choices"]
        ]
        right += scores.index(max(scores)) == item["label"]
    assert results["results"]["local_choice"]["acc,none"] == pytest.approx(right / 3)
