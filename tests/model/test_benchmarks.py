"""The benchmark compares like with like, and draws what it measured."""

import re

import numpy as np

from benchmarks.contenders import random_rwkv7
from benchmarks.report import draw
from benchmarks.torch_rwkv7 import TorchRWKV7
from rwkv_embed.ops.fast import FastRWKV7


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
