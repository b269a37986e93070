"""The training machinery against the slow obvious one: kernel, table, bag, packing, mixture."""

import json

import numpy as np
import pytest
import torch

from rwkv_embed.packing import GROUP, LEVELS, pack_int4, unpack_int4
from rwkv_embed.training import distil
from rwkv_embed.training.loss import distillation_loss
from rwkv_embed.training.model import Bag, RWKV7Embedder
from rwkv_embed.training.table import TokenTable
from rwkv_embed.training.vocabulary import build_tokenizer, prune
from rwkv_embed.training.wkv7 import kernel, wkv7, wkv7_reference

STARTS = torch.tensor([0, 1, 16, 33, 70])  # lengths 1, chunk - 1, chunk + 1 and more than two chunks


def wkv_inputs(tokens: int = 70, channels: int = 128) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    r, w, k, v, kappa, rate = (torch.randn(tokens, channels, generator=generator) for _ in range(6))
    kappa = torch.nn.functional.normalize(kappa.view(tokens, -1, 64), dim=-1).flatten(1)
    return [x.clone().requires_grad_() for x in (r, w.sigmoid(), k, v, -kappa, kappa * rate.sigmoid())]


@pytest.mark.skipif(kernel() is None, reason="NO C COMPILER: the training kernel is not tested")
def test_kernel_equals_reference_and_its_gradients_equal_autograd_in_float64() -> None:
    inputs = wkv_inputs()
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = wkv7(*inputs, STARTS), wkv7_reference(*exact, STARTS)
    assert (y - expected).abs().max() <= 1e-6 * expected.abs().max()
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    y.backward(weight)
    expected.backward(weight.double())
    for ours, theirs in zip(inputs, exact, strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 2e-6 * theirs.grad.abs().max()


def small_bag() -> Bag:
    torch.manual_seed(0)
    bag = Bag(torch.randn(50, 128), torch.rand(50))
    with torch.no_grad():
        for parameter in bag.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return bag


def test_rwkv_starts_as_its_bag() -> None:
    """Exact up to decay and removal, which start near none, and the little that earlier layers add."""
    bag = small_bag()
    table = TokenTable(bag.emb)
    model = RWKV7Embedder.from_bag(bag, eos=0, n_layer=1, n_ffn=256)
    packed, starts = torch.tensor([5, 6, 7, 0, 8, 0, 9, 10, 11, 12, 13, 0]), torch.tensor([0, 4, 6, 12])
    from_bag = distil.encode(bag, table, packed, starts)[2]
    from_rwkv = distil.encode(model, table, packed, starts)[2]
    assert torch.nn.functional.cosine_similarity(from_bag, from_rwkv).min() > 0.999


def test_a_text_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    model = RWKV7Embedder(128, n_layer=3, n_ffn=256)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    table = TokenTable(torch.randn(50, 128))
    texts = [[0], [4, 0], [5, 6, 7, 8, 9, 0], [1] * 40 + [0]]

    def encode(batch: list[list[int]]) -> torch.Tensor:
        starts = torch.tensor([0, *np.cumsum([len(t) for t in batch])])
        packed = torch.tensor([token for text in batch for token in text])
        return distil.encode(model, table, packed, starts)[2]

    together = encode(texts)
    alone = torch.cat([encode([text]) for text in texts])
    assert (together - alone).abs().max() < 1e-5


def test_table_update_is_adam_on_the_rows_used() -> None:
    torch.manual_seed(0)
    table = TokenTable(torch.randn(10, 4))
    dense = table.weight.clone().requires_grad_()
    adam = torch.optim.Adam([dense], lr=0.1, betas=(0.9, 0.98))
    for _ in range(3):
        distinct, rows, index = table.gather(torch.tensor([7, 2, 7]))
        rows[index].square().sum().backward()
        table.update(distinct, rows.grad, 0.1)
        adam.zero_grad()
        dense[[7, 2, 7]].square().sum().backward()
        adam.step()
    assert torch.allclose(table.weight, dense, atol=1e-6)


def test_perfect_student_has_no_loss_and_a_wrong_one_has() -> None:
    targets = torch.nn.functional.normalize(
        torch.randn(8, 384, generator=torch.Generator().manual_seed(0)), dim=1
    )
    others = targets.flip(1)
    assert distillation_loss(3 * targets, targets, others) == pytest.approx(0.0, abs=1e-5)
    assert distillation_loss(-targets, targets, others) > 4.0


def test_int4_packing_keeps_every_value_within_half_a_step() -> None:
    table = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    packed, scale = pack_int4(table)
    assert packed.shape == (20, 32) and scale.shape == (20, 64 // GROUP)
    unpacked = unpack_int4(packed, scale)
    step = np.repeat(np.abs(table.reshape(20, -1, GROUP)).max(-1) / LEVELS, GROUP, axis=1)
    assert (np.abs(unpacked - table) <= 0.51 * step).all()


def test_vocabulary_keeps_single_characters_and_has_tokens_for_every_text() -> None:
    pieces = [
        ("▁the", -2.0),
        ("▁", -3.0),
        ("t", -6.0),
        ("h", -6.0),
        ("e", -6.0),
        ("▁then", -5.0),
        ("n", -6.0),
    ]
    kept = prune(pieces, np.array([9, 5, 1, 1, 1, 2, 1]), size=6)
    assert [pieces[i][0] for i in kept] == ["▁the", "▁", "t", "h", "e", "n"]
    tokenizer = build_tokenizer([pieces[i] for i in kept])
    assert tokenizer.encode("the  then", add_special_tokens=False).tokens == ["▁the", "▁the", "n"]
    assert tokenizer.decode(tokenizer.encode("the 数𓀀", add_special_tokens=False).ids) == "the 数𓀀"


def test_training_resumes_where_it_stopped(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from rwkv_embed.training.data import Texts

    rng = np.random.default_rng(0)
    texts = Texts(
        rng.integers(1, 50, 400).astype(np.int32),
        np.arange(0, 401, 10),
        np.arange(40, dtype=np.int32),
        np.zeros(40, np.int32),
    )
    targets = rng.normal(size=(40, 384)).astype(np.float32)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    entries: list[dict[str, float]] = []
    for minutes in (0.02, 0.04):
        torch.manual_seed(0)
        bag = Bag(torch.randn(50, 384), torch.rand(50))
        distil.train(
            bag,
            TokenTable(bag.emb),
            texts,
            targets,
            distil.Schedule(1e-3, 1e-3, minutes, batch_texts=16),
            tmp_path / "bag.pt",
            entries.append,
        )
    progress = torch.load(tmp_path / "bag.pt", weights_only=True)["progress"]
    assert 0.04 <= progress["minutes"] < 0.2
    assert progress["minutes"] > 0.02 and progress["step"] > 2
    assert json.dumps(entries)  # plain numbers only
