"""The recurrence's kernels against the slow obvious ones, and their gradients against autograd in float64."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkv_embed.training.model import pooled
from rwkv_embed.training.wkv7 import kernel, readout, readout_reference, wkv7, wkv7_reference

STARTS = torch.tensor([0, 1, 16, 33, 70])  # lengths 1, chunk - 1, chunk + 1 and more than two chunks


def wkv_inputs(tokens: int = 70, channels: int = 128) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    r, w, k, v, kappa, rate = (torch.randn(tokens, channels, generator=generator) for _ in range(6))
    kappa = torch.nn.functional.normalize(kappa.view(tokens, -1, 64), dim=-1).flatten(1)
    return [x.clone().requires_grad_() for x in (r, w.sigmoid(), k, v, -kappa, kappa * rate.sigmoid())]


def compare(
    run: Callable[..., torch.Tensor],
    reference: Callable[..., torch.Tensor],
    inputs: list[torch.Tensor],
    *positions: torch.Tensor,
) -> None:
    inputs = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = run(*inputs, *positions), reference(*exact, *positions)
    assert (y - expected).abs().max() <= 1e-6 * expected.abs().max()
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    y.backward(weight)
    expected.backward(weight.double())
    for ours, theirs in zip(inputs, exact, strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 2e-6 * theirs.grad.abs().max()


@pytest.mark.skipif(kernel() is None, reason="NO C COMPILER: the training kernel is not tested")
def test_kernel_equals_reference_and_its_gradients_equal_autograd_in_float64() -> None:
    compare(wkv7, wkv7_reference, wkv_inputs(), STARTS)


@pytest.mark.skipif(kernel() is None, reason="NO C COMPILER: the training kernel is not tested")
def test_what_ends_read_equals_the_reference_and_its_gradients_equal_autograd_in_float64() -> None:
    r, w, k, _, a, b = wkv_inputs()
    starts, ends = STARTS[:-1], STARTS[1:] - torch.tensor([0, 1, 0, 5])  # some tokens are of no text
    compare(readout, readout_reference, [r[: len(starts)], w, k, a, b], starts, ends)


def test_what_ends_read_is_what_the_recurrence_gives_there() -> None:
    r, w, k, v, a, b = wkv_inputs()
    starts, at = STARTS[:-1], STARTS[1:] - 1
    y = pooled(v, readout(r[at], w, k, a, b, starts, at + 1), starts)
    expected = wkv7_reference(r, w, k, v, a, b, STARTS)[at]
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_kernel_takes_any_compiler_command_or_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for command in ("/bin/false", str(tmp_path / "no compiler"), "'"):
        monkeypatch.setenv("CC", command)
        assert kernel.__wrapped__() is None
    monkeypatch.setenv("CC", f"env {shutil.which('cc')}")  # as `ccache gcc` is
    assert kernel.__wrapped__() is not None
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    assert kernel.__wrapped__() is None
