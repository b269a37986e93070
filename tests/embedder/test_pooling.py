"""Every way to read a vector, against the obvious formula."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_embed.config import ModelConfig
from rwkv_embed.errors import CheckpointError
from rwkv_embed.pooling import STATE_DIM, Head, project, spread, state_dim, state_vector
from rwkv_embed.whitening import Whitening

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_head_is_the_published_formula() -> None:
    """NonlinearHead of EmbeddingRWKV: LayerNorm(fc2(relu(fc1(x))) + x)."""
    tensors = {"head.retr_head.fc1.weight": normal(6, 4), "head.retr_head.fc2.weight": normal(4, 6)}
    tensors |= {"head.retr_head.norm.weight": normal(4), "head.retr_head.norm.bias": normal(4)}
    x = normal(3, 4)
    t = {name.removeprefix("head.retr_head."): torch.from_numpy(tensor) for name, tensor in tensors.items()}
    inner = torch.relu(torch.from_numpy(x) @ t["fc1.weight"].T) @ t["fc2.weight"].T + torch.from_numpy(x)
    expected = torch.nn.functional.layer_norm(inner, (4,), t["norm.weight"], t["norm.bias"])
    np.testing.assert_allclose(Head.from_tensors(tensors)(x), expected.numpy(), atol=1e-5)
    with pytest.raises(CheckpointError, match=r"no embedding head: head\.sts_head\.fc1\.weight, .* missing"):
        Head.from_tensors(tensors, "sts")


def test_state_of_version_4_is_xx_and_the_weighted_mean_of_values() -> None:
    """aa/bb is independent of the exponent pp that both are divided by."""
    values, log_weights = normal(5, 4), normal(5, 4)
    weights = np.exp(log_weights)
    mean_value = (weights * values).sum(0) / weights.sum(0)
    xx = normal(4)
    for pp in (0.0, 3.0):
        aa, bb = (weights * values).sum(0) * np.exp(-pp), weights.sum(0) * np.exp(-pp)
        layers = [normal(4) for _ in range(5)] + [xx, aa, bb, np.full(4, pp, np.float32), normal(4)]
        expected = [xx / np.linalg.norm(xx), mean_value / np.linalg.norm(mean_value)]
        np.testing.assert_allclose(state_vector("4", layers), np.concatenate(expected), atol=1e-6)
    zero = [np.zeros(4, np.float32)] * 5
    np.testing.assert_array_equal(state_vector("4", zero), np.zeros(8))
    assert state_dim(ModelConfig("4", 2, 4, 1, 4, 16, 10)) == 8


def test_state_of_later_versions_is_the_projection_of_three_layers() -> None:
    layers = [[normal(8), normal(2, 4, 4), normal(8)] for _ in range(6)]
    chosen = [layers[i][1].reshape(-1) for i in (1, 3, 5)]
    whole = np.concatenate([matrix / np.linalg.norm(matrix) for matrix in chosen])
    vector = state_vector("7", [array for layer in layers for array in layer])
    np.testing.assert_allclose(vector, project(whole, STATE_DIM), atol=1e-6)
    assert vector.shape == (STATE_DIM,) == (state_dim(ModelConfig("7", 6, 8, 2, 4, 32, 10)),)


def test_layers_are_spread_over_the_depth() -> None:
    assert spread(12, 3) == [3, 7, 11]
    assert spread(24, 3) == [7, 15, 23]
    assert spread(2, 3) == [0, 1]
    assert spread(1, 3) == [0]


def test_projection_keeps_angles_and_never_changes() -> None:
    a, b = normal(3000), normal(3000)
    for cosine in (0.9, 0.5, 0.0):
        b_orthogonal = b - a * (a @ b) / (a @ a)
        other = cosine * a / np.linalg.norm(a) + np.sqrt(1 - cosine**2) * b_orthogonal / np.linalg.norm(
            b_orthogonal
        )
        pa, pb = project(a, 1024), project(other.astype(np.float32), 1024)
        assert pa @ pb / np.linalg.norm(pa) / np.linalg.norm(pb) == pytest.approx(cosine, abs=0.1)
    # A stored index depends on this hash: it must be the same on every machine and for ever.
    digest = hashlib.sha256(project(np.arange(100, dtype=np.float32), 64).tobytes()).hexdigest()
    assert digest[:16] == "8a2302d63e3f9ef1"


def test_whitened_vectors_have_unit_covariance(tmp_path: Path) -> None:
    vectors = normal(500, 6) @ normal(6, 6) + 5
    whitening = Whitening.whiten(vectors)
    white = whitening(vectors)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(6), atol=1e-2)
    np.testing.assert_allclose(Whitening.whiten(vectors, dim=2)(vectors), white[:, :2], atol=1e-4)
    assert Whitening.whiten(vectors[:4]).dim == 3  # four points span three directions
    whitening.save(tmp_path / "w.safetensors")
    loaded = Whitening.load(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(loaded(vectors), white)
    assert loaded.fingerprint == whitening.fingerprint


def test_removing_the_top_direction(tmp_path: Path) -> None:
    common = np.array([0, 0, 1, 0], np.float32)
    vectors = normal(200, 4) * 0.1 + normal(200, 1) * common * 10 + 3
    cleaned = Whitening.remove_top(vectors, 1)(vectors)
    np.testing.assert_allclose(cleaned[:, 2], 0, atol=0.2)
    np.testing.assert_allclose(cleaned[:, 0], vectors[:, 0] - vectors[:, 0].mean(), atol=0.2)
    assert Whitening.remove_top(vectors).matrix.shape == (4, 4)


def test_whitening_errors(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"fitting needs at least two vectors, got an array of shape \(1, 3\)"
    ):
        Whitening.whiten(normal(1, 3))
    with pytest.raises(ValueError, match=r"was fitted on 3-d vectors, the model gives 4-d"):
        Whitening.whiten(normal(9, 3))(normal(2, 4))
    (tmp_path / "w.safetensors").write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="holds no whitening"):
        Whitening.load(tmp_path / "w.safetensors")
    Whitening(normal(4), normal(3, 2)).save(tmp_path / "w.safetensors")
    with pytest.raises(
        CheckpointError, match=r"holds no whitening \(mean has shape \(4,\), matrix \(3, 2\), expected \(d,\)"
    ):
        Whitening.load(tmp_path / "w.safetensors")
    Whitening(normal(3) * np.float32(np.nan), normal(3, 2)).save(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"w\.safetensors has NaN or infinite values; fit and save it again"):
        Whitening.load(tmp_path / "w.safetensors")
