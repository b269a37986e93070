"""The recurrences, one token at a time: slow, obvious, and what "correct" means for every faster form.

All take and return batches, in the dtype given (float32 or float64), and change none of their arguments.
A token that must leave the state alone (padding) has k = 0 and decay 1; wkv4 is told `lengths` instead.

    B batch   T tokens   A attention width   H heads   N head size

Sources: RWKV-4 https://arxiv.org/abs/2305.13048, RWKV-5 and 6 https://arxiv.org/abs/2404.05892,
RWKV-7 https://arxiv.org/abs/2503.14456.
"""

import torch
from torch import Tensor


def wkv4(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: tuple[Tensor, Tensor, Tensor], lengths: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """RWKV-4: an exponentially decaying weighted mean of the values, per channel.

    k, v: (B, T, A); w: (A,) log decay per token, negative; u: (A,) bonus of the current token;
    state: aa, bb, pp, each (B, A): numerator and denominator, both divided by exp(pp); lengths: (B,).
    Returns the mean (B, T, A) and the new state.
    """
    aa, bb, pp = state
    outputs = []
    for t in range(k.shape[1]):
        kt, vt = k[:, t], v[:, t]
        peak = torch.maximum(pp, u + kt)
        past, now = torch.exp(pp - peak), torch.exp(u + kt - peak)
        outputs.append((past * aa + now * vt) / (past * bb + now))

        peak = torch.maximum(pp + w, kt)
        past, now = torch.exp(pp + w - peak), torch.exp(kt - peak)
        inside = (t < lengths)[:, None]
        aa = torch.where(inside, past * aa + now * vt, aa)
        bb = torch.where(inside, past * bb + now, bb)
        pp = torch.where(inside, peak, pp)
    return torch.stack(outputs, dim=1), (aa, bb, pp)


def wkv6(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """RWKV-5 and 6: linear attention with a decay per key channel (constant in 5, of the token in 6).

    r, k, v, w: (B, T, H, N), w in [0, 1]; u: (H, N) bonus of the current token; state: (B, H, N, N) as
    [key, value]. Returns r . (state + u k v^T) as (B, T, H, N) and the new state.

    Between the tokens given the state is float64: what a constant decay rounds off always points the same way.
    """
    outputs = []
    state = state.double()
    for t in range(r.shape[1]):
        kv = k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((r[:, t, :, None, :] @ (state.to(r.dtype) + u[:, :, None] * kv)).squeeze(-2))
        state = w[:, t, :, :, None] * state + kv
    return torch.stack(outputs, dim=1), state.to(r.dtype)


def wkv7(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """RWKV-7: the generalised delta rule, S <- S (diag(w) + a b^T) + v k^T, read with r.

    All inputs (B, T, H, N), log_w <= 0; state: (B, H, N, N) as [value, key].
    Returns S r as (B, T, H, N) and the new state.
    """
    outputs = []
    for t in range(r.shape[1]):
        removed = state @ a[:, t, :, :, None]
        state = (
            state * torch.exp(log_w[:, t])[:, :, None, :]
            + removed * b[:, t, :, None, :]
            + v[:, t, :, :, None] * k[:, t, :, None, :]
        )
        outputs.append((state @ r[:, t, :, :, None]).squeeze(-1))
    return torch.stack(outputs, dim=1), state
