"""The token table and its optimiser: only the rows of a batch are read and changed."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_embed.models.weights import added_up, expanded
from rwkv_embed.sums import Sums
from rwkv_embed.training.model import importance_reach

FOLDED_AT_ONCE = 8_192  # rows
# A table is trained in coarse steps: read without rounding it has lower scores (docs/log.md).
FREQUENT, FREQUENT_STEP = 100_000, 0.7  # tokens are numbered by use
RARE_STEP = 1.1
REACH = 7  # steps on either side of zero


class TokenNetwork(nn.Module):
    """Moves all token vectors by one rule, which the frequent tokens teach and the rare ones follow.

    Half of the tokens are in fewer than a hundred batches of a run: alone, a row would stay where it began, or
    learn its few texts by heart when its steps are longer. The network is folded into the table after training.
    """

    def __init__(self, scripts: Tensor, C: int, hidden: int) -> None:
        """`scripts` (V,): the number of each token's script, whose tokens are moved alike."""
        super().__init__()
        self.register_buffer("scripts", scripts)
        self.fc1, self.fc2 = nn.Linear(C, hidden), nn.Linear(hidden, C)
        self.script = nn.Parameter(torch.zeros(int(scripts.max()) + 1, hidden))
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    scripts: Tensor

    def forward(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """`rows` (U, C) of `tokens` (U,) -> (U, C), rows of unit size in the beginning."""
        unit = of_unit_size(rows)
        hidden = torch.relu(self.fc1(unit) + self.script[self.scripts[tokens]])
        moved: Tensor = unit + self.fc2(hidden)
        return moved


class TokenTable:
    """(R, C) float32 with Adam moments per row (lazy: a row's moments stand still while it is not used).

    `coarse`: texts read its rows rounded. `sums`: the tokens after the R first ones are sums of rows (sums.py);
    what they learn, their parts do.
    """

    def __init__(
        self, weight: Tensor, network: TokenNetwork | None = None, coarse: bool = False,
        sums: Sums | None = None, beta1: float = 0.9, beta2: float = 0.98,
    ) -> None:  # fmt: skip
        self.weight, self.network, self.coarse, self.sums = weight.detach().clone(), network, coarse, sums
        self.mean, self.square = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.steps = torch.zeros(len(weight))
        self.beta1, self.beta2 = beta1, beta2

    def state_dict(self) -> dict[str, Tensor]:
        own = {"weight": self.weight, "mean": self.mean, "square": self.square, "steps": self.steps}
        network = self.network.state_dict() if self.network else {}
        return own | {f"network.{name}": values for name, values in network.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, values in self.state_dict().items():
            values.copy_(state[name])

    def parameters(self) -> Iterator[nn.Parameter]:
        """The network's, for an ordinary optimiser; the rows have their own here."""
        return iter(()) if self.network is None else self.network.parameters()

    def moved(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """`rows` (U, C) of `tokens` (U,) as the network moves them."""
        return rows if self.network is None else self.network(tokens, rows)

    def read(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """`rows` (U, C) of `tokens` (U,) as texts read them."""
        moved = self.moved(tokens, rows)
        return rounded(moved, training_steps(tokens, rows.shape[1])) if self.coarse else moved

    @torch.no_grad()
    def folded(self) -> "TokenTable":
        """A table without a network whose rows are this one's, moved; its moments are fresh.

        Rows have length 1, as in a new `Bag`: a step of Adam must be as far for them as it was.
        """
        tokens = torch.arange(len(self.weight)).split(FOLDED_AT_ONCE)
        rows = [F.normalize(self.moved(part, self.weight[part]), dim=1) for part in tokens]
        return TokenTable(torch.cat(rows), coarse=self.coarse)

    def gather(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct tokens (U,), their rows (U, C) that will want a gradient, and the index (T,) into them."""
        distinct, index = torch.unique(tokens, return_inverse=True)
        stored = self.weight.__getitem__
        vectors = stored(distinct) if self.sums is None else added_up(self.sums, distinct, stored)
        return distinct, vectors.requires_grad_(), index

    def update(self, distinct: Tensor, grad: Tensor, rate: float) -> None:
        """One Adam step on the rows that were used."""
        if self.sums is not None:
            rows, shares, places = expanded(self.sums, distinct)
            distinct, index = torch.unique(rows, return_inverse=True)
            of_rows = self.weight.new_zeros(len(distinct), self.weight.shape[1])
            grad = of_rows.index_add_(0, index, grad[places] * shares[:, None])
        self.steps[distinct] += 1
        steps = self.steps[distinct, None]
        mean = self.mean[distinct].lerp_(grad, 1 - self.beta1)
        square = self.square[distinct].lerp_(grad.square(), 1 - self.beta2)
        self.mean[distinct], self.square[distinct] = mean, square
        scale = (square / (1 - self.beta2**steps)).sqrt_().add_(1e-8)
        self.weight[distinct] -= rate * (mean / (1 - self.beta1**steps)) / scale


def of_unit_size(rows: Tensor) -> Tensor:
    """Rows (n, C) whose numbers have a mean square of 1."""
    return rows / rows.square().mean(1, keepdim=True).sqrt()


def training_steps(tokens: Tensor, C: int) -> Tensor:
    """(n, C) the steps of tokens (n,), for rows of unit size; the last column, the importance, reaches further."""
    steps = torch.where(tokens < FREQUENT, FREQUENT_STEP, RARE_STEP)[:, None].repeat(1, C)
    steps[:, -1] = importance_reach(C) / REACH
    return steps


def rounded(rows: Tensor, steps: Tensor) -> Tensor:
    """Rows of unit size in whole `steps` (n, C); the gradient passes straight through."""
    unit = of_unit_size(rows)
    codes = (unit / steps).round().clamp(-REACH, REACH)
    return unit + (codes * steps - unit).detach()
