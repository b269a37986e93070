"""RWKV-5: 5.0, 5.1 and 5.2 "Eagle" (https://arxiv.org/abs/2404.05892): matrix-valued states.

Each head keeps a matrix [key, value] that decays at a learnt, constant rate: one per head in 5.0 and 5.1, one
per key channel in 5.2. From 5.1 on the output passes a SiLU gate.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_embed.models.base import Layer, Window, group_norm
from rwkv_embed.models.rwkv4 import GatedChannelMixing


class RWKV5(GatedChannelMixing):
    versions = ("5.0", "5.1", "5.2")

    def prepare(self, layer: Layer) -> None:
        """Decay and bonus, both as (H, N)."""
        p, heads = layer.vectors, (self.config.n_head, self.config.head_size)
        p["w"] = torch.exp(-torch.exp(p["att.time_decay"].view(heads[0], -1))).expand(heads)
        p["u"] = bonus(p).view(heads[0], -1).expand(heads)

    def time_mixing(
        self, layer: Layer, x: Tensor, state: list[Tensor], window: Window
    ) -> tuple[Tensor, list[Tensor]]:
        """x (B, T, C) and [shift, wkv] -> what the block adds to x, and the two new state tensors."""
        m, p = layer.matrices, layer.vectors
        x = layer.norm("ln1", x, self.config.norm_eps)
        previous = window.shift(x, state[0])
        heads = (*x.shape[:2], self.config.n_head, self.config.head_size)
        r = m["att.receptance"](torch.lerp(previous, x, p["att.time_mix_r"])).view(heads)
        k = window.real(m["att.key"](torch.lerp(previous, x, p["att.time_mix_k"]))).view(heads)
        v = m["att.value"](torch.lerp(previous, x, p["att.time_mix_v"])).view(heads)
        w = window.real(p["w"].flatten().expand(*x.shape[:2], -1), padding=1.0).view(heads)
        y, wkv = window.ops.wkv6(r, k, v, w, p["u"], state[1])
        y = group_norm(y.flatten(2), self.config.n_head, layer, self.config.ln_x_eps)
        if "att.gate" in m:
            y = y * F.silu(m["att.gate"](torch.lerp(previous, x, p["att.time_mix_g"])))
        return m["att.output"](y), [window.last(x), wkv]


def bonus(vectors: dict[str, Tensor]) -> Tensor:
    """The weight of the current token: stored itself as `time_faaaa`, or as a logarithm in `time_first`."""
    if "att.time_faaaa" in vectors:
        return vectors["att.time_faaaa"]
    return torch.exp(vectors["att.time_first"])
