"""A bag whose tokens count for what the text has not said already: RWKV-7's delta rule as a way to pool.

In a sum of vectors, what a text repeats and what all its words share drown the rest. Generalised max pooling
(Murray and Perronnin, CVPR 2014) asks instead for the vector that has the same product with every token's, by
ridge regression. One pass of the delta rule (Widrow and Hoff, 1960) over the tokens comes near it, and the delta
rule is what RWKV-7's state lives by (arXiv:2503.14456). Seen from the end of a text, where the state is read:
going back, the reading vector learns to expect what it has met, and each token counts for what it adds to that.
Decay makes the vector forget, which is the ridge.

Every head tells tokens apart by 63 of its channels; the last one carries the importance, as in the plain bag.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_embed.training.model import FIRM, Bag, N, RWKV7Embedder, pooled
from rwkv_embed.training.wkv7 import readout

RANK = 32  # of the rates' low-rank matrices; one of them is for the importance
EXPECTED = 0.02  # the importance's share of a removal key: little, so that removal hardly touches the importance
RATE, SLOPE = 0.25, 3.0  # of removal, for a token of importance 1; the rate's logit falls with the importance
FORGOTTEN = 0.01  # of -log decay / 0.61 a token
STEADY = 30.0  # keys and what reads them move so many times slower than the rest: Adam's steps have one size
LOG_DECAY = -math.exp(-0.5)


class DeltaBag(nn.Module):
    """Equal to a one-layer RWKV-7 without token shift, its state read at EOS. Only what pools is trained.

    Shapes: C channels, H heads of N = 64; U distinct tokens, T tokens, B texts.
    """

    def __init__(self, bag: Bag) -> None:
        super().__init__()
        C = bag.emb.shape[1]
        H = C // N
        self.bag = bag.requires_grad_(False)
        # Keys of random directions: their products are those of the tokens' vectors, about.
        apart = torch.linalg.qr(torch.randn(C, C)).Q * math.sqrt(H / C)
        apart[N - 1 :: N] = 0  # what changes the importance
        self.key = nn.Parameter(apart * STEADY)
        self.strength = nn.Parameter(torch.zeros(H))  # log
        self.expected = nn.Parameter(torch.full((H,), math.log(EXPECTED)))
        self.a0 = nn.Parameter(_last_channel(torch.full((H, N), _logit(RATE)), 6.0))
        self.slope = nn.Parameter(_last_channel(torch.full((H, N), SLOPE), 0.0))
        self.a1 = nn.Parameter(torch.randn(C, RANK - 1) * 0.3 / math.sqrt(C))
        self.a2 = nn.Parameter(torch.zeros(RANK - 1, C))
        self.w0 = nn.Parameter(_last_channel(torch.full((H, N), _logit(FORGOTTEN)), -9.0))
        self.reads = nn.Parameter(_last_channel(torch.zeros(H, N), 1.0) * STEADY)

    @staticmethod
    def inherited(name: str) -> bool:
        """Whether a parameter starts as the bag's: those are not trained here."""
        return False

    def forward(self, rows: Tensor, index: Tensor, starts: Tensor) -> Tensor:
        """`rows` (U, C) of the token table; `index` (T,) into them; `starts` (B + 1,) -> (B, C)."""
        x0 = F.layer_norm(rows, rows.shape[-1:])
        w, k, removal, rate = self._gates(x0 + self.bag.bias)
        first, ends = starts[:-1], starts[1:]
        r = (self.reads / STEADY).flatten().expand(len(first), -1)
        w = w.expand(len(index), -1)
        weights = readout(r, w, k[index], -removal[index], (removal * rate)[index], first, ends)
        y = pooled((x0 @ self.bag.value.T)[index], weights, first)
        vectors: Tensor = self.bag.read_out(x0[index[ends - 1]], y)
        return vectors

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of tokens (U, C) after the layer's norm: decays (C,), keys, removal keys and rates, (U, C)."""
        key, k_k, a0, a1, a2 = self._native()
        k = x @ key.T
        removal = F.normalize((k * k_k).view(len(x), -1, N), dim=-1).flatten(1)
        rate = torch.sigmoid(a0 + (x @ a1) @ a2)
        return torch.exp(LOG_DECAY * torch.sigmoid(self.w0)).flatten(), k * rate, removal, rate

    def _native(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """RWKV-7's key.weight, k_k, a0, a1 and a2, with k_a = 1."""
        C, H = len(self.key), len(self.strength)
        importance = self.bag.weight[0] / FIRM**2  # of what the layer reads
        others = (importance == 0).float()
        last = _last_channel(torch.zeros(H, N), 1.0)
        expected, scale = self.expected.exp()[:, None], (self.strength - self.expected).exp()[:, None]
        key = self.key / STEADY * others * torch.lerp(scale, torch.ones(1), last).view(C, 1)
        key = key + last.view(C, 1) * importance
        k_k = torch.lerp(1 / scale, expected, last).flatten()
        a1 = torch.cat([self.a1 * others[:, None], importance[:, None]], 1)
        a2 = torch.cat([self.a2, self.slope.view(1, C)])
        return key, k_k, (self.a0 - self.slope).flatten(), a1, a2

    @torch.no_grad()
    def as_rwkv(self, eos: int, n_ffn: int) -> RWKV7Embedder:
        """The same model as a checkpoint has it."""
        model = RWKV7Embedder.from_bag(self.bag, eos, 1, n_ffn)
        att: Any = model.blocks[0].att
        key, k_k, a0, a1, a2 = self._native()
        x_eos = F.layer_norm(self.bag.emb[eos], (len(key),)) + self.bag.bias
        att.key.weight.copy_(key)
        att.receptance.weight.copy_(torch.outer(self.reads.flatten() / STEADY, x_eos / x_eos.square().sum()))
        for name, values in (("k_k", k_k), ("a0", a0), ("w0", self.w0.flatten())):
            getattr(att, name).copy_(values.view(1, 1, -1))
        att.k_a.fill_(1.0)
        att.a1, att.a2 = nn.Parameter(a1), nn.Parameter(a2)
        return model


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _last_channel(values: Tensor, last: float) -> Tensor:
    """`values` (H, N) with each head's last channel replaced."""
    values[:, -1] = last
    return values
