"""The vocabulary, and what languages have in common."""


import numpy as np
import pytest
import torch

from rwkv_embed.training import align, contrast, languages
from rwkv_embed.training.vocabulary import build_tokenizer, by_use


def test_vocabulary_is_ordered_by_use_and_has_tokens_for_every_text() -> None:
    pieces = [("<s>", 0.0), ("▁the", -2.0), ("▁", -3.0), ("h", -6.0), ("e", -5.0), ("n", -6.0)]
    order = by_use(pieces, np.array([0, 9, 1, 5, 1, 1]))
    assert [pieces[i][0] for i in order] == ["▁the", "h", "▁", "e", "n"]
    tokenizer = build_tokenizer([pieces[i] for i in order])
    assert tokenizer.encode("the  then", add_special_tokens=False).tokens == ["▁the", "▁the", "n"]
    assert tokenizer.decode(tokenizer.encode("the 数𓀀", add_special_tokens=False).ids) == "the 数𓀀"


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
    table = align.translation_table(rows, vectors, torch.ones(9), align.OF_PIECES).to_dense()

    def likely(cosine: float) -> float:
        return float(np.exp(cosine / align.TEMPERATURE))

    nothing = likely(align.OF_PIECES.nothing)
    shared = likely(2**-0.5)
    # the row of 2, 3: 8 is the better one for 3
    alone = shared / (shared + 1 + nothing) * shared / (shared + 1 + nothing)
    # the row of 1, 2, 3: 7 has two words and 6 asks for the first
    both = shared / (2 * shared + 1 + nothing) * shared / (shared + 1 + nothing)
    assert table[7, 2].item() == pytest.approx(alone + both, rel=1e-5)
    assert table[7, 1] == 0 and table[5].sum() == 0
    assert table[6].argmax() == 1 and table[8].argmax() == 3

    unit = torch.nn.functional.normalize(vectors + 1e-3, dim=1)
    new = align.moved(unit, table.to_sparse(), align.OF_PIECES)
    assert new[7] @ unit[2] > unit[7] @ unit[2] + 0.05
    torch.testing.assert_close(new[5], unit[5])  # nothing translates it
    assert new.norm(dim=1).tolist() == pytest.approx([1.0] * 9)
    further = align.moved(unit, table.to_sparse(), align.OF_WORDS, torch.full((9, 1), 2.0))
    assert further[7] @ unit[2] > new[7] @ unit[2] + 0.05
    looser = align.translation_table(rows, vectors, torch.ones(9), align.OF_WORDS).to_dense()
    assert (looser >= table).all() and (looser > 0).sum() > (table > 0).sum()
