"""RWKV-6 "Finch" (https://arxiv.org/abs/2404.05892): as Eagle, but shift and decay depend on the token.

Five low-rank projections of the token (time_maa_w1, time_maa_w2) say how much of the previous token each of
w, k, v, r, g sees; a sixth (time_decay_w1, time_decay_w2) sets the decay of every key channel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_embed.models.base import Layer, Model, Window, group_norm
from rwkv_embed.models.rwkv5 import bonus


class RWKV6(Model):
    versions = ("6",)

    def prepare(self, layer: Layer) -> None:
        p = layer.vectors
        p["u"] = bonus(p)
        p["maa"] = torch.stack([p[f"att.time_maa_{x}"] for x in "wkvrg"])  # (5, C)

    def time_mixing(
        self, layer: Layer, x: Tensor, state: list[Tensor], window: Window
    ) -> tuple[Tensor, list[Tensor]]:
        """x (B, T, C) and [shift, wkv] -> what the block adds to x, and the two new state tensors."""
        m, p = layer.matrices, layer.vectors
        x = layer.norm("ln1", x, self.config.norm_eps)
        delta = window.shift(x, state[0]) - x
        heads = (*x.shape[:2], self.config.n_head, self.config.head_size)

        low = torch.tanh((x + delta * p["att.time_maa_x"]) @ p["att.time_maa_w1"]).unflatten(-1, (5, -1))
        mix = p["maa"] + torch.einsum("btfm,fmc->btfc", low, p["att.time_maa_w2"])  # (B, T, 5, C)
        xw, xk, xv, xr, xg = (x[:, :, None] + delta[:, :, None] * mix).unbind(dim=2)

        r = m["att.receptance"](xr).view(heads)
        k = window.real(m["att.key"](xk)).view(heads)
        v = m["att.value"](xv).view(heads)
        decay = p["att.time_decay"] + torch.tanh(xw @ p["att.time_decay_w1"]) @ p["att.time_decay_w2"]
        w = window.real(torch.exp(-torch.exp(decay)), padding=1.0).view(heads)
        y, wkv = window.ops.wkv6(r, k, v, w, p["u"], state[1])
        y = group_norm(y.flatten(2), self.config.n_head, layer, self.config.ln_x_eps)
        return m["att.output"](y * F.silu(m["att.gate"](xg))), [window.last(x), wkv]

    def channel_mixing(self, layer: Layer, x: Tensor, shift: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """x (B, T, C) and the previous token's (B, C) -> what the block adds to x, and the new shift."""
        m, p = layer.matrices, layer.vectors
        x = layer.norm("ln2", x, self.config.norm_eps)
        delta = window.shift(x, shift) - x
        k = torch.relu(m["ffn.key"](x + delta * p["ffn.time_maa_k"])) ** 2
        r = torch.sigmoid(m["ffn.receptance"](x + delta * p["ffn.time_maa_r"]))
        return r * m["ffn.value"](k), window.last(x)
