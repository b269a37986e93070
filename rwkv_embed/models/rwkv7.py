"""RWKV-7 "Goose" (https://arxiv.org/abs/2503.14456): a state that is edited by a generalised delta rule.

Each token removes the value stored under the key kk (as much of it as the in-context learning rate `a` says)
and writes v under k; the matrix [value, key] decays per key channel. Layers after the first mix in the first
layer's values (v_first). Tensors v0, v1, v2 of layer 0 exist in some checkpoints and are never used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_embed.models.base import Layer, Model, Window, group_norm

# log w = -exp(-0.5) sigmoid(...): the fastest decay is a factor 0.545 a token (six digits, as the reference).
_FASTEST_LOG_DECAY = -0.606531


class RWKV7(Model):
    versions = ("7",)

    def time_mixing(
        self, layer: Layer, x: Tensor, state: list[Tensor], window: Window
    ) -> tuple[Tensor, list[Tensor]]:
        """x (B, T, C) and [shift, wkv] -> what the block adds to x, and the two new state tensors."""
        m, p = layer.matrices, layer.vectors
        x = layer.norm("ln1", x, self.config.norm_eps)
        delta = window.shift(x, state[0]) - x
        xr, xw, xk, xv, xa, xg = (x + delta * p[f"att.x_{name}"] for name in "rwkvag")
        heads = (*x.shape[:2], self.config.n_head, self.config.head_size)

        r = m["att.receptance"](xr)
        log_w = _FASTEST_LOG_DECAY * torch.sigmoid(p["att.w0"] + torch.tanh(xw @ p["att.w1"]) @ p["att.w2"])
        k = m["att.key"](xk)
        v = m["att.value"](xv)
        a = torch.sigmoid(p["att.a0"] + xa @ p["att.a1"] @ p["att.a2"])
        g = torch.sigmoid(xg @ p["att.g1"]) @ p["att.g2"]
        if layer.index == 0:
            window.v_first = v
        elif window.v_first is not None:
            v = torch.lerp(v, window.v_first, torch.sigmoid(p["att.v0"] + xv @ p["att.v1"] @ p["att.v2"]))
        kk = window.real(F.normalize((k * p["att.k_k"]).view(heads), dim=-1).flatten(2))
        k = window.real(k * (1 + (a - 1) * p["att.k_a"]))

        y, wkv = window.ops.wkv7(
            *(z.view(heads) for z in (r, window.real(log_w), k, v, -kk, kk * a)), state[1]
        )
        y = group_norm(y.flatten(2), self.config.n_head, layer, self.config.ln_x_eps)
        own = (r.view(heads) * k.view(heads) * p["att.r_k"]).sum(-1, keepdim=True) * v.view(heads)
        return m["att.output"]((y + own.flatten(2)) * g), [window.last(x), wkv]

    def channel_mixing(self, layer: Layer, x: Tensor, shift: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """x (B, T, C) and the previous token's (B, C) -> what the block adds to x, and the new shift."""
        m, p = layer.matrices, layer.vectors
        x = layer.norm("ln2", x, self.config.norm_eps)
        delta = window.shift(x, shift) - x
        k = torch.relu(m["ffn.key"](x + delta * p["ffn.x_k"])) ** 2
        return m["ffn.value"](k), window.last(x)
