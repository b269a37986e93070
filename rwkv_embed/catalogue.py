"""What a weights file is and can be used for (`describe`), and the same weights in another file (`convert`).

A `.safetensors` file is described without importing torch.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rwkv_embed.backends import runs_fast
from rwkv_embed.checkpoint import EPSILONS, Checkpoint, Packed, open_checkpoint
from rwkv_embed.config import Dtype, ModelConfig
from rwkv_embed.errors import CheckpointError
from rwkv_embed.hub import SETTINGS, ModelFiles
from rwkv_embed.sums import DTYPES as SUMS
from rwkv_embed.tensor_files import NewTensor, write_safetensors
from rwkv_embed.tokenizer import describe_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int], None]  # bytes done, bytes in all
ConvertDtype = Literal["float32", "bfloat16", "float16", "int8"]

_GENERATIONS = {
    "4": "RWKV-4 Dove",
    "5.0": "RWKV-5.0",
    "5.1": "RWKV-5.1",
    "5.2": "RWKV-5.2 Eagle",
    "6": "RWKV-6 Finch",
    "7": "RWKV-7 Goose",
}
_LAYOUTS = {
    "official": "official (BlinkDL)",
    "embedding-rwkv": "EmbeddingRWKV",
    "reranker": "EmbeddingRWKV reranker",
    "transformers": "Hugging Face transformers",
    "fla": "flash-linear-attention (Hugging Face)",
}
_USES = {
    "language-model": [
        "generate text",
        "score texts",
        "embed (state, last or mean pooling; better with whitening)",
    ],
    "embedder": ["embed (trained head)", "provide states to its reranker"],
    "reranker": ["rerank from the states of the embedder it was trained with"],
}
_SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8"}


@dataclass(frozen=True)
class ModelInfo:
    """A weights file, described. `dtypes` counts parameters by stored type; sizes are in bytes."""

    path: str
    packaging: str
    layout: str
    generation: str
    config: ModelConfig
    parameters: int
    stored_bytes: int
    state_bytes: int
    dtypes: dict[str, int]
    tokenizer: str
    heads: list[str]
    uses: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def describe(path: str | Path) -> ModelInfo:
    """Generation, sizes, tokenizer and uses of a checkpoint.

    Raises CheckpointError with all that is wrong with it; weights are not read, so NaN ones are not noticed.
    """
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    dtypes: dict[str, int] = {}
    for name, entry in checkpoint.tensors.items():
        if name in SUMS:
            continue  # which rows, not what they are
        dtypes[entry.stored_as] = dtypes.get(entry.stored_as, 0) + prod(entry.shape)
    return ModelInfo(
        path=str(path),
        packaging=checkpoint.packaging,
        layout=_LAYOUTS[checkpoint.layout],
        generation=_GENERATIONS[config.version],
        config=config,
        parameters=sum(dtypes.values()),
        stored_bytes=sum(entry.nbytes for entry in checkpoint.tensors.values()),
        state_bytes=4 * config.n_layer * sum(map(prod, config.state_shapes)),
        dtypes=dtypes,
        tokenizer=(
            "none: it reads states"
            if config.kind == "reranker"
            else describe_tokenizer(config.vocab_size, Path(path))
        ),
        heads=sorted(
            {
                name.split(".")[1]
                for name in checkpoint.tensors
                if name.startswith("head.") and "_head." in name
            }
        ),
        uses=_USES[config.kind],
    )


@dataclass(frozen=True)
class Engine:
    """How a checkpoint runs here. `precision`: of its large products; `dtypes` of ModelInfo says what is stored.

    `flops_per_token`: 2 x the matrix parameters that each token passes through on the way to a vector; what only a
    text's end does is left out.
    """

    backend: Literal["c kernels", "numpy", "torch"]
    precision: Dtype
    flops_per_token: int


def engine(files: ModelFiles) -> Engine:
    """The engine that an `Embedder` of this model gets. What torch would run is not loaded to tell it."""
    checkpoint = open_checkpoint(files.weights)
    if not runs_fast(files, checkpoint):
        sizes = sum(prod(checkpoint.shape(name)) for name in checkpoint.tensors if _is_product(name))
        return Engine("torch", "float32", 2 * sizes)
    from rwkv_embed.ops.fast import FastRWKV7

    model = FastRWKV7.from_file(files.weights)
    return Engine("c kernels" if model.kernels.name == "c" else "numpy", model.dtype, model.flops_per_token)


def _is_product(name: str) -> bool:
    """Whether each token is multiplied with this tensor: matrices of the layers and their low-rank pairs."""
    if name == "head.weight":
        return True
    last = name.rpartition(".")[2]
    norm = name.rpartition(".")[0].rpartition(".")[2].startswith("ln")
    return name.startswith("blocks.") and not norm and (last == "weight" or last.endswith(("1", "2")))


def convert(
    source: str | Path,
    target: str | Path,
    dtype: ConvertDtype | None = None,
    progress: Progress | None = None,
) -> ModelInfo:
    """Write a checkpoint as one `.safetensors` file with official names; returns its description.

    `dtype` None keeps every tensor as stored, packed ones packed. int8 packs the big matrices and the token
    table with a scale per row and stores the rest as float16; otherwise every tensor is unpacked to the type.
    What a config.json says of norms, and of how an embedder ends and prompts texts, goes into the metadata; a
    tokenizer.json has to be copied. One tensor at a time is in memory. The target appears only when it is
    complete, and is never overwritten.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise CheckpointError(
            f"the converted file is {target.name!r}, expected a name ending in .safetensors"
        )
    if target.exists():
        raise CheckpointError(f"{target} exists already; remove it or choose another name")
    if dtype is not None and dtype not in _SAFETENSORS_DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}, expected one of {', '.join(_SAFETENSORS_DTYPES)}")
    checkpoint = open_checkpoint(source)
    planned = _planned(checkpoint, dtype)
    total = sum(tensor.nbytes for tensor in planned)
    done = 0

    def reported(tensor: NewTensor) -> NewTensor:
        def values() -> "Tensor":
            nonlocal done
            result = tensor.values()
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)
            return result

        return tensor._replace(values=values)

    write_safetensors(
        target,
        [reported(tensor) for tensor in planned],
        {"format": "pt", "converted_from": Path(source).name} | _facts(checkpoint, Path(source)),
    )
    return describe(target)


def _facts(checkpoint: Checkpoint, source: Path) -> dict[str, str]:
    """What is not in the weights, as metadata; nothing when all is usual."""
    facts = {}
    if checkpoint.config.unusual_epsilons:
        facts[EPSILONS] = " ".join(map(repr, checkpoint.config.unusual_epsilons))
    stated = ModelFiles("", source).settings if checkpoint.config.kind == "embedder" else {}
    if kept := {name: stated[name] for name in ("eos_token_id", "prompts", "sentence_share") if name in stated}:
        facts[SETTINGS] = json.dumps(kept)
    return facts


def sha256(path: str | Path, progress: Progress | None = None) -> str:
    """Checksum of a file, in hexadecimal."""
    path = Path(path)
    total, done, digest = path.stat().st_size, 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(8 << 20):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


def _planned(checkpoint: Checkpoint, dtype: ConvertDtype | None) -> list[NewTensor]:
    prefix = {"embedder": "rwkv.", "reranker": "reranker."}.get(checkpoint.config.kind, "")
    planned: list[NewTensor] = []
    for name in checkpoint.tensors:
        heads_own = name.startswith("head.") and "_head." in name
        planned += _new_tensors(checkpoint, name, name if heads_own else prefix + name, dtype)
    planned += _layer_choice(checkpoint)
    return planned


def _new_tensors(
    checkpoint: Checkpoint, name: str, new_name: str, dtype: ConvertDtype | None
) -> list[NewTensor]:
    """One tensor as planned: plain, or those of a packed matrix."""
    entry = checkpoint.tensors[name]
    if name in SUMS:
        return [NewTensor(new_name, entry.dtype, entry.shape, lambda: checkpoint.get_stored(name))]
    if dtype is None and entry.packed is not None:
        return _kept_packed(checkpoint, name, new_name, entry.packed)
    big = len(entry.shape) == 2 and name.endswith(".weight") and not name.startswith(("head.0", "head.2"))
    if dtype == "int8" and big:
        return [
            NewTensor(f"{new_name}.int8", "I8", entry.shape, lambda: _int8(checkpoint, name)[0]),
            NewTensor(f"{new_name}.scale", "F32", (entry.shape[0], 1), lambda: _int8(checkpoint, name)[1]),
        ]
    stored = "float16" if dtype == "int8" else dtype
    new_dtype = entry.dtype if stored is None else _SAFETENSORS_DTYPES[stored]
    shape = checkpoint.shape(name)
    return [NewTensor(new_name, new_dtype, shape, lambda: _cast(checkpoint.get(name), new_dtype))]


def _kept_packed(checkpoint: Checkpoint, name: str, new_name: str, packed: Packed) -> list[NewTensor]:
    stored = checkpoint.tensors[name].file.tensors

    def new_tensor(ending: str) -> NewTensor:
        def values() -> "Tensor":
            parts = checkpoint.get_packed(name, packed.packing)
            assert parts is not None
            return parts[ending].reshape(stored[packed.parts[ending]].shape)

        return NewTensor(f"{new_name}.{ending}", *stored[packed.parts[ending]], values)

    return [new_tensor(ending) for ending in packed.parts]


def _int8(checkpoint: Checkpoint, name: str) -> "tuple[Tensor, Tensor]":
    from rwkv_embed.models.weights import quantize_rows

    if parts := checkpoint.get_packed(name, "int8"):
        return parts["int8"], parts["scale"].float()
    return quantize_rows(checkpoint.get(name))


def _cast(values: "Tensor", dtype: str) -> "Tensor":
    import torch

    names = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    cast = values.to(names[dtype])
    if not torch.isfinite(torch.stack(torch.aminmax(cast))).all():
        raise CheckpointError(
            f"a weight of size {values.abs().max():.0f} does not fit {dtype}; convert to bfloat16 or float32"
        )
    return cast


def _layer_choice(checkpoint: Checkpoint) -> list[NewTensor]:
    """A reranker's list of layers, which safetensors can only hold as a tensor."""
    chosen = checkpoint.extras.get("reranker_layer_idx")
    if chosen is None:
        return []

    def values() -> "Tensor":
        import torch

        return torch.tensor(chosen, dtype=torch.int64)

    return [NewTensor("reranker_layer_idx", "I64", (len(chosen),), values)]
