"""Read a weights file safely: nothing is executed, all is checked, tensors stay on disk until asked for.

Packagings: official `.pth` (a zip, memory-mapped, `weights_only`), `.safetensors`, several shards with an
index, and Hugging Face folders. Whatever the packaging, a Checkpoint speaks official names (layout.py).

A matrix X may be stored packed, as `X.int8` with `X.scale` or as `X.coded` with five more: see packing.py. The
last tokens may have no row in `emb.weight`, but be sums of rows: see sums.py.

Importing this module does not import torch, and a `.safetensors` file can be described without it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.coding import CodedMatrix
from rwkv_embed.config import ModelConfig
from rwkv_embed.errors import CheckpointError, ModelNotFound
from rwkv_embed.hub import RANGES
from rwkv_embed.layout import (
    Shape,
    Source,
    expected_shapes,
    identify,
    identify_layout,
    official_names,
    problems,
)
from rwkv_embed.ops.fast.choice import load_kernels
from rwkv_embed.ops.fast.compiled import CompiledKernels
from rwkv_embed.packing import PACKINGS, PARTS, Packing, packed_shape
from rwkv_embed.sums import DTYPES as SUMS
from rwkv_embed.sums import Sums
from rwkv_embed.tensor_files import PthFile, SafetensorsFile, TensorFile

if TYPE_CHECKING:
    from torch import Tensor

# Only these hold weights; integers are those of packed matrices.
_WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")
_PACKED_DTYPES = {
    "int8": ("I8",), "scale": _WEIGHT_DTYPES,
    "coded": ("U8",), "starts": ("U32",), "classes": ("U8",), "groups": ("U8",), "counts": ("U16",),
    "values": ("F32",),
}  # fmt: skip
_SUM_DTYPES = {"emb.parts": ("U16",), "emb.shares": ("U8",), "emb.lengths": ("U8",)}
EPSILONS = "norm_eps ln_x_eps"  # in the metadata of a converted file: both numbers
# After this many bytes a mapping is given up and made anew, so that a model that is copied while it is loaded
# (to another type) never has much more than this of its file in memory.
_RELEASE_AFTER_BYTES = 256 << 20


class Packed(NamedTuple):
    """How a matrix is packed, and the names of its tensors in the same file by their endings."""

    packing: Packing
    parts: dict[str, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one official tensor lies: a file and a source in it. `shape` is the tensor's, unpacked."""

    file: TensorFile
    source: Source
    dtype: str
    shape: Shape
    packed: Packed | None = None

    @property
    def stored_as(self) -> str:
        """The dtype; of a coded matrix `coded`, whatever type holds its words."""
        return "coded" if self.packed and self.packed.packing == "coded" else self.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file, with all tensors of a packed matrix."""
        if self.packed:
            return sum(self.file.tensors[part].nbytes for part in self.packed.parts.values())
        stored = self.file.tensors[self.source.name]
        return stored.nbytes // (1 if self.source.index is None else stored.shape[0])


class Checkpoint:
    """A checkpoint whose every name and shape has been checked.

    `tensors` maps official names to entries; `packaging` says how it is stored, `layout` whose names it uses;
    `hf_config` is the config.json of a folder, or beside a file in a layout of Hugging Face; `extras` are plain
    values of a `.pth` such as `reranker_layer_idx`, `metadata` the texts in the header of a `.safetensors`.
    """

    def __init__(self, path: Path, files: list[tuple[Path, TensorFile]], packaging: str) -> None:
        self.path = path
        self.packaging = packaging
        self.files = [file for _, file in files]
        self._mapped_bytes = 0
        self.extras: dict[str, Any] = {}
        for _, file in files:
            self.extras |= getattr(file, "extras", {})
        where = {name: file for _, file in files for name in file.tensors}
        if "reranker_layer_idx" in where:
            self.extras["reranker_layer_idx"] = where["reranker_layer_idx"].get("reranker_layer_idx").tolist()
        self.metadata = {key: value for _, file in files for key, value in file.metadata.items()}
        self.layout, prefix = self._named(lambda: identify_layout(where))
        # Beside a file of official names it may be another model's.
        has_config = path.is_dir() or self.layout in ("transformers", "fla")
        folder = path if path.is_dir() else path.parent
        self.hf_config = _read_json(folder / "config.json") if has_config else {}
        self.tensors = self._entries(where, prefix)
        self._tie_head()
        shapes = {name: entry.shape for name, entry in self.tensors.items()}
        self.config = self._configure(self._named(lambda: identify(shapes)))
        expected = expected_shapes(self.config, shapes)
        self._refuse(problems(expected, shapes) + self._dtype_problems())
        self._shapes = {name: shape for name, (shape, _) in expected.items()}

    def shape(self, name: str) -> Shape:
        """Official shape of a tensor; a file may store it with more ones."""
        return self._shapes[name]

    def get(self, name: str) -> "Tensor":
        """A tensor in its stored dtype and official shape, unpacked; CheckpointError on NaN or infinity."""
        if parts := self.get_packed(name, "int8"):
            return parts["int8"].float() * parts["scale"].float()
        if parts := self.get_packed(name, "coded"):
            import torch

            return torch.from_numpy(self._decoded(self._coded_matrix(name, parts)))
        entry = self.tensors[name]
        tensor = self._read(entry.file, entry.source.name)
        if entry.source.index is not None:
            tensor = tensor[entry.source.index]
        if entry.source.transpose:
            tensor = tensor.t()
        return self._checked(name, tensor.reshape(self._shapes[name]))

    def get_packed(self, name: str, packing: Packing) -> "dict[str, Tensor] | None":
        """The tensors, checked, of a matrix packed so, by their endings; None when it is stored otherwise."""
        entry = self.tensors[name]
        if entry.packed is None or entry.packed.packing != packing:
            return None
        parts = {ending: self._read(entry.file, part) for ending, part in entry.packed.parts.items()}
        if packing == "int8":
            return parts | {"scale": self._checked(name, parts["scale"].reshape(-1, 1))}
        self._coded_matrix(name, parts)
        return parts

    def sums(self) -> Sums | None:
        """The tokens that are sums of rows of `emb.weight`, checked; None when each has a row of its own."""
        tensors = {name: self.get_stored(name).numpy() for name in SUMS if name in self.tensors}
        sums: Sums | None = self._named(lambda: Sums.from_tensors(tensors, self.shape("emb.weight")[0]))
        return sums

    def get_stored(self, name: str) -> "Tensor":
        """A tensor that is no matrix of weights, as it is in the file."""
        entry = self.tensors[name]
        return self._read(entry.file, entry.source.name)

    def _coded_matrix(self, name: str, parts: "dict[str, Tensor]") -> CodedMatrix:
        arrays = {ending: tensor.numpy() for ending, tensor in parts.items()}
        matrix: CodedMatrix = self._named(lambda: CodedMatrix.from_tensors(name, arrays))
        return matrix

    def _decoded(self, matrix: CodedMatrix) -> NDArray[np.float32]:
        """The whole matrix; in C where that is built, since NumPy takes seconds for a large one."""
        kernels = load_kernels(self.config)
        if not isinstance(kernels, CompiledKernels):
            return matrix.decode()
        rows = np.empty(matrix.shape, np.float32)
        kernels.coded_rows(np.arange(len(rows)), kernels.pack_coded(matrix), rows)
        return rows

    def _read(self, file: TensorFile, name: str) -> "Tensor":
        if self._mapped_bytes > _RELEASE_AFTER_BYTES:
            self._mapped_bytes = 0
            for one in self.files:
                one.release()
        tensor = file.get(name)
        self._mapped_bytes += tensor.nbytes
        return tensor

    def _checked(self, name: str, tensor: "Tensor") -> "Tensor":
        import torch

        lowest, highest = torch.aminmax(tensor) if tensor.numel() else (torch.zeros(()), torch.zeros(()))
        if not (torch.isfinite(lowest) and torch.isfinite(highest)):
            raise CheckpointError(
                f"{self.path}: {name} has NaN or infinite weights; the file is damaged or training diverged"
            )
        return tensor

    def _named(self, step: Callable[[], Any]) -> Any:
        """Put the file's name in front of an error about its content."""
        try:
            return step()
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None

    def _entries(self, where: Mapping[str, TensorFile], prefix: str) -> dict[str, Entry]:
        sources = official_names(where, self.layout, prefix)
        sources.pop("reranker_layer_idx", None)
        entries: dict[str, Entry] = {}
        for name, source in sources.items():
            matrix, _, ending = name.rpartition(".")
            file = where[source.name]
            info = file.tensors[source.name]
            packing = next((p for p in PACKINGS if ending in PARTS[p] and f"{matrix}.{p}" in sources), None)
            if packing is None:
                entries[name] = Entry(file, source, info.dtype, source.shape(info.shape))
            elif ending == packing:
                entries[matrix] = self._packed_entry(matrix, packing, file, source)
        return entries

    def _packed_entry(self, name: str, packing: Packing, file: TensorFile, source: Source) -> Entry:
        stem = source.name.removesuffix(packing)
        parts = {ending: stem + ending for ending in PARTS[packing] if stem + ending in file.tensors}
        shapes = {ending: file.tensors[part].shape for ending, part in parts.items()}
        shape = self._named(lambda: packed_shape(name, packing, shapes))
        return Entry(file, source, file.tensors[source.name].dtype, shape, Packed(packing, parts))

    def _tie_head(self) -> None:
        if self.hf_config.get("tie_word_embeddings") and "head.weight" not in self.tensors:
            self.tensors["head.weight"] = self.tensors["emb.weight"]

    def _configure(self, config: ModelConfig) -> ModelConfig:
        """Normalisation constants, which only Hugging Face's config.json states, and a file converted from it."""
        if EPSILONS in self.metadata:
            norm_eps, ln_x_eps = map(float, self.metadata[EPSILONS].split())
            return replace(config, norm_eps=norm_eps, ln_x_eps=ln_x_eps)
        if self.layout == "fla":
            norm_eps = float(self.hf_config.get("norm_eps", 1e-5))
            return replace(config, norm_eps=norm_eps, ln_x_eps=norm_eps * config.head_size)
        norm_eps = float(self.hf_config.get("layer_norm_epsilon", 1e-5))
        divisor = float(self.hf_config.get("head_size_divisor", 8))
        return replace(config, norm_eps=norm_eps, ln_x_eps=1e-5 * divisor**2)

    def _dtype_problems(self) -> list[str]:
        found: list[str] = []

        def check(name: str, dtype: str, expected: tuple[str, ...]) -> None:
            if dtype not in expected:
                found.append(f"{name} is stored as {dtype}, expected one of {', '.join(expected)}")

        for name, entry in self.tensors.items():
            if entry.packed is None:
                check(name, entry.dtype, _SUM_DTYPES.get(name, _WEIGHT_DTYPES))
                continue
            for ending, part in entry.packed.parts.items():
                check(f"{name}.{ending}", entry.file.tensors[part].dtype, _PACKED_DTYPES[ending])
        return found

    def _refuse(self, found: list[str]) -> None:
        if found:
            count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
            raise CheckpointError(f"{self.path}: {count} with its tensors: {'; '.join(found)}")


# Tried in this order in a folder; a folder with exactly one weights file may call it anything.
_FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open and check a checkpoint: a file, a shard index, or a folder.

    Raises ModelNotFound when nothing is there, and CheckpointError, with every problem in one message, when
    the file cannot be read safely or is not a whole RWKV model. Weights themselves are read (and checked for
    NaN) only by `Checkpoint.get`.
    """
    path = Path(path)
    if not path.exists():
        raise ModelNotFound(
            f"no file or folder {path}; give the path of a .pth or .safetensors file, or of a folder with one"
        )
    weights = _find_in_folder(path) if path.is_dir() else path
    parts = files_of(weights)
    packaging = parts[0].suffix[1:]
    if weights.name.endswith(".index.json"):
        packaging += f", {len(parts)} shards"
    return Checkpoint(path, [(part, _open_file(part)) for part in parts], packaging)


def files_of(path: Path) -> list[Path]:
    """The weights files that `open_checkpoint` opens, by name. Raises CheckpointError."""
    weights = _find_in_folder(path) if path.is_dir() else path
    return _shards(weights) if weights.name.endswith(".index.json") else [weights]


def _open_file(path: Path) -> TensorFile:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in (".pth", ".bin", ".pt", ".ckpt"):
        return PthFile(path)
    raise CheckpointError(
        f"{path} has suffix {path.suffix!r}; expected .pth, .safetensors or a folder of Hugging Face"
    )


def _find_in_folder(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(
        file for file in folder.iterdir() if file.suffix in (".safetensors", ".pth") and file.name != RANGES
    )
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{folder} has {len(found)} weights files ({', '.join(file.name for file in found)}); name one of"
            " them"
        )
    raise CheckpointError(
        f"{folder} has no weights: looked for {', '.join(_FOLDER_FILES)}, *.safetensors and *.pth"
    )


def _shards(index: Path) -> list[Path]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map'; it is not a shard index")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index} points outside its folder ({outside[0]!r}); refused")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}"
        )
    return [index.parent / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object")
    return content
