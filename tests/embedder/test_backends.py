"""The real back ends behind the embedder, against the slow NumPy RNN, on a tiny checkpoint on disk."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from rwkv_embed.backends import FastBackend, TorchBackend
from rwkv_embed.catalogue import convert, describe, engine
from rwkv_embed.embedder import Embedder
from rwkv_embed.errors import CheckpointError, StateError
from rwkv_embed.hub import resolve
from rwkv_embed.rerank import StateReranker
from tests.embedder.numpy_rwkv import NumpyBackend
from tests.embedder.test_rerank import reranker_tensors
from tests.model import checkpoints as ck

EOS = 255  # a byte that UTF-8 never uses
TEXTS = ["The Nile is a river in Africa.", "", "x", "部署数据库", "The Nile is a river in Africa. " * 30]


class Bytes:
    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


def reference(eos: int | None) -> NumpyBackend:
    return NumpyBackend(n_layer=3, n_head=2, head_size=8, eos=eos, tokenizer=Bytes())


@pytest.fixture(scope="module")
def embedder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_embedder(tmp_path_factory.mktemp("embedder"))


def save_embedder(folder: Path) -> Path:
    """An embedding checkpoint as the bundled one is."""
    backend = reference(EOS)
    head = backend.info.head
    assert head is not None
    tensors = {f"rwkv.{name}": tensor for name, tensor in backend.tensors.items()}
    names = {
        "fc1.weight": head.fc1,
        "fc2.weight": head.fc2,
        "norm.weight": head.weight,
        "norm.bias": head.bias,
    }
    tensors |= {f"head.retr_head.{name}": tensor for name, tensor in names.items()}
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    settings = {"name": "tiny", "eos_token_id": EOS, "pooling": "head", "prompts": {"query": "q: "}}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def by_torch(folder: Path) -> TorchBackend:
    """The back end that a checkpoint gets which the engine cannot run."""
    return TorchBackend(resolve(folder), "float32", threads=1)


@pytest.fixture(scope="module")
def language_model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("language-model") / "lm.safetensors"
    tensors = reference(None).tensors
    save_file(tensors | {"head.weight": tensors["emb.weight"]}, path)
    return path


@pytest.mark.parametrize("kind", [FastBackend, TorchBackend])
def test_embedding_checkpoints(embedder_folder: Path, kind: type) -> None:
    embedder = Embedder(embedder_folder if kind is FastBackend else by_torch(embedder_folder), threads=1)
    assert isinstance(embedder.backend, kind)
    assert embedder.pooling == "head"
    assert embedder.prompts == {"query": "q: ", "document": ""}
    slow = Embedder(reference(EOS))
    np.testing.assert_allclose(embedder.encode(TEXTS), slow.encode(TEXTS), atol=1e-4)
    np.testing.assert_allclose(embedder.encode_query("Nile"), slow.encode("q: Nile"), atol=1e-4)
    alone = np.stack([embedder.encode(text) for text in TEXTS])
    np.testing.assert_allclose(embedder.encode(TEXTS), alone, atol=1e-5)
    spans = [(0, 8), (9, 30)]
    np.testing.assert_allclose(
        embedder.encode_chunks(TEXTS[0], spans), slow.encode_chunks(TEXTS[0], spans), atol=1e-4
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_engine_honours_a_dtype(embedder_folder: Path, dtype: Any) -> None:
    embedder = Embedder(embedder_folder, dtype=dtype)
    assert isinstance(embedder.backend, FastBackend)
    exact, vectors = Embedder(embedder_folder).encode(TEXTS), embedder.encode(TEXTS)
    assert (exact * vectors).sum(1).min() > 0.98
    assert np.array_equal(exact, vectors) == (dtype == "float32")
    assert embedder.fingerprint == Embedder(embedder_folder).fingerprint


def test_an_unknown_dtype_is_refused(embedder_folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'float16', expected one of float32, bfloat16, int8"):
        Embedder(embedder_folder, dtype="float16")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float16", FastBackend), ("bfloat16", FastBackend), ("int8", TorchBackend)]
)
def test_converted_checkpoints_embed(embedder_folder: Path, tmp_path: Path, dtype: Any, kind: type) -> None:
    """The engine takes floats of every size; packed matrices go to torch."""
    convert(embedder_folder / "model.safetensors", tmp_path / "model.safetensors", dtype)
    (tmp_path / "config.json").write_bytes((embedder_folder / "config.json").read_bytes())
    embedder = Embedder(tmp_path, tokenizer="byte")
    assert isinstance(embedder.backend, kind)
    cosines = (embedder.encode(TEXTS) * Embedder(embedder_folder).encode(TEXTS)).sum(1)
    assert cosines.min() > 0.98


def test_a_converted_embedder_ends_and_prompts_texts_as_before(embedder_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "alone.safetensors"
    convert(embedder_folder, path)
    embedder, before = Embedder(path), Embedder(embedder_folder)
    assert isinstance(embedder.backend, FastBackend)
    assert (embedder.backend.info.eos, embedder.prompts) == (EOS, before.prompts)
    assert np.array_equal(embedder.encode_query(TEXTS), before.encode_query(TEXTS))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert Embedder(path).backend.info.eos == 7  # what a person wrote comes first


def test_norms_that_the_engine_does_not_know_go_to_torch(embedder_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(embedder_folder / "model.safetensors")
    metadata = {"norm_eps ln_x_eps": "0.001 0.00064", "settings": json.dumps({"eos_token_id": EOS})}
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    embedder = Embedder(tmp_path)
    assert isinstance(embedder.backend, TorchBackend)
    assert embedder.backend.info.config.norm_eps == 0.001


def test_bfloat16_files_are_the_same_numbers_in_float32(embedder_folder: Path, tmp_path: Path) -> None:
    narrow, wide = tmp_path / "narrow", tmp_path / "wide"
    for source, folder, dtype in ((embedder_folder, narrow, "bfloat16"), (narrow, wide, "float32")):
        folder.mkdir()
        convert(source / "model.safetensors", folder / "model.safetensors", dtype)  # type: ignore[arg-type]
        (folder / "config.json").write_bytes((embedder_folder / "config.json").read_bytes())
    assert set(describe(narrow / "model.safetensors").dtypes) == {"BF16"}
    assert engine(resolve(narrow)) == engine(resolve(wide)) == engine(resolve(embedder_folder))
    assert engine(resolve(narrow)).precision == "float32"
    vectors = Embedder(narrow).encode(TEXTS)
    assert np.array_equal(vectors, Embedder(wide).encode(TEXTS))
    assert not np.array_equal(vectors, Embedder(embedder_folder).encode(TEXTS))


def test_what_a_sentence_counts_is_the_model_s(embedder_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(embedder_folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    settings = json.loads(path.read_text())
    assert Embedder(tmp_path / "model").sentence_share == 0.0
    path.write_text(json.dumps(settings | {"sentence_share": 0.25}))
    assert Embedder(tmp_path / "model").sentence_share == 0.25
    assert Embedder(tmp_path / "model", pooling="mean").sentence_share == 0.0  # not what it was measured with
    complaint = r"sentence_share in .*config\.json is .*; expected a number from 0 to 1"
    for wrong in (1.5, "much", None):
        path.write_text(json.dumps(settings | {"sentence_share": wrong}))
        with pytest.raises(CheckpointError, match=complaint):
            Embedder(tmp_path / "model")


Change = Callable[[dict[str, Any]], dict[str, Any]]


def changed(source: Path, folder: Path, change: Change, **settings: Any) -> Path:
    """The checkpoint with other tensors, and a config.json with other settings."""
    folder.mkdir()
    save_file(change(load_file(source / "model.safetensors")), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | settings))
    return folder


def test_a_damaged_head_is_refused(embedder_folder: Path, tmp_path: Path) -> None:
    def damage(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["head.retr_head.fc1.weight"][0, 1] = np.nan
        return tensors

    with pytest.raises(CheckpointError, match=r"model\.safetensors: head\.retr_head\.fc1\.weight has NaN"):
        Embedder(changed(embedder_folder, tmp_path / "damaged", damage))


def test_names_that_the_engine_does_not_know_go_to_torch(embedder_folder: Path, tmp_path: Path) -> None:
    def rename(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name.replace("rwkv.", "model."): tensor for name, tensor in tensors.items()}

    embedder = Embedder(changed(embedder_folder, tmp_path / "renamed", rename))
    assert isinstance(embedder.backend, TorchBackend)
    np.testing.assert_allclose(embedder.encode(TEXTS), Embedder(embedder_folder).encode(TEXTS), atol=1e-4)


def test_attention_of_another_width_goes_to_torch(tmp_path: Path) -> None:
    shape = ck.Shape(2, 2, 16, 256, 64)
    wide = ck.weights("7", ck.Shape(2, 4, 16, 256, 64))
    C, A = shape.n_embd, 2 * shape.n_embd
    tensors = {}
    for name, tensor in ck.weights("7", shape).items():
        if name == "head.weight":
            continue
        last = name.partition(".att.")[2]
        if last in ("receptance.weight", "key.weight", "value.weight"):
            tensor = wide[name][:, :C]
        elif last == "output.weight" or last in ("w2", "a2", "v2", "g2"):
            tensor = wide[name][: len(tensor)]
        elif last in ("w0", "a0", "v0", "k_k", "k_a", "r_k", "ln_x.weight", "ln_x.bias"):
            tensor = wide[name]
        tensors[f"rwkv.{name}"] = tensor
    assert tensors["rwkv.blocks.0.att.output.weight"].shape == (C, A)
    for name, size in (("fc1.weight", (C, C)), ("fc2.weight", (C, C)), ("norm.weight", (C,)), ("norm.bias", (C,))):
        tensors[f"head.retr_head.{name}"] = torch.ones(size)
    ck.save(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": EOS}))
    embedder = Embedder(tmp_path)
    assert isinstance(embedder.backend, TorchBackend)
    assert embedder.encode("x").shape == (C,)


def test_a_config_that_makes_no_sense_is_refused(embedder_folder: Path, tmp_path: Path) -> None:
    folder = changed(embedder_folder, tmp_path / "model", lambda tensors: tensors)
    for settings, message in (
        ({"eos_token_id": [3]}, r"eos_token_id in .*config\.json is \[3\]; expected the token .* from 0 to 255"),
        ({"eos_token_id": 256}, "eos_token_id in .* is 256; expected the token that ends a text"),
        ({"eos_token_id": True}, "eos_token_id in .* is True"),
        ({}, "eos_token_id in .* is missing; expected the token that ends a text, a number from 0 to 255"),
        ({"eos_token_id": EOS, "prompts": None}, r"prompts in .*config\.json is None; expected texts by name"),
        ({"eos_token_id": EOS, "prompts": ["a"]}, "prompts in .* is \\['a'\\]"),
        ({"eos_token_id": EOS, "prompts": {"query": 5}}, "prompts in .* is {'query': 5}"),
    ):
        (folder / "config.json").write_text(json.dumps(settings))
        with pytest.raises(CheckpointError, match=message):
            Embedder(folder)


def test_threads_below_one_are_refused(embedder_folder: Path, language_model_file: Path) -> None:
    for path in (embedder_folder, language_model_file):
        for threads in (0, -1):
            with pytest.raises(ValueError, match=f"threads is {threads}, expected at least 1; leave it out"):
                Embedder(path, threads=threads)


def test_the_fingerprint_knows_the_end_of_a_text_and_the_norms(embedder_folder: Path, tmp_path: Path) -> None:
    other = changed(embedder_folder, tmp_path / "other", lambda tensors: tensors, eos_token_id=7)
    assert Embedder(other).backend.info.identity == Embedder(embedder_folder).backend.info.identity
    assert Embedder(other).fingerprint != Embedder(embedder_folder).fingerprint
    embedder = Embedder(reference(EOS))
    before = embedder.fingerprint
    embedder.backend.info = replace(  # type: ignore[misc]
        embedder.backend.info, config=replace(embedder.backend.info.config, norm_eps=1e-3)
    )
    assert Embedder(embedder.backend).fingerprint != before


def test_both_back_ends_are_one_model(embedder_folder: Path) -> None:
    """Same fingerprint, and a stream saved with one goes on with the other."""
    fast, slow = Embedder(embedder_folder), Embedder(by_torch(embedder_folder))
    assert fast.fingerprint == slow.fingerprint
    stream = fast.stream()
    stream.feed("The Nile is a ri")
    resumed = slow.stream(stream.state_bytes())
    resumed.feed("ver in Africa.")
    np.testing.assert_allclose(resumed.vector(), fast.encode_document(TEXTS[0]), atol=1e-4)
    back = fast.stream(resumed.state_bytes())
    np.testing.assert_allclose(back.vector(), fast.encode_document(TEXTS[0]), atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean", "state", "summary"])
def test_language_models(language_model_file: Path, embedder_folder: Path, pooling: Any) -> None:
    embedder = Embedder(language_model_file, pooling=pooling, tokenizer="byte")
    assert isinstance(embedder.backend, TorchBackend)
    slow = Embedder(reference(None), pooling=pooling)
    np.testing.assert_allclose(embedder.encode(TEXTS), slow.encode(TEXTS), atol=1e-4)
    with pytest.raises(StateError, match="belongs to another model or pooling"):
        embedder.stream(Embedder(embedder_folder).stream().state_bytes())


def test_reranking_with_the_engine(embedder_folder: Path) -> None:
    tensors = reranker_tensors(n_layer=3, n_head=2, head_size=8)
    fast = StateReranker(Embedder(embedder_folder), tensors)
    slow = StateReranker(Embedder(reference(EOS)), tensors)
    np.testing.assert_allclose(fast.score("Nile?", TEXTS), slow.score("Nile?", TEXTS), atol=1e-4)
    states = [fast.passage_state(text) for text in TEXTS]
    np.testing.assert_allclose(fast.score_states("Nile?", states), fast.score("Nile?", TEXTS), atol=1e-5)


def test_a_reranker_is_not_an_embedder(tmp_path: Path) -> None:
    save_file({f"reranker.{name}": t for name, t in reranker_tensors().items()}, tmp_path / "r.safetensors")
    with pytest.raises(
        CheckpointError, match=r"r\.safetensors is a reranker: it scores passages; open it with StateReranker"
    ):
        Embedder(tmp_path / "r.safetensors")
