"""From question to cited answer, with scripted generators: what is searched, packed, shown and cited."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.analysis import query_terms
from indexer.answers import answer, answer_stream, make_generator
from indexer.answers.calibration import MODELS
from indexer.answers.evidence import content_terms, standalone_query
from indexer.answers.generators.base import Quote
from indexer.answers.marks import CitationMarks, without_thoughts
from indexer.answers.pipeline import pack, recent_turns
from indexer.answers.words import QUESTION_WORDS, SILENCE, says_silence, silence
from indexer.errors import GeneratorError, InvalidQuery, LimitExceeded
from indexer.types import Answer, Citation, Message
from tests.index.answering import CALIBRATION, FakeCollection, HashEmbedder, Scripted, hit, passages

TOWER = "The Eiffel Tower is in Paris. It was designed by Gustave Eiffel. It opened in 1889."
RIVER = "The Nile flows through Egypt. It is the longest river of Africa."


@pytest.fixture
def collection() -> FakeCollection:
    return FakeCollection([TOWER, RIVER])


def test_a_cited_answer_has_verbatim_quotes_with_offsets(collection: FakeCollection) -> None:
    generator = Scripted(["Gustave Eiffel designed it", " [1", "]. The Nile is the longest river [2]."])
    result = answer(collection, "Who designed the Eiffel Tower?", generator=generator)
    assert result.answer == "Gustave Eiffel designed it [1]. The Nile is the longest river [2]."
    assert not result.abstained
    first, second = result.citations
    assert first == Citation(
        n=1, document_id="doc0", chunk_id=0, title="Title 0", uri=None,
        quote="It was designed by Gustave Eiffel.", start=30, end=64, score=first.score,
    )  # fmt: skip
    assert second.quote == "It is the longest river of Africa." and second.document_id == "doc1"
    assert TOWER[first.start : first.end] == first.quote and RIVER[second.start : second.end] == second.quote
    assert 0 < first.score <= 1


def test_offsets_are_the_documents_not_the_passages() -> None:
    collection = FakeCollection([])
    collection.search = lambda query, options: [hit(3, TOWER, start=1000)]  # type: ignore[method-assign]
    result = answer(collection, "Where?", generator=Scripted(["In Paris [1]."]))
    assert [(c.start, c.end, c.quote) for c in result.citations] == [
        (1000, 1029, "The Eiffel Tower is in Paris.")
    ]


def test_marks_are_renumbered_by_first_use_and_unknown_ones_vanish(collection: FakeCollection) -> None:
    result = answer(
        collection, "River?", generator=Scripted(["Long [2][7]. Tall [1, 9]. Long [2]. Odd [99]."])
    )
    assert result.answer == "Long [1]. Tall [2]. Long [1]. Odd."
    assert [(c.n, c.document_id) for c in result.citations] == [(1, "doc1"), (2, "doc0")]


def test_an_answer_without_marks_gets_the_source_it_rests_on(
    collection: FakeCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, HashEmbedder.model_id, CALIBRATION)
    generator = Scripted(["The Nile is the longest river", " of Africa."])
    *pieces, last = answer_stream(collection, "River?", generator=generator)
    assert isinstance(last, Answer)
    assert "".join(pieces) == last.answer == "The Nile is the longest river of Africa. [1]"
    assert [(c.n, c.document_id, c.quote) for c in last.citations] == [
        (1, "doc1", "It is the longest river of Africa.")
    ]
    invented = answer(collection, "River?", generator=Scripted(["Bananas ripen in warm storage rooms."]))
    assert (invented.answer, invented.citations) == ("Bananas ripen in warm storage rooms.", [])


def test_the_pieces_joined_are_the_answers_text(collection: FakeCollection) -> None:
    *pieces, last = answer_stream(collection, "River?", generator=Scripted(list("Long [2] , [3]tall [1]  ")))
    assert isinstance(last, Answer)
    assert "".join(pieces) == last.answer == "Long [1] ,tall [2]"


def test_text_is_shown_as_soon_as_it_is_written(collection: FakeCollection) -> None:
    generator = Scripted(["One", " two", " three"])
    stream = answer_stream(collection, "River?", generator=generator)
    assert (next(stream), generator.made) == ("One", 1)
    assert (next(stream), generator.made) == (" two", 2)


def test_closing_the_stream_stops_the_generator_at_once(collection: FakeCollection) -> None:
    generator = Scripted([str(i) for i in range(1000)])
    stream = answer_stream(collection, "River?", generator=generator)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert generator.closed and generator.made == 1


def test_an_empty_piece_is_passed_on_as_a_sign_of_life(collection: FakeCollection) -> None:
    *pieces, last = answer_stream(collection, "River?", generator=Scripted(["", "", "Nile ", "[2]"]))
    assert pieces == ["", "", "Nile", " [1]"] and last.answer == "Nile [1]"  # type: ignore[union-attr]


def test_a_generator_that_fails_is_closed_and_its_error_is_seen(collection: FakeCollection) -> None:
    class Failing(Scripted):
        def generate(self, request):
            yield "Half "
            raise GeneratorError("the server went away")

    stream = answer_stream(collection, "River?", generator=Failing([]))
    assert next(stream) == "Half"
    with pytest.raises(GeneratorError, match="the server went away"):
        list(stream)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Who was the first person to walk on Mars, and when did it happen?", "The collection does not say."),
        (
            "Wer war der erste Mensch auf dem Mars und wann ist das geschehen?",
            "Die Sammlung sagt dazu nichts.",
        ),
        ("谁是第一个在火星上行走的人?", "集合中没有提到。"),
        ("من كان أول إنسان يمشي على المريخ؟", "لا تذكر المجموعة ذلك."),
    ],
)
def test_nothing_written_is_an_abstention_in_the_questions_language(
    collection: FakeCollection, question: str, expected: str
) -> None:
    stream = list(answer_stream(collection, question, generator=Scripted([])))
    assert stream == [expected, Answer(expected, abstained=True, citations=())]


@pytest.mark.parametrize(
    "said", ["The collection does not say.", '"Die Sammlung sagt dazu nichts"', "集合中没有提到。[1]"]
)
def test_a_model_that_says_it_does_not_know_abstains(collection: FakeCollection, said: str) -> None:
    result = answer(collection, "Mars?", generator=Scripted([said]))
    assert result.abstained and result.citations == ()


def test_without_hits_the_generator_is_not_asked() -> None:
    generator = Scripted(["invented"])
    assert answer(FakeCollection([]), "Where is Paris?", generator=generator).abstained
    assert generator.made == 0


def test_thoughts_are_not_shown(collection: FakeCollection) -> None:
    pieces = ["<th", "ink>The user wants [1]", " a river</thi", "nk>\n\nThe", " Nile [2]."]
    assert answer(collection, "River?", generator=Scripted(pieces)).answer == "The Nile [1]."
    assert list(without_thoughts(iter(["<", "b> is a tag"]))) == ["<b> is a tag"]
    assert list(without_thoughts(iter(["<thi"]))) == ["<thi"]
    assert list(without_thoughts(iter(["<think>never ends"]))) == []


def test_quotes_are_cited_one_by_one(collection: FakeCollection) -> None:
    tower = passages(TOWER)[0]
    result = answer(
        collection, "Tower?", generator=Scripted([Quote(tower, 30, 64, 0.75), Quote(tower, 65, 83, 0.5)])
    )
    assert result.answer == "It was designed by Gustave Eiffel. [1]\nIt opened in 1889. [2]"
    assert [(c.n, c.quote, c.score) for c in result.citations] == [
        (1, "It was designed by Gustave Eiffel.", 0.75),
        (2, "It opened in 1889.", 0.5),
    ]


# --- what is searched ----------------------------------------------------------------------------


def test_options_reach_the_search(collection: FakeCollection) -> None:
    answer(collection, "River?", generator=Scripted(["x"]), top_k=3, where="lang = en")
    ((query, options),) = collection.asked
    assert (query, options.top_k, options.where, options.mode) == ("River?", 3, "lang = en", "hybrid")


def test_bad_questions_are_refused_before_any_search(collection: FakeCollection) -> None:
    with pytest.raises(InvalidQuery, match="the question is empty"):
        answer_stream(collection, "  \n")
    with pytest.raises(LimitExceeded, match="the question has 32769 characters; at most 32768"):
        answer_stream(collection, "x" * 32769)
    with pytest.raises(InvalidQuery, match="max_passage_tokens is 0"):
        answer_stream(collection, "x", max_passage_tokens=0)
    with pytest.raises(
        GeneratorError, match="unknown generator 'gpt'; use extractive, rwkv:PATH or openai:MODEL"
    ):
        answer_stream(collection, "x", generator="gpt")
    with pytest.raises(TypeError, match="topk"):
        answer_stream(collection, "x", topk=3)  # type: ignore[call-arg]
    assert collection.asked == []


@pytest.mark.parametrize("spec", ["", "extractive:x", "rwkv", "rwkv:", "openai:", "OpenAI:x"])
def test_unknown_generators_are_named(spec: str) -> None:
    with pytest.raises(GeneratorError, match="unknown generator"):
        make_generator(spec)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(GeneratorError, match=r"max_tokens is 0 and temperature 0\.0; expected at least 1"):
        make_generator("extractive", max_tokens=0)
    with pytest.raises(GeneratorError, match="temperature -1; expected at least 1 and at least 0"):
        make_generator("openai:x", temperature=-1, environ={})
    with pytest.raises(
        GeneratorError, match="template 'g1' is for rwkv:PATH, not for extractive; leave it out"
    ):
        make_generator("extractive", template="g1")


HISTORY = [Message("user", "Who designed the Eiffel Tower?"), Message("assistant", "Gustave Eiffel [1].")]


def test_a_follow_up_is_searched_with_the_turn_before_it(collection: FakeCollection) -> None:
    generator = Scripted(["1889 [1]"])
    answer(collection, "And when was it opened?", generator=generator, history=HISTORY)
    assert collection.asked[0][0] == "Who designed the Eiffel Tower?\nAnd when was it opened?"
    assert generator.given[0].question == "And when was it opened?"
    assert generator.given[0].query == collection.asked[0][0]


def test_a_new_topic_is_searched_alone() -> None:
    question = "Which countries does the river Nile flow through before it reaches the sea?"
    assert standalone_query(question, HISTORY) == question


def test_a_chain_of_follow_ups_reaches_back_at_most_two_turns() -> None:
    turns = ["Tell me about the history of the Eiffel Tower in Paris", "Why?", "Where?", "Who?"]
    history = [Message("user", turn) for turn in turns[:-1]]
    assert standalone_query("Who?", history) == "Why?\nWhere?\nWho?"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How many points did the team lose?", {"points", "＾point", "team", "lose"}),
        ("Wer hat den Turm gebaut?", {"turm", "gebaut", "＾gebau"}),
        ("¿Cuándo se abrió la torre?", {"abrió", "torre"}),
        ("埃菲尔铁塔是什么时候建成的?", set(query_terms("埃菲尔铁塔 建成的"))),
        ("What is what?", {"what", "is"}),  # nothing else is there: better than no terms
    ],
)
def test_question_words_are_no_evidence(question: str, expected: set[str]) -> None:
    assert set(content_terms(question)) == expected


# --- passages ------------------------------------------------------------------------------------


def test_passages_are_distinct_and_in_reading_order() -> None:
    hits = [
        hit(2, "the second part of b", 0.9, start=50, document_id="b"),
        hit(1, "the first part of b", 0.8, start=0, document_id="b"),
        hit(3, "something about a", 0.7, document_id="a"),
        hit(4, "About A: something!", 0.6, document_id="z"),  # the same words
        hit(5, "second part", 0.5, start=54, document_id="b"),  # inside the first hit
        hit(6, " \n", 0.4, document_id="y"),
    ]
    packed = pack(hits, HashEmbedder(), 100)
    assert [(p.n, p.hit.chunk_id) for p in packed] == [(1, 3), (2, 1), (3, 2)]


def test_the_budget_takes_the_best_passages_that_fit() -> None:
    hits = [hit(i, " ".join([f"w{i}x{j}" for j in range(size)])) for i, size in enumerate([4, 9, 5])]
    assert [p.hit.chunk_id for p in pack(hits, HashEmbedder(), 10)] == [0, 2]


def test_a_first_passage_over_the_budget_is_cut_after_a_sentence() -> None:
    assert [p.text for p in pack([hit(1, TOWER)], HashEmbedder(), 12)] == [
        "The Eiffel Tower is in Paris. It was designed by Gustave Eiffel."
    ]
    (cut,) = pack([hit(1, "  one two three four")], HashEmbedder(), 2)
    assert cut.text == "  one two t" and TOWER.startswith(pack([hit(1, TOWER)], HashEmbedder(), 1)[0].text)


@given(st.lists(st.text(alphabet="ab .\n", max_size=30), max_size=6), st.integers(1, 20))
def test_packed_passages_begin_their_documents_and_have_text(texts: list[str], budget: int) -> None:
    packed = pack([hit(i, text) for i, text in enumerate(texts)], HashEmbedder(), budget)
    assert [p.n for p in packed] == list(range(1, len(packed) + 1))
    assert all(p.hit.text.startswith(p.text) and p.text.strip() for p in packed)
    assert bool(packed) == any(text.strip() for text in texts)


def test_old_turns_are_left_out_when_history_is_long() -> None:
    history = [Message("user", "a b c"), Message("assistant", "d e"), Message("user", "f")]
    assert recent_turns(history, HashEmbedder(), 3) == history[1:]
    assert recent_turns(history, HashEmbedder(), 100) == history
    assert recent_turns(history, HashEmbedder(), 0) == []
    assert recent_turns([], HashEmbedder(), 5) == []


# --- marks and words -----------------------------------------------------------------------------


@given(
    st.lists(
        st.sampled_from(["[1]", "[2]", "[9]", " ", "a", "[", "]", "1", ",", "[1, 2]", "\n", "【2】"])
    ).map("".join),
    st.randoms(use_true_random=False),
)
def test_marks_do_not_depend_on_how_the_text_is_cut(text: str, random) -> None:
    whole = CitationMarks({1, 2})
    expected = whole.feed(text) + whole.finish()
    marks, shown, position = CitationMarks({1, 2}), "", 0
    while position < len(text):
        step = random.randint(1, 4)
        shown += marks.feed(text[position : position + step])
        position += step
    shown += marks.finish()
    assert (shown, marks.text, marks.places) == (expected, expected, whole.places)


def test_every_language_with_question_words_has_a_sentence_for_silence() -> None:
    assert set(QUESTION_WORDS) <= set(SILENCE) and len(SILENCE) >= 20
    assert all(says_silence(sentence) for sentence in SILENCE.values())
    assert silence("pt-BR") == SILENCE["pt"] and silence(None) == silence("xx") == SILENCE["en"]
    assert not says_silence("The collection does not say much, but [1] does.")
