"""Axes: whitening, widening, mixing."""


import numpy as np
import pytest
import torch
from samples import small_bag

from rwkv_embed.training import finish, loop, matryoshka
from rwkv_embed.training.axes import Pairings, principal_axes, telling_apart
from rwkv_embed.training.finish import mix, nest, turn, whiten
from rwkv_embed.training.model import Head, importance_of
from rwkv_embed.training.table import TokenTable


def test_principal_axes_are_softened_by_their_deviation() -> None:
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    vectors = (random.normal(size=(20_000, 3)) * [1.0, 9.0, 4.0] @ turn).astype(np.float32)
    for whitening in (0.0, 0.5, 1.0):
        turned = vectors @ principal_axes(vectors, whitening)
        assert turned.std(0) == pytest.approx(np.array([9.0, 4.0, 1.0]) ** (1 - whitening), rel=0.02)
        assert np.corrcoef(turned.T) == pytest.approx(np.eye(3), abs=0.02)
    counted = np.zeros(20_000, np.float32)
    counted[:2] = 1.0
    assert (
        np.abs((vectors @ principal_axes(vectors, 0.0, counted))[:2, 2]).max() < 1e-2
    )  # a plane through two


@pytest.mark.parametrize("power", [0.0, 0.35])
def test_whitening_takes_the_mean_away_and_evens_the_axes_out(power: float) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 128, generator=generator)
    head = Head(128)
    with torch.no_grad():
        head.norm.weight.copy_(torch.linspace(4, 1, 128))
        head.norm.bias.fill_(0.3)
        before = head(inputs)
        whiten(head, before, power)
        after = head(inputs)
    assert after.mean(0).abs().max() < 1e-5
    spread = [x.std(0) / x.std(0).mean() for x in (before, after)]
    assert torch.allclose(spread[1], spread[0] ** (1 - power), rtol=0.05)


def test_texts_are_turned_to_their_axes_and_have_no_mean() -> None:
    bag, generator = small_bag(), torch.Generator().manual_seed(1)
    packed = torch.randint(1, 50, (4_000,), generator=generator)
    packed[7::8] = 0
    starts = torch.arange(0, 4_001, 8)

    def measure() -> Pairings:
        with torch.no_grad():
            texts = loop.encode(bag, TokenTable(bag.emb), packed, starts)[2]
        return Pairings(texts, texts[:-1], texts[1:])

    measured = measure()
    before = torch.nn.functional.normalize(measured.texts, dim=1)
    strength = (before @ telling_apart(Pairings(before, before[:-1], before[1:]))).std(0)
    turn(bag, measure)
    after = measure().texts
    assert after.mean(0).abs().max() < 1e-4
    assert ((before - before.mean(0)).std(0).argmax() != 0) and after.std(0).argmax() == 0
    shape = after.std(0) / after.std(0).mean()
    assert torch.corrcoef(torch.stack([shape[:64], strength[:64]]))[0, 1] > 0.95


def likeness(vectors: torch.Tensor) -> torch.Tensor:
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return vectors @ vectors.T


def test_widened_rows_are_alike_where_both_of_their_sources_are(monkeypatch) -> None:
    monkeypatch.setattr(finish, "SHORTEST", 64)
    bag, generator = small_bag(), torch.Generator().manual_seed(3)
    read, usage = torch.randn(50, 64, generator=generator), torch.rand(50, generator=generator)
    rows = bag.emb.detach()
    both = torch.cat([rows[:, :-1] * bag.head.norm.weight.detach()[:-1], read], 1).split([127, 64], 1)
    wanted = sum(
        share**2 * likeness(part) for share, part in zip((1.0, finish.READ_SHARE), both, strict=True)
    )
    wide = finish.widen(bag, rows, read, usage, 192)
    assert wide.emb.shape == (50, 192)  # 127 + 64 axes and the importance
    assert torch.allclose(likeness(wide.emb.detach()[:, :64]), likeness(both[0][:, :64]), atol=1e-4)
    assert torch.allclose(likeness(wide.emb.detach()[:, :-1]), wanted / wanted[0, 0], atol=1e-4)
    importance = importance_of(bag, rows)
    assert torch.allclose(importance_of(wide, wide.emb.detach()), importance, atol=0.05)
    assert importance.min() < 0.1 and importance.max() > 0.9

    monkeypatch.setattr(finish, "READ_SHARE", 0.0)  # then the texts are as alike as before
    alone = finish.widen(bag, rows, read, usage, 192)
    packed, starts = torch.tensor([5, 6, 7, 0, 8, 0, 9, 10, 5, 12, 13, 0]), torch.tensor([0, 4, 6, 12])
    before, after = (likeness(loop.encode(b, TokenTable(b.emb), packed, starts)[2]) for b in (bag, alone))
    assert torch.allclose(before, after, atol=0.05) and before.min() < 0.5


def test_the_mixed_table_lies_between_the_two() -> None:
    assert mix(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 7.0]])).tolist() == [
        [pytest.approx(0.35), pytest.approx(0.65)]
    ]


def test_first_numbers_have_the_neighbours_that_all_of_them_have(monkeypatch) -> None:
    """Twelve kinds of text on weak axes and, of more variance, what no two texts of a kind share."""
    monkeypatch.setattr(matryoshka, "SHORT", {6: 1.0, 12: 0.7})
    monkeypatch.setattr(matryoshka, "RATE", 1e-2)
    monkeypatch.setattr(matryoshka, "STEPS", 120)
    monkeypatch.setattr(matryoshka, "PAIRS", 96)
    generator = torch.Generator().manual_seed(0)
    kinds = torch.eye(12)[torch.randint(0, 12, (800,), generator=generator)]

    def drawn() -> torch.Tensor:
        single = torch.nn.functional.one_hot(torch.randint(0, 36, (800,), generator=generator), 36)
        return torch.nn.functional.normalize(torch.cat([kinds, 1.3 * single], 1), dim=1)

    left, right = drawn(), drawn()
    axes = matryoshka.nested_axes([(left, right)])
    assert torch.allclose(axes.T @ axes, torch.eye(48), atol=1e-4)
    assert torch.allclose(likeness(left @ axes), likeness(left), atol=1e-4)
    principal = torch.from_numpy(principal_axes(torch.cat([left, right]).numpy(), 0.0))
    lost = [matryoshka._divergence(torch.cat([left, right]), turned).item() for turned in (axes, principal)]
    assert lost[0] < 0.9 * lost[1]
    rest = (torch.cat([left, right]) @ axes[:, 12:]).square().mean(0)
    assert torch.all(rest[1:] <= rest[:-1] * 1.001)  # the strongest first


def test_a_layer_puts_out_the_nested_axes(monkeypatch) -> None:
    bag, asked = small_bag(), []
    axes = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(2))).Q

    def nested_axes(kinds: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        asked.extend(kinds)
        return axes

    monkeypatch.setattr(finish, "nested_axes", nested_axes)
    before = bag.output.clone()
    nest(bag, [(torch.full((2, 128), 3.0), torch.ones(2, 128))])
    assert torch.equal(bag.output, axes.T @ before)
    assert torch.allclose(torch.cat(asked[0]).norm(dim=1), torch.ones(4))
