"""Weights files: nothing in them is executed, tensors stay on disk until asked for, and they are written whole.

    SafetensorsFile   `.safetensors`, described without torch
    PthFile           official `.pth` or `.bin`: the zip of torch >= 1.6, memory-mapped, `weights_only`

What the tensors mean is not known here: see checkpoint.py.
"""

import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rwkv_embed.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
# Names of safetensors: bytes per value.
ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "U16": 2, "U32": 4, "I32": 4, "I64": 8}
# Tensors of a .pth are outside its pickle, which only lists them: a bigger pickle is not a checkpoint's.
_MAX_PICKLE_BYTES = 64 << 20
_NESTED = ("state_dict", "model_state_dict", "model", "module")


class TensorInfo(NamedTuple):
    """Dtype (safetensors' names) and shape of a stored tensor."""

    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        return ITEM_SIZES[self.dtype] * math.prod(self.shape)


class TensorFile(Protocol):
    """One opened weights file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    def get(self, name: str) -> "Tensor":
        """The stored tensor, memory-mapped: its bytes are read when they are first used."""
        ...

    def release(self) -> None:
        """Give up the mapping, and with it the pages that have been read; tensors handed out keep theirs."""
        ...


class SafetensorsFile:
    """A `.safetensors` file."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._path = path
        self._open = safe_open
        try:
            with safe_open(path, framework="np") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                self.tensors = {
                    name: TensorInfo(piece.get_dtype(), tuple(piece.get_shape()))
                    for name, piece in slices.items()
                }
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged or incomplete ({error}); download it again") from error
        self._handle: Any = None

    def get(self, name: str) -> "Tensor":
        if self._handle is None:
            self._handle = self._open(self._path, framework="pt")
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor

    def release(self) -> None:
        self._handle = None


class PthFile:
    """An official `.pth` (or `.bin`) file: the zip of torch >= 1.6, read without running any of it."""

    def __init__(self, path: Path) -> None:
        import torch

        self._check_zip(path)
        self._path = path
        content = self._load(path)
        self._content: dict[str, Any] | None = content
        self.extras = {
            name: value for name, value in content.items() if isinstance(value, list | int | float | str)
        }
        names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
        names |= {torch.int8: "I8", torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32"}
        names |= {torch.int32: "I32", torch.int64: "I64"}
        size = path.stat().st_size
        self.tensors = {}
        self.metadata: dict[str, str] = {}
        for name, tensor in content.items():
            if not isinstance(tensor, torch.Tensor):
                continue
            if not isinstance(name, str):
                raise CheckpointError(
                    f"{path} has a tensor called {name!r}, expected names such as 'emb.weight'; give a checkpoint "
                    "of RWKV"
                )
            if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
                raise CheckpointError(
                    f"{path}: tensor {name} is sparse, quantized or without data, expected a plain one; save it "
                    "again with its values"
                )
            if tensor.numel() * tensor.element_size() > size:
                raise CheckpointError(
                    f"{path}: tensor {name} claims {tuple(tensor.shape)}, more than the whole file holds"
                )
            self.tensors[name] = TensorInfo(names.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))

    @staticmethod
    def _check_zip(path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is {_not_a_zip(path)}") from error
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if not pickles or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(
                f"{path} is a zip archive but not a PyTorch checkpoint; give the weights file itself"
            )
        if any(entry.file_size > _MAX_PICKLE_BYTES for entry in pickles):
            raise CheckpointError(
                f"{path} has a {pickles[0].file_size} byte pickle, too large for a list of tensors; refused"
            )

    @staticmethod
    def _load(path: Path) -> dict[str, Any]:
        import pickle

        import torch

        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} holds Python objects besides tensors, which could run code; it was not loaded and"
                " nothing was executed; ask for a .safetensors file, or convert it on a machine you can lose"
            ) from error
        except Exception as error:
            # torch raises a dozen types for a damaged archive; none of them is a sentence.
            detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError(f"{path} is damaged or incomplete ({detail}); download it again") from error
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{path} holds a {type(content).__name__}, expected a dictionary of tensors"
            )
        nested = next((content[key] for key in _NESTED if isinstance(content.get(key), dict)), None)
        return content if nested is None else nested

    def get(self, name: str) -> "Tensor":
        if self._content is None:
            self._content = self._load(self._path)
        tensor: Tensor = self._content[name]
        return tensor

    def release(self) -> None:
        self._content = None


def _not_a_zip(path: Path) -> str:
    """What a file that should be a PyTorch zip is instead, and what to do."""
    with path.open("rb") as file:
        start = file.read(200)
    if start.startswith(b"PK\x03\x04"):
        return f"truncated: {path.stat().st_size} bytes without the end of the archive; download it again"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return (
            "a web page saved under that name, not a checkpoint; download the file itself (the 'resolve'"
            " link, not 'blob')"
        )
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights; run 'git lfs pull' or download the file itself"
    if start.startswith(b"\x80\x02"):
        return (
            "a checkpoint of torch < 1.6 (or a bare pickle), which cannot be memory-mapped; save it again"
            " with a newer torch or as .safetensors"
        )
    if not start:
        return "empty; download it again"
    return "not a PyTorch checkpoint; expected a zip archive with tensors"


class NewTensor(NamedTuple):
    """A tensor to be written: `values()` is called when its turn comes, so that only one is in memory."""

    name: str
    dtype: str
    shape: Shape
    values: "Callable[[], Tensor]"

    @property
    def nbytes(self) -> int:
        return TensorInfo(self.dtype, self.shape).nbytes


def write_safetensors(
    path: Path, tensors: Iterable[NewTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a `.safetensors` file one tensor at a time, and put it in place only when it is whole.

    The format (https://huggingface.co/docs/safetensors) is a length, a JSON header and the raw bytes;
    the library's own writer wants all tensors in memory, which a 7B model does not leave room for.
    """
    planned = list(tensors)
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    offset = 0
    for tensor in planned:
        size = tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(8 + len(encoded)) % 64)  # tensors begin at a multiple of 64 bytes
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            for tensor in planned:
                _write_values(file, tensor)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _write_values(file: Any, tensor: NewTensor) -> None:
    import torch

    values = tensor.values().contiguous()
    if tuple(values.shape) != tensor.shape:
        raise ValueError(f"{tensor.name} became {tuple(values.shape)}, announced {tensor.shape}")
    file.write(values.view(torch.uint8).numpy().data if values.numel() else b"")
