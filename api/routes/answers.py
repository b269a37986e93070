"""Cited answers: /ask, and OpenAI's /v1/chat/completions where the model is a collection."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api import shapes
from api.errors import InvalidRequest, ModelNotServed, body
from api.schemas import DEFAULT_TOP_K, AskRequest, ChatRequest, Turn
from api.service import Service, ServiceDependency, json_response, while_connected
from indexer.errors import CollectionNotFound

if TYPE_CHECKING:
    from indexer.collection import Collection
    from indexer.types import Answer, Citation, Message

router = APIRouter()
EVENT_STREAM = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # nginx would hold the stream back
SILENT_SECONDS = 5.0


class EventStream(StreamingResponse):
    """Server-sent events. Their source is closed as soon as the reader is gone, not when it is collected."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=EVENT_STREAM)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


@router.post("/v1/collections/{collection}/ask", tags=["search"], summary="Ask")
async def ask(request: Request, collection: str, asked: AskRequest, service: ServiceDependency) -> Response:
    """An answer whose [n] marks are `citations`: verbatim quotes with their place. `abstained`: the
    collection does not say.

    With `stream` (or `Accept: text/event-stream`): events `token` `{"text"}` as the answer is written, at the
    end one `answer` as without streaming, or one `error`.
    """
    question = _Question(asked.question, asked.generator, _turns(asked.history), asked.top_k, asked.where)
    if asked.stream or "text/event-stream" in request.headers.get("accept", ""):
        pieces = await _begin(request, service, collection, question)
        return EventStream(_events(pieces))
    return json_response(shapes.answer(await _whole(request, service, collection, question)))


@dataclass(frozen=True)
class _Question:
    text: str
    generator: str | None
    history: Sequence[Message] = ()
    top_k: int = DEFAULT_TOP_K
    where: Any = None

    def options(self, service: Service) -> dict[str, Any]:
        """Arguments of `Collection.ask` and `ask_stream`. May load a generator: for worker threads."""
        return {
            "question": self.text,
            "generator": service.generator(self.generator),
            "history": self.history,
            "top_k": self.top_k,
            "where": self.where,
        }


def _turns(messages: Iterable[Turn]) -> tuple[Message, ...]:
    from indexer.types import Message

    return tuple(Message(turn.role, turn.content) for turn in messages)


def _pieces(service: Service, collection: str, question: _Question) -> AsyncGenerator[str | Answer, None]:
    store = service.store

    def produce() -> Iterable[str | Answer]:
        chosen: Collection = store.collection(collection)
        return chosen.ask_stream(**question.options(service))

    return service.workers.stream(produce)


async def _whole(request: Request, service: Service, collection: str, question: _Question) -> Answer:
    """The answer, read piece by piece, so that a client who leaves stops the work."""

    async def last() -> Answer:
        answer: str | Answer | None = None
        async with aclosing(_pieces(service, collection, question)) as pieces:
            async for piece in pieces:
                answer = piece
        if answer is None or isinstance(answer, str):
            raise RuntimeError("the generator stopped without an answer")
        return answer

    return await while_connected(request, last())


async def _begin(
    request: Request, service: Service, collection: str, question: _Question
) -> AsyncGenerator[str | Answer, None]:
    """Start an answer and wait for its first words: what is wrong from the start is an ordinary error.

    After `SILENT_SECONDS` the stream begins without any, so that nothing on the way takes it for dead.
    """
    pieces = _pieces(service, collection, question)

    async def first_words() -> str | Answer:
        began = time.monotonic()
        while not (piece := await anext(pieces)) and time.monotonic() - began < SILENT_SECONDS:
            pass
        return piece

    try:
        first = await while_connected(request, first_words())
    except BaseException:
        await pieces.aclose()
        raise

    async def all_pieces() -> AsyncGenerator[str | Answer, None]:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return all_pieces()


async def _events(pieces: AsyncGenerator[str | Answer, None]) -> AsyncGenerator[str, None]:
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if (
                    piece == ""
                ):  # the generator is still reading: a comment finds out whether the client is there
                    yield ":\n\n"
                elif isinstance(piece, str):
                    yield f"event: token\ndata: {shapes.dumps({'text': piece})}\n\n"
                else:
                    yield f"event: answer\ndata: {shapes.dumps(shapes.answer(piece))}\n\n"
    except Exception as error:  # the status line is long gone
        yield f"event: error\ndata: {shapes.dumps(body(error))}\n\n"


@router.post("/v1/chat/completions", tags=["OpenAI"], summary="Cited answers in OpenAI's shape")
async def chat(request: Request, asked: ChatRequest, service: ServiceDependency) -> Response:
    """The last message is the question, those before it the conversation. `model` is a collection, or
    `collection@generator`. The content ends with footnotes; `citations` and `abstained` are extensions of the
    reply (of the last chunk, when streamed). `usage` counts tokens of the embedding model.
    """
    collection, _, generator = asked.model.partition("@")
    last = asked.messages[-1]
    if last.role != "user" or not last.text.strip():
        raise InvalidRequest("the last message must be the user's question, and not empty", param="messages")
    history = _turns(Turn(role=_role(turn.role), content=turn.text) for turn in asked.messages[:-1] if turn.text)
    question = _Question(last.text, generator or None, history)
    reply = _Reply(service, asked)
    try:
        if asked.stream:
            pieces = await _begin(request, service, collection, question)
            return EventStream(reply.chunks(pieces))
        answer = await _whole(request, service, collection, question)
    except CollectionNotFound as error:
        raise ModelNotServed(
            f"{error}; a chat model here is a collection, or collection@generator", param="model"
        ) from None
    except ModelNotServed as error:  # of the generator, which here is a part of the model's name
        raise ModelNotServed(str(error), param="model") from None
    return json_response(await reply.whole(answer))


def _role(role: str) -> Any:
    return "system" if role == "developer" else role


class _Reply:
    """A chat completion in OpenAI's shape, whole or in chunks."""

    def __init__(self, service: Service, asked: ChatRequest) -> None:
        self._service, self._asked = service, asked
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}

    async def whole(self, answer: Answer) -> dict[str, Any]:
        content = answer.answer + footnotes(answer.citations)
        message = {"role": "assistant", "content": content, "refusal": None}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": await self._usage(content),
            **_extensions(answer),
        }

    async def chunks(self, pieces: AsyncGenerator[str | Answer, None]) -> AsyncGenerator[str, None]:
        yield self._chunk({"role": "assistant", "content": ""})
        written: list[str] = []
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    text = piece if isinstance(piece, str) else footnotes(piece.citations)
                    written.append(text)
                    # empty: the generator is still reading; a comment finds out whether the client is there
                    yield self._chunk({"content": text}) if text else ":\n\n"
                    if not isinstance(piece, str):
                        yield self._chunk({}, finish="stop", extra=_extensions(piece))
            if self._asked.stream_options is not None and self._asked.stream_options.include_usage:
                usage = await self._usage("".join(written))
                yield _data({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        except Exception as error:  # the status line is long gone; OpenAI's client raises on this
            yield _data(body(error))
        yield "data: [DONE]\n\n"

    def _chunk(
        self, delta: dict[str, Any], finish: str | None = None, extra: dict[str, Any] | None = None
    ) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _data({**self._head, "object": "chat.completion.chunk", "choices": [choice], **(extra or {})})

    async def _usage(self, content: str) -> dict[str, int]:
        embedder, asked = self._service.embedder, [message.text for message in self._asked.messages]
        counts = await self._service.workers.run_admitted(lambda: embedder.count_tokens([*asked, content]))
        prompt = sum(counts[:-1])
        return {"prompt_tokens": prompt, "completion_tokens": counts[-1], "total_tokens": prompt + counts[-1]}


def _data(value: dict[str, Any]) -> str:
    return f"data: {shapes.dumps(value)}\n\n"


def _extensions(answer: Answer) -> dict[str, Any]:
    return {
        "citations": [shapes.citation(cited) for cited in answer.citations],
        "abstained": answer.abstained,
    }


def footnotes(citations: Sequence[Citation]) -> str:
    """`[1] title, uri` lines under an answer, for clients that show text only."""
    lines = [
        f"[{cited.n}] {cited.title}, {cited.uri or cited.document_id}"
        if cited.title
        else f"[{cited.n}] {cited.uri or cited.document_id}"
        for cited in citations
    ]
    return "\n\n" + "\n".join(lines) if lines else ""
