"""Chunking: sentences in many scripts, and chunks that cover a text exactly."""

import time
import timeit
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.chunking import chunk_text, sentences
from indexer.types import ChunkingOptions


def count_words(texts):
    return [len(text.split()) for text in texts]


def count_characters(texts):
    return [len(text) for text in texts]


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith met J. R. Jones at 5 p.m. yesterday. He left.", None),
        ("Er kam am 3. Oktober, z.B. mit dem Zug. Dann ging er.", None),
        ("Pi is 3.14 and v1.2.3 is out. Good.", ["Pi is 3.14 and v1.2.3 is out.", "Good."]),
        ('"Really?" she said. (Yes.) Fine.', ['"Really?"', "she said.", "(Yes.)", "Fine."]),
        ("你好。我是谁？「对。」然后呢！", ["你好。", "我是谁？", "「对。」", "然后呢！"]),
        ("यह है। और क्या?", ["यह है।", "और क्या?"]),
        ("628 ई. में रचना की। डॉ. रॉस आए।", ["628 ई. में रचना की।", "डॉ. रॉस आए।"]),
        ("هل هذا؟ نعم. یہ ہے۔ اور", ["هل هذا؟", "نعم.", "یہ ہے۔", "اور"]),
        ("ሰላም። እንዴት፧ နေကောင်းလား။ ဟုတ်။", ["ሰላም።", "እንዴት፧", "နေကောင်းလား။", "ဟုတ်။"]),
        ("# Title\nText here.\n- one\n- two", ["# Title", "Text here.", "- one", "- two"]),
        ("short line\nanother line", ["short line", "another line"]),
        ("no full stop\n\nNew paragraph", ["no full stop", "New paragraph"]),
        ("  \n\n ", []),
        ("", []),
    ],
)
def test_sentences(text, expected):
    if expected is None:  # two sentences: the abbreviations end none
        assert len(split(text)) == 2
    else:
        assert split(text) == expected


def test_a_hard_wrapped_line_goes_on():
    wrapped = "This line of prose has been wrapped by an editor at some width\nand goes on here. Next."
    assert split(wrapped) == [wrapped[: wrapped.index(" Next")], "Next."]


def test_a_heading_opens_a_chunk_and_stays_with_its_text():
    text = "# One\n\n" + "alpha beta gamma. " * 5 + "\n\n## Two\n\n" + "delta epsilon. " * 5
    chunks = chunk_text(text, ChunkingOptions(max_tokens=40), count_words)
    assert [chunk.text.split("\n")[0] for chunk in chunks] == ["# One", "## Two"]


def test_a_long_sentence_is_cut_at_words_then_at_characters():
    words = " ".join(f"word{number}" for number in range(100))
    chunks = chunk_text(words, ChunkingOptions(max_tokens=10), count_words)
    assert " ".join(chunk.text for chunk in chunks) == words
    assert max(count_words([chunk.text for chunk in chunks])) <= 10
    solid = "漢" * 95
    chunks = chunk_text(solid, ChunkingOptions(max_tokens=10), count_characters)
    assert "".join(chunk.text for chunk in chunks) == solid
    assert max(len(chunk.text) for chunk in chunks) <= 10


def test_a_mark_stays_with_its_letter():
    chunks = chunk_text("नि" * 40, ChunkingOptions(max_tokens=9), count_characters)
    assert all(chunk.text[0] == "न" for chunk in chunks)


def test_overlap_repeats_whole_sentences():
    text = " ".join(f"A{number} b see." for number in range(6))
    chunks = chunk_text(text, ChunkingOptions(max_tokens=9, overlap_tokens=3), count_words)
    assert [chunk.text for chunk in chunks] == [
        "A0 b see. A1 b see. A2 b see.",
        "A2 b see. A3 b see. A4 b see.",
        "A4 b see. A5 b see.",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ChunkingOptions(max_tokens=0), "max_tokens is 0; a chunk needs at least 1 token"),
        (
            ChunkingOptions(max_tokens=5, overlap_tokens=5),
            "overlap_tokens is 5; it must be 0 or more and below",
        ),
    ],
)
def test_refuses_senseless_options(options, message):
    with pytest.raises(ValueError, match=message):
        chunk_text("text", options, count_words)


alphabet = st.sampled_from([*list("ab .!?。।\n#-1A漢́\u200d\t"), "# ", "\n\n", "Dr. ", "word "])
texts = st.lists(alphabet, max_size=120).map("".join)


@settings(max_examples=200, deadline=None)
@given(texts, st.integers(1, 30), st.sampled_from([count_words, count_characters]))
def test_chunks_cover_the_text_once_and_in_order(text, limit, count):
    chunks = chunk_text(text, ChunkingOptions(max_tokens=limit), count)
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    assert all(text[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    assert all(before.end <= after.start for before, after in pairwise(chunks))
    assert "".join("".join(chunk.text.split()) for chunk in chunks) == "".join(text.split())
    assert all(tokens <= limit for tokens in count([chunk.text for chunk in chunks]))


@settings(max_examples=200, deadline=None)
@given(texts)
def test_sentences_cover_the_text_once_and_in_order(text):
    spans = sentences(text)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())


def test_token_counts_are_asked_for_in_few_calls():
    calls = []

    def count(texts):
        calls.append(len(texts))
        return count_words(texts)

    chunk_text("A sentence of six words here. " * 2_000, ChunkingOptions(max_tokens=50), count)
    assert len(calls) <= 4


@pytest.mark.parametrize("unit", ["word ", "漢", "Hello there. ", "x\n", "Dr. ", '"', "... "])
def test_time_is_linear_in_the_length_of_one_line(unit):
    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit))
        # timeit keeps the garbage collector off, which may have all of the test run's memory to look at.
        return timeit.timeit(
            lambda: chunk_text(text, ChunkingOptions(max_tokens=200), count_characters),
            timer=time.process_time, number=1,
        )  # fmt: skip

    seconds(20_000)
    assert seconds(400_000) < 10 * seconds(100_000) + 0.5
