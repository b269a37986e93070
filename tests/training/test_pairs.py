"""Pairs to train on: reading, splitting, and the scores of a validation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import written

from rwkv_embed.errors import TrainingDataError
from rwkv_embed.training.pairs import Pair, read_pairs, split
from rwkv_embed.training.validation import Validation


def test_pairs_are_read(tmp_path: Path) -> None:
    first, second = {"query": "q", "positive": "p"}, {"query": "蜂", "positive": "x", "negatives": ["y", "z"]}
    path = written(tmp_path, first, "", second)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Windows writes it
    assert read_pairs(path) == [Pair("q", "p"), Pair("蜂", "x", ("y", "z"))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"line 2 is not JSON \(Expecting property name.*\); expected \{\"query\": "),
        ("[1, 2]", r"line 2 is \[1, 2\]; expected \{\"query\": "),
        ({"query": "q"}, r"line 2 has no 'positive'; expected"),
        ({"positive": "q"}, r"line 2 has no 'query'; expected"),
        ({"query": 7, "positive": "p"}, r"line 2: 'query' is 7, expected a text"),
        ({"query": "q", "positive": " "}, r"line 2: 'positive' is \" \", expected a text"),
        ({"query": "q", "positive": "p", "negative": []}, r"line 2 has the key 'negative'; expected"),
        ({"query": "q", "positive": "p", "negatives": "n"}, r"line 2: 'negatives' is \"n\", expected a list"),
        ({"query": "q", "positive": "p", "negatives": False}, r"'negatives' is false, expected a list"),
        (
            {"query": "q", "positive": "p", "negatives": ["n", None]},
            r"'negatives' has null in it, expected texts",
        ),
    ],
)
def test_malformed_pairs_are_one_sentence(tmp_path: Path, line: Any, message: str) -> None:
    good = {"query": "q", "positive": "p"}
    with pytest.raises(TrainingDataError, match=message):
        read_pairs(written(tmp_path, good, line, good))


def test_too_few_pairs_and_other_encodings(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"has 0 pairs, expected at least 2"):
        read_pairs(written(tmp_path))
    (tmp_path / "latin.jsonl").write_bytes(b'{"query": "\xe4"}')
    with pytest.raises(TrainingDataError, match=r"is not UTF-8 text \(byte 11\); convert it"):
        read_pairs(tmp_path / "latin.jsonl")
    with pytest.raises(
        TrainingDataError, match=r"3 pairs with 2 different queries leave 0 pairs to train on"
    ):
        split([Pair("a", "x"), Pair("a", "y"), Pair("b", "z")], 0.1, 0)


def test_split_keeps_a_query_on_one_side() -> None:
    pairs = [Pair(f"q{i // 2}", f"p{i}") for i in range(40)]
    training, held = split(pairs, 0.25, seed=3)
    assert (len(training), len(held)) == (30, 10)
    assert {pair.query for pair in training}.isdisjoint(pair.query for pair in held)
    assert split(pairs, 0.25, seed=3) == (training, held) != split(pairs, 0.25, seed=4)


def test_validation_scores_by_hand() -> None:
    pairs = [Pair("a", "x"), Pair("b", "y", ("z",)), Pair("a", "y"), Pair("c", "z")]
    validation = Validation(pairs)
    assert (validation.queries, validation.documents) == (["a", "b", "c"], ["x", "y", "z"])
    cosines = np.array([[0.1, 0.8, 0.3], [0.9, 0.5, 0.2], [0.4, 0.4, 0.4]], np.float32)
    scores, lead = validation.score(cosines, np.eye(3, dtype=np.float32))
    # a finds y (and x, which is right too) first, b finds y second, c ties with two wrong ones: third
    assert scores == {"mrr@10": pytest.approx((1 + 1 / 2 + 1 / 3) / 3), "recall@1": pytest.approx(1 / 3)}
    assert lead == pytest.approx(((0.8 - 0.3) + (0.5 - 0.9) + 0) / 3)
    nowhere, _ = validation.score(np.full((3, 3), np.nan, np.float32), np.eye(3, dtype=np.float32))
    assert nowhere == {"mrr@10": pytest.approx(1 / 4), "recall@1": 0.0}


def test_queries_that_cannot_fail_are_not_asked() -> None:
    validation = Validation([Pair("a", "x"), Pair("a", "y"), Pair("b", "x")])
    assert (validation.queries, validation.documents) == (["b"], ["x", "y"])
    for pairs in ([Pair("a", "x"), Pair("b", "x")], [Pair("a", "x"), Pair("a", "y")]):
        with pytest.raises(TrainingDataError, match=r"every text is right for every query, so that no model can"):
            Validation(pairs)
