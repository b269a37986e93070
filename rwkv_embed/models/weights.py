"""Weight matrices and token tables in the precision they are kept in: float32, bfloat16, float16 or int8.

Arithmetic is float32. A matrix in a smaller type is widened a block of rows at a time, right before it is used:
the block stays in the cache, and a 7B model never has more than a few megabytes of it in float32. Where the
processor has instructions for bfloat16 products those are made instead: faster, but activations and results are
rounded too.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_embed.checkpoint import Checkpoint
from rwkv_embed.config import Dtype
from rwkv_embed.sums import Sums

# Rows are widened in blocks of about this many float32 values (4 MB).
_BLOCK_VALUES = 1 << 20
# Without such instructions its products are several times as slow as float32's. (What is public in later versions
# of torch is not in 2.6.)
MULTIPLIES_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()


class Matrix:
    """A linear map (out, in) without bias, called with float32 (..., in), giving float32 (..., out)."""

    def __init__(self, values: Tensor, scale: Tensor | None = None) -> None:
        self.values = values
        self.scale = scale  # (out,) float32 of an int8 matrix

    def __call__(self, x: Tensor) -> Tensor:
        if self.values.dtype == x.dtype:
            return F.linear(x, self.values)
        if self.values.dtype == torch.bfloat16 and MULTIPLIES_BFLOAT16:
            return F.linear(x.bfloat16(), self.values).float()
        y = x.new_empty(*x.shape[:-1], self.values.shape[0])
        for rows in row_blocks(self.values):
            y[..., rows] = F.linear(x, self.values[rows].float())
        return y if self.scale is None else y * self.scale

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)


class TokenTable:
    """The embedding table, kept as stored (often memory-mapped): only the rows of the text are ever read."""

    def __init__(self, values: Tensor, scale: Tensor | None = None, sums: Sums | None = None) -> None:
        self.values = values
        self.scale = scale  # (R, 1) of an int8 table
        self.sums = sums

    def __call__(self, tokens: Tensor) -> Tensor:
        """Float32 vectors (..., C) of integer tokens (...)."""
        if self.sums is None:
            return self._rows(tokens)
        return added_up(self.sums, tokens.reshape(-1), self._rows).view(*tokens.shape, -1)

    def _rows(self, rows: Tensor) -> Tensor:
        values = self.values[rows].float()
        return values if self.scale is None else values * self.scale[rows].float()


def expanded(sums: Sums, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is added up for tokens (T,), see `Sums.expanded`."""
    rows, shares, places = (torch.from_numpy(array) for array in sums.expanded(tokens.numpy()))
    return rows, shares, places


def added_up(sums: Sums, tokens: Tensor, rows_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Vectors (T, C) of tokens (T,); `rows_of` gives the stored rows (n, C) of row numbers (n,)."""
    rows, shares, places = expanded(sums, tokens)
    parts = rows_of(rows) * shares[:, None]
    return parts.new_zeros(len(tokens), parts.shape[1]).index_add_(0, places, parts)


def row_blocks(values: Tensor) -> Iterator[slice]:
    """Slices over the rows of a matrix, of about `_BLOCK_VALUES` values each."""
    step = max(1, _BLOCK_VALUES // max(1, values.shape[1]))
    for start in range(0, values.shape[0], step):
        yield slice(start, min(start + step, values.shape[0]))


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and a float32 scale (rows, 1) per row: values ~ int8 x scale, largest error scale / 2."""
    quantized = torch.empty(values.shape, dtype=torch.int8)
    scale = torch.empty(values.shape[0], 1)
    for rows in row_blocks(values):
        block = values[rows].float()
        scale[rows] = block.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        quantized[rows] = (block / scale[rows]).round().to(torch.int8)
    return quantized, scale


def load_matrix(checkpoint: Checkpoint, name: str, dtype: Dtype) -> Matrix:
    """A matrix of the checkpoint in the precision asked for; what is already so stored is not copied."""
    packed = checkpoint.get_packed(name, "int8")
    if packed is not None and dtype == "int8":
        return Matrix(packed["int8"], packed["scale"].float().flatten())
    values = checkpoint.get(name)
    if dtype == "int8":
        quantized, scale = quantize_rows(values)
        return Matrix(quantized, scale.flatten())
    return Matrix(values.to(torch.float32 if dtype == "float32" else torch.bfloat16))


def load_token_table(checkpoint: Checkpoint) -> TokenTable:
    packed = checkpoint.get_packed("emb.weight", "int8")
    if packed is None:
        return TokenTable(checkpoint.get("emb.weight"), sums=checkpoint.sums())
    return TokenTable(packed["int8"], packed["scale"], checkpoint.sums())
