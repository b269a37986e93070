"""What is refused, in which words, and that nothing is executed or loaded on the way."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import checkpoints as ck
import pytest
import torch

from rwkv_embed.checkpoint import open_checkpoint
from rwkv_embed.errors import CheckpointError, ModelNotFound
from rwkv_embed.models import load_model

SHAPE = ck.SHAPES[0]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("version", ck.VERSIONS)
def test_generation_and_sizes_are_told_from_names_and_shapes(
    tmp_path: Path, version: str, suffix: str
) -> None:
    for shape in ck.SHAPES:
        path = ck.save(tmp_path / f"called-rwkv-x{suffix}", ck.weights(version, shape))
        config = open_checkpoint(path).config
        assert (config.version, config.kind) == (version, "language-model")
        assert (config.n_layer, config.n_embd, config.n_ffn, config.vocab_size) == (
            shape.n_layer,
            shape.n_embd,
            shape.n_ffn,
            shape.vocab_size,
        )
        heads = (1, shape.n_embd) if version == "4" else (shape.n_head, shape.head_size)
        assert (config.n_head, config.head_size) == heads


def test_value_residual_of_layer_0_may_be_present(tmp_path: Path) -> None:
    without = ck.weights("7", SHAPE)
    extra = {f"blocks.0.att.{name}": without[f"blocks.1.att.{name}"] for name in ("v0", "v1", "v2")}
    plain = load_model(ck.save(tmp_path / "a.pth", without)).forward([5, 6, 7])[0]
    assert torch.equal(load_model(ck.save(tmp_path / "b.pth", without | extra)).forward([5, 6, 7])[0], plain)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    tensors = ck.weights("7", SHAPE)
    del tensors["blocks.1.att.w2"]
    tensors["blocks.0.ffn.value.weight"] = torch.zeros(32, 63)
    tensors["blocks.0.ffn.s_emb.weight"] = torch.zeros(97, 1024)
    tensors["ln_out.bias"] = torch.zeros(32, dtype=torch.int32)
    with pytest.raises(CheckpointError) as caught:
        load_model(ck.save(tmp_path / "bad.pth", tensors))
    assert (
        str(caught.value)
        == f"{tmp_path}/bad.pth: 4 problems with its tensors: blocks.1.att.w2 (8, 32) is missing; "
        "blocks.0.ffn.value.weight has shape (32, 63), expected (32, 64); "
        "blocks.0.ffn.s_emb.weight (97, 1024) is not part of this architecture; "
        "ln_out.bias is stored as I32, expected one of F64, F32, F16, BF16"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["blocks.1.att.key.weight", "emb.weight", "blocks.0.ln0.bias"])
def test_weights_that_are_not_numbers_are_refused(tmp_path: Path, name: str, value: float) -> None:
    tensors = ck.weights("6", SHAPE)
    tensors[name].view(-1)[5] = value
    with pytest.raises(CheckpointError, match=f"{name} has NaN or infinite weights"):
        load_model(ck.save(tmp_path / "bad.safetensors", tensors))


class _Canary:
    """What an attacker would put into a .pth: unpickling it runs a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save(ck.weights("4", SHAPE) | {"extra": _Canary(canary)}, tmp_path / "evil.pth")
    with pytest.raises(
        CheckpointError, match=r"evil\.pth holds Python objects besides tensors.*nothing was executed"
    ):
        load_model(tmp_path / "evil.pth")
    assert not canary.exists()


FOREIGN_FILES = {
    "html.pth": (b"<!DOCTYPE html><html>Sign in</html>", "a web page saved under that name"),
    "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
    "old.pth": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a checkpoint of torch < 1.6"),
    "empty.pth": (b"", "is empty; download it again"),
    "noise.pth": (b"\x01\x02\x03" * 99, "not a PyTorch checkpoint"),
    "html.safetensors": (b"<!DOCTYPE html><html>Sign in</html>", "damaged or incomplete"),
    "empty.safetensors": (b"", "damaged or incomplete"),
    "weights.gguf": (b"GGUF", r"suffix '\.gguf'; expected \.pth, \.safetensors"),
}


@pytest.mark.parametrize("name", FOREIGN_FILES)
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = ck.save(tmp_path / f"cut{suffix}", ck.weights("7", SHAPE))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CheckpointError, match=r"truncated: \d+ bytes|damaged or incomplete"):
        load_model(path)


def test_archives_that_are_not_checkpoints_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "docs.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * (100 << 20))
    for name in ("docs.pth", "bomb.pth"):
        with pytest.raises(CheckpointError, match="a zip archive but not a PyTorch checkpoint"):
            load_model(tmp_path / name)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    tensors = ck.weights("7", SHAPE)
    tensors["emb.weight"] = torch.zeros(1).expand(1 << 30, 32)
    torch.save(tensors, tmp_path / "huge.pth")
    with pytest.raises(
        CheckpointError, match=r"emb\.weight claims \(1073741824, 32\), more than the whole file holds"
    ):
        load_model(tmp_path / "huge.pth")


def test_tensors_that_are_not_plain_are_refused(tmp_path: Path) -> None:
    tensors = ck.weights("7", SHAPE)
    name = "blocks.0.att.key.weight"
    plain = r"tensor blocks\.0\.att\.key\.weight is sparse, quantized or without data, expected a plain one"
    for content, message in (
        ({0: torch.zeros(3), **tensors}, r"m\.pth has a tensor called 0, expected names such as 'emb\.weight'"),
        ({("a", "b"): torch.zeros(3), **tensors}, r"has a tensor called \('a', 'b'\), expected names"),
        (tensors | {name: tensors[name].to_sparse()}, plain),
        (tensors | {name: torch.empty(tensors[name].shape, device="meta")}, plain),
    ):
        torch.save(content, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / "m.pth")


def test_checkpoints_of_other_models_are_named(tmp_path: Path) -> None:
    ck.save(
        tmp_path / "bert.safetensors",
        {"bert.embeddings.weight": torch.zeros(3), "pooler.bias": torch.zeros(3)},
    )
    with pytest.raises(
        CheckpointError,
        match=r"not an RWKV checkpoint: it has 2 tensors \('bert.embeddings.weight', 'pooler.bias'\)",
    ):
        load_model(tmp_path / "bert.safetensors")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list, expected a dictionary of tensors"):
        load_model(tmp_path / "list.pth")
    with pytest.raises(ModelNotFound, match="no file or folder"):
        load_model(tmp_path / "absent.pth")


def test_missing_layers_and_unreadable_sizes(tmp_path: Path) -> None:
    tensors = ck.weights("5.2", SHAPE)
    with pytest.raises(
        CheckpointError, match=r"layers are missing: 3 are present but the highest is blocks\.900000"
    ):
        open_checkpoint(ck.save(tmp_path / "a.pth", tensors | {"blocks.900000.ln1.weight": torch.zeros(32)}))
    del tensors["blocks.0.att.time_decay"]
    with pytest.raises(
        CheckpointError,
        match=r"sizes of this RWKV-5\.1 checkpoint cannot be read: blocks\.0\.att\.time_decay is missing",
    ):
        open_checkpoint(ck.save(tmp_path / "b.pth", tensors))


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no weights: looked for"):
        open_checkpoint(tmp_path)
    tensors = ck.weights("4", SHAPE)
    ck.save(tmp_path / "a.pth", tensors)
    assert open_checkpoint(tmp_path).config.version == "4"
    ck.save(tmp_path / "int8_ranges.safetensors", {"low.8": torch.zeros(8)})  # what quantises vectors, no weights
    assert open_checkpoint(tmp_path).config.version == "4"
    ck.save(tmp_path / "b.pth", tensors)
    with pytest.raises(CheckpointError, match=r"has 2 weights files \(a\.pth, b\.pth\); name one of them"):
        open_checkpoint(tmp_path)


def write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in halves.items():
        ck.save(folder / file, {name: tensors[name] for name in own})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, own in halves.items() for name in own}}))
    return index


def test_shards(tmp_path: Path) -> None:
    tensors = ck.weights("6", SHAPE)
    index = write_shards(tmp_path, tensors)
    expected = load_model(ck.save(tmp_path / "whole.pth", tensors)).forward([1, 2, 3])[0]
    for path in (tmp_path, index):
        model = load_model(path)
        assert torch.equal(model.forward([1, 2, 3])[0], expected)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing: model-2\.safetensors"):
        load_model(index)
    index.write_text(json.dumps({"weight_map": {"emb.weight": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="points outside its folder"):
        load_model(index)


REFUSED = """
import sys, resource, torch
import rwkv_embed.models.rwkv7
from rwkv_embed.errors import CheckpointError
from rwkv_embed.models import load_model
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
for path in sys.argv[1:]:
    try: load_model(path)
    except CheckpointError: continue
    raise SystemExit(f"{path} was accepted")
print(peak() - before)
"""


@pytest.mark.slow
def test_refusing_a_large_file_costs_little_memory(tmp_path: Path) -> None:
    """300 MB files that are wrong: the shapes are seen, the weights are not read."""
    tensors = ck.weights("7", SHAPE) | {"emb.weight": torch.zeros(2_000_000, 32)}
    paths = [ck.save(tmp_path / f"a{suffix}", tensors) for suffix in (".pth", ".safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path.cwd(),
    )
    assert float(done.stdout) < 100


def test_safetensors_are_described_without_torch(tmp_path: Path) -> None:
    path = ck.save(tmp_path / "m.safetensors", ck.weights("7", SHAPE))
    code = (
        "import sys; from rwkv_embed.catalogue import describe; import rwkv_embed.tokenizer;"
        f"assert describe({str(path)!r}).config.version == '7'; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path.cwd())
