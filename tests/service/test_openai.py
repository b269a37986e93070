"""The official client against a real server: embeddings, models, chat completions, errors."""

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest

from tests.service.conftest import Running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def vectors(reply: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    assert [entry.index for entry in reply.data] == list(range(len(reply.data)))
    return np.array([entry.embedding for entry in reply.data], np.float32)


def test_texts_become_the_embedders_vectors(client: openai.OpenAI, server: Running) -> None:
    texts = ["Bees make honey.", "蜜蜂", "بخير", "a"]
    reply = client.embeddings.create(model="words", input=texts)
    np.testing.assert_allclose(vectors(reply), server.embedder.encode_document(texts), atol=1e-7)
    assert reply.model == "words"
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == 4 + 2 + 2 + 2


def test_one_text_and_the_name_default(client: openai.OpenAI, server: Running) -> None:
    reply = client.embeddings.create(model="default", input="honey")
    np.testing.assert_allclose(vectors(reply)[0], server.embedder.encode_document("honey"), atol=1e-7)


def test_floats_equal_base64(http: httpx.Client) -> None:
    def embed(encoding: str) -> list:
        body = {"model": "words", "input": ["Bees make honey", "bread"], "encoding_format": encoding}
        return [entry["embedding"] for entry in http.post("/v1/embeddings", json=body).json()["data"]]

    packed = [np.frombuffer(base64.b64decode(row), "<f4") for row in embed("base64")]
    np.testing.assert_allclose(packed, embed("float"), atol=1e-7)


@pytest.mark.parametrize("ids", [[98, 101, 101], [[98, 101, 101]]])
def test_token_ids_are_decoded_by_the_models_tokenizer(
    client: openai.OpenAI, server: Running, ids: list
) -> None:
    reply = client.embeddings.create(model="words", input=ids)
    np.testing.assert_allclose(vectors(reply)[0], server.embedder.encode_document("bee"), atol=1e-7)


def test_token_ids_of_another_vocabulary_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="another model's vocabulary") as caught:
        client.embeddings.create(model="words", input=[[1, 99_999]])
    assert caught.value.param == "input"


def test_dimensions_are_the_leading_ones_normalised(client: openai.OpenAI, server: Running) -> None:
    text = "bees live in hives and bread is made of flour"
    short = server.embedder.encode_document(text)[:16]
    reply = client.embeddings.create(model="words", input=text, dimensions=16)
    np.testing.assert_allclose(vectors(reply)[0], short / np.linalg.norm(short), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "gpt", "input": "a"}, openai.NotFoundError, "'gpt' is not served here; use 'words'"),
        ({"model": "words", "input": ""}, openai.BadRequestError, r"input\[0\] is empty"),
        ({"model": "words", "input": ["a", ""]}, openai.BadRequestError, r"input\[1\] is empty"),
        ({"model": "words", "input": []}, openai.BadRequestError, "input has 0 entries; send 1 to 2048"),
        ({"model": "words", "input": ["a"] * 2049}, openai.BadRequestError, "input has 2049 entries"),
        ({"model": "words", "input": "a", "dimensions": 65}, openai.BadRequestError, "ask for 1 to 64"),
        ({"model": "words", "input": "a", "dimensions": 0}, openai.UnprocessableEntityError, "dimensions"),
        (
            {"model": "words", "input": "a", "encoding_format": "hex"},
            openai.UnprocessableEntityError,
            "encoding_format",
        ),
    ],
)
def test_errors_reach_the_client_as_its_own(
    client: openai.OpenAI, arguments: dict, error: type[openai.APIStatusError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        client.embeddings.create(**arguments)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id is not None


def test_models_are_the_embedder_and_the_collections(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["words", "library"]
    assert client.models.retrieve("library").owned_by == "collection"
    with pytest.raises(openai.NotFoundError, match="'nothing' is not served here"):
        client.models.retrieve("nothing")


QUESTION = [{"role": "user", "content": "What do bees make?"}]


def test_chat_answers_with_citations(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="library", messages=QUESTION)  # type: ignore[call-overload]
    content = reply.choices[0].message.content
    assert "Bees make honey. [1]" in content
    assert "\n\n[1] Bees, https://example.org/bees" in content
    assert reply.choices[0].finish_reason == "stop"
    first = reply.citations[0]
    assert (first["n"], first["document_id"], first["quote"]) == (1, "en/bees", "Bees make honey.")
    assert reply.abstained is False
    assert reply.usage.prompt_tokens == 5
    assert reply.usage.completion_tokens == len(content.split()) + 1


def test_streamed_chat_is_the_same_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="library@extractive", messages=QUESTION)  # type: ignore[call-overload]
    chunks = list(
        client.chat.completions.create(  # type: ignore[call-overload]
            model="library@extractive", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    *written, last, usage = chunks
    assert written[0].choices[0].delta.role == "assistant"
    content = "".join(chunk.choices[0].delta.content or "" for chunk in written)
    assert content == whole.choices[0].message.content
    assert last.choices[0].finish_reason == "stop"
    assert last.citations == whole.citations
    assert usage.choices == [] and usage.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_takes_content_parts_and_a_conversation(client: openai.OpenAI) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        *QUESTION,
        {"role": "assistant", "content": "Honey."},
        {"role": "user", "content": [{"type": "text", "text": "Where do bees live, in hives?"}]},
    ]
    reply = client.chat.completions.create(model="library", messages=messages, temperature=0.2)  # type: ignore[call-overload]
    assert "They live in hives." in reply.choices[0].message.content


def test_chat_takes_null_where_openai_does(http: httpx.Client) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": None}, *QUESTION]
    body = {"model": "library", "messages": messages, "stream": None, "stream_options": {"include_usage": None}}
    reply = http.post("/v1/chat/completions", json=body).json()
    assert "Bees make honey. [1]" in reply["choices"][0]["message"]["content"]
    wrong = http.post("/v1/chat/completions", json=body | {"messages": [{"role": "user", "content": None}]})
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (
        422,
        "messages.0 has no content; only a message of the assistant may, not one of the user",
    )


def test_chat_abstains(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="library", messages=[{"role": "user", "content": "Quantum chromodynamics lattice?"}]
    )
    assert reply.abstained is True and reply.citations == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "messages", "error", "message"),
    [
        (
            "nowhere",
            QUESTION,
            openai.NotFoundError,
            "no collection 'nowhere'.*a chat model here is a collection",
        ),
        (
            "library@gpt",
            QUESTION,
            openai.NotFoundError,
            "generator 'gpt' is not served here; there is: extractive",
        ),
        ("library@rwkv:/etc/passwd", QUESTION, openai.NotFoundError, "is not served here"),
        (
            "library",
            [{"role": "assistant", "content": "a"}],
            openai.BadRequestError,
            "must be the user's question",
        ),
        ("library", [{"role": "user", "content": " "}], openai.BadRequestError, "not empty"),
        ("library", [], openai.UnprocessableEntityError, "messages"),
        ("library", [{"role": "tool", "content": "a"}], openai.UnprocessableEntityError, "role"),
    ],
)
def test_chat_errors(
    client: openai.OpenAI,
    model: str,
    messages: list,
    error: type[openai.APIStatusError],
    message: str,
    stream: bool,
) -> None:
    with pytest.raises(error, match=message) as caught:
        client.chat.completions.create(model=model, messages=messages, stream=stream)
    if error is openai.NotFoundError:
        assert caught.value.param == "model"
