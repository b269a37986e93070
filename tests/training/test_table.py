"""The token table: updates, the token network, rounding in training and for shipping."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from samples import small_bag

from rwkv_embed.coding import CodedMatrix
from rwkv_embed.ops.fast import FastRWKV7
from rwkv_embed.sums import Sums
from rwkv_embed.training import loop
from rwkv_embed.training.export import export
from rwkv_embed.training.model import RWKV7Embedder, importance_reach
from rwkv_embed.training.quantize import quantize
from rwkv_embed.training.table import TokenNetwork, TokenTable, of_unit_size, rounded, training_steps


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


def test_what_a_sum_learns_its_parts_do() -> None:
    """The gradient of a sum's vector is that of its rows, and Adam moves these."""
    torch.manual_seed(0)
    sums = Sums.of(10, np.array([2, 7, 7], np.uint16), np.array([15, 4, 16], np.uint8), np.array([2, 1], np.uint8))
    table = TokenTable(torch.randn(10, 4), sums=sums)
    dense = table.weight.clone().requires_grad_()
    adam = torch.optim.Adam([dense], lr=0.1, betas=(0.9, 0.98))
    for _ in range(3):
        distinct, rows, index = table.gather(torch.tensor([10, 3, 11, 10]))
        assert torch.allclose(rows[index[0]], table.weight[2] * 15 / 16 + table.weight[7] / 4)
        rows[index].pow(3).sum().backward()
        table.update(distinct, rows.grad, 0.1)
        adam.zero_grad()
        first, second = dense[2] * 15 / 16 + dense[7] / 4, dense[7]
        torch.stack([first, dense[3], second, first]).pow(3).sum().backward()
        adam.step()
    assert torch.allclose(table.weight, dense, atol=1e-5)


def test_the_token_network_starts_as_nothing_and_moves_tokens_that_are_never_seen() -> None:
    """Its rule is a turn of all vectors: taught on 40 tokens, it holds for 10 more, whose rows stand still."""
    torch.manual_seed(0)
    start, turn = of_unit_size(torch.randn(50, 16)), torch.linalg.qr(torch.randn(16, 16)).Q
    table = TokenTable(start, TokenNetwork(torch.arange(50) % 2, 16, 64))
    seen, unseen = torch.arange(40), torch.arange(40, 50)
    assert torch.allclose(table.folded().weight, start / 4)  # of length 1: 4 is the root of 16

    def distance(tokens: torch.Tensor) -> float:
        return (table.moved(tokens, table.weight[tokens]) - start[tokens] @ turn).norm(dim=1).mean().item()

    before = distance(unseen)
    adam = torch.optim.Adam(table.parameters(), lr=3e-3)
    for _ in range(200):
        distinct, rows, index = table.gather(seen)
        adam.zero_grad()
        (table.moved(distinct, rows)[index] - start[seen] @ turn).square().sum().backward()
        adam.step()
        table.update(distinct, rows.grad, 1e-4)
    assert distance(seen) < 0.1 * before and distance(unseen) < 0.7 * before
    assert torch.equal(table.weight[unseen], start[unseen]) and not torch.equal(
        table.weight[seen], start[seen]
    )


def test_folding_the_network_in_changes_no_vector_and_a_checkpoint_keeps_it() -> None:
    bag = small_bag()
    network = TokenNetwork(torch.arange(50) % 3, 128, 32)
    torch.nn.init.normal_(network.fc2.weight, std=0.1)
    table = TokenTable(bag.emb, network, coarse=True)
    packed, starts = torch.tensor([5, 6, 7, 0, 8, 0]), torch.tensor([0, 4, 6])
    vectors = loop.encode(bag, table, packed, starts)[2]
    assert table.folded().network is None
    assert torch.allclose(table.folded().weight.norm(dim=1), bag.emb.new_ones(50))
    assert torch.allclose(loop.encode(bag, table.folded(), packed, starts)[2], vectors, atol=1e-5)
    again = TokenTable(torch.zeros(50, 128), TokenNetwork(network.scripts, 128, 32), coarse=True)
    again.load_state_dict(table.state_dict())
    assert torch.equal(loop.encode(bag, again, packed, starts)[2], vectors)


def test_training_rounds_rows_to_the_steps_of_their_rank_and_its_gradient_does_not_notice() -> None:
    table = torch.randn(20, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    steps = training_steps(torch.arange(99_990, 100_010), 128)
    assert (steps[:10, :-1] == 0.7).all() and (steps[10:, :-1] == 1.1).all()
    assert steps[:, -1] == pytest.approx(importance_reach(128) / 7)
    seen = rounded(table, steps)
    unit = table / table.square().mean(1, keepdim=True).sqrt()
    codes = seen / steps
    assert torch.allclose(codes, codes.round(), atol=1e-5) and codes.abs().max() <= 7.0001
    assert ((seen - unit).abs() <= 0.5001 * steps)[codes.abs() < 6.9].all()
    (seen * torch.arange(128)).sum().backward()
    straight = torch.autograd.grad((unit * torch.arange(128)).sum(), table)[0]
    assert torch.equal(table.grad, straight)
    coarse, plain = (TokenTable(table, coarse=coarse) for coarse in (True, False))
    tokens = torch.tensor([3, 7])
    assert torch.equal(plain.read(tokens, table[tokens]), table[tokens])
    expected = rounded(table[tokens], training_steps(tokens, 128))
    assert torch.equal(coarse.read(tokens, table[tokens]), expected)


def test_shipped_rows_have_steps_that_grow_with_their_rank() -> None:
    table = np.random.default_rng(0).normal(size=(30_000, 64)).astype(np.float32)
    quantized = quantize(7 * table)
    unit = table / np.sqrt(np.square(table).mean(1, keepdims=True))
    assert (np.diff(quantized.classes.astype(int)) >= 0).all()
    assert quantized.groups.tolist() == [0] * 32 + [1] * 32
    off = np.abs(quantized.rows() - unit)
    for rank, step in ((1, 0.2), (1_000, 0.2), (20_000, 0.2 * 20**0.2)):
        row = off[257 + rank]
        # the mean of those with its symbol; a little more than half of a step goes to zero
        assert row.max() <= 0.6 * step
        assert row.max() >= 0.4 * step
    assert np.unique(quantized.symbols[-1]).size < np.unique(quantized.symbols[0]).size


def test_the_exported_table_is_the_quantized_one(tmp_path: Path) -> None:
    bag = small_bag()
    table = quantize(bag.emb.detach().numpy())
    sums = Sums.of(50, np.array([3, 9, 4], np.uint16), np.array([15, 7, 15], np.uint8), np.array([2, 1], np.uint8))
    export(RWKV7Embedder.from_bag(bag, 0, 1, 64), table, sums, tmp_path, eos=7)
    tensors = load_file(tmp_path / "model.safetensors")
    prefix = "rwkv.emb.weight."
    coded = {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}
    assert np.array_equal(CodedMatrix.from_tensors("emb.weight", coded).decode(), table.rows())
    assert tensors["head.retr_head.fc1.weight"].dtype == np.float16
    stored = {name.removeprefix("rwkv."): values for name, values in tensors.items()}
    assert Sums.from_tensors(stored, 50).parts.tolist() == [3, 9, 4]
    assert FastRWKV7.from_file(tmp_path / "model.safetensors").config.vocab_size == 52
    settings = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert settings["eos_token_id"] == 7 and settings["dims"] == [128]
