"""Logits and every state tensor against PyPI's `rwkv`, for each generation and three shapes, over 200 tokens.

The package reads environment variables on import and compiles parts of itself, so it runs in child processes:
one for RWKV-7, which it can only do alone, and one for the rest.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import checkpoints as ck
import pytest
import torch
from torch import Tensor

from rwkv_embed.config import Version
from rwkv_embed.models import load_model
from rwkv_embed.state import State

CASES = [(version, index) for version in ck.VERSIONS for index in range(len(ck.SHAPES))]
EXTREME = [version for version in ck.VERSIONS if version != "7"]  # RWKV-7 bounds its decay
TOKENS = torch.randint(0, 97, (200,), generator=torch.Generator().manual_seed(7)).tolist()

REFERENCE = """
import json, sys
import torch
from rwkv.model import RWKV
paths, tokens = json.load(sys.stdin)
for path in paths:
    logits, state = RWKV(path.removesuffix(".pth"), "cpu fp32").forward(tokens, None, full_output=True)
    torch.save([logits, *state], path + ".reference")
"""


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    folder = tmp_path_factory.mktemp("parity")
    paths = {
        (version, index): ck.save(
            folder / f"{version}-{index}.pth", ck.weights(version, ck.SHAPES[index], seed=index)
        )
        for version, index in CASES
    }
    paths |= {
        (version, -1): ck.save(folder / f"{version}-extreme.pth", _extreme_weights(version))
        for version in EXTREME
    }
    for goose in (True, False):
        mine = [str(path) for (version, _), path in paths.items() if (version == "7") == goose]
        environment = os.environ | {
            "RWKV_JIT_ON": "0",
            "RWKV_CUDA_ON": "0",
            "RWKV_V7_ON": "1" if goose else "0",
        }
        subprocess.run(
            [sys.executable, "-c", REFERENCE],
            input=json.dumps([mine, TOKENS]),
            env=environment,
            text=True,
            check=True,
            capture_output=True,
        )
    return paths


@pytest.mark.parametrize("sequential", [False, True], ids=["parallel", "sequential"])
@pytest.mark.parametrize(("version", "index"), CASES)
def test_equals_the_reference_implementation(
    references: dict[tuple[str, int], Path], version: Version, index: int, sequential: bool
) -> None:
    path = references[version, index]
    expected: list[Tensor] = torch.load(f"{path}.reference", weights_only=True)
    model = load_model(path)
    assert model.version == version

    logits, state = model.forward(TOKENS, full_output=True, sequential=sequential)

    assert len(state.tensors) == len(expected) - 1
    for mine, theirs in zip([logits, *state.tensors], expected, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
    last, _ = model.forward(TOKENS, sequential=sequential)
    torch.testing.assert_close(last, expected[0][-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("sequential", [False, True], ids=["parallel", "sequential"])
@pytest.mark.parametrize("version", EXTREME)
def test_equals_the_reference_implementation_with_extreme_decays(
    references: dict[tuple[str, int], Path], version: Version, sequential: bool
) -> None:
    """States that forget nothing grow to 150. Against float64 both lose up to 4e-4 of them, nearly all by the same
    rounding of the decay; we may not lose more than they do, but for a tenth.
    """
    path = references[version, -1]
    expected: list[Tensor] = torch.load(f"{path}.reference", weights_only=True)
    exact = _in_float64(path, _extreme_weights(version))

    logits, state = load_model(path).forward(TOKENS, full_output=True, sequential=sequential)

    for mine, theirs, true in zip([logits, *state.tensors], expected, exact, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
        my_loss, their_loss = ((x.double() - true).abs().max().item() for x in (mine, theirs))
        assert my_loss <= max(1e-4, 1.1 * their_loss)


def _extreme_weights(version: Version) -> dict[str, Tensor]:
    return ck.extreme(ck.weights(version, ck.SHAPES[1], seed=1))


def _in_float64(path: Path, weights: dict[str, Tensor]) -> list[Tensor]:
    """Logits (T, V) and state tensors, token by token with everything in float64."""
    model = load_model(path)
    for layer in model.layers:
        prefix = f"blocks.{layer.index}."
        for name, matrix in layer.matrices.items():
            matrix.values = weights[f"{prefix}{name}.weight"].double()
        for name, vector in layer.vectors.items():
            if prefix + name in weights:  # others are derived from these
                layer.vectors[name] = weights[prefix + name].double().view(vector.shape)
        model.prepare(layer)
    table = weights["emb.weight"].double()
    model._emb = lambda tokens: table[tokens]
    model._ln_out_weight, model._ln_out_bias = (weights[f"ln_out.{x}"].double() for x in ("weight", "bias"))
    model._head.values = weights["head.weight"].double()
    zero = model.zero_state()
    start = State(zero.config, [tensor.double() for tensor in zero.tensors])
    logits, state = model.forward(TOKENS, start, full_output=True, sequential=True)
    assert {tensor.dtype for tensor in [logits, *state.tensors]} == {torch.float64}
    return [logits, *state.tensors]


@pytest.mark.slow
def test_transformers_rwkv_4_gives_the_same_hidden_states(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.RwkvConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, intermediate_size=64, rescale_every=0
    )
    theirs = transformers.RwkvForCausalLM(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    theirs.save_pretrained(tmp_path)

    model = load_model(tmp_path)
    logits, _ = model.forward(TOKENS, full_output=True)

    assert (model.version, model.config.n_att, model.config.n_ffn) == ("4", 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(logits, theirs(torch.tensor([TOKENS])).logits[0], atol=1e-4, rtol=1e-5)
