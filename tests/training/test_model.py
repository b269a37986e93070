"""The student: bag, delta rule and blocks, against each other, the checkpoint and the engine."""

from pathlib import Path

import numpy as np
import pytest
import torch
from samples import small_bag

from rwkv_embed.ops.fast import FastRWKV7
from rwkv_embed.training import loop
from rwkv_embed.training.delta import DeltaBag
from rwkv_embed.training.export import export
from rwkv_embed.training.model import Bag, RWKV7Embedder, interleaved
from rwkv_embed.training.quantize import quantize
from rwkv_embed.training.table import TokenTable


def test_rwkv_starts_as_its_bag() -> None:
    """Exact up to decay and removal, which start near none, and the little that earlier layers add."""
    bag = small_bag()
    table = TokenTable(bag.emb)
    model = RWKV7Embedder.from_bag(bag, eos=0, n_layer=1, n_ffn=256)
    packed, starts = torch.tensor([5, 6, 7, 0, 8, 0, 9, 10, 11, 12, 13, 0]), torch.tensor([0, 4, 6, 12])
    from_bag = loop.encode(bag, table, packed, starts)[2]
    from_rwkv = loop.encode(model, table, packed, starts)[2]
    assert torch.nn.functional.cosine_similarity(from_bag, from_rwkv).min() > 0.999


def trained_delta() -> DeltaBag:
    delta = DeltaBag(small_bag())
    with torch.no_grad():
        for name, parameter in delta.named_parameters():
            if not name.startswith("bag."):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return delta


def test_the_checkpoint_of_a_delta_bag_is_the_same_model(tmp_path: Path) -> None:
    """In torch, and in the engine from the file, up to float16."""
    delta = trained_delta()
    table = quantize(delta.bag.emb.detach().numpy())
    delta.bag.emb.data = torch.from_numpy(table.rows())
    model = delta.as_rwkv(eos=0, n_ffn=64)
    texts = [[5, 6, 7, 0], [8, 0], [9, 10, 11, 12, 13, 9, 9, 6, 0]]
    packed, starts = torch.tensor([token for text in texts for token in text]), torch.tensor([0, 4, 6, 15])
    vectors = delta(delta.bag.emb, packed, starts)
    torch.testing.assert_close(model(delta.bag.emb, packed, starts), vectors, rtol=0, atol=2e-3)
    export(model, table, None, tmp_path, eos=0)
    hidden, _ = FastRWKV7.from_file(tmp_path / "model.safetensors").hidden(texts, return_states=False)
    from_engine = model.head(torch.from_numpy(np.asarray(hidden)))
    assert torch.nn.functional.cosine_similarity(from_engine, vectors).min() > 0.9999


def test_what_a_text_repeats_counts_less_than_in_a_bag() -> None:
    """Alone two tokens have equal shares of a vector; twenty of the one leave the other more than a bag does."""
    torch.manual_seed(1)
    bag = Bag(torch.randn(50, 128), torch.ones(50))
    delta = DeltaBag(bag)
    packed, starts = torch.tensor([5] * 20 + [6, 0] + [6, 0]), torch.tensor([0, 22, 24])

    def share(module: Bag | DeltaBag) -> float:
        repeated, other = module(bag.emb, packed, starts).detach()
        return float(torch.nn.functional.cosine_similarity(repeated, other, dim=0))

    assert share(delta) > share(bag) + 0.1


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
        return loop.encode(model, table, packed, starts)[2]

    together = encode(texts)
    alone = torch.cat([encode([text]) for text in texts])
    assert (together - alone).abs().max() < 1e-5


@pytest.mark.parametrize("channels", [128, 192, 512])
def test_axes_are_dealt_to_the_heads_in_turn(channels: int) -> None:
    dealt = interleaved(channels)
    torch.testing.assert_close(
        dealt @ torch.arange(channels).float()[:, None],
        torch.cat(
            [torch.arange(head, channels, channels // 64)[:, None].float() for head in range(channels // 64)]
        ),
    )
