"""The training machinery against the slow obvious one: table, bag, pooling, packing, mixture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from safetensors.numpy import load_file

from rwkv_embed.coding import CodedMatrix
from rwkv_embed.ops.fast import FastRWKV7
from rwkv_embed.tokenizer import FileTokenizer
from rwkv_embed.training import align, contrast, finish, languages, loop
from rwkv_embed.training.axes import principal_axes
from rwkv_embed.training.data import Texts
from rwkv_embed.training.delta import DeltaBag
from rwkv_embed.training.export import export
from rwkv_embed.training.finish import mix, whiten
from rwkv_embed.training.loss import contrastive_loss, distillation_loss, neighbour_loss
from rwkv_embed.training.model import (
    Bag,
    Head,
    RWKV7Embedder,
    importance_of,
    importance_reach,
    interleaved,
)
from rwkv_embed.training.quantize import quantize
from rwkv_embed.training.table import TokenNetwork, TokenTable, of_unit_size, rounded, training_steps
from rwkv_embed.training.vocabulary import build_tokenizer, by_use


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
    export(model, table, tmp_path / "model.safetensors")
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


def test_no_language_has_an_offset_after_centring_and_unseen_tokens_stay() -> None:
    random = np.random.default_rng(0)
    usage = np.zeros((60, 3), np.float32)
    for language, tokens in enumerate((range(0, 30), range(20, 45), range(40, 55))):  # they share tokens
        usage[tokens, language] = random.integers(1, 90, len(tokens))
    rarity = random.uniform(0.2, 1.0, 60).astype(np.float32)
    vectors = random.normal(size=(60, 8)).astype(np.float32)
    vectors[:30] += 2.0
    vectors[40:55] -= 3.0

    def offsets(of: np.ndarray) -> np.ndarray:
        weight = usage * rarity[:, None]
        return np.linalg.norm((weight / weight.sum(0)).T @ of, axis=1)

    centred = vectors.copy()
    languages.centre_by_language(centred, usage, rarity)
    assert (offsets(centred) < 0.1 * offsets(vectors)).all()
    assert (centred[55:] == vectors[55:]).all()
    distance = np.linalg.norm(vectors[0] - vectors[1]) - np.linalg.norm(centred[0] - centred[1])
    assert abs(distance) < 1e-5  # within a language nothing but the offset has changed


def test_usage_counts_tokens_in_the_languages_of_enough_text(rows: contrast.Rows, monkeypatch) -> None:
    monkeypatch.setattr(languages, "LEAST_TOKENS", 60)
    usage = languages.usage_by_language(rows, 400)
    sizes = {
        name: sum(len(rows.text(i)) for i in np.flatnonzero(rows.language == n))
        for n, name in enumerate(rows.names["languages"])
    }
    assert usage.sum(0).tolist() == [size for size in sizes.values() if size >= 60]
    german = rows.names["languages"].index("de")
    expected = np.bincount(
        np.concatenate([rows.text(i) for i in np.flatnonzero(rows.language == german)]), minlength=400
    )
    assert usage[:, german].tolist() == expected.tolist()


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


def test_perfect_student_has_no_loss_and_a_wrong_one_has() -> None:
    targets = torch.nn.functional.normalize(
        torch.randn(8, 384, generator=torch.Generator().manual_seed(0)), dim=1
    )
    others = targets.flip(1)
    assert distillation_loss(3 * targets, targets, others) == pytest.approx(0.0, abs=1e-5)
    assert distillation_loss(-targets, targets, others) > 4.0


def test_a_student_in_other_axes_needs_only_the_teachers_neighbours() -> None:
    torch.manual_seed(0)
    targets = torch.nn.functional.normalize(
        torch.randn(12, 160, generator=torch.Generator().manual_seed(0)), dim=1
    )
    line = torch.arange(12) // 2  # two texts of each line: their targets are the same
    targets[1::2] = targets[::2]
    narrow = torch.linalg.svd(targets)[2][:12].T  # axes that hold all targets
    student = torch.nn.functional.pad(targets @ narrow, (0, 200))
    assert neighbour_loss(3 * student, targets, line) == pytest.approx(0.0, abs=1e-5)
    assert neighbour_loss(student.flip(0)[torch.randperm(12)], targets, line) > 0.05
    moved = student.clone()
    moved[1] = torch.randn(212)  # it is the other text of line 0
    assert neighbour_loss(moved, targets, line) > 0.01


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
    for rank, step in ((1, 0.25), (1_000, 0.262), (20_000, 0.262 * 20**0.3)):
        row = off[257 + rank]
        assert (
            row.max() <= 0.6 * step
        )  # the nearest symbol's mean; a little more than half of a step goes to zero
        assert row.max() >= 0.4 * step
    assert np.unique(quantized.symbols[-1]).size < np.unique(quantized.symbols[0]).size


def test_the_exported_table_is_the_quantized_one(tmp_path: Path) -> None:
    bag = small_bag()
    table = quantize(bag.emb.detach().numpy())
    export(RWKV7Embedder.from_bag(bag, 0, 1, 64), table, tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    prefix = "rwkv.emb.weight."
    coded = {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}
    assert np.array_equal(CodedMatrix.from_tensors("emb.weight", coded).decode(), table.rows())
    assert tensors["head.retr_head.fc1.weight"].dtype == np.float16


@pytest.mark.parametrize("channels", [128, 192, 512])
def test_axes_are_dealt_to_the_heads_in_turn(channels: int) -> None:
    dealt = interleaved(channels)
    torch.testing.assert_close(
        dealt @ torch.arange(channels).float()[:, None],
        torch.cat(
            [torch.arange(head, channels, channels // 64)[:, None].float() for head in range(channels // 64)]
        ),
    )


def test_vocabulary_is_ordered_by_use_and_has_tokens_for_every_text() -> None:
    pieces = [("<s>", 0.0), ("▁the", -2.0), ("▁", -3.0), ("h", -6.0), ("e", -5.0), ("n", -6.0)]
    order = by_use(pieces, np.array([0, 9, 1, 5, 1, 1]))
    assert [pieces[i][0] for i in order] == ["▁the", "h", "▁", "e", "n"]
    tokenizer = build_tokenizer([pieces[i] for i in order])
    assert tokenizer.encode("the  then", add_special_tokens=False).tokens == ["▁the", "▁the", "n"]
    assert tokenizer.decode(tokenizer.encode("the 数𓀀", add_special_tokens=False).ids) == "the 数𓀀"


def test_contrast_is_cross_entropy_in_both_directions_and_knows_equal_meanings() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(3, 384, generator=generator), torch.randn(3, 384, generator=generator)
    meaning = torch.tensor([4, 9, 4])
    expected = []
    for dim in (128, 384):
        a, b = (x[:, :dim] / x[:, :dim].norm(dim=1, keepdim=True) for x in (left, right))
        score = torch.exp(a @ b.T / 0.05)
        for i, others in ((0, [0, 1]), (1, [0, 1, 2]), (2, [1, 2])):  # 0 and 2 mean the same
            expected.append(-torch.log(score[i, i] / score[i, others].sum()))
            expected.append(-torch.log(score[i, i] / score[others, i].sum()))
    assert contrastive_loss(left, right, meaning).item() == pytest.approx(
        torch.stack(expected).mean().item(), rel=1e-5
    )


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


@pytest.fixture
def rows(tmp_path: Path) -> contrast.Rows:
    """A corpus of eight numbered sentences in three languages, and two questions on one passage."""
    for source in (*contrast.TRANSLATIONS, *contrast.QUESTIONS):
        with zstandard.open(tmp_path / f"{source}.jsonl.zst", "wt", encoding="utf-8") as file:
            if source == "par_newstest":
                for i in range(8):
                    texts = {language: " ".join([f"{language}{i}"] * 6) for language in ("de", "en", "sw")}
                    file.write(json.dumps(texts) + "\n")
            if source == "pair_nativeqa":
                for question in ("wer?", "was?"):
                    file.write(json.dumps({"l": "de", "q": question, "p": "Das ist die Passage."}) + "\n")
    return contrast.read_rows(tmp_path, letters(tmp_path))


def letters(folder: Path) -> FileTokenizer:
    build_tokenizer([(f"▁{c}", -1.0) for c in "abc"]).save(str(folder / "tokenizer.json"))
    return FileTokenizer(folder / "tokenizer.json")


def test_a_token_is_aligned_with_what_translates_it_and_moves_there() -> None:
    """Token 7 is as near to the English 1 as to 2; its texts always have 2, and 1 has a better claimant there."""
    e = torch.eye(4)
    vectors = torch.zeros(9, 4)
    vectors[1], vectors[2], vectors[3] = e[0], e[1], e[2]  # English
    vectors[6], vectors[7], vectors[8] = e[0], e[0] + e[1], e[2]
    texts = [[1, 2, 3], [6, 7], [2, 3], [7, 8], [2, 2], [5, 5]]  # English and its translation, three rows of it
    rows = contrast.Rows(
        np.concatenate(texts).astype(np.int32),
        np.cumsum([0, *map(len, texts)]),
        np.array([0, 1] * 3, np.int16),
        np.repeat(np.arange(3, dtype=np.int32), 2),
        np.array([0, 0, len(contrast.TRANSLATIONS)], np.int16),  # the last one is a question and its passage
        {"sources": [*contrast.TRANSLATIONS, *contrast.QUESTIONS], "languages": ["en", "xx"]},
    )
    table = align.translation_table(rows, vectors, torch.ones(9)).to_dense()

    def likely(cosine: float) -> float:
        return float(np.exp(cosine / align.TEMPERATURE))

    nothing = likely(align.NOTHING)
    shared = likely(2**-0.5)
    # the row of 2, 3: 8 is the better one for 3
    alone = shared / (shared + 1 + nothing) * shared / (shared + 1 + nothing)
    # the row of 1, 2, 3: 7 has two words and 6 asks for the first
    both = shared / (2 * shared + 1 + nothing) * shared / (shared + 1 + nothing)
    assert table[7, 2].item() == pytest.approx(alone + both, rel=1e-5)
    assert table[7, 1] == 0 and table[5].sum() == 0
    assert table[6].argmax() == 1 and table[8].argmax() == 3

    unit = torch.nn.functional.normalize(vectors + 1e-3, dim=1)
    new = align.moved(unit, table.to_sparse())
    assert new[7] @ unit[2] > unit[7] @ unit[2] + 0.05
    torch.testing.assert_close(new[5], unit[5])  # nothing translates it
    assert new.norm(dim=1).tolist() == pytest.approx([1.0] * 9)


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


def test_training_resumes_where_it_stopped(rows: contrast.Rows, tmp_path: Path) -> None:
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
        bag = Bag(torch.randn(300, 384), torch.rand(300))
        loop.train(
            bag,
            TokenTable(bag.emb),
            loop.Sources(texts, targets, rows),
            loop.Schedule(1e-3, 1e-3, minutes, loop.Mixture(16, 8, 8, 4)),
            tmp_path / "bag.pt",
            entries.append,
        )
    progress = torch.load(tmp_path / "bag.pt", weights_only=True)["progress"]
    assert 0.04 <= progress["minutes"] < 0.2
    assert progress["minutes"] > 0.02 and progress["step"] >= 2
    assert json.dumps(entries)  # plain numbers only
