"""The time-parallel operators against the token-by-token ones, where they could go wrong: extreme decays."""

import pytest
import torch
from torch import Tensor

from rwkv_embed.ops import chunked, reference


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("strength", [1e-6, 0.1, 30.0, 104.0])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 50])
def test_wkv6(length: int, strength: float) -> None:
    r, k, v = (randn(2, length, 3, 8, seed=i) for i in range(3))
    w = torch.exp(-strength * randn(2, length, 3, 8, seed=3).abs())
    arguments = (r, k, v, w, randn(3, 8, seed=4), randn(2, 3, 8, 8, seed=5))
    for fast, slow in zip(chunked.wkv6(*arguments), reference.wkv6(*arguments), strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-10, rtol=0)
    single = [argument.float() for argument in arguments]
    for fast, slow in zip(chunked.wkv6(*single), reference.wkv6(*arguments), strict=True):
        torch.testing.assert_close(fast.double(), slow, atol=1e-4, rtol=0)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.6065])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 50])
def test_wkv7_with_one_repeated_key(length: int, strength: float) -> None:
    """The same key over and over makes the triangular system as large as it can be."""
    r, k, v = (randn(2, length, 3, 8, seed=i) for i in range(3))
    kk = torch.nn.functional.normalize(randn(2, 1, 3, 8, seed=3), dim=-1).expand(2, length, 3, 8)
    log_w = torch.full_like(r, -strength)
    arguments = (r, log_w, k, v, -kk, kk * 0.999, randn(2, 3, 8, 8, seed=5))
    for fast, slow in zip(chunked.wkv7(*arguments), reference.wkv7(*arguments), strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-10, rtol=0)
    single = [argument.float() for argument in arguments]
    for fast, slow in zip(chunked.wkv7(*single), reference.wkv7(*arguments), strict=True):
        torch.testing.assert_close(fast.double(), slow, atol=1e-4, rtol=0)


@pytest.mark.parametrize("spread", [0.1, 5.0, 80.0])
@pytest.mark.parametrize("length", [1, 16, 50])
def test_wkv4(length: int, spread: float) -> None:
    k, v = spread * randn(2, length, 6, seed=0), randn(2, length, 6, seed=1)
    w, u = -torch.exp(randn(6, seed=2)), randn(6, seed=3)
    zero = torch.zeros(2, 6, dtype=torch.float64)
    arguments = (k, v, w, u, (zero, zero, zero - 1e30), torch.tensor([length, length // 2]))
    fast, fast_state = chunked.wkv4(*arguments)
    slow, slow_state = reference.wkv4(*arguments)
    torch.testing.assert_close(fast[0], slow[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(fast[1, : length // 2], slow[1, : length // 2], atol=1e-10, rtol=0)
    for mine, other in zip(fast_state, slow_state, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=0)
