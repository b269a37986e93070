"""Pairs as they are drawn, and the loop."""

import json
from pathlib import Path

import numpy as np
import torch
from samples import letters

from rwkv_embed.training import contrast, loop
from rwkv_embed.training.data import Texts
from rwkv_embed.training.delta import DeltaBag
from rwkv_embed.training.model import Bag
from rwkv_embed.training.table import TokenTable


def test_pairs_belong_together(rows: contrast.Rows, tmp_path: Path) -> None:
    tokenizer = letters(tmp_path)
    pairs = contrast.Pairs(rows, seed=0)

    def words(tokens: np.ndarray) -> list[str]:
        return str(tokenizer.decode(tokens.tolist())).split()

    drawn = pairs.translations(40)
    for left, right in zip(drawn.left, drawn.right, strict=True):
        a, b = words(left)[0], words(right)[0]
        assert a[-1] == b[-1] and a[:-1] != b[:-1]
    drawn = pairs.questions(4)
    assert len(drawn.left) == 4 and len(set(drawn.meaning)) == 1
    assert {" ".join(words(left)) for left in drawn.left} == {"wer?", "was?"}


def test_surroundings_are_paragraphs_around_an_excerpt(rows: contrast.Rows) -> None:
    drawn = contrast.Pairs(rows, seed=0).surroundings(30)
    assert len(drawn.left) == len(drawn.right) == 30
    texts = [rows.text(i).tobytes() for i in range(len(rows.row))]
    for excerpt, paragraph in zip(drawn.left, drawn.right, strict=True):
        assert 4 <= len(excerpt) <= 20
        assert any(excerpt.tobytes() in text for text in texts)
        assert len(paragraph) <= contrast.MAX_TOKENS


def test_rows_survive_saving(rows: contrast.Rows, tmp_path: Path) -> None:
    rows.save(tmp_path / "rows.npz")
    again = contrast.Rows.load(tmp_path / "rows.npz")
    assert again.names == rows.names and again.row.tolist() == rows.row.tolist()
    assert [again.text(i).tolist() for i in range(5)] == [rows.text(i).tolist() for i in range(5)]


def sources(rows: contrast.Rows) -> loop.Sources:
    """Forty texts of ten random tokens, with random targets."""
    rng = np.random.default_rng(0)
    texts = Texts(
        rng.integers(1, 50, 400).astype(np.int32),
        np.arange(0, 401, 10),
        np.arange(40, dtype=np.int32),
        np.zeros(40, np.int32),
    )
    targets = rng.normal(size=(40, 384)).astype(np.float32)
    return loop.Sources(texts, targets / np.linalg.norm(targets, axis=1, keepdims=True), rows)


def test_training_resumes_where_it_stopped(rows: contrast.Rows, tmp_path: Path, monkeypatch) -> None:
    """Steps are counted on, tokens too; a run whose time is over takes no further step."""
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    entries: list[dict[str, float]] = []
    stopped = []
    for minutes in (0.02, 0.02, 0.08):
        torch.manual_seed(0)
        bag = Bag(torch.randn(300, 384), torch.rand(300))
        loop.train(
            bag,
            TokenTable(bag.emb),
            sources(rows),
            loop.Schedule(1e-3, 1e-3, minutes, loop.Mixture(16, 8, 8, 4)),
            tmp_path / "bag.pt",
            entries.append,
        )
        stopped.append(torch.load(tmp_path / "bag.pt", weights_only=True)["progress"])
    assert stopped[1] == stopped[0] and stopped[2]["step"] > stopped[0]["step"] >= 1
    assert 0.02 <= stopped[0]["minutes"] < 0.08 <= stopped[2]["minutes"] < 0.4
    assert [entry["step"] for entry in entries] == list(range(1, stopped[2]["step"] + 1))
    last, next_ = entries[stopped[0]["step"] - 1]["losses"], entries[stopped[0]["step"]]["losses"]
    assert next_[0] > 0.3 * last[0]  # a mean of what was seen since, not of that and zeros
    assert entries[-1]["tokens"] == stopped[2]["tokens"] > stopped[0]["tokens"]
    assert json.loads(json.dumps(entries)) == entries  # plain numbers only


def test_a_frozen_table_stays_and_what_pools_it_learns(rows: contrast.Rows, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bag = Bag(torch.randn(300, 128), torch.rand(300))
    delta, table = DeltaBag(bag), TokenTable(bag.emb)
    before = {name: value.clone() for name, value in delta.state_dict().items()}
    schedule = loop.Schedule(1e-3, 0.0, 0.01, loop.Mixture(16, 8, 8, 4))
    loop.train(delta, table, sources(rows), schedule, tmp_path / "delta.pt", lambda entry: None)
    changed = {name for name, value in delta.state_dict().items() if not torch.equal(value, before[name])}
    assert {"key", "a0", "reads"} <= changed and not any(name.startswith("bag.") for name in changed)
    assert torch.equal(table.weight, before["bag.emb"]) and not table.steps.any()


def test_only_a_table_that_learns_asks_for_a_gradient() -> None:
    bag = Bag(torch.randn(50, 128), torch.rand(50))
    packed, starts = torch.tensor([5, 6, 0]), torch.tensor([0, 3])
    for frozen in (False, True):
        _, used, vectors = loop.encode(bag.requires_grad_(False), TokenTable(bag.emb), packed, starts, frozen)
        assert used.requires_grad is vectors.requires_grad is not frozen
