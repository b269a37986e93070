"""The same weights under other names: Hugging Face layouts, EmbeddingRWKV, packed int8, low precision."""

import json
import re
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_embed import checkpoint as checkpoint_module
from rwkv_embed.catalogue import convert, describe
from rwkv_embed.checkpoint import open_checkpoint
from rwkv_embed.config import Version
from rwkv_embed.embedder import Embedder
from rwkv_embed.errors import CheckpointError
from rwkv_embed.models import load_model
from rwkv_embed.models.weights import quantize_rows
from rwkv_embed.ops.fast import FastRWKV7
from rwkv_embed.ops.fast.plain import NumpyKernels
from rwkv_embed.packing import PACKINGS, Packing
from rwkv_embed.pooling import Pooling
from rwkv_embed.rerank import StateScorer

SHAPE = ck.SHAPES[2]
TOKENS = list(range(3, 43))


def transformers_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of RWKV/rwkv-4-*, RWKV/v5-Eagle-7B-HF and RWKV/v6-Finch-*-HF (modeling_rwkv*.py)."""
    long = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
    renamed = {}
    for name, tensor in tensors.items():
        name = (
            name.replace(".att.", ".attention.")
            .replace(".ffn.", ".feed_forward.")
            .replace(".ln0.", ".pre_ln.")
        )
        name = re.sub(r"time_mix_([kvrg])$", lambda match: f"time_mix_{long[match[1]]}", name)
        name = name.replace("emb.weight", "embeddings.weight")
        renamed[name if name.startswith("head.") else f"rwkv.{name}"] = tensor
    return renamed


def fla_names(tensors: dict[str, Tensor], old: bool = False) -> dict[str, Tensor]:
    """Names of fla-hub/rwkv7-* (flash-linear-attention, fla/models/rwkv7); `old`: x_r ... x_g in one
    tensor.
    """
    simple = {
        "emb.weight": "model.embeddings.weight",
        "head.weight": "lm_head.weight",
        "ln_out.weight": "model.norm.weight",
        "ln_out.bias": "model.norm.bias",
    }
    parts = {
        "ln0": "pre_norm",
        "ln1": "attn_norm",
        "ln2": "ffn_norm",
        "att.ln_x": "attn.g_norm",
        "att.receptance": "attn.r_proj",
        "att.key": "attn.k_proj",
        "att.value": "attn.v_proj",
        "att.output": "attn.o_proj",
    }
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in simple:
            renamed[simple[name]] = tensor
            continue
        _, layer, inner = name.split(".", 2)
        start = f"model.layers.{layer}."
        stem = inner.rpartition(".")[0]
        if stem in parts:
            renamed[start + inner.replace(stem, parts[stem], 1)] = tensor
        elif match := re.fullmatch(r"att\.([wavg])([012])", inner):
            kind = {"0": "lora.2.bias", "1": "lora.0.weight", "2": "lora.2.weight"}[match[2]]
            renamed[f"{start}attn.{match[1]}_lora.{kind}"] = (
                tensor.flatten() if match[2] == "0" else tensor.t()
            )
        elif inner in ("ffn.x_k", "att.k_k", "att.k_a"):
            renamed[start + inner.replace("att.", "attn.")] = tensor.flatten()
        elif old and re.fullmatch(r"att\.x_[rwkvag]", inner):
            renamed[f"{start}attn.x_x"] = torch.stack(
                [tensors[f"blocks.{layer}.att.x_{x}"].flatten() for x in "rwkvag"]
            )
        else:
            renamed[start + inner.replace("att.", "attn.")] = tensor
    return renamed


@pytest.mark.parametrize("version", ["4", "5.2", "6"])
def test_transformers_layout(tmp_path: Path, version: Version) -> None:
    tensors = ck.weights(version, SHAPE)
    expected = load_model(ck.save(tmp_path / "official.pth", tensors)).forward(TOKENS)[0]
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps({"model_type": "rwkv", "head_size_divisor": 8}))
    ck.save(tmp_path / "hf/pytorch_model.pth", transformers_names(tensors)).rename(
        tmp_path / "hf/pytorch_model.bin"
    )
    model = load_model(tmp_path / "hf")
    assert model.version == version
    assert torch.equal(model.forward(TOKENS)[0], expected)


def test_a_language_model_has_the_same_vectors_from_every_packaging(tmp_path: Path) -> None:
    """Hugging Face's config.json states an eos_token_id, which is for generation."""
    tensors = ck.weights("4", ck.SHAPES[1])
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps({"model_type": "rwkv", "eos_token_id": 0}))
    ck.save(tmp_path / "hf/model.safetensors", transformers_names(tensors))
    path = ck.save(tmp_path / "official.pth", tensors)
    poolings: list[Pooling] = ["last", "mean", "state", "summary"]
    for pooling in poolings:
        expected = Embedder(path, pooling=pooling).encode(["some words", ""])
        np.testing.assert_allclose(
            Embedder(tmp_path / "hf", pooling=pooling).encode(["some words", ""]), expected, atol=1e-5
        )


@pytest.mark.parametrize("old", [False, True])
def test_fla_layout(tmp_path: Path, old: bool) -> None:
    tensors = ck.weights("7", ck.SHAPES[1])  # heads of 64, for which fla's ln_x epsilon is the official one
    expected = load_model(ck.save(tmp_path / "official.pth", tensors)).forward(TOKENS)[0]
    ck.save(tmp_path / "model.safetensors", fla_names(tensors, old))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rwkv7", "norm_eps": 1e-5}))
    model = load_model(tmp_path / "model.safetensors")
    torch.testing.assert_close(model.forward(TOKENS)[0], expected, atol=1e-5, rtol=0)
    (tmp_path / "official.pth").unlink()
    assert load_model(tmp_path).config.ln_x_eps == pytest.approx(64e-5)


def test_fla_epsilon_follows_the_head_size(tmp_path: Path) -> None:
    ck.save(tmp_path / "model.safetensors", fla_names(ck.weights("7", SHAPE)))
    assert open_checkpoint(tmp_path).config.ln_x_eps == pytest.approx(8e-5)
    official = ck.save(tmp_path / "official.pth", ck.weights("7", SHAPE))
    assert open_checkpoint(official).config.ln_x_eps == 64e-5


def test_facts_of_a_config_are_read_beside_a_file_and_kept_when_converted(tmp_path: Path) -> None:
    tensors = fla_names(ck.weights("7", SHAPE))
    del tensors["lm_head.weight"]
    path = ck.save(tmp_path / "model.safetensors", tensors)
    settings = {"model_type": "rwkv7", "norm_eps": 1e-3, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    expected = load_model(tmp_path).forward(TOKENS)[0]
    converted = tmp_path / "converted" / "model.safetensors"
    converted.parent.mkdir()
    assert convert(tmp_path, converted).config == open_checkpoint(tmp_path).config
    for source in (path, converted):
        model = load_model(source)
        assert (model.config.norm_eps, model.config.ln_x_eps) == (1e-3, 8e-3)
        assert torch.equal(model.forward(TOKENS)[0], expected)
    # Beside a file of official names it may be another model's.
    official = ck.save(tmp_path / "official.pth", ck.weights("7", SHAPE))
    assert open_checkpoint(official).config.norm_eps == 1e-5


def test_tied_head(tmp_path: Path) -> None:
    tensors = ck.weights("4", SHAPE)
    del tensors["head.weight"]
    ck.save(tmp_path / "model.safetensors", transformers_names(tensors))
    with pytest.raises(CheckpointError, match=r"head\.weight \(301, 40\) is missing"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    model = load_model(tmp_path)
    hidden, _ = model.hidden([TOKENS])
    torch.testing.assert_close(model.forward(TOKENS)[0], tensors["emb.weight"] @ hidden[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("version", ["5.2", "6"])
def test_tuned_initial_state(tmp_path: Path, version: Version) -> None:
    tensors = ck.weights(version, SHAPE)
    plain = load_model(ck.save(tmp_path / "plain.pth", tensors))
    tuned = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(1))
    model = load_model(ck.save(tmp_path / "tuned.pth", tensors | {"blocks.1.att.time_state": tuned}))
    start = plain.zero_state()
    start.tensors[4] = tuned.transpose(1, 2)
    assert torch.equal(model.forward(TOKENS)[0], plain.forward(TOKENS, start)[0])


def embedder_tensors(shape: ck.Shape = SHAPE) -> dict[str, Tensor]:
    """EmbeddingRWKV's layout: a language model under `rwkv.`, three heads, a vision tower to be ignored."""
    generator = torch.Generator().manual_seed(4)
    tensors = {
        f"rwkv.{name}": tensor for name, tensor in ck.weights("7", shape).items() if name != "head.weight"
    }
    c = shape.n_embd
    for head in ("cls_head", "sts_head", "retr_head"):
        for name, size in (
            ("fc1.weight", (c, c)),
            ("fc2.weight", (c, c)),
            ("norm.weight", (c,)),
            ("norm.bias", (c,)),
        ):
            tensors[f"head.{head}.{name}"] = torch.randn(size, generator=generator)
    return tensors | {
        "vit.vision_model.post_layernorm.weight": torch.zeros(7),
        "proj.gate.weight": torch.zeros(7, 7),
    }


def test_embedding_rwkv(tmp_path: Path) -> None:
    tensors = embedder_tensors()
    model = load_model(ck.save(tmp_path / "emb.pth", tensors))
    language_model = load_model(ck.save(tmp_path / "lm.pth", ck.weights("7", SHAPE)))
    assert (model.config.kind, model.version, describe(tmp_path / "emb.pth").heads) == (
        "embedder",
        "7",
        ["cls_head", "retr_head", "sts_head"],
    )
    hidden, _ = model.hidden([TOKENS])
    assert torch.equal(hidden, language_model.hidden([TOKENS])[0])
    assert set(model.heads) == {name for name in tensors if name.startswith("head.")}
    for name, tensor in model.heads.items():
        assert torch.equal(tensor, tensors[name])
    assert language_model.heads == {}
    with pytest.raises(CheckpointError, match=r"without a vocabulary head \(embedder\)"):
        model.forward([1])


def reranker_tensors(layers: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    tensors = ck.weights("7", ck.Shape(layers, SHAPE.n_head, SHAPE.head_size, 1, SHAPE.n_ffn), seed=6)
    del tensors["head.weight"], tensors["blocks.0.ln0.weight"], tensors["blocks.0.ln0.bias"]
    tensors |= {
        "blocks.0.ln0.weight": torch.ones(SHAPE.n_embd),
        "blocks.0.ln0.bias": torch.zeros(SHAPE.n_embd),
    }
    c = SHAPE.n_embd
    tensors["token.weight"] = tensors.pop("emb.weight")
    for name, size in (("head.0.weight", (c, c)), ("head.0.bias", (c,)), ("head.2.weight", (1, c))):
        tensors[name] = torch.randn(size, generator=generator)
    return {f"reranker.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_embedding_rwkv_reranker(tmp_path: Path, suffix: str) -> None:
    """One learnt token read from the embedder's states of layers 0, 1 and 3, then head.2 tanh(head.0 x)."""
    tensors = reranker_tensors(3)
    path = tmp_path / f"reranker.{suffix}"
    torch.save(tensors | {"reranker_layer_idx": [0, 1, 3]}, tmp_path / "reranker.pth")
    if suffix == "safetensors":
        convert(tmp_path / "reranker.pth", path)
    reranker = load_model(path)
    assert (reranker.config.kind, reranker.extras["reranker_layer_idx"]) == ("reranker", [0, 1, 3])
    start = reranker.zero_state()
    for layer, matrix in enumerate(torch.randn(3, *start.tensors[1].shape)):
        start.tensors[3 * layer + 1] = matrix
    hidden = reranker.hidden([[0]], [start])[0][0]
    inner = torch.tanh(tensors["reranker.head.0.weight"] @ hidden + tensors["reranker.head.0.bias"])
    expected = tensors["reranker.head.2.weight"] @ inner

    checkpoint = open_checkpoint(path)
    scorer = StateScorer({name: checkpoint.get(name).numpy() for name in checkpoint.tensors})
    np.testing.assert_allclose(scorer(start.wkv.numpy()[:, None]), expected, atol=1e-4)


def packed_tensors(packing: Packing) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An embedder with a packed token table, and the same weights in plain."""
    tensors = embedder_tensors(ck.SHAPES[1])
    table = tensors.pop("rwkv.emb.weight")
    if packing == "int8":
        values, scale = quantize_rows(table)
        plain = values.float() * scale
        parts = {"int8": values, "scale": scale}
    else:
        arrays, rounded = ck.coded(table.numpy())
        parts = {ending: torch.from_numpy(array) for ending, array in arrays.items()}
        plain = torch.from_numpy(rounded)
    own = {f"rwkv.emb.weight.{ending}": part for ending, part in parts.items()}
    return tensors | own, tensors | {"rwkv.emb.weight": plain}


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_tables_are_unpacked_by_every_loader(tmp_path: Path, packing: Packing) -> None:
    packed, plain = packed_tensors(packing)
    path = ck.save(tmp_path / "packed.safetensors", packed)
    expected = load_model(ck.save(tmp_path / "plain.pth", plain)).hidden([TOKENS])[0]
    assert torch.equal(load_model(path).hidden([TOKENS])[0], expected)
    assert torch.equal(load_model(ck.save(tmp_path / "packed.pth", packed)).hidden([TOKENS])[0], expected)
    fast = FastRWKV7.from_file(path).hidden([TOKENS])[0]
    np.testing.assert_allclose(fast, expected.numpy(), atol=1e-4)
    info = describe(path)
    stored = sum(tensor.nbytes for name, tensor in packed.items() if name.startswith("rwkv.emb.weight."))
    assert info.dtypes["coded" if packing == "coded" else "I8"] == 256 * 128
    assert info.parameters == describe(tmp_path / "plain.pth").parameters
    assert info.stored_bytes == describe(tmp_path / "plain.pth").stored_bytes - 256 * 128 * 4 + stored


def test_a_coded_table_is_the_same_with_and_without_a_compiler(tmp_path: Path, monkeypatch: Any) -> None:
    packed, plain = packed_tensors("coded")
    checkpoint = open_checkpoint(ck.save(tmp_path / "packed.safetensors", packed))
    for kernels in (checkpoint_module.load_kernels(checkpoint.config), NumpyKernels(checkpoint.config.head_size)):
        monkeypatch.setattr(checkpoint_module, "load_kernels", lambda config, kernels=kernels: kernels)
        assert torch.equal(checkpoint.get("emb.weight"), plain["rwkv.emb.weight"])


def test_scales_that_do_not_fit_are_refused_by_every_loader(tmp_path: Path) -> None:
    tensors, _ = packed_tensors("int8")
    needs = r"emb\.weight\.int8 \(256, 128\) needs emb\.weight\.scale of shape \(256, 1\), "
    wrong = tensors | {"rwkv.emb.weight.scale": torch.ones(256, 7)}
    missing = {name: tensor for name, tensor in tensors.items() if name != "rwkv.emb.weight.scale"}
    for changed, found in ((wrong, r"not \(256, 7\)"), (missing, "but it is missing")):
        with pytest.raises(CheckpointError, match=rf"changed\.safetensors: {needs}{found}"):
            load_model(ck.save(tmp_path / "changed.safetensors", changed))
        with pytest.raises(CheckpointError, match=needs + found):
            FastRWKV7.from_file(tmp_path / "changed.safetensors")


def test_coded_tables_that_are_damaged_are_refused_by_every_loader(tmp_path: Path) -> None:
    tensors, _ = packed_tensors("coded")
    name = "rwkv.emb.weight"
    lacking = {key: tensor for key, tensor in tensors.items() if key != f"{name}.groups"}
    cases = [
        (lacking, r"emb\.weight\.groups is missing"),
        (
            tensors | {f"{name}.starts": tensors[f"{name}.starts"][1:].clone()},
            r"emb\.weight\.starts has shape \(128,\), expected \(129,\)",
        ),
        (
            tensors | {f"{name}.values": torch.full((2, 3, 64), torch.nan)},
            r"emb\.weight\.values has NaN or infinite values",
        ),
    ]
    for damaged, message in cases:
        with pytest.raises(CheckpointError, match=rf"damaged\.safetensors: .*{message}"):
            load_model(ck.save(tmp_path / "damaged.safetensors", damaged))
        with pytest.raises(CheckpointError, match=message):
            FastRWKV7.from_file(tmp_path / "damaged.safetensors")
    signed = tensors | {f"{name}.coded": tensors[f"{name}.coded"].view(torch.int8)}
    with pytest.raises(CheckpointError, match=r"emb\.weight\.coded is stored as I8, expected one of U8"):
        load_model(ck.save(tmp_path / "model.pth", signed))


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.02), ("int8", 0.1)])
@pytest.mark.parametrize("version", ck.VERSIONS)
def test_low_precision_is_close(tmp_path: Path, version: Version, dtype: str, error: float) -> None:
    path = ck.save(tmp_path / "m.safetensors", ck.weights(version, SHAPE))
    exact, low = load_model(path), load_model(path, dtype=dtype)
    expected = exact.forward(TOKENS, full_output=True)[0]
    found = low.forward(TOKENS, full_output=True)[0]
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < error
    held = [
        sum(m.nbytes for layer in model.layers for m in layer.matrices.values()) for model in (exact, low)
    ]
    assert held[0] / held[1] > (1.9 if dtype == "bfloat16" else 3.4)


@pytest.mark.parametrize("version", ck.VERSIONS)
def test_bfloat16_products_are_close(tmp_path: Path, version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a processor with instructions for them makes; one without makes the same, slowly."""
    from rwkv_embed.models import weights as w

    path = ck.save(tmp_path / "m.safetensors", ck.weights(version, SHAPE))
    model = load_model(path, dtype="bfloat16")
    monkeypatch.setattr(w, "MULTIPLIES_BFLOAT16", False)
    expected = model.forward(TOKENS, full_output=True)[0]
    monkeypatch.setattr(w, "MULTIPLIES_BFLOAT16", True)
    found = model.forward(TOKENS, full_output=True)[0]
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.03


def test_low_precision_rows_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix larger than a block gives the product of the whole."""
    from rwkv_embed.models import weights as w

    monkeypatch.setattr(w, "MULTIPLIES_BFLOAT16", False)
    values = torch.randn(700, 2048, generator=torch.Generator().manual_seed(0))
    assert len(list(w.row_blocks(values))) == 2
    x = torch.randn(3, 5, 2048, generator=torch.Generator().manual_seed(1))
    expected = x @ values.bfloat16().float().T
    torch.testing.assert_close(w.Matrix(values.bfloat16())(x), expected, atol=1e-4, rtol=0)
    quantized, scale = w.quantize_rows(values)
    assert float((quantized * scale - values).abs().max()) <= float(scale.max()) / 2 + 1e-6
    torch.testing.assert_close(
        w.Matrix(quantized, scale.flatten())(x), x @ (quantized * scale).T, atol=1e-3, rtol=0
    )


def test_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'float16', expected one of float32, bfloat16, int8"):
        load_model(tmp_path, dtype="float16")  # type: ignore[arg-type]
