"""Answers from a real store: SQLite, the vector index and the full-text search together."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer import open_store
from indexer.answers import answer, answer_stream
from indexer.collection import Collection
from indexer.errors import InvalidFilter
from indexer.types import Answer, Document, Message
from tests.index.answering import HashEmbedder, Scripted

DOCUMENTS = [
    Document(
        "tower",
        "The Eiffel Tower\n\nThe tower stands in Paris. "
        "Gustave Eiffel's company designed and built the tower from 1887 to 1889. "
        "Visitors can climb 674 steps to the second level.",
        title="Towers",
        metadata={"kind": "building"},
    ),
    Document(
        "nile",
        "The Nile flows through eleven countries. It is about 6650 kilometres long. Farmers use its water.",
        title="Rivers",
        metadata={"kind": "river"},
    ),
    Document(
        "zh", "长城是中国古代的军事防御工程。长城全长约两万一千公里。每年有很多游客参观。", title="长城"
    ),
]
TEXTS = {document.id: document.text for document in DOCUMENTS}


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    with open_store(tmp_path / "store", lambda model_id: HashEmbedder()) as store:
        collection = store.create_collection("facts")
        collection.upsert(DOCUMENTS)
        yield collection


@pytest.mark.parametrize(
    ("question", "document_id", "quote"),
    [
        ("How many steps can visitors climb to the second level?", "tower", "674 steps"),
        ("Through how many countries does the Nile flow?", "nile", "eleven countries"),
        ("长城全长多少公里?", "zh", "两万一千公里"),
    ],
)
def test_an_answer_quotes_the_document_at_its_offsets(
    collection: Collection, question: str, document_id: str, quote: str
) -> None:
    result = answer(collection, question)
    first = result.citations[0]
    assert not result.abstained and quote in first.quote
    assert first.document_id == document_id
    assert all(TEXTS[c.document_id][c.start : c.end] == c.quote for c in result.citations)


def test_what_no_document_says_is_not_answered(collection: Collection) -> None:
    result = answer(collection, "Which composer wrote the opera Parsifal?")
    assert result == Answer("The collection does not say.", abstained=True, citations=())


def test_a_filter_limits_what_is_read(collection: Collection) -> None:
    generator = Scripted(["It says [1]."])
    result = answer(collection, "Which tower is in Paris?", generator=generator, where="kind = river")
    assert {c.document_id for c in result.citations} == {"nile"}
    assert [passage.hit.document_id for passage in generator.given[0].passages] == ["nile"]


def test_a_bad_filter_is_refused_before_anything_is_streamed(collection: Collection) -> None:
    with pytest.raises(InvalidFilter):
        answer_stream(collection, "Which tower is in Paris?", where="kind = = river")


def test_a_conversation_goes_on(collection: Collection) -> None:
    history = [
        Message("user", "Who designed and built the Eiffel Tower?"),
        Message("assistant", "Eiffel [1]."),
    ]
    result = answer(collection, "And when?", history=history)
    assert "from 1887 to 1889" in result.answer


def test_the_stream_ends_with_the_answer(collection: Collection) -> None:
    *pieces, last = answer_stream(collection, "Through how many countries does the Nile flow?")
    assert isinstance(last, Answer) and "".join(map(str, pieces)) == last.answer
