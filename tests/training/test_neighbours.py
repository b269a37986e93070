"""Tokens drawn to those that the teacher reads alike."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rwkv_embed.training import neighbours


def read_in_pairs(pairs: int, width: int = 24, seed: int = 0) -> np.ndarray:
    """Vectors of tokens 0 and 1, 2 and 3, ... alike, of any length."""
    random = np.random.default_rng(seed)
    meant = np.repeat(random.normal(size=(pairs, width)), 2, 0)
    noisy = meant + 0.2 * random.normal(size=meant.shape)
    return (noisy * random.uniform(0.5, 2, (2 * pairs, 1))).astype(np.float32)


def test_the_nearest_are_those_of_the_largest_cosine_once_scripts_are_taken_out() -> None:
    read = read_in_pairs(40)
    scripts = np.array(["LATIN", "GREEK"])[np.arange(80) % 2]
    common = np.random.default_rng(1).normal(size=(2, 24)) * 9
    unit = read / np.linalg.norm(read, axis=1, keepdims=True)
    near, cosines = neighbours.nearest((unit + common[np.arange(80) % 2]).astype(np.float32), scripts)
    assert near.shape == cosines.shape == (80, neighbours.NEIGHBOURS)
    assert near[:, 0].tolist() == (np.arange(80) ^ 1).tolist()  # in the other script
    assert (np.diff(cosines) <= 0).all() and cosines[:, 0].min() > 0.5
    assert (near != np.arange(80)[:, None]).all()


def test_many_tokens_are_searched_in_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_in_pairs(600)
    scripts = np.full(1200, "LATIN")
    exact, _ = neighbours.nearest(read, scripts)
    monkeypatch.setattr(neighbours, "LIST_SIZE", 60)
    found, _ = neighbours.nearest(read, scripts)
    assert (found[:, 0] == exact[:, 0]).mean() > 0.95
    assert not np.array_equal(found, exact)


def test_a_token_that_the_teacher_has_not_read_is_near_none() -> None:
    read = read_in_pairs(2)
    read[3] = 0
    near, cosines = neighbours.nearest(read, np.full(4, "LATIN"))
    assert sorted(near[0].tolist()) == [-1] * 30 + [1, 2]
    assert (near[3] == -1).all() and np.isneginf(cosines[3]).all()
    vectors = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    moved = neighbours.drawn(vectors, near, cosines, np.zeros(4, np.int64))
    torch.testing.assert_close(moved[3], vectors[3])
    assert (moved[:3] * vectors[:3]).sum(1).max() < 0.99


def test_the_fewer_uses_the_more_a_token_is_drawn() -> None:
    vectors = torch.eye(8)[:3] * 5
    near = np.array([[1, 2], [0, 2], [0, 1]])
    cosines = np.array([[0.9, 0.4], [0.9, 0.4], [0.4, 0.4]], np.float32)
    moved = neighbours.drawn(vectors, near, cosines, np.array([0, 30, 10**9]))
    weights = torch.softmax(10 * torch.tensor([0.9, 0.4]), 0)
    goal = F.normalize(weights[0] * torch.eye(8)[1] + weights[1] * torch.eye(8)[2], dim=0)
    torch.testing.assert_close(moved[0], F.normalize(torch.eye(8)[0] + 0.6 * goal, dim=0))
    goal = F.normalize(weights[0] * torch.eye(8)[0] + weights[1] * torch.eye(8)[2], dim=0)
    torch.testing.assert_close(moved[1], F.normalize(torch.eye(8)[1] + 0.3 * goal, dim=0))
    torch.testing.assert_close(moved[2], torch.eye(8)[2])
