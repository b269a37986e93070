"""RWKV-7 parameters as the CPU engine wants them: float32, for `x @ w`; the token table stays packed.

Work that cannot change a result is found here, once, by zeros among the parameters: a low-rank pair whose
product is zero, inputs that a matrix ignores, channel mixing that adds nothing, token shifts that are the same.
A model that uses everything loses nothing by it.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.coding import CodedMatrix
from rwkv_embed.config import Dtype, ModelConfig
from rwkv_embed.errors import CheckpointError
from rwkv_embed.ops.fast.kernels import PANEL, Array, Gates, Index, Kernels, Norm
from rwkv_embed.ops.fast.narrow import as_float32
from rwkv_embed.packing import PACKINGS, PARTS, packed_shape
from rwkv_embed.sums import Sums

STREAMS = "rwkvag"  # of time mixing, each with a token shift of its own
Tensors = Mapping[str, NDArray]


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Token vectors (V, C): rows (R, C) as stored, floats or int8 with a scale (R, 1), and sums of them.

    Only rows in use are converted.
    """

    values: NDArray
    scale: NDArray | None
    sums: Sums | None

    @property
    def shape(self) -> tuple[int, int]:
        """V and C."""
        R, C = self.values.shape
        return R + (len(self.sums) if self.sums else 0), C

    def packed(self, kernels: Kernels) -> "TokenTable":
        """The same table as the kernels want it."""
        return self

    def rows(self, tokens: Index, kernels: Kernels, out: Array) -> None:
        """out (T, C) = the vectors of `tokens` (T,), float32."""
        out[:] = self.sums.vectors(tokens, self._stored) if self.sums else self._stored(tokens)

    def _stored(self, rows: Index) -> Array:
        values = self.values[rows].astype(np.float32)
        return values if self.scale is None else values * self.scale[rows].astype(np.float32)


@dataclass(frozen=True, slots=True)
class CodedTable:
    """Token vectors (V, C) in a coded matrix and sums of its rows, or in what the kernels made of them."""

    matrix: Any
    sums: Sums | None
    shape: tuple[int, int]

    def packed(self, kernels: Kernels) -> "CodedTable":
        """The same table as the kernels want it."""
        return replace(self, matrix=kernels.pack_coded(self.matrix, self.sums))

    def rows(self, tokens: Index, kernels: Kernels, out: Array) -> None:
        """out (T, C) = the vectors of `tokens` (T,), float32."""
        kernels.coded_rows(tokens, self.matrix, out)


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix (K, N) for `x[:, inputs] @ matrix`: `inputs` (K,) are those that it does not ignore; None: all."""

    matrix: Any
    inputs: Index | None
    size: int

    @classmethod
    def of(cls, matrix: Array) -> "Linear":
        used = np.flatnonzero(matrix.any(axis=1))
        if 2 * len(used) > len(matrix):
            return cls(matrix, None, matrix.size)
        return cls(np.ascontiguousarray(matrix[used]), used, len(used) * matrix.shape[1])

    def packed(self, kernels: Kernels, dtype: Dtype) -> "Linear":
        return replace(self, matrix=kernels.pack(self.matrix, dtype))


@dataclass(frozen=True, slots=True)
class LowRank:
    """The two factors of one LoRA: (C, D) and (D, C), D filled up with zeros to a multiple of PANEL."""

    down: Any
    up: Any
    width: int

    @property
    def size(self) -> int:
        """Parameters, without the zeros; before packing."""
        return self.width * (len(self.down) + int(self.up.shape[1]))

    def packed(self, kernels: Kernels, dtype: Dtype) -> "LowRank":
        return replace(self, down=kernels.pack(self.down, dtype), up=kernels.pack(self.up, dtype))


@dataclass(frozen=True, slots=True)
class ChannelMixing:
    """`mix` (1, C), `key` (C, F), `value` (F, C)."""

    mix: Array
    key: Any
    value: Any

    @property
    def shifts(self) -> bool:
        """Whether the token before is looked at."""
        return bool(self.mix.any())

    def packed(self, kernels: Kernels, dtype: Dtype) -> "ChannelMixing":
        return replace(self, key=kernels.pack(self.key, dtype), value=kernels.pack(self.value, dtype))


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. Matrices are (in, out), or packed by the kernels.

    None: low-rank pairs whose product is zero, channel mixing that adds nothing, and what the first layer has not,
    `v` and `v0`. `mix` (M, C) are the different token shifts, `stream` says which one a letter has.
    """

    ln1: Norm
    mix: Array
    stream: Mapping[str, int]
    receptance: Any
    key: Linear
    value: Any
    output: Any
    w: LowRank | None
    a: LowRank | None
    v: LowRank | None
    g: LowRank
    v0: Array | None
    gates: Any
    own_values: bool  # whether r_k adds a token's own value to what it reads
    ln2: Norm
    ffn: ChannelMixing | None

    def packed(self, kernels: Kernels, dtype: Dtype) -> "Layer":
        """The same layer with matrices and gates as the kernels want them.

        Low-rank pairs are small and decide what is forgotten: never int8.
        """
        of_pairs: Dtype = "bfloat16" if dtype == "int8" else dtype
        wanted = {"key": dtype, "ffn": dtype, "w": of_pairs, "a": of_pairs, "v": of_pairs, "g": of_pairs}
        parts: dict[str, Any] = {name: getattr(self, name) for name in wanted}
        packed = {name: part and part.packed(kernels, wanted[name]) for name, part in parts.items()}
        for name in ("receptance", "value", "output"):
            packed[name] = kernels.pack(getattr(self, name), dtype)
        return replace(self, **packed, gates=kernels.pack_gates(self.gates))


@dataclass(frozen=True, slots=True)
class Weights:
    """All that turns tokens into hidden states."""

    config: ModelConfig
    table: TokenTable | CodedTable
    ln0: Norm
    layers: tuple[Layer, ...]
    ln_out: Norm


def read_safetensors(path: str | Path) -> dict[str, NDArray]:
    """The tensors of a .safetensors file, without torch; bfloat16 as float32. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name, dtype in dtypes.items() if dtype != "BF16"}
        return tensors | _read_bfloat16(path, dtypes.keys() - tensors.keys())
    except FileNotFoundError as error:
        raise CheckpointError(f"no weights file at {path}; check the path") from error
    except (SafetensorError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as float16, bfloat16, float32 or int8 safetensors ({error}); "
            "download it again, or load it with rwkv_embed.load_model"
        ) from error


def _read_bfloat16(path: str | Path, names: Collection[str]) -> dict[str, NDArray]:
    """Tensors by where the header says they are, since NumPy has no bfloat16; the file was found whole."""
    stored = np.memmap(path, np.uint8, "r")
    begin = 8 + int(stored[:8].view("<u8")[0])
    header = json.loads(stored[8:begin].tobytes())

    def read(dtype: str, shape: list[int], data_offsets: tuple[int, int]) -> NDArray:
        start, end = data_offsets
        return as_float32(stored[begin + start : begin + end].view(np.uint16)).reshape(shape)

    return {name: read(**header[name]) for name in names}


def build_weights(tensors: Tensors) -> Weights:
    """Sizes from shapes, parameters converted; names may have the prefix `rwkv.`. Raises CheckpointError."""
    take = _Taker(tensors)
    table = _token_table(take)
    vocab_size, n_embd = table.shape
    n_layer = take.count_layers()
    layers = tuple(_layer(take, i, n_embd) for i in range(n_layer))
    ln0, ln_out = take.norm("blocks.0.ln0", n_embd), take.norm("ln_out", n_embd)
    if take.problems:
        raise CheckpointError("not a whole RWKV-7 checkpoint: " + "; ".join(take.problems))
    n_head, head_size = take.shape("blocks.0.att.r_k")
    config = ModelConfig(
        version="7", n_layer=n_layer, n_embd=n_embd, n_head=n_head, head_size=head_size,
        n_ffn=take.shape("blocks.0.ffn.key.weight")[0], vocab_size=vocab_size,
        kind="embedder" if take.has_heads else "language-model",
    )  # fmt: skip
    return Weights(config, table, ln0, layers, ln_out)


def _token_table(take: "_Taker") -> TokenTable | CodedTable:
    name = "emb.weight"
    for packing in PACKINGS:
        parts = {ending: take.raw(f"{name}.{ending}") for ending in PARTS[packing]}
        found = {ending: tensor for ending, tensor in parts.items() if tensor is not None}
        if packing not in found:
            continue
        if packing == "coded":
            matrix = CodedMatrix.from_tensors(name, found)
            rows, columns = matrix.shape
            sums = take.sums(rows)
            return CodedTable(matrix, sums, (rows + (len(sums) if sums else 0), columns))
        rows, _ = packed_shape(name, packing, {ending: tensor.shape for ending, tensor in found.items()})
        take.refuse_nan(f"{name}.scale", found["scale"])
        return TokenTable(found["int8"], found["scale"].reshape(rows, 1), take.sums(rows))
    table = take.raw(name)
    if table is None or table.ndim != 2:
        raise CheckpointError(
            "no token table: expected emb.weight (V, C), or that packed (see packing.py)"
        )
    take.refuse_nan(name, table)
    return TokenTable(table, None, take.sums(len(table)))


def _layer(take: "_Taker", i: int, C: int) -> Layer:
    att = f"blocks.{i}.att."
    pairs = {letter: _low_rank(take, att + letter, C) for letter in ("wavg" if i else "wag")}
    gate, nothing = (
        pairs.pop("g"),
        [letter for letter, pair in pairs.items() if not (pair.down.any() and pair.up.any())],
    )
    used = [letter for letter in STREAMS if letter not in nothing or letter == "v"]
    mix, places = np.unique(
        np.stack([take.vector(f"{att}x_{letter}", C) for letter in used]), axis=0, return_inverse=True
    )
    r_k = take.vector(att + "r_k", C)
    return Layer(
        ln1=take.norm(f"blocks.{i}.ln1", C),
        mix=mix,
        stream=dict(zip(used, places.reshape(-1).tolist(), strict=True)),
        receptance=take.linear(att + "receptance.weight", C, C),
        key=Linear.of(take.linear(att + "key.weight", C, C)),
        value=take.linear(att + "value.weight", C, C),
        output=take.linear(att + "output.weight", C, C),
        **{letter: None if letter in nothing else pairs.get(letter) for letter in "wav"},
        g=gate,
        v0=take.vector(att + "v0", C) if i else None,
        gates=Gates(
            w0=take.vector(att + "w0", C),
            a0=take.vector(att + "a0", C),
            k_k=take.vector(att + "k_k", C),
            k_a=take.vector(att + "k_a", C),
            r_k=r_k,
            ln_x=take.norm(att + "ln_x", C),
        ),
        own_values=bool(r_k.any()),
        ln2=take.norm(f"blocks.{i}.ln2", C),
        ffn=_channel_mixing(take, f"blocks.{i}.ffn.", C),
    )


def _low_rank(take: "_Taker", name: str, C: int) -> LowRank:
    down, up = take.down(f"{name}1", C), take.up(f"{name}2", C)
    if down.shape[1] != len(up):
        take.problems.append(f"{name}1 {down.shape} and {name[-1]}2 {up.shape} differ in their inner size")
    fill = -len(up) % PANEL
    return LowRank(np.pad(down, ((0, 0), (0, fill))), np.pad(up, ((0, fill), (0, 0))), len(up))


def _channel_mixing(take: "_Taker", ffn: str, C: int) -> ChannelMixing | None:
    mix = take.vector(ffn + "x_k", C)[None]
    key, value = take.linear(ffn + "key.weight", None, C), take.linear(ffn + "value.weight", C, None)
    return ChannelMixing(mix, key, value) if key.any() and value.any() else None


class _Taker:
    """Takes tensors by name, checks their shapes, and collects every problem before anything is refused."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = {name.removeprefix("rwkv."): tensor for name, tensor in tensors.items()}
        self.has_heads = any(name.startswith("head.") and name != "head.weight" for name in self._tensors)
        self.problems: list[str] = []

    def raw(self, name: str) -> NDArray | None:
        return self._tensors.get(name)

    def sums(self, rows: int) -> Sums | None:
        """Those of a token table of so many rows."""
        return Sums.from_tensors(self._tensors, rows)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def count_layers(self) -> int:
        numbers = [int(name.split(".")[1]) for name in self._tensors if name.startswith("blocks.")]
        return max(numbers, default=-1) + 1

    def vector(self, name: str, size: int) -> Array:
        return self._checked(name, (size,), flat=True)

    def norm(self, name: str, size: int) -> Norm:
        return Norm(self.vector(name + ".weight", size), self.vector(name + ".bias", size))

    def linear(self, name: str, rows: int | None, columns: int | None) -> Array:
        """A torch Linear weight (out, in), transposed."""
        return np.ascontiguousarray(self._checked(name, (rows, columns)).T)

    def down(self, name: str, size: int) -> Array:
        return self._checked(name, (size, None))

    def up(self, name: str, size: int) -> Array:
        return self._checked(name, (None, size))

    def _checked(self, name: str, expected: tuple[int | None, ...], flat: bool = False) -> Array:
        tensor = self._tensors.get(name)
        placeholder = np.zeros([size or 1 for size in expected], np.float32)
        if tensor is None:
            self.problems.append(f"{name} is missing")
            return placeholder
        tensor = tensor.reshape(-1) if flat else tensor
        if not _fits(tensor.shape, expected):
            wanted = ", ".join("any" if size is None else str(size) for size in expected)
            self.problems.append(f"{name} has shape {tuple(tensor.shape)}, expected ({wanted})")
            return placeholder
        self.refuse_nan(name, tensor)
        return np.ascontiguousarray(tensor, np.float32)

    def refuse_nan(self, name: str, tensor: NDArray) -> None:
        """Every vector would be NaN, or silently another one: the least harm is not to begin."""
        if not np.isfinite(tensor).all():
            self.problems.append(f"{name} has NaN or infinite weights; the file is damaged or training diverged")


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        want in (None, size) for size, want in zip(shape, expected, strict=True)
    )
