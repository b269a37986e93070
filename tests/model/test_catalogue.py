"""Description and conversion of weights files."""

import hashlib
from pathlib import Path

import checkpoints as ck
import numpy as np
import pytest
import torch
from safetensors import safe_open

from rwkv_embed.catalogue import convert, describe, engine, sha256
from rwkv_embed.config import Version
from rwkv_embed.errors import CheckpointError
from rwkv_embed.hub import resolve
from rwkv_embed.models import load_model

SHAPE = ck.SHAPES[0]
TOKENS = list(range(30))


def test_describe(tmp_path: Path) -> None:
    tensors = ck.weights("6", SHAPE)
    tensors["emb.weight"] = tensors["emb.weight"].bfloat16()
    info = describe(ck.save(tmp_path / "finch.pth", tensors))
    assert (info.generation, info.layout, info.packaging) == ("RWKV-6 Finch", "official (BlinkDL)", "pth")
    assert info.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert info.stored_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert info.dtypes == {"BF16": 97 * 32, "F32": info.parameters - 97 * 32}
    assert info.state_bytes == 4 * 2 * (32 + 2 * 16 * 16 + 32)
    assert info.tokenizer == "unknown (97 tokens): name a tokenizer.json"
    assert info.uses[0] == "generate text"
    assert info.to_dict()["config"]["version"] == "6"


@pytest.mark.parametrize("version", ck.VERSIONS)
def test_engine_counts_products(tmp_path: Path, version: Version) -> None:
    tensors = ck.weights(version, SHAPE)
    told = engine(resolve(ck.save(tmp_path / "model.pth", tensors)))
    vectors = ("emb.", "faaaa", "time_decay.", "time_first", "r_k")  # (heads, head size) and the table
    products = [
        tensor
        for name, tensor in tensors.items()
        if tensor.squeeze().dim() >= 2 and not any(part in f"{name}." for part in vectors)
    ]
    assert (told.backend, told.precision) == ("torch", "float32")
    assert told.flops_per_token == 2 * sum(tensor.numel() for tensor in products)


@pytest.mark.parametrize("version", ck.VERSIONS)
def test_convert_keeps_every_value(tmp_path: Path, version: Version) -> None:
    source = ck.save(tmp_path / "in.pth", ck.weights(version, SHAPE))
    info = convert(source, tmp_path / "out.safetensors")
    assert info.config == describe(source).config
    converted, original = load_model(tmp_path / "out.safetensors"), load_model(source)
    for mine, other in zip(converted.layers, original.layers, strict=True):
        assert all(
            torch.equal(matrix.values, other.matrices[name].values) for name, matrix in mine.matrices.items()
        )
        assert all(torch.equal(vector, other.vectors[name]) for name, vector in mine.vectors.items())
    torch.testing.assert_close(converted.forward(TOKENS)[0], original.forward(TOKENS)[0], atol=1e-5, rtol=0)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in.pth", "out.safetensors"]


def test_convert_to_int8_is_what_int8_loads(tmp_path: Path) -> None:
    source = ck.save(tmp_path / "in.pth", ck.weights("7", SHAPE))
    steps: list[tuple[int, int]] = []
    info = convert(
        source, tmp_path / "out.safetensors", "int8", progress=lambda done, total: steps.append((done, total))
    )
    assert set(info.dtypes) == {"I8", "F16"}
    assert steps[-1][0] == steps[-1][1] < source.stat().st_size / 3
    packed = load_model(tmp_path / "out.safetensors", dtype="int8")
    quantized = load_model(source, dtype="int8")
    for mine, other in zip(packed.layers, quantized.layers, strict=True):
        for name, matrix in mine.matrices.items():
            assert torch.equal(matrix.values, other.matrices[name].values)
    wide = load_model(tmp_path / "out.safetensors").forward(TOKENS)[0]
    torch.testing.assert_close(packed.forward(TOKENS)[0], wide, atol=1e-4, rtol=0)


def test_convert_of_a_coded_table(tmp_path: Path) -> None:
    """None keeps it, int8 packs it again, a float type unpacks it; all three give the same model."""
    tensors = {name: t.half() for name, t in ck.weights("7", ck.SHAPES[1]).items()}
    parts, _ = ck.coded(tensors.pop("emb.weight").float().numpy())
    tensors |= {f"emb.weight.{ending}": torch.from_numpy(part) for ending, part in parts.items()}
    source = ck.save(tmp_path / "in.safetensors", tensors)
    expected = load_model(source).forward(TOKENS)[0]

    kept = convert(source, tmp_path / "kept.safetensors")
    assert (kept.dtypes, kept.stored_bytes) == (describe(source).dtypes, describe(source).stored_bytes)
    assert torch.equal(load_model(tmp_path / "kept.safetensors").forward(TOKENS)[0], expected)
    with safe_open(tmp_path / "kept.safetensors", "np") as file:
        for ending, part in parts.items():
            assert np.array_equal(file.get_tensor(f"emb.weight.{ending}"), part)

    unpacked = convert(source, tmp_path / "unpacked.safetensors", "float32")
    assert set(unpacked.dtypes) == {"F32"}
    assert torch.equal(load_model(tmp_path / "unpacked.safetensors").forward(TOKENS)[0], expected)

    assert set(convert(source, tmp_path / "int8.safetensors", "int8").dtypes) == {"I8", "F16"}
    again = load_model(tmp_path / "int8.safetensors").forward(TOKENS)[0]
    assert float((again - expected).norm() / expected.norm()) < 0.1


def test_convert_refuses(tmp_path: Path) -> None:
    tensors = ck.weights("4", SHAPE)
    tensors["emb.weight"][0, 0] = 1e6
    source = ck.save(tmp_path / "in.pth", tensors)
    with pytest.raises(
        CheckpointError, match="a weight of size 1000000 does not fit F16; convert to bfloat16"
    ):
        convert(source, tmp_path / "out.safetensors", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]
    with pytest.raises(CheckpointError, match=r"'out\.pth', expected a name ending in \.safetensors"):
        convert(source, tmp_path / "out.pth")
    convert(source, tmp_path / "out.safetensors", "bfloat16")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(source, tmp_path / "out.safetensors")
    with pytest.raises(
        CheckpointError, match="dtype is 'int4', expected one of float32, bfloat16, float16, int8"
    ):
        convert(source, tmp_path / "new.safetensors", "int4")  # type: ignore[arg-type]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 1000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 1000).hexdigest()
