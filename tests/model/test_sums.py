"""Tokens that are sums of rows: in the engine, compiled and in NumPy, in torch, and through every packing."""

from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_coding import example, kernels_named, rows_of
from test_packagings import embedder_tensors

from rwkv_embed.catalogue import convert, describe
from rwkv_embed.coding import CodedMatrix
from rwkv_embed.errors import CheckpointError, TokenizerError
from rwkv_embed.models import load_model
from rwkv_embed.models.weights import quantize_rows
from rwkv_embed.ops.fast import FastRWKV7
from rwkv_embed.sums import Sums

ROWS, SUMS = 256, 40


def some_sums(rows: int = ROWS, seed: int = 0) -> Sums:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, SUMS).astype(np.uint8)
    n = int(lengths.sum())
    return Sums.of(
        rows, rng.integers(0, rows, n).astype(np.uint16), rng.integers(1, 40, n).astype(np.uint8), lengths
    )


def added_up(sums: Sums, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """The whole table, one part at a time."""
    vectors = [np.zeros(table.shape[1], np.float32) for _ in range(len(sums))]
    for s, vector in enumerate(vectors):
        for i in range(sums.starts[s], sums.starts[s + 1]):
            vector += table[sums.parts[i]] * (sums.shares[i] / np.float32(16))
    return np.concatenate([table, vectors])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, ROWS + SUMS - 1), max_size=30), st.integers(0, 9))
def test_vectors_are_the_sums_of_their_parts(tokens: list[int], seed: int) -> None:
    sums = some_sums(seed=seed)
    table = np.random.default_rng(seed).normal(size=(ROWS, 8)).astype(np.float32)
    found = sums.vectors(np.array(tokens, np.int64), lambda rows: table[rows])
    np.testing.assert_allclose(found, added_up(sums, table)[tokens], atol=1e-5)


@pytest.mark.parametrize("name", ["c", "numpy"])
@pytest.mark.parametrize("panels", [False, True])
def test_sums_of_coded_rows(name: str, panels: bool) -> None:
    kernels = kernels_named(name)
    matrix = CodedMatrix.from_tensors("x", example(rows=ROWS, columns=64, panels=panels, width=12))
    sums = some_sums()
    expected = added_up(sums, matrix.decode())
    tokens = np.random.default_rng(1).permutation(ROWS + SUMS)
    packed = kernels.pack_coded(matrix, sums)
    np.testing.assert_allclose(rows_of(kernels, packed, tokens, 64), expected[tokens], rtol=1e-5, atol=1e-5)
    only = rows_of(kernels, kernels.pack_coded(matrix, sums), np.array([ROWS + 7]), 64)
    np.testing.assert_allclose(only[0], expected[ROWS + 7], rtol=1e-5, atol=1e-5)


def embedder_with_sums(stored: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """An embedder whose last tokens are sums, its rows stored so; and the same with a row for each token."""
    tensors = embedder_tensors(ck.SHAPES[1])
    table = tensors.pop("rwkv.emb.weight")
    if stored == "coded":
        arrays, rounded = ck.coded(table.numpy())
        rows = {f"rwkv.emb.weight.{ending}": torch.from_numpy(array) for ending, array in arrays.items()}
    elif stored == "int8":
        values, scale = quantize_rows(table)
        rows, rounded = {"rwkv.emb.weight.int8": values, "rwkv.emb.weight.scale": scale}, (values * scale).numpy()
    else:
        rows, rounded = {"rwkv.emb.weight": table}, table.numpy()
    own = {f"rwkv.{name}": torch.from_numpy(array) for name, array in some_sums().tensors().items()}
    plain = {"rwkv.emb.weight": torch.from_numpy(added_up(some_sums(), rounded))}
    return tensors | rows | own, tensors | plain


TEXTS = [[3, 290, 7, 256, 0], [ROWS + SUMS - 1], [1, 2, 3]]


@pytest.mark.parametrize("stored", ["plain", "int8", "coded"])
def test_every_loader_adds_up(tmp_path: Path, stored: str) -> None:
    short, plain = embedder_with_sums(stored)
    path = ck.save(tmp_path / "short.safetensors", short)
    expected = load_model(ck.save(tmp_path / "plain.safetensors", plain)).hidden(TEXTS)[0]
    model = load_model(path)
    assert model.vocab_size == ROWS + SUMS
    torch.testing.assert_close(model.hidden(TEXTS)[0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        load_model(ck.save(tmp_path / "short.pth", short)).hidden(TEXTS)[0], expected, atol=1e-4, rtol=1e-4
    )
    fast = FastRWKV7.from_file(path)
    assert fast.config.vocab_size == ROWS + SUMS
    np.testing.assert_allclose(fast.hidden(TEXTS)[0], expected.numpy(), atol=1e-3)
    info = describe(path)
    whole = describe(tmp_path / "plain.safetensors")
    assert (info.config.vocab_size, info.parameters) == (ROWS + SUMS, whole.parameters - SUMS * 128)
    own = sum(array.nbytes for array in some_sums().tensors().values())
    if stored == "plain":
        assert info.stored_bytes == whole.stored_bytes - SUMS * 128 * 4 + own


@pytest.mark.parametrize("dtype", [None, "float16", "int8"])
def test_sums_stay_sums_when_a_checkpoint_is_converted(tmp_path: Path, dtype: Any) -> None:
    short, _ = embedder_with_sums("coded")
    source = ck.save(tmp_path / "in.safetensors", short)
    convert(source, tmp_path / "out.safetensors", dtype)
    converted, expected = (load_model(path).hidden(TEXTS)[0] for path in (tmp_path / "out.safetensors", source))
    at_most = {None: 0.0, "float16": 0.005, "int8": 0.05}[dtype]
    assert float((converted - expected).norm() / expected.norm()) <= at_most


def test_a_token_outside_is_named(tmp_path: Path) -> None:
    short, _ = embedder_with_sums("plain")
    path = ck.save(tmp_path / "short.safetensors", short)
    for model in (load_model(path), FastRWKV7.from_file(path)):
        with pytest.raises(TokenizerError, match=r"296.* outside the .*vocabulary of 296"):
            model.hidden([[296]])


def test_damaged_sums_are_refused_by_every_loader(tmp_path: Path) -> None:
    short, _ = embedder_with_sums("plain")
    parts, shares, lengths = (short[f"rwkv.emb.{name}"] for name in ("parts", "shares", "lengths"))
    n = len(parts)
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"rwkv.emb.parts": parts[1:].clone()},
            rf"emb\.lengths adds up to {n}, but emb\.parts has {n - 1} and emb\.shares {n}",
        ),
        ({"rwkv.emb.shares": shares[1:].clone()}, rf"emb\.parts has {n} and emb\.shares {n - 1}"),
        (
            {"rwkv.emb.parts": torch.full((n,), 256).to(torch.uint16)},
            r"emb\.parts has the row 256, but emb\.weight has 256 of them",
        ),
        (
            {"rwkv.emb.lengths": torch.cat([lengths[:1] * 0, lengths[1:], lengths[:1]])},
            r"emb\.lengths has a sum of nothing, the one of token 256",
        ),
        (
            {"rwkv.emb.shares": shares[:, None].clone()},
            r"emb\.shares has shape \(\d+, 1\), expected one dimension",
        ),
    ]  # fmt: skip
    for changed, message in cases:
        path = ck.save(tmp_path / "damaged.safetensors", short | changed)
        with pytest.raises(CheckpointError, match=rf"damaged\.safetensors: .*{message}"):
            load_model(path)
        with pytest.raises(CheckpointError, match=message):
            FastRWKV7.from_file(path)
    lacking = {name: tensor for name, tensor in short.items() if name != "rwkv.emb.shares"}
    path = ck.save(tmp_path / "lacking.safetensors", lacking)
    for load in (load_model, FastRWKV7.from_file):
        with pytest.raises(CheckpointError, match=r"emb\.shares is missing"):
            load(path)
    wide = short | {"rwkv.emb.parts": parts.to(torch.int32)}
    path = ck.save(tmp_path / "wide.safetensors", wide)
    with pytest.raises(CheckpointError, match=r"emb\.parts is stored as I32, expected one of U16"):
        load_model(path)
    with pytest.raises(CheckpointError, match=r"emb\.parts is stored as int32, expected uint16"):
        FastRWKV7.from_file(path)
