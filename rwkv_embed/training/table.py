"""The token table and its optimiser: only the rows of a batch are read and changed."""

import torch
from torch import Tensor

from rwkv_embed.packing import LEVELS


class TokenTable:
    """(V, C) float32 with Adam moments per row (lazy: a row's moments stand still while it is not used)."""

    def __init__(self, weight: Tensor, beta1: float = 0.9, beta2: float = 0.98) -> None:
        self.weight = weight.detach().clone()
        self.mean, self.square = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.steps = torch.zeros(len(weight))
        self.beta1, self.beta2 = beta1, beta2

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "mean": self.mean, "square": self.square, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, values in state.items():
            getattr(self, name).copy_(values)

    def gather(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct tokens (U,), their rows (U, C) that will want a gradient, and the index (T,) into them."""
        distinct, index = torch.unique(tokens, return_inverse=True)
        return distinct, self.weight[distinct].requires_grad_(), index

    def update(self, distinct: Tensor, grad: Tensor, rate: float) -> None:
        """One Adam step on the rows that were used."""
        self.steps[distinct] += 1
        steps = self.steps[distinct, None]
        mean = self.mean[distinct].lerp_(grad, 1 - self.beta1)
        square = self.square[distinct].lerp_(grad.square(), 1 - self.beta2)
        self.mean[distinct], self.square[distinct] = mean, square
        scale = (square / (1 - self.beta2**steps)).sqrt_().add_(1e-8)
        self.weight[distinct] -= rate * (mean / (1 - self.beta1**steps)) / scale


def rounded(rows: Tensor, steps: Tensor) -> Tensor:
    """Rows of unit size as they will be shipped, in whole `steps` (n, C); the gradient passes straight through."""
    unit = rows / rows.square().mean(1, keepdim=True).sqrt()
    codes = (unit / steps).round().clamp(-LEVELS, LEVELS)
    return unit + (codes * steps - unit).detach()
