"""Beginnings of words as tokens."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_embed.training import stems
from rwkv_embed.training.contrast import Rows
from rwkv_embed.training.views import Counted
from rwkv_embed.training.vocabulary import FIRST_PIECE, Piece, build_tokenizer

LETTERS = [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
ARABIC = [(letter, -9.0) for letter in "ابتصعنفكلمهوي"]


def known(*words: str) -> list[Piece]:
    """Pieces by token: the first tokens, letters, and words, which spaces begin."""
    first = [("", 0.0)] * FIRST_PIECE
    spelled = [(f"▁{word}", -9.0 * len(word)) for word in words]
    return [*first, ("▁", -4.0), (",", -5.0), *LETTERS, *ARABIC, *spelled]


def rows_of(texts: list[str], pieces: list[Piece], languages: list[int]) -> Rows:
    tokenizer = build_tokenizer(pieces[FIRST_PIECE:])
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    n = len(texts)
    return Rows(
        np.concatenate(encoded).astype(np.int32), np.cumsum([0, *map(len, encoded)]),
        np.array(languages, np.int16), np.arange(n, dtype=np.int32), np.zeros(n, np.int16),
        {"sources": [], "languages": []},
    )  # fmt: skip


def test_a_family_begins_with_the_stem_and_ends_soon_after() -> None:
    pieces = known("cebula", "cebuli", "cebularz", "cebulkowaty", "cel", "Cebula")
    families = stems.Families(pieces)

    def words(stem: str) -> list[str]:
        return [pieces[token][0].removeprefix("▁") for token in families.members(stem)]

    assert words("cebul") == ["cebula", "cebularz", "cebuli"]  # the fourth goes on for six letters
    assert words("Cebul") == ["Cebula", "cebula", "cebularz", "cebuli"]  # as it is in the middle of a sentence
    assert words("cebulk") == []


def test_a_form_is_told_by_its_longest_known_beginning_or_a_shorter_one() -> None:
    families = stems.Families(known("cebula", "cebulami", "onyx"))
    assert families.beginnings("cebulach") == ["cebula", "cebul"]  # 0.6 of eight letters are five
    assert families.beginnings("cebulę") == ["cebul", "cebu"]
    assert families.beginnings("Cebulę") == ["Cebul", "Cebu"]
    assert families.beginnings("onyksowych") == []  # no four letters are the same
    assert families.beginnings("cebula") == ["cebula", "cebul", "cebu"]
    assert families.beginnings("onyx", known=True) == []  # there is nothing but the word itself
    assert families.beginnings("cebulami", known=True) == ["cebula", "cebul"]


def test_arabic_stems_stand_after_particles() -> None:
    families = stems.Families(known("صانع", "كتاب", "بالغون"))
    assert families.insides("وصانع") == ["صانع"]
    assert families.insides("والكتاب") == ["كتاب"] and families.insides("سوالكتاب") == []
    assert families.insides("بالكتاب") == ["كتاب"]
    assert families.insides("awater") == []
    assert families.beginnings("بالعين") == []  # what begins with a long particle shares four letters more


def test_forms_weigh_less_in_languages_of_many_words() -> None:
    pieces = known("water", "fire", "fi")
    rows = rows_of(["waters fires water", "waters water water", "fires, firs"], pieces, [0, 0, 1])
    forms, weights = stems.weighed(rows, pieces)
    many, few = 6**-stems.LANGUAGE_POWER, 2**-stems.LANGUAGE_POWER
    assert forms == pytest.approx({"waters": 2 * many, "fires": many + few})  # firs is too short
    token = [piece for piece, _ in pieces].index("▁water")
    assert weights[token] == pytest.approx(many) and weights[token + 1] == 0


FORMS = st.dictionaries(st.text("ab", min_size=5, max_size=8), st.floats(0.1, 3), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(FORMS, st.sets(st.text("ab", min_size=4, max_size=8), min_size=1, max_size=12), st.integers(1, 5))
def test_the_choice_is_the_greedy_one(forms: dict[str, float], words: set[str], most: int) -> None:
    """Against all gains computed anew for every stem."""
    pieces = known(*sorted(words))
    families = stems.Families(pieces)
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(len(pieces), 8) + 1, dim=1)
    forms = {form: weight for form, weight in forms.items() if form not in words}
    spelled = {piece for piece, _ in pieces}
    chosen = stems.choose(forms, {}, families, vectors, spelled, most)

    def worth(form: str, stem: str) -> float:
        means, agreement = stems._means(vectors, [families.members(stem)])
        assert means.shape == (1, 8) and 0 <= agreement.item() <= 1 + 1e-6
        [better] = stems._better_than_pieces([stem], families, vectors)
        return better * stems.PER_LETTER ** max(0, len(form) - len(stem) - 1)

    told = {form: {stem: worth(form, stem) for stem in families.beginnings(form)} for form in forms}

    def total(taken: list[str]) -> float:
        return sum(
            forms[form] * max([0.0, *(value for stem, value in told[form].items() if f"▁{stem}" in taken)])
            for form in forms
        )

    taken = [piece for piece in spelled if piece.startswith("▁")]
    candidates = {f"▁{stem}" for form in forms for stem in told[form]} - spelled
    for stem in chosen:
        gains = {other: total([*taken, other]) - total(taken) for other in candidates}
        assert gains[stem] == pytest.approx(max(gains.values()), abs=1e-9) and gains[stem] > 0
        taken.append(stem)
        candidates.remove(stem)
    assert len(set(chosen)) == len(chosen) <= most
    if len(chosen) < most:
        assert all(total([*taken, other]) <= total(taken) + 1e-9 for other in candidates)


def test_rare_words_like_their_stem_are_replaced() -> None:
    pieces = known("cebulami", "cebulach", "cebulowe", "kotek", "koteczka", "kotecz")
    place = {piece.removeprefix("▁"): token for token, (piece, _) in enumerate(pieces)}
    families = stems.Families(pieces)
    vectors = torch.zeros(len(pieces), 4)
    words = ("cebulami", "cebulach", "cebulowe", "koteczka", "kotecz", "kotek")
    where = torch.tensor([place[word] for word in words])
    vectors[where, 0] = torch.tensor([1.0, 1, 0.7, 0, 0, 0])
    vectors[where, 1] = torch.tensor([0.1, 0, 0.7, 1, 1, 1])
    vectors[where, 2] = torch.tensor([0.0, 0, 0.5, 0, 0.1, 0])
    uses = np.full(len(pieces), 3)
    uses[place["cebulach"]] = stems.REPLACED_USES + 1
    stem = {"▁cebul": torch.tensor([1.0, 0, 0, 0])}
    gone = stems.replaced(families, stem, vectors, uses, words=place["cebulami"])
    assert gone.tolist() == sorted([place["cebulami"], place["koteczka"]])  # by the stem, and by another word
    assert stems.replaced(families, stem, vectors, uses, words=len(pieces)).size == 0


def test_texts_are_cut_after_the_longest_beginning() -> None:
    pieces = known("cat", "cathode", "catalog", "صانع")
    found = stems.spelled(["▁catho", "صانع"], pieces)
    assert found == [("▁catho", -44.0), ("صانع", -35.0)]  # a little better than cat-h-o
    longest = [*map(stems.longest_first, pieces[FIRST_PIECE:]), *((t, s + stems._bonus(t)) for t, s in found)]
    cut = build_tokenizer(longest)
    assert stems.longest_first(("▁cat", -27.0)) == ("▁cat", -27.0)
    assert stems.longest_first(("▁1984", -27.0)) == ("▁1984", -27.0)

    def tokens(text: str) -> list[str]:
        found: list[str] = cut.encode(text, add_special_tokens=False).tokens
        return found

    assert tokens("cathode cathodic catalogs") == ["▁cathode", "▁catho", *"dic", "▁catalog", "s"]
    assert tokens("وصانع صانع") == ["▁", "و", "صانع", "▁صانع"]
    for text in ("cat", "cathode", "catalog", "صانع"):
        assert tokens(text) == [f"▁{text}"]


def test_stems_get_the_mean_of_their_family() -> None:
    pieces = known("ce", "cebulami", "cebulach", "kot", "kotek")
    place = {piece.removeprefix("▁"): token for token, (piece, _) in enumerate(pieces)}
    texts = ["cebule cebulami", "cebuly kot", "cebulach " * 9, "kotek"]
    rows = rows_of(texts, pieces, [0, 0, 0, 0])
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(len(pieces), 8), dim=1)
    vectors[place["cebulami"]] = F.normalize(vectors[place["cebulach"]] + 0.05, dim=0)
    importance = torch.arange(len(pieces)).float()
    grown = stems.grow(Counted(vectors, importance), pieces, rows, words=place["cebulami"])
    assert grown.stems == 1 and len(grown.pieces) == len(pieces) == len(grown.tokens.vectors)
    text, score = grown.pieces[-1]
    assert (text, score) == ("▁cebul", -44.0 + 5 * stems.BONUS)
    assert np.flatnonzero(grown.numbers < 0).tolist() == [place["cebulami"]]  # a rare one, as the stem is
    kept = np.flatnonzero(grown.numbers >= 0)
    assert grown.numbers[kept].tolist() == list(range(len(kept)))
    assert torch.equal(grown.tokens.vectors[:-1], vectors[kept])
    expected = F.normalize(vectors[place["cebulami"]] + vectors[place["cebulach"]], dim=0)
    torch.testing.assert_close(grown.tokens.vectors[-1], expected)
    assert grown.tokens.importance.tolist() == [*kept.tolist(), (place["cebulami"] + place["cebulach"]) / 2]
