"""The lm-eval adapter: its three methods against a direct computation, and a task of local items."""

import json
import math
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


# Items of our own in the schemas of the published tasks, whose configurations come with lm-eval.
XCOPA = [
    {
        "premise": "Gelas itu jatuh ke lantai.",
        "choice1": "Gelas itu pecah.",
        "choice2": "Gelas itu tumbuh.",
        "question": "effect",
        "label": 0,
    },
    {
        "premise": "Jalan itu basah.",
        "choice1": "Matahari terbit.",
        "choice2": "Hujan turun.",
        "question": "cause",
        "label": 1,
    },
]
XSTORYCLOZE = [
    {
        "input_sentence_1": "Ana planted a seed.",
        "input_sentence_2": "She gave it water.",
        "input_sentence_3": "The sun shone for a week.",
        "input_sentence_4": "One morning she looked again.",
        "sentence_quiz1": "A green leaf had come up.",
        "sentence_quiz2": "She had never seen a seed.",
        "answer_right_ending": 1,
    }
]
XWINOGRAD = [
    {
        "sentence": "The trophy does not fit into the suitcase because the _ is too large.",
        "option1": "trophy",
        "option2": "suitcase",
        "answer": "1",
    },
    {
        "sentence": "Tom thanked Ben because _ had helped.",
        "option1": "Tom",
        "option2": "Ben",
        "answer": "2",
    },
]
LAMBADA = [{"text": "He looked for his hat and could not find the hat"}, {"text": "Bees make honey"}]

# What each task asks: (context, continuation) for every answer, and the number of the right one.
Question = tuple[list[tuple[str, str]], int]
TASKS: dict[str, tuple[str, list[dict[str, Any]], list[Question]]] = {
    "xcopa_id": (
        "test",
        XCOPA,
        [
            ([("Gelas itu jatuh ke lantai maka", f" gelas itu {end}.") for end in ("pecah", "tumbuh")], 0),
            ([("Jalan itu basah karena", end) for end in (" matahari terbit.", " hujan turun.")], 1),
        ],
    ),
    "xstorycloze_en": (
        "validation",
        XSTORYCLOZE,
        [
            (
                [
                    (
                        "Ana planted a seed. She gave it water. The sun shone for a week. One morning she looked"
                        " again.",
                        end,
                    )
                    for end in (" A green leaf had come up.", " She had never seen a seed.")
                ],
                0,
            )
        ],
    ),
    "xwinograd_en": (
        "test",
        XWINOGRAD,
        [
            (
                [
                    (
                        f"The trophy does not fit into the suitcase because the {thing}",
                        " is too large.",
                    )
                    for thing in ("trophy", "suitcase")
                ],
                0,
            ),
            ([(f"Tom thanked Ben because {name}", " had helped.") for name in ("Tom", "Ben")], 1),
        ],
    ),
    "lambada_openai": (
        "test",
        LAMBADA,
        [([("He looked for his hat and could not find the", " hat")], 0), ([("Bees make", " honey")], 0)],
    ),
}


PUBLISHED = {
    "xcopa_id": "xcopa/default_id.yaml",
    "xstorycloze_en": "xstorycloze/default_en.yaml",
    "xwinograd_en": "xwinograd/xwinograd_en.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("published", TASKS)
def test_lm_eval_runs_the_published_tasks(
    published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    split, items, questions = TASKS[published]
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(map(json.dumps, items)), "utf-8")
    name = f"local_{published}"
    task = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / PUBLISHED[published]),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file)}, "cache_dir": str(tmp_path / "cache")},
        **{f"{part}_split": part if part == split else None for part in ("training", "validation", "test")},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(task), "utf-8")
    model = TinyLanguageModel()

    results = lm_eval.simple_evaluate(
        adapter.RWKVLM(model),
        tasks=[name],
        task_manager=TaskManager(include_path=str(tmp_path)),
        num_fewshot=0,
        bootstrap_iters=0,
        log_samples=True,
    )

    asked = [sample["arguments"] for sample in results["samples"][name]]
    assert [[tuple(arguments) for arguments in row] for row in asked] == [pairs for pairs, _ in questions]
    scores = [[_obvious(model, *pair) for pair in pairs] for pairs, _ in questions]
    if published == "lambada_openai":
        mean = sum(score for (score,) in scores) / len(scores)
        assert results["results"][name]["perplexity,none"] == pytest.approx(math.exp(-mean), rel=1e-4)
    else:
        right = [row.index(max(row)) == answer for row, (_, answer) in zip(scores, questions, strict=True)]
        assert results["results"][name]["acc,none"] == pytest.approx(sum(right) / len(right))


def _obvious(model: TinyLanguageModel, context: str, continuation: str) -> float:
    before = [0, *model.tokenizer.encode(context)]
    return model.log_probability(before + model.tokenizer.encode(continuation), len(before))
