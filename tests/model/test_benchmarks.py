"""The benchmark compares like with like, and draws what it measured."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import measure
from benchmarks.contenders import Contender, default_tokens, random_rwkv7
from benchmarks.pooling import scores
from benchmarks.report import draw, large_lines
from benchmarks.seven_billion import Shape, random_eagle
from benchmarks.seven_billion import measure as measure_large
from benchmarks.torch_rwkv7 import TorchRWKV7
from indexer.evaluation import BitextDataset, RetrievalDataset
from rwkv_embed import hub
from rwkv_embed.ops.fast import FastRWKV7
from rwkv_embed.tensor_files import write_safetensors


def test_plain_torch_path_is_the_same_model():
    tensors = random_rwkv7(2, 128, 40, lora=16)
    texts = [[3], [1, 2, 3], list(range(30))]
    plain, fast = TorchRWKV7(tensors).hidden(texts), FastRWKV7(tensors).hidden(texts)[0]
    np.testing.assert_allclose(plain, fast, atol=1e-4)


def test_picture_has_a_flat_line_for_a_flat_cost(tmp_path):
    flat, growing = {128: 50.0, 1024: 50.0, 131_072: 50.0}, {128: 100.0, 1024: 400.0}
    draw({"rwkv-embed": flat, "Transformer": growing}, tmp_path / "cost.svg")
    curves = re.findall(
        r'points="([^"]+)" fill="none" stroke="#(?:c2410c|1d4ed8)"', (tmp_path / "cost.svg").read_text()
    )
    heights = [[float(corner.split(",")[1]) for corner in curve.split()] for curve in curves]
    assert len(set(heights[0])) == 1
    assert heights[1][0] > heights[1][1]  # SVG counts downwards
    assert heights[0][0] > heights[1][0]


def test_a_contender_that_fails_is_out_with_its_reason() -> None:
    calls = []

    def broken(texts):
        calls.append(len(texts))
        if len(calls) > 2:
            raise RuntimeError("out of\nmemory")
        return np.zeros((len(texts), 2))

    field = measure.Field()
    assert field.attempt("absent", lambda: 1 / 0) is None
    field.running = {
        "whole": Contender("whole", lambda texts: np.zeros((len(texts), 2))),
        "broken": Contender("broken", broken),
    }
    rates = measure.throughput(field, ["a text"] * 16, turns=2, seconds=0.01)
    assert list(rates) == list(field.running) == ["whole"]
    assert rates["whole"] > 0
    assert field.failed == {"absent": "ZeroDivisionError: division by zero", "broken": "RuntimeError: out of"}


def test_lengths_take_turns_and_long_ones_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time is made up: quadratic in the length, 1 s for 1,024 tokens."""
    clock, read = [0.0], []

    def hidden(tokens: list[int]) -> None:
        read.append(len(tokens))
        clock[0] += (len(tokens) / 1024) ** 2

    monkeypatch.setattr(measure.time, "process_time", lambda: clock[0])
    contender = Contender("square", lambda texts: np.zeros(0), hidden)
    costs = measure.cost_by_length(contender, tokens_each=1024, longest_seconds=8, rounds=2)
    assert list(costs) == [128, 512, 1024, 2048]  # 4,096 tokens would take 16 s
    assert costs[1024] == pytest.approx([1e6 / 1024] * 2)
    assert costs[2048] == pytest.approx([2e6 / 1024] * 2)
    assert [length for length in read if length > 1000] == [1024, 2048, 1024, 2048]


def test_large_shapes_are_compared_with_pypi_rwkv(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def forward(self, tokens: list[int], state: None) -> None:
            assert len(tokens) in (16, 256)

    monkeypatch.setattr(measure, "load_pypi_rwkv", lambda tensors: Slow())
    rates = measure.large_shape(torch.get_num_threads(), 2, 64, vocab=50)
    assert list(rates) == ["rwkv", "float32", "bfloat16", "int8"]
    assert all(rate > 0 for row in rates.values() for rate in row.values())
    rates = {"rwkv": {"long": 2.0, "short": 1.0}, "int8": {"long": 14.0, "short": 11.0}}
    assert large_lines({"0.1B": rates})[-1] == "| 0.1B | int8 | 7 x | 11 x | 14, 11 | not measured |"
    assert large_lines({}) == []


def test_texts_end_with_the_models_end_of_text() -> None:
    end = hub.resolve(None).settings["eos_token_id"]
    empty, word = default_tokens(["", "word"])
    assert empty == [end]
    assert word[-1] == end
    assert len(word) > 1


def test_large_models_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    write_safetensors(path, random_eagle(Shape(layers=2, width=64, heads=2, ffn=224, vocabulary=100)))
    for dtype in ("int8", "bfloat16"):
        result = measure_large(path, dtype, tokens=5, generated=1)
        assert result["dtype"] == dtype
        assert result["embed_tokens_per_s"] > 0
        assert result["peak_rss_gib"] > 0


def test_scores_of_poolings() -> None:
    """Equal vectors find each other; questions that all point the same way find the same paragraph."""
    rng = np.random.default_rng(0)
    meaning = {str(i): row for i, row in enumerate(rng.standard_normal((40, 8)).astype(np.float32))}
    common = np.array([100] + [0] * 7, np.float32)

    def encode(texts: list[str]) -> np.ndarray:
        return np.stack([meaning[text.strip("?")] + common * len(text.strip("0123456789")) for text in texts])

    numbers = list(meaning)
    asked = {f"q{number}": f"{number}?" for number in numbers}
    relevant = {query: {number.strip("?"): 1.0} for query, number in asked.items()}
    retrieval = RetrievalDataset("numbers", dict(zip(numbers, numbers, strict=True)), asked, relevant)
    bitext = BitextDataset("en-de", numbers, numbers)
    found = scores([retrieval, bitext], encode)
    assert list(found) == ["as it is", "whitened", "top directions removed"]
    assert [values[1] for values in found.values()] == [1.0, 1.0, 1.0]
    assert found["as it is"][0] < 0.5
