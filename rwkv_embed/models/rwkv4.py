"""RWKV-4 "Dove" (https://arxiv.org/abs/2305.13048): per channel, a decaying weighted mean of the values.

Differs from the later generations: no heads, so the state is three vectors a layer (aa, bb, pp); receptance
is a sigmoid gate on the mean; the decay is one learnt number per channel.
"""

import torch
from torch import Tensor

from rwkv_embed.models.base import Layer, Model, Window


class GatedChannelMixing(Model):
    """Channel mixing of RWKV-4 and 5: squared ReLU, gated by a receptance."""

    def channel_mixing(self, layer: Layer, x: Tensor, shift: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """x (B, T, C) and the previous token's (B, C) -> what the block adds to x, and the new shift."""
        m, p = layer.matrices, layer.vectors
        x = layer.norm("ln2", x, self.config.norm_eps)
        previous = window.shift(x, shift)
        k = torch.relu(m["ffn.key"](torch.lerp(previous, x, p["ffn.time_mix_k"]))) ** 2
        r = torch.sigmoid(m["ffn.receptance"](torch.lerp(previous, x, p["ffn.time_mix_r"])))
        return r * m["ffn.value"](k), window.last(x)


class RWKV4(GatedChannelMixing):
    versions = ("4",)

    def prepare(self, layer: Layer) -> None:
        layer.vectors["att.time_decay"] = -torch.exp(layer.vectors["att.time_decay"])

    def time_mixing(
        self, layer: Layer, x: Tensor, state: list[Tensor], window: Window
    ) -> tuple[Tensor, list[Tensor]]:
        """x (B, T, C) and [shift, aa, bb, pp] -> what the block adds to x, and the four new state tensors."""
        m, p = layer.matrices, layer.vectors
        x = layer.norm("ln1", x, self.config.norm_eps)
        previous = window.shift(x, state[0])
        k = m["att.key"](torch.lerp(previous, x, p["att.time_mix_k"]))
        v = m["att.value"](torch.lerp(previous, x, p["att.time_mix_v"]))
        r = torch.sigmoid(m["att.receptance"](torch.lerp(previous, x, p["att.time_mix_r"])))
        y, (aa, bb, pp) = window.ops.wkv4(
            k, v, p["att.time_decay"], p["att.time_first"], (state[1], state[2], state[3]), window.lengths
        )
        return m["att.output"](r * y), [window.last(x), aa, bb, pp]
