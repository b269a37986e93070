"""Sampling, streaming, stop strings, batches and likelihoods, on a byte-level model."""

import itertools
import math
from pathlib import Path

import checkpoints as ck
import pytest
import torch

from rwkv_embed.generate import Sampling, generate, generate_batch, sample, score
from rwkv_embed.models import load_model
from rwkv_embed.models.base import Model

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of bytes that prefers ASCII letters, so that its texts are readable."""
    tensors = ck.weights("7", ck.Shape(2, 2, 16, 256, 64))
    path = ck.save(tmp_path_factory.mktemp("generate") / "bytes.pth", tensors)
    return load_model(path)


def test_greedy_text_is_the_likeliest_token_each_time(model: Model) -> None:
    options = Sampling(max_tokens=12, temperature=0, end_tokens=())
    tokens, state, logits = list(b"abc"), None, None
    written: list[int] = []
    logits, state = model.forward(tokens, state)
    for _ in range(12):
        written.append(int(logits.argmax()))
        logits, state = model.forward(written[-1:], state)
    assert "".join(generate(model, "abc", options=options)) == bytes(written).decode("utf-8", "replace")


def test_a_state_replaces_the_prompt_read_so_far(model: Model) -> None:
    options = Sampling(max_tokens=20, seed=3, end_tokens=())
    _, state = model.forward(list(b"once upon"))
    whole = "".join(generate(model, "once upon a time", options=options))
    assert "".join(generate(model, " a time", state, options)) == whole


def test_seeds_repeat_and_differ(model: Model) -> None:
    def text(seed: int) -> str:
        return "".join(generate(model, "abc", options=Sampling(max_tokens=30, seed=seed, end_tokens=())))

    assert text(1) == text(1) != text(2)


def test_batches_write_what_single_prompts_write(model: Model) -> None:
    prompts = ["a", "hello world", ""]
    options = Sampling(max_tokens=15, seed=5, temperature=0.8, end_tokens=())
    texts = generate_batch(model, prompts, options=options)
    for i, prompt in enumerate(prompts):
        single = Sampling(max_tokens=15, seed=5 + i, temperature=0.8, end_tokens=())
        assert texts[i] == "".join(generate(model, prompt, options=single))
    assert generate_batch(model, [], options=options) == []


def test_stop_strings_are_never_written(model: Model) -> None:
    options = Sampling(max_tokens=60, seed=2, end_tokens=())
    whole = "".join(generate(model, "abc", options=options))
    stop = whole[20:23]
    pieces = list(generate(model, "abc", options=Sampling(max_tokens=60, seed=2, end_tokens=(), stop=(stop, "absent"))))
    assert "".join(pieces) == whole[: whole.index(stop)]
    assert len(pieces) > 5


def test_end_of_text_and_token_budget(model: Model) -> None:
    first = sample(model.forward(list(b"abc"))[0], Sampling(temperature=0))
    assert list(generate(model, "abc", options=Sampling(temperature=0, end_tokens=(first,)))) == []
    assert list(generate(model, "abc", options=Sampling(max_tokens=0))) == []


def frequencies(options: Sampling, draws: int = 4000) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    counts = [0, 0, 0, 0]
    for _ in range(draws):
        counts[sample(LOGITS, options, generator)] += 1
    return [count / draws for count in counts]


def test_sampling_follows_the_distribution() -> None:
    expected = torch.softmax(LOGITS, dim=0).tolist()
    assert frequencies(Sampling()) == pytest.approx(expected, abs=0.025)
    two = torch.softmax(LOGITS[:2], dim=0).tolist()
    assert frequencies(Sampling(top_k=2)) == pytest.approx([*two, 0, 0], abs=0.025)
    assert frequencies(Sampling(top_p=expected[0] + 0.01)) == pytest.approx([*two, 0, 0], abs=0.025)
    assert frequencies(Sampling(top_p=expected[0] - 0.01), 50) == [1, 0, 0, 0]
    hot = torch.softmax(LOGITS / 2, dim=0).tolist()
    assert frequencies(Sampling(temperature=2)) == pytest.approx(hot, abs=0.025)


def test_penalties_end_repetition(model: Model) -> None:
    plain = Sampling(max_tokens=40, temperature=0, end_tokens=())
    penalised = Sampling(max_tokens=40, temperature=0, presence_penalty=100, end_tokens=())
    repeated = longest_run("".join(generate(model, "abc", options=plain)))
    text = "".join(generate(model, "abc", options=penalised))
    assert longest_run(text.replace("\ufffd", "")) <= max(1, repeated)
    readable = [c for c in text if c != "\ufffd"]
    assert len(readable) == len(set(readable))


def longest_run(text: str) -> int:
    return max((len(list(group)) for _, group in itertools.groupby(text)), default=0)


def test_score_is_the_sum_of_log_probabilities(model: Model) -> None:
    tokens = list(b"hello")
    _, state = model.forward(list(b"well, "))
    total, now = 0.0, state
    for token, following in itertools.pairwise(tokens):
        logits, now = model.forward([token], now)
        total += float(torch.log_softmax(logits, dim=0)[following])
    assert score(model, state, tokens) == pytest.approx(total, abs=1e-4)
    assert score(model, None, [5]) == 0.0
    assert math.isfinite(score(model, None, tokens))


def test_impossible_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="temperature is -1, expected 0 or more; top_p is 0, expected more than 0"):
        Sampling(temperature=-1, top_p=0)
    with pytest.raises(ValueError, match="stop is"):
        Sampling(stop=("",))
