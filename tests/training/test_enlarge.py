"""Words as tokens, and tokens as sums of rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rwkv_embed.tokenizer import FileTokenizer
from rwkv_embed.training import contrast, data, enlarge, neighbours, sparse, words
from rwkv_embed.training.model import Bag, importance_of
from rwkv_embed.training.vocabulary import FIRST_PIECE, build_tokenizer

PIECES = [("▁wa", -3.0), ("ter", -3.5), ("▁", -4.0), (",", -4.5), ("▁fire", -5.0), ("fall", -5.2)]
PIECES += [("s", -5.5), ("水", -6.0)]
PIECES += [(letter, -9.0) for letter in "abcdefghijklmnopqrtuvwxyz"]


def tokens_of(*pieces: str) -> list[int]:
    return [FIRST_PIECE + [piece for piece, _ in PIECES].index(one) for one in pieces]


def rows_of(texts: list[str], tokenizer) -> contrast.Rows:
    """Texts in turn English and another language, two of them a row."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    n = len(texts)
    return contrast.Rows(
        np.concatenate(encoded).astype(np.int32), np.cumsum([0, *map(len, encoded)]),
        np.array([0, 1] * (n // 2), np.int16), np.repeat(np.arange(n // 2, dtype=np.int32), 2),
        np.zeros(n // 2, np.int16),
        {"sources": [*contrast.TRANSLATIONS, *contrast.QUESTIONS], "languages": ["en", "xx"]},
    )  # fmt: skip


def test_words_of_several_pieces_are_collected_by_use() -> None:
    texts = ["water, water, waterfalls", "firefalls 水水", "water fire once", "firefalls"]
    rows = rows_of(texts, build_tokenizer(PIECES))
    water, falls = tuple(tokens_of("▁wa", "ter")), tuple(tokens_of("▁fire", "fall", "s"))
    assert words.collect(rows, PIECES) == [falls, water]  # two of two in their language, three of four in theirs
    found = words.as_pieces([water, falls], PIECES)
    assert found == [("▁water", -6.0), ("▁firefalls", -15.0)]
    larger = build_tokenizer([*PIECES, *found])
    first = FIRST_PIECE + len(PIECES)
    encoded = larger.encode("water, waterfalls firefalls fire", add_special_tokens=False).ids
    assert encoded == [first, *tokens_of(","), first, *tokens_of("fall", "s"), first + 1, *tokens_of("▁fire")]


def test_a_word_that_begins_as_another_does_is_taken_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [("▁wa", -3.0), ("ter", -3.9), ("s", -5.3), *((letter, -9.0) for letter in "abcdefgh")]
    wa, ter, s = range(FIRST_PIECE, FIRST_PIECE + 3)
    found = words.as_pieces([(wa, ter), (wa, ter, s)], pieces)
    assert found == [("▁water", -6.0), ("▁waters", -12.0)]  # -6.9 is rounded up by more than -12.2
    cut = build_tokenizer([*pieces, *found]).encode("waters", add_special_tokens=False)
    assert cut.tokens == ["▁water", "s"]

    monkeypatch.setattr(enlarge, "STORED_ROWS", FIRST_PIECE + len(pieces) - 1)
    bag = Bag(torch.randn(FIRST_PIECE + len(pieces), 64), torch.rand(FIRST_PIECE + len(pieces)))
    teacher = F.normalize(bag.emb.detach()[:, :-1], dim=1).numpy()
    texts = ["waters water", "water waters"]
    lengths = []

    def tokenize(tokenizer, folder: Path) -> tuple[data.Texts, contrast.Rows]:
        read = rows_of(texts, tokenizer._rust)
        lengths.append((folder.name, len(read.tokens)))
        return data.Texts(read.tokens.copy(), read.offsets, np.zeros(2, np.int32), np.zeros(2, np.int32)), read

    enlarge.enlarge(
        bag, pieces, teacher, torch.zeros(len(teacher)), rows_of(texts, build_tokenizer(pieces)), tokenize,
        lambda found: teacher[[wa, s]], lambda tokens, *_: tokens, tmp_path,
    )  # fmt: skip
    assert lengths[0] == ("words", 4)


def test_a_word_is_collected_once_however_it_was_cut() -> None:
    whole = [*PIECES, ("▁w", -4.0), ("▁fi", -4.0), ("re", -4.0)]
    rows = rows_of(["water", "w"] * 2, build_tokenizer(PIECES))
    n = len(PIECES)
    spelled = [tuple(FIRST_PIECE + i for i in cut) for cut in ((0, 1), (n, 8, 1), (n + 1, n + 2))]
    rows.tokens = np.concatenate([*spelled, *spelled, spelled[0]]).astype(np.int32)
    rows.offsets = np.cumsum([0, *map(len, [*spelled, *spelled, spelled[0]])])
    rows.language = np.zeros(7, np.int16)
    assert words.collect(rows, whole) == [spelled[0]]  # w-a-ter is the same word, and fi-re a piece


def test_a_space_may_be_a_piece_of_its_own() -> None:
    rows = rows_of(["falls falls", "fall, s", "▁ ▁", "falls"], build_tokenizer(PIECES))
    assert words.collect(rows, PIECES) == [tuple(tokens_of("▁", "fall", "s"))]
    spans = words.runs(rows, PIECES)
    assert spans.lengths.tolist() == [3, 3, 2, 2, 3]  # not the spaces that nothing follows


def test_words_end_with_their_text_and_with_their_letters() -> None:
    rows = rows_of(["wa", "ter", "wa,ter", "wa ter"], build_tokenizer([*PIECES[:4], *PIECES[8:]]))
    assert words.collect(rows, [*PIECES[:4], *PIECES[8:]]) == [tuple(tokens_of("▁", "ter"))]  # twice


def test_a_goal_is_half_the_pieces_and_more_than_half_what_the_teacher_reads() -> None:
    torch.manual_seed(0)
    V, C = 400, 16
    rows = torch.cat([F.normalize(torch.randn(V, C - 1), dim=1) * 4, torch.zeros(V, 1)], 1)
    turn = torch.linalg.qr(torch.randn(C - 1, C - 1)).Q
    scripts = np.array(["LATIN", "GREEK", "-"])[np.arange(V) % 3]
    teacher = (F.normalize(rows[:, :-1], dim=1) @ turn).numpy()
    importance = torch.rand(V) + 0.5
    reading = words.Reading.fit(rows, importance, teacher, scripts, torch.full((V,), 50))
    found = [(5, 9), (6, 2, 8)]  # 2 and 8 have no script
    meant = F.normalize(torch.randn(2, C - 1), dim=1)
    goals, sizes = reading.goals(found, (meant @ turn).numpy() * 7)
    for word, goal, size, whole in zip(found, goals, sizes, meant, strict=True):
        summed = sum(rows[token, :-1] * importance[token] for token in word)
        assert size.item() == pytest.approx(summed.norm().item(), rel=1e-5)
        expected = F.normalize(F.normalize(summed, dim=0) + words.READ_WHOLE * whole, dim=0)
        torch.testing.assert_close(goal, expected, atol=2e-3, rtol=0)


def test_a_sum_of_three_rows_is_found_again() -> None:
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(500, 256), dim=1)
    which = torch.stack([torch.randperm(500)[:3] for _ in range(40)])
    shares = torch.tensor([1.0, 0.7, 0.5])
    goals = F.normalize((rows[which] * shares[:, None]).sum(1), dim=1)
    parts, weights, cosine = sparse.pursue(goals, rows)
    assert cosine.min() > 0.99 and parts.shape == weights.shape == (40, sparse.MOST)
    for row in range(40):
        used = parts[row][weights[row] > 0.1].tolist()
        assert sorted(used) == sorted(which[row].tolist())
    table = rows * torch.rand(500, 1).add(0.5)  # stored rows have any length
    sums = sparse.as_sums(parts, weights, table)
    assert int(sums.shares.max()) == sparse.STEPS and (np.diff(sums.starts) <= sparse.MOST).all()
    found = torch.from_numpy(sums.vectors(np.arange(500, 540), lambda rows: table.numpy()[rows]))
    assert (F.normalize(found, dim=1) * goals).sum(1).min() > 0.98


def test_a_part_that_gains_little_is_left_out() -> None:
    rows = torch.eye(8)
    goals = F.normalize(torch.tensor([[1.0, 0.5, 0.05, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1.0]]), dim=1)
    parts, weights, cosine = sparse.pursue(goals, rows)
    assert (weights > 0).sum(1).tolist() == [2, 1] and parts[0, :2].tolist() == [0, 1] and parts[1, 0] == 7
    assert cosine[1] == pytest.approx(1, abs=1e-3) and 0.99 < cosine[0] < 1
    opposite, none, _ = sparse.pursue(-goals[1:], rows[7:])  # like no row: some sum all the same
    assert sparse.as_sums(opposite, none, rows[7:]).shares.tolist() == [1]


def test_rows_are_kept_for_what_translates_and_for_what_is_used_most() -> None:
    translates = np.zeros(FIRST_PIECE + 10, bool)
    translates[[FIRST_PIECE + 9, FIRST_PIECE + 4]] = True
    kept = enlarge.stored_tokens(translates, FIRST_PIECE + 5)
    assert kept.tolist() == [*range(FIRST_PIECE + 3), FIRST_PIECE + 4, FIRST_PIECE + 9]


def test_a_larger_vocabulary_reads_the_same_texts_and_its_sums_lie_at_their_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows of text, read by a teacher for whom `firefalls` is what `water` is."""
    monkeypatch.setattr(enlarge, "STORED_ROWS", FIRST_PIECE + len(PIECES) - 1)
    torch.manual_seed(0)
    V = FIRST_PIECE + len(PIECES)
    bag = Bag(torch.randn(V, 64), torch.rand(V))
    texts = ["water, water, waterfalls", "firefalls 水 firefalls", "fire water", "water firefalls"]
    teacher = F.normalize(bag.emb.detach()[:, :-1], dim=1).numpy()

    def tokenize(tokenizer, folder: Path) -> tuple[data.Texts, contrast.Rows]:
        assert (folder / "tokenizer.json").is_file()
        read = rows_of(texts, tokenizer._rust)
        return data.Texts(read.tokens.copy(), read.offsets, np.zeros(4, np.int32), np.zeros(4, np.int32)), read

    def read_words(found: list[words.Word]) -> np.ndarray:
        assert len(found) == 2
        return teacher[[tokens_of("▁wa")[0]] * 2]

    asked = []

    def drawn(*given: Any) -> torch.Tensor:
        asked.append(given)
        return neighbours.drawn(*given)

    monkeypatch.setattr(enlarge, "drawn", drawn)
    before = rows_of(texts, build_tokenizer(PIECES))
    large = enlarge.enlarge(
        bag, PIECES, teacher, torch.zeros(V), before, tokenize, read_words, lambda tokens, *_: tokens, tmp_path
    )
    tokenizer = FileTokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.vocab_size == V + 2 == len(large.table.symbols) + len(large.sums)
    assert len(large.sums) == 3  # two words, and the piece that is used least
    [(vectors, near, cosines, uses)] = asked  # of all tokens, words last
    assert len(vectors) == V + 2 and sorted(uses[V:].tolist()) == [3, 5]
    for word, other in ((V, V + 1), (V + 1, V)):  # read as each other are, and as `wa`
        assert sorted(near[word, :2].tolist()) == sorted([other, *tokens_of("▁wa")])
        np.testing.assert_allclose(cosines[word, :2], 1, atol=1e-5)
    for i, text in enumerate(texts):
        assert large.rows.text(i).tolist() == tokenizer.encode(text) == large.texts.text(i).tolist()
        assert tokenizer.decode(large.rows.text(i).tolist()) == text
    assert len(large.rows.tokens) < len(before.tokens)
    last = len(large.table.symbols) + np.arange(3)
    assert [tokenizer.decode([token]) for token in last] == ["z", "firefalls", "water"]
    rows = F.layer_norm(bag.emb.detach(), (64,))
    reading = words.Reading.fit(
        rows, importance_of(bag, rows), teacher, enlarge.scripts_of([("", 0.0)] * FIRST_PIECE + PIECES),
        torch.from_numpy(np.bincount(before.tokens, minlength=V)),
    )  # fmt: skip
    goals, _ = reading.goals([tuple(tokens_of("▁fire", "fall", "s"))], teacher[tokens_of("▁wa")])
    stored = large.table.rows()
    found = F.layer_norm(torch.from_numpy(large.sums.vectors(last, lambda rows: stored[rows])), (64,))[1:, :-1]
    assert F.cosine_similarity(found[:1], goals).item() > 0.7
    likeness = F.normalize(found, dim=1) @ F.normalize(rows[:, :-1], dim=1).T
    assert likeness.argmax(1).tolist() == tokens_of("▁wa") * 2  # what the teacher reads in both


def test_forms_that_texts_have_once_get_stems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enlarge, "STORED_ROWS", FIRST_PIECE + len(PIECES) - 1)
    torch.manual_seed(0)
    V = FIRST_PIECE + len(PIECES)
    bag = Bag(torch.randn(V, 64), torch.rand(V))
    teacher = F.normalize(bag.emb.detach()[:, :-1], dim=1).numpy()
    texts = ["firefalls water firefalling", "firefalls water"]
    folders = []

    def tokenize(tokenizer, folder: Path) -> tuple[data.Texts, contrast.Rows]:
        folders.append(folder.name)
        read = rows_of(texts, tokenizer._rust)
        return data.Texts(read.tokens.copy(), read.offsets, np.zeros(2, np.int32), np.zeros(2, np.int32)), read

    seen = []

    def learn_views(tokens, tokenizer, read, rows, translations):
        seen.append((tokens, tokenizer, [read.text(i).tolist() for i in range(2)], translations.shape))
        return tokens

    before = rows_of(texts, build_tokenizer(PIECES))
    large = enlarge.enlarge(
        bag, PIECES, teacher, torch.zeros(V), before, tokenize,
        lambda found: teacher[[tokens_of("▁wa")[0], tokens_of("▁fire")[0]][: len(found)]], learn_views, tmp_path,
    )  # fmt: skip
    assert folders == ["words", "stems"]
    [(tokens, tokenizer, learned_from, shape)] = seen
    assert [tokenizer.decode([token]) for token in range(V, V + 2)] == ["water", "firefall"]  # firefalls is rare
    assert len(tokens.vectors) == V + 2 and shape == (V + 2, V + 2)
    for form, ending in (("firefalls", ["s"]), ("firefalling", [*"ing"])):
        assert tokenizer.encode(form) == [V + 1, *tokens_of(*ending)]
    assert learned_from == tokenizer.encode_batch(texts)
    final = FileTokenizer(tmp_path / "tokenizer.json")
    assert [large.rows.text(i).tolist() for i in range(2)] == final.encode_batch(texts)
    assert final.decode(final.encode("firefalling")[:1]) == "firefall"


def test_a_table_of_translations_follows_its_tokens() -> None:
    table = torch.sparse_coo_tensor(
        torch.tensor([[0, 1, 2, 3], [1, 2, 0, 3]]), torch.tensor([1.0, 2, 3, 4]), (4, 4),
        check_invariants=True,
    )  # fmt: skip
    found = enlarge.renumbered(table, np.array([2, -1, 0, 1]), 5).to_dense()
    expected = torch.zeros(5, 5)
    expected[0, 2], expected[1, 1] = 3, 4
    assert torch.equal(found, expected)
