"""The RWKV-7 embedder in torch, for training: packed sequences, last layer read at EOS only.

`Bag` is the same model without recurrence in its layers: one accumulating time mixing over the token
table, nothing else. It trains at the speed of a look-up; `RWKV7Embedder.from_bag` starts from it exactly,
so that the blocks begin where the bag ended and learn what a bag cannot know.

Shapes: T tokens of all texts together, B texts, C = n_embd, H heads of N = 64.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_embed.training.wkv7 import readout, wkv7

N = 64
LN_X_EPS = 64e-5
# The bag's matrices are large. The norms that follow them do not care, but Adam's steps, whose size does not
# depend on a parameter's, then change little of what they mean when the blocks are trained (docs/log.md).
FIRM = 8.0
SPREAD = 0.3  # share of the importance in a token vector at the start


class Head(nn.Module):
    """EmbeddingRWKV's head: norm(fc2(relu(fc1(h))) + h); starts as the identity."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(C, C, bias=False), nn.Linear(C, C, bias=False)
        self.norm = nn.LayerNorm(C)
        nn.init.zeros_(self.fc2.weight)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.norm(self.fc2(torch.relu(self.fc1(h))) + h)
        return out


def interleaved(C: int) -> Tensor:
    """A permutation (C, C) that deals the axes to the heads in turn, so that each has strong and weak ones."""
    return torch.eye(C).view(N, C // N, C).transpose(0, 1).reshape(C, C)


def importance_reach(C: int) -> float:
    """How far ln0(emb) goes on the last axis for the most and for the least important token."""
    return math.sqrt(C) * SPREAD / math.sqrt(1 + SPREAD**2)


class Bag(nn.Module):
    """Sum of token vectors, each with a weight of its own, in RWKV-7's own terms.

    Only the table and the head are trained. Training the matrices as well raised the accuracy across languages
    a little and cost question to passage much (docs/log.md).

    Equal to a one-layer RWKV-7 with decay 1, no removal, keys along one direction per head, gate 1 and no
    channel mixing: pooled = W_o group_norm(W_v sum_t s(x_t) x_t), x = ln1(ln0(emb)).
    """

    def __init__(self, table: Tensor, importance: Tensor) -> None:
        """`table` (V, C): a first vector for each token; `importance` (V,) in 0..1: its first weight."""
        super().__init__()
        C = table.shape[1]
        start = F.normalize(table, dim=1)
        start[:, -1] = (2 * importance - 1) * SPREAD  # the last axis, of least variance, carries the weight
        self.emb = nn.Parameter(start)
        reach = importance_reach(C)
        axis = torch.zeros(C)
        axis[-1] = 1.0
        self.register_buffer("bias", axis * reach)
        self.register_buffer("weight", axis.repeat(C // N, 1) * FIRM**2 / (2 * reach))
        dealt = interleaved(C)
        self.register_buffer("value", dealt * (1 - axis) * FIRM)
        self.register_buffer("output", dealt.T.contiguous() * FIRM)
        self.ln_x, self.ln_out = nn.GroupNorm(C // N, C, eps=LN_X_EPS), nn.LayerNorm(C)
        for norm in (self.ln_x, self.ln_out):
            norm.requires_grad_(False)
        self.head = Head(C)

    bias: Tensor
    weight: Tensor
    value: Tensor
    output: Tensor

    @staticmethod
    def inherited(name: str) -> bool:
        """Nothing is: the bag comes first."""
        return False

    def forward(self, rows: Tensor, index: Tensor, starts: Tensor) -> Tensor:
        """`rows` (U, C): the batch's distinct tokens; `index` (T,) into them; `starts` (B + 1,)."""
        x0 = F.layer_norm(rows, rows.shape[-1:])
        importance = (x0 + self.bias) @ self.weight[0]  # every head's
        summed = F.embedding_bag(index, x0 * importance[:, None], starts[:-1], mode="sum")
        return self.read_out(x0[index[starts[1:] - 1]], summed @ self.value.T)  # all end with EOS

    def read_out(self, x_eos: Tensor, y: Tensor) -> Tensor:
        """Vectors (B, C) of texts whose ends read `y` from the state."""
        vectors: Tensor = self.head(self.ln_out(x_eos + self.ln_x(y) @ self.output.T))
        return vectors


def importance_of(bag: Bag, rows: Tensor) -> Tensor:
    """(V,) what the tokens of `rows` (V, C) count in a text, 0..1 as a rule."""
    keys: Tensor = (F.layer_norm(rows, rows.shape[-1:]) + bag.bias) @ bag.weight[0]
    return keys / FIRM**2


def lora_rank(C: int, factor: float, power: float) -> int:
    """RWKV-LM's rule for the ranks of the decay, learning-rate, value and gate networks."""
    return max(32, int(round(factor * C**power / 32) * 32))


class TimeMixing(nn.Module):
    def __init__(self, C: int, layer: int, n_layer: int) -> None:
        super().__init__()
        self.layer, H = layer, C // N
        for name in "rwkvag":
            self.register_parameter(f"x_{name}", nn.Parameter(torch.zeros(1, 1, C)))
        depth = layer / max(1, n_layer - 1)
        ramp = torch.arange(C) / (C - 1)
        self.w0 = nn.Parameter((-6 + 5 * ramp ** (0.85 + depth**0.5) + 0.5).view(1, 1, C))
        ranks = {
            "w": lora_rank(C, 1.8, 0.5),
            "a": lora_rank(C, 1.8, 0.5),
            "v": lora_rank(C, 1.3, 0.5),
            "g": lora_rank(C, 0.6, 0.8),
        }
        for name, rank in ranks.items():
            if name == "v" and layer == 0:
                continue
            self.register_parameter(f"{name}1", nn.Parameter(torch.randn(C, rank) * 0.3 / math.sqrt(C)))
            self.register_parameter(f"{name}2", nn.Parameter(torch.zeros(rank, C)))
            if name in "av":
                self.register_parameter(f"{name}0", nn.Parameter(torch.zeros(1, 1, C)))
        with torch.no_grad():
            self.g2.normal_(std=0.1)  # type: ignore[operator]
            if layer > 0:
                self.v0.fill_(1.0)  # type: ignore[operator]
        self.k_k = nn.Parameter(torch.full((1, 1, C), 0.85))
        self.k_a = nn.Parameter(torch.ones(1, 1, C))
        self.r_k = nn.Parameter(torch.zeros(H, N))
        self.receptance, self.key, self.value, self.output = (nn.Linear(C, C, bias=False) for _ in range(4))
        for linear, scale in ((self.receptance, 0.5), (self.key, 0.05), (self.value, 0.5)):
            nn.init.uniform_(linear.weight, -scale / math.sqrt(C), scale / math.sqrt(C))
        nn.init.normal_(self.output.weight, std=0.1 / math.sqrt(C))  # small, not zero: it learns at once
        self.ln_x = nn.GroupNorm(H, C, eps=LN_X_EPS)

    def forward(
        self, x: Tensor, shifted: Tensor, v_first: Tensor, starts: Tensor, last: Tensor | None
    ) -> Any:
        """(T, C) -> the output and v_first.

        With `last` (n B,), one position of each text, n times over, the output is wanted at those alone.
        """
        p: Any = self  # parameters were registered by name
        C, H = x.shape[1], x.shape[1] // N
        delta = shifted - x

        def mixed(name: str) -> Tensor:
            return x + delta * getattr(self, f"x_{name}").view(C)

        def at_last(values: Tensor) -> Tensor:
            return values if last is None else values[last]

        xr, xg = (at_last(x) + at_last(delta) * getattr(self, f"x_{n}").view(C) for n in "rg")
        r = self.receptance(xr)
        k, xv, xa = self.key(mixed("k")), mixed("v"), mixed("a")
        v = self.value(xv)
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(p.w0.view(C) + torch.tanh(mixed("w") @ p.w1) @ p.w2))
        a = torch.sigmoid(p.a0.view(C) + (xa @ p.a1) @ p.a2)
        g = torch.sigmoid(xg @ p.g1) @ p.g2
        if self.layer == 0:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(p.v0.view(C) + (xv @ p.v1) @ p.v2)
        removal = F.normalize((k * p.k_k.view(C)).view(-1, H, N), dim=-1).flatten(1)
        k = k * (1 + (a - 1) * p.k_a.view(C))
        if last is None:
            y = wkv7(r, w, k, v, -removal, removal * a, starts)
        else:
            first, texts = starts[:-1], len(starts) - 1
            y = torch.cat(
                [
                    pooled(v, readout(at, w, k, -removal, removal * a, first, ends + 1), first)
                    for at, ends in zip(r.split(texts), last.split(texts), strict=True)
                ]
            )
        y = self.ln_x(y)
        bonus = ((r * at_last(k)).view(-1, H, N) * self.r_k).sum(-1, keepdim=True) * at_last(v).view(-1, H, N)
        return self.output((y + bonus.flatten(1)) * g), v_first


def pooled(v: Tensor, weights: Tensor, first: Tensor) -> Tensor:
    """(B, C) sums of the texts' values (T, C) times their weights (T, H); texts begin at `first` (B,)."""
    weighted = v.view(len(v), -1, N) * weights[:, :, None]
    sums: Tensor = F.embedding_bag(torch.arange(len(v)), weighted.flatten(1), first, mode="sum")
    return sums


class ChannelMixing(nn.Module):
    def __init__(self, C: int, n_ffn: int) -> None:
        super().__init__()
        self.x_k = nn.Parameter(torch.zeros(1, 1, C))
        self.key, self.value = nn.Linear(C, n_ffn, bias=False), nn.Linear(n_ffn, C, bias=False)
        nn.init.uniform_(self.key.weight, -0.5 / math.sqrt(C), 0.5 / math.sqrt(C))
        nn.init.normal_(self.value.weight, std=0.02 / math.sqrt(n_ffn))

    def forward(self, x: Tensor, shifted: Tensor) -> Tensor:
        out: Tensor = self.value(torch.relu(self.key(x + (shifted - x) * self.x_k.view(-1))) ** 2)
        return out


class Block(nn.Module):
    def __init__(self, C: int, n_ffn: int, layer: int, n_layer: int) -> None:
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(C)
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.att, self.ffn = TimeMixing(C, layer, n_layer), ChannelMixing(C, n_ffn)


def shift(x: Tensor, starts: Tensor) -> Tensor:
    """Each token's predecessor in its own text; zero before the first."""
    shifted = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    keep = torch.ones(len(x), 1)
    keep[starts[:-1]] = 0
    return shifted * keep


class RWKV7Embedder(nn.Module):
    """`forward(rows, index, starts)`: vectors of the batch's distinct tokens -> (B, C) text vectors."""

    def __init__(self, C: int, n_layer: int, n_ffn: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(C, n_ffn, i, n_layer) for i in range(n_layer)])
        self.ln_out, self.head = nn.LayerNorm(C), Head(C)

    def inherited(self, name: str) -> bool:
        """Whether a parameter starts as the bag's."""
        last = f"blocks.{len(self.blocks) - 1}."
        return name.startswith((f"{last}att.", f"{last}ln1.", "ln_out.", "head."))

    def forward(self, rows: Tensor, index: Tensor, starts: Tensor) -> Tensor:
        """`rows` (U, C) of the token table; `index` (T,) into them; `starts` (B + 1,)."""
        ends = starts[1:] - 1
        x = self.blocks[0].ln0(rows)[index]  # type: ignore[operator]
        v_first = x
        for block in self.blocks[:-1]:
            h = block.ln1(x)  # type: ignore[operator]
            y, v_first = block.att(h, shift(h, starts), v_first, starts, None)  # type: ignore[operator]
            x = x + y
            h = block.ln2(x)  # type: ignore[operator]
            x = x + block.ffn(h, shift(h, starts))  # type: ignore[operator]
        return self._read_out(self.blocks[-1], x, v_first, starts, ends)

    def _read_out(self, block: Any, x: Tensor, v_first: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """The last layer: every token enters the state, only EOS (and the one before it) is read."""
        h = block.ln1(x)
        pairs = torch.cat([torch.maximum(ends - 1, starts[:-1]), ends])
        y, _ = block.att(h, shift(h, starts), v_first, starts, pairs)
        x = x[pairs] + y
        before, at_eos = block.ln2(x).chunk(2)
        alone = (starts[1:] - starts[:-1] == 1)[:, None]  # an empty text is its EOS: nothing is before it
        x = x.chunk(2)[1] + block.ffn(at_eos, before.masked_fill(alone, 0.0))
        vectors: Tensor = self.head(self.ln_out(x))
        return vectors

    @classmethod
    def from_bag(cls, bag: Bag, eos: int, n_layer: int, n_ffn: int) -> "RWKV7Embedder":
        """Blocks that start as the bag: the last layer accumulates, the earlier ones add little."""
        C = bag.emb.shape[1]
        model = cls(C, n_layer, n_ffn)
        last: Any = model.blocks[-1]
        att = last.att
        with torch.no_grad():
            last.ln1.bias.copy_(bag.bias)
            x_eos = F.layer_norm(bag.emb[eos], (C,)) + bag.bias
            direction = (torch.randint(0, 2, (C,)) * 2 - 1) / math.sqrt(N)  # one unit key per head
            att.key.weight.copy_(direction[:, None] * bag.weight.repeat_interleave(N, 0))
            att.receptance.weight.copy_(torch.outer(direction, x_eos / x_eos.square().sum()))
            att.value.weight.copy_(bag.value)
            att.output.weight.copy_(bag.output)
            att.w0.fill_(-9.0)  # keep everything
            att.a0.fill_(-9.0)  # remove nothing
            att.k_a.zero_()
            if n_layer > 1:
                att.v0.fill_(-9.0)  # values of this layer, not of the first
            att.g1.normal_(std=0.01)
            att.g2.fill_(2.0 / att.g2.shape[0])  # sigmoid(0) * 2 = 1
            att.ln_x.load_state_dict(bag.ln_x.state_dict())
            last.ffn.value.weight.zero_()
            model.ln_out.load_state_dict(bag.ln_out.state_dict())
            model.head.load_state_dict(bag.head.state_dict())
        return model
