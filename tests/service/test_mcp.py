"""The MCP server, through a real client session in this process."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from indexer import open_store
from indexer.store import Store
from tests.service.conftest import LIBRARY
from tests.service.fakes import WordEmbedder

mcp = pytest.importorskip("mcp", minversion=None, reason="the extra mcp is not installed")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    embedder = WordEmbedder()
    with open_store(tmp_path_factory.mktemp("mcp") / "s", embedder_factory=lambda _: embedder) as opened:
        opened.create_collection("default", embedder).upsert(LIBRARY)
        yield opened


def call(store: Store, tool: str, **arguments: Any) -> Any:
    from api.mcp import create_server

    async def session() -> Any:
        async with mcp.Client(create_server(store)) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(session())


def test_tools_have_descriptions_and_optional_arguments(store: Store) -> None:
    from api.mcp import create_server

    async def tools() -> Any:
        async with mcp.Client(create_server(store)) as client:
            return (await client.list_tools()).tools

    listed = {tool.name: tool for tool in asyncio.run(tools())}
    assert sorted(listed) == ["add_document", "ask", "list_collections", "search"]
    assert all(tool.description for tool in listed.values())
    assert listed["search"].input_schema["required"] == ["query"]


def test_search_and_ask(store: Store) -> None:
    hits = call(store, "search", query="bees make honey", top_k=1).structured_content["hits"]
    assert [hit["document_id"] for hit in hits] == ["en/bees"]
    answer = call(store, "ask", question="What do bees make?").structured_content
    assert answer["citations"][0]["quote"] == "Bees make honey."


@pytest.mark.parametrize("optional", [{}, {"top_k": None, "where": None}, {"where": ""}])
def test_optional_arguments_may_be_missing_null_or_empty(store: Store, optional: dict[str, Any]) -> None:
    result = call(store, "search", query="bees", **optional)
    assert not result.is_error and result.structured_content["hits"]


def test_add_document_makes_the_collection(store: Store) -> None:
    report = call(store, "add_document", id="n", text="Water boils.", collection="new").structured_content
    assert report["added"] == 1
    listed = call(store, "list_collections").structured_content["collections"]
    assert [(each["name"], each["documents"]) for each in listed] == [("default", len(LIBRARY)), ("new", 1)]


def test_an_error_is_told_to_the_assistant(store: Store) -> None:
    result = call(store, "search", query="a", collection="nowhere")
    assert result.is_error and "no collection 'nowhere'" in result.content[0].text


def test_a_missing_extra_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from api.mcp import create_server
    from rwkv_embed.errors import MissingDependency

    monkeypatch.setitem(__import__("sys").modules, "mcp.server", None)
    with pytest.raises(MissingDependency, match=r"pip install 'rwkv-embed\[mcp\]'"):
        create_server(store)


def test_the_server_answers_over_stdio(tmp_path: Path) -> None:
    """The real process, spoken to as an assistant does."""
    import os
    import sys

    parameters = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "api.cli", "mcp", "--store", str(tmp_path / "s")],
        cwd=str(Path(__file__).parents[2]),
        env=dict(os.environ),
    )

    async def session() -> Any:
        async with mcp.stdio_client(parameters) as streams, mcp.ClientSession(*streams) as client:
            await client.initialize()
            return await client.call_tool("list_collections", {})

    assert asyncio.run(session()).structured_content == {"collections": []}
