"""The extractive generator: which sentences are quoted, in which order, and when it says nothing."""

from dataclasses import replace

import numpy as np
import pytest

from indexer.answers import answer
from indexer.answers.calibration import MODELS, UNKNOWN_MODEL, Calibration
from indexer.answers.evidence import coverage, idf, text_terms
from indexer.answers.features import foreign, sentence_features
from indexer.answers.generators.base import Passage
from indexer.answers.generators.extractive import Extractive, distinct_quotes, rank_sentences, statements
from indexer.chunking import sentences
from tests.index.answering import CALIBRATION, SAME, FakeCollection, HashEmbedder, passages, request

TEXTS = [
    "The Eiffel Tower stands in Paris. "
    "Gustave Eiffel's company designed and built the tower from 1887 to 1889. "
    "Visitors can climb 674 steps to the second level.",
    "The Nile flows through eleven countries. It is about 6650 kilometres long.",
    "Bread is made of flour, water and salt. Bakers let the dough rest before it is baked in the oven.",
]
CHINESE = "埃菲尔铁塔位于巴黎。铁塔由古斯塔夫·埃菲尔的公司设计。每年有七百万人参观。"


@pytest.fixture(autouse=True)
def calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, HashEmbedder.model_id, CALIBRATION)


def ask(question: str, *texts: str) -> list[str]:
    return [quote.text for quote in Extractive().generate(request(question, *texts))]


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (
            "Who designed and built the Eiffel Tower?",
            "Gustave Eiffel's company designed and built the tower from 1887 to 1889.",
        ),
        (
            "How many steps can visitors climb to the second level?",
            "Visitors can climb 674 steps to the second level.",
        ),
        ("Through how many countries does the Nile flow?", "The Nile flows through eleven countries."),
        (
            "What do bakers let rest before it is baked?",
            "Bakers let the dough rest before it is baked in the oven.",
        ),
        ("铁塔由哪个公司设计?", "铁塔由古斯塔夫·埃菲尔的公司设计。"),
    ],
)
def test_the_sentence_that_answers_is_quoted_first(question: str, sentence: str) -> None:
    assert ask(question, *TEXTS, CHINESE)[0] == sentence


@pytest.mark.parametrize(
    "question",
    ["Which composer wrote the opera Parsifal?", "How do vaccines train the immune system?", "月球上有水吗?"],
)
def test_what_the_passages_do_not_say_is_not_answered(question: str) -> None:
    assert ask(question, *TEXTS, CHINESE) == []


def test_the_answer_is_verbatim_with_document_offsets() -> None:
    collection = FakeCollection(TEXTS)
    result = answer(collection, "How many steps can visitors climb to the second level?")
    assert not result.abstained and result.answer.startswith(
        "Visitors can climb 674 steps to the second level. [1]"
    )
    for citation in result.citations:
        text = TEXTS[citation.chunk_id]
        assert text[citation.start : citation.end] == citation.quote
        assert 0 < citation.score <= 1
    assert [citation.n for citation in result.citations] == list(range(1, len(result.citations) + 1))


def test_a_follow_up_is_answered_with_the_turn_before_it() -> None:
    from indexer.types import Message

    history = [
        Message("user", "Who designed and built the Eiffel Tower?"),
        Message("assistant", "Gustave Eiffel [1]."),
    ]
    result = answer(FakeCollection(TEXTS), "And when?", history=history)
    assert "from 1887 to 1889" in result.answer


def test_repeated_sentences_are_quoted_once() -> None:
    quotes = ask(
        "Who wrote the song?", "Ann wrote the song.", "Later. Ann wrote the song!", "The song: Ann wrote."
    )
    assert sum("Ann wrote the song" in quote for quote in quotes) == 1


def test_at_most_three_sentences_in_reading_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAME["decision"], "threshold", 0.0)
    text = "The dam holds water. The dam makes power. The dam stops floods. The dam costs money."
    quotes = list(Extractive().generate(request("What does the dam do?", text)))
    assert 1 <= len(quotes) <= 3
    assert [quote.start for quote in quotes] == sorted(quote.start for quote in quotes)
    assert len(list(Extractive(max_sentences=1).generate(request("What does the dam do?", text)))) == 1


def test_no_passages_no_answer() -> None:
    assert list(Extractive().generate(request("What?"))) == []
    ranking = rank_sentences("What?", [], HashEmbedder())
    assert (list(ranking.quotes), ranking.support) == ([], 0.0)


def test_every_feature_by_hand() -> None:
    texts = passages("Red cats sleep. Blue dogs bark.", "Green birds sing.")
    candidates = [(p, a, b) for p in texts for a, b in sentences(p.text)]
    features = sentence_features("Do blue dogs fly?", texts, candidates, HashEmbedder())
    own = [text_terms(p.text[a:b]) for p, a, b in candidates]
    weights, unseen = idf(own), float(np.log(2 * 3 + 2))
    seen = weights["blue"] + weights["dogs"]  # "do" is a question word, no sentence has "fly"
    share = seen / (seen + unseen)
    np.testing.assert_allclose(features["coverage"], [0, share, 0])
    np.testing.assert_allclose(features["around"], [share, share, 0])
    np.testing.assert_allclose(features["passage"], [share, share, 0])
    np.testing.assert_allclose(features["known"], [share] * 3)
    np.testing.assert_allclose(features["rank"], [1, 1, 0.5])
    np.testing.assert_allclose(features["length"], [15 / 40, 15 / 40, 17 / 40])
    embedder = HashEmbedder()
    cosines = embedder.encode_document(["Red cats sleep.", "Blue dogs bark.", "Green birds sing."])
    cosines = cosines @ embedder.encode_query("Do blue dogs fly?")
    np.testing.assert_allclose(features["dense"], cosines, rtol=1e-5)
    for name in ("spread", "words"):
        assert abs(features[name].mean()) < 1e-6 and abs(features[name].std() - 1) < 1e-6


def test_the_nearest_word_of_a_sentence_counts_by_rarity() -> None:
    texts = passages("Red cats sleep. Blue dogs bark.", "Green birds sing.")
    candidates = [(p, a, b) for p in texts for a, b in sentences(p.text)]
    own = [text_terms(p.text[a:b]) for p, a, b in candidates]
    weights, unseen = idf(own), float(np.log(2 * 3 + 2))
    asked = {"blue": weights["blue"], "dogs": weights["dogs"], "fly": unseen}  # not "do"
    embedder = HashEmbedder()
    raw = [
        sum(
            weight * max(embedder.encode_query(word) @ embedder.encode_query(own) for own in text.split())
            for word, weight in asked.items()
        )
        for text in ("Red cats sleep", "Blue dogs bark", "Green birds sing")
    ]
    features = sentence_features("Do blue dogs fly?", texts, candidates, embedder)
    expected = (np.array(raw) - np.mean(raw)) / np.std(raw)
    np.testing.assert_allclose(features["words"], expected, rtol=1e-4, atol=1e-4)
    assert "words" not in sentence_features("Do blue dogs fly?", texts, candidates, embedder, words=False)


def test_passages_in_another_language_are_told_by_tag_and_by_words() -> None:
    def tagged(n: int, text: str, language: str | None) -> Passage:
        (passage,) = passages(text)
        return Passage(n, replace(passage.hit, language=language), text)

    english = tagged(1, "The tower was designed by Gustave Eiffel's company.", "en-GB")
    german = tagged(2, "Der Turm wurde von der Firma Gustave Eiffels entworfen.", "de")
    unknown = tagged(3, "Der Turm steht seit vielen Jahren mitten in der Stadt Paris.", None)
    found = [english, german, unknown]
    assert foreign("Who was the person that designed this tower?", found) == {2, 3}
    assert foreign("Wer hat diesen Turm eigentlich entworfen?", found) == {1}
    assert foreign("Gustave Eiffel", [tagged(1, "Gustave Eiffel est né à Dijon.", "fr")]) == set()


def test_text_in_another_language_has_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    question = "Wer hat diesen Turm eigentlich entworfen?"
    ranking = rank_sentences(question, passages(TEXTS[0]), HashEmbedder())
    assert ranking.threshold == CALIBRATION["other"]["decision"]["threshold"] != SAME["decision"]["threshold"]
    assert not ranking.supported
    monkeypatch.setitem(CALIBRATION["other"]["decision"], "threshold", 0.0)
    assert rank_sentences(question, passages(TEXTS[0]), HashEmbedder()).supported


def test_coverage_is_a_share_of_weight() -> None:
    weights = {"a": 1.0, "b": 3.0}
    assert coverage(["a", "b"], frozenset("b"), weights, unseen=4.0) == 0.75
    assert coverage(["b", "c"], frozenset("b"), weights, unseen=9.0) == 0.25  # c has no weight of its own
    assert coverage([], frozenset("b"), weights, unseen=4.0) == 0.0


def test_near_duplicates_are_dropped_in_order() -> None:
    ranking = rank_sentences(
        "one two", passages("One two three four.", "one, two: three four", "Five six."), HashEmbedder()
    )
    assert [quote.text for quote in distinct_quotes(ranking.quotes, 3)] == [
        "One two three four.",
        "Five six.",
    ]


@pytest.mark.parametrize("calibration", [*MODELS.values(), None], ids=[*MODELS, "unknown"])
def test_a_calibration_uses_known_features_and_sane_numbers(
    calibration: Calibration | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if calibration is None:
        monkeypatch.delitem(MODELS, HashEmbedder.model_id)
        calibration = {"same": UNKNOWN_MODEL, "other": UNKNOWN_MODEL}
    else:
        monkeypatch.setitem(MODELS, HashEmbedder.model_id, calibration)
    assert set(calibration) == {"same", "other"}
    for fitted in calibration.values():
        assert set(fitted) == {"sentence", "support", "decision"}
        assert 0 < fitted["decision"]["threshold"] < 1
    ranking = rank_sentences("Who built the tower?", passages(*TEXTS), HashEmbedder())
    assert len(ranking.quotes) == 7 and 0 <= ranking.support <= 1
    assert [q.score for q in ranking.quotes] == sorted((q.score for q in ranking.quotes), reverse=True)


def test_an_unmeasured_model_is_judged_without_the_scale_of_its_cosines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Squeezed(HashEmbedder):
        """All cosines in [0.9, 1], as a raw language model gives: a constant is added to each vector."""

        def encode_document(self, inputs):
            vectors = np.concatenate([super().encode_document(inputs), np.full((len(inputs), 1), 3.0)], 1)
            return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

        def encode_query(self, inputs):
            return self.encode_document([inputs])[0]

    monkeypatch.delitem(MODELS, HashEmbedder.model_id)
    for question in ("Who designed and built the Eiffel Tower?", "Which composer wrote the opera Parsifal?"):
        plain = rank_sentences(question, passages(*TEXTS), HashEmbedder())
        squeezed = rank_sentences(question, passages(*TEXTS), Squeezed())
        assert [q.text for q in squeezed.quotes] == [q.text for q in plain.quotes]
        assert squeezed.support == pytest.approx(plain.support, abs=0.01)


def test_headings_are_no_answers() -> None:
    text = "# The dance of the bees\n\nKarl von Frisch decoded the dance of the bees in 1923."
    assert ask("Who decoded the dance of the bees?", text) == [
        "Karl von Frisch decoded the dance of the bees in 1923."
    ]
    only = [passage.text[a:b] for passage, a, b in statements(passages("# The dance", "ים המלח"))]
    assert only == ["# The dance", "ים המלח"]
