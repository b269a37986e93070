"""What HTTP requests may contain. Limits of shape live here; limits of size are in `api.settings`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _well_formed(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"has half a character (a lone surrogate) at position {error.start}; send valid Unicode"
        ) from None
    return text


def _json_object(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be stored as JSON text: {error}") from None
    return value


DEFAULT_TOP_K = 8  # passages read for an answer

Text = Annotated[str, AfterValidator(_well_formed)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_json_object)]
Integer = Annotated[int, Field(ge=0, lt=2**31, strict=True)]  # true is no number, and neither is "1"
Count = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Filter = Annotated[
    Text | JsonObject | None,
    Field(
        description="which documents to look at: `year >= 2020 and lang in (de, fr)`, or the same as JSON",
        examples=["lang in (de, fr)"],
    ),
]


class Request(BaseModel):
    """A body whose misspelt fields are refused rather than ignored."""

    model_config = ConfigDict(extra="forbid")


class OpenAIRequest(BaseModel):
    """A body whose unknown fields are ignored: clients of OpenAI send many that do not concern us."""

    model_config = ConfigDict(extra="ignore")


class EmbeddingsRequest(OpenAIRequest):
    input: Text | list[Text] | list[Integer] | list[list[Integer]] = Field(
        description="a text, texts, or token ids of this model's own tokenizer",
        examples=[["What is a human right?", "人权是什么?"]],
    )
    model: Text = Field(description="a name of `GET /v1/models`", examples=["default"])
    dimensions: Count | None = Field(
        default=None, description="keep this many leading dimensions, normalised again", examples=[256]
    )
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32"
    )
    input_type: Literal["document", "query"] = Field(
        default="document", description="extension: which prompt of the model to use"
    )
    user: Text | None = Field(default=None, description="accepted and not used")


class ContentPart(OpenAIRequest):
    type: Literal["text"]
    text: Text


class ChatMessage(OpenAIRequest):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ContentPart] | None = None

    @model_validator(mode="after")
    def _content_is_there(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":  # which may have called a tool instead
            raise ValueError(f"has no content; only a message of the assistant may, not one of the {self.role}")
        return self

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or ())


class StreamOptions(OpenAIRequest):
    include_usage: bool | None = None


class ChatRequest(OpenAIRequest):
    model: Text = Field(
        description="a collection, or `collection@generator` with extractive, rwkv or openai",
        examples=["default@extractive"],
    )
    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=1000,
        examples=[[{"role": "user", "content": "Who has the right to education?"}]],
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = Field(default=None, description="one answer is all there is")


class Chunking(Request):
    max_tokens: Annotated[int, Field(ge=8, le=1_000_000)] = 200
    overlap_tokens: Integer = 0
    context: Literal["chunk", "document"] = Field(
        default="chunk",
        description="`document`: a passage's vector knows everything before it in its document",
    )


class NewCollection(Request):
    name: Text = Field(description="letters, digits, `.`, `_`, `-`", examples=["handbook"])
    chunking: Chunking = Chunking()
    metadata: JsonObject = Field(default={}, examples=[{"owner": "library"}])


class NewDocument(Request):
    id: Text = Field(description="your own key; a document of that id is replaced", examples=["udhr/en#26"])
    text: Text = Field(examples=["Everyone has the right to education."])
    title: Text | None = Field(default=None, examples=["Article 26"])
    uri: Text | None = Field(
        default=None, description="shown with results; never fetched", examples=["https://un.org/udhr"]
    )
    language: Text | None = Field(
        default=None, description="ISO 639 code; identified when missing", examples=["en"]
    )
    metadata: JsonObject = Field(default={}, examples=[{"year": 1948}])


class Documents(Request):
    documents: list[NewDocument]


class Appended(Request):
    text: Text = Field(examples=[" Education shall be free."])


class DocumentIds(Request):
    ids: list[Text] = Field(min_length=1, examples=[["udhr/en#26"]])


class SearchRequest(Request):
    query: Text = Field(description="in any language", examples=["right to schooling"])
    top_k: Count = 10
    offset: Integer = 0
    mode: Literal["dense", "lexical", "hybrid"] = Field(
        default="hybrid", description="by meaning, by words, or both"
    )
    where: Filter = None
    group_by: Literal["chunk", "document"] = Field(
        default="chunk", description="one result per passage or per document"
    )
    score_threshold: Finite | None = Field(
        default=None,
        description="no results that score less; a score is a cosine (dense), BM25 (lexical) or their sum, scaled",
    )
    mmr_lambda: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="1: relevance only, 0: diversity only"
    )
    rerank: bool = False
    explain: bool = Field(default=False, description="say where each hit came from")
    exact: bool = Field(default=False, description="compare with every vector")


class Turn(Request):
    role: Literal["system", "user", "assistant"]
    content: Text


class AskRequest(Request):
    question: Text = Field(description="in any language", examples=["Who has the right to education?"])
    generator: Text | None = Field(
        default=None, description="one the server has, such as extractive; its default when missing"
    )
    history: list[Turn] = Field(
        default=[], max_length=1000, description="the conversation before the question"
    )
    top_k: Count = Field(default=DEFAULT_TOP_K, description="how many passages to read")
    where: Filter = None
    stream: bool = Field(
        default=False, description="answer as server-sent events: `token` …, then `answer` (or `error`)"
    )


class EmbedRequest(OpenAIRequest):
    inputs: Text | list[Text] = Field(examples=[["What is a human right?"]])
    normalize: Literal[True] = Field(default=True, description="vectors always have length 1")
    truncate: bool = Field(default=False, description="accepted; an RNN has no longest input")
    dimensions: Count | None = None


class RerankRequest(OpenAIRequest):
    query: Text = Field(examples=["right to schooling"])
    texts: list[Text] = Field(
        min_length=1, examples=[["Everyone has the right to education.", "Bread recipe"]]
    )
    raw_scores: bool = Field(default=False, description="accepted; scores always are cosine similarities")
    return_text: bool = False


class OneOrMany(BaseModel):
    """A document, a list of them, or {"documents": [...]}."""

    documents: list[NewDocument]

    @model_validator(mode="before")
    @classmethod
    def _many(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {"documents": value}
        if isinstance(value, dict) and "documents" not in value:
            return {"documents": [value]}
        return value
