"""The store for assistants that speak the Model Context Protocol: four tools over stdin and stdout.

What the tools return is what the HTTP API returns. Needs the extra `mcp`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from api import shapes
from api.backend import open_store
from api.errors import EXPECTED, sentence
from rwkv_embed.errors import MissingDependency

if TYPE_CHECKING:
    from mcp.server import MCPServer

    from indexer.store import Store

DEFAULT_COLLECTION = "default"


def run(location: str, model: str | None) -> None:
    """Serve until stdin ends."""
    with open_store(location, model) as store:
        create_server(store).run()


def create_server(store: Store) -> MCPServer:
    """The tools over one open store. MissingDependency without the extra."""
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise MissingDependency(
            "the package mcp is missing; install it: pip install 'rwkv-embed[mcp]'"
        ) from error

    server = MCPServer(
        "rwkv-embed",
        instructions="Search and ask the user's own documents, in any language. Cite what you use.",
    )

    def tool(function: Callable[..., dict[str, Any]]) -> None:
        """Register a tool. Its result becomes plain JSON, and what the caller can mend becomes a sentence."""

        @server.tool()
        @wraps(function)
        def plain(*args: Any, **kwargs: Any) -> dict[str, Any]:
            try:
                result: dict[str, Any] = json.loads(shapes.dumps(function(*args, **kwargs)))
                return result
            except EXPECTED as error:
                raise ToolError(sentence(error)) from error

    @tool
    def list_collections() -> dict[str, Any]:
        """The collections of documents, with their sizes."""
        return {"collections": [shapes.collection(info) for info in store.collections()]}

    @tool
    def search(
        query: str, collection: str = DEFAULT_COLLECTION, top_k: int | None = None, where: str | None = None
    ) -> dict[str, Any]:
        """Find passages that answer a query, in whatever language. `where` filters: 'year >= 2020'."""
        from indexer.types import SearchOptions

        options = SearchOptions(top_k=top_k or SearchOptions().top_k, where=where or None)
        return {"hits": [shapes.hit(hit) for hit in store.collection(collection).search(query, options)]}

    @tool
    def ask(question: str, collection: str = DEFAULT_COLLECTION, where: str | None = None) -> dict[str, Any]:
        """Answer a question with quotes and their sources; `abstained`: the documents do not say."""
        return shapes.answer(store.collection(collection).ask(question, where=where or None))

    @tool
    def add_document(
        id: str,
        text: str,
        collection: str = DEFAULT_COLLECTION,
        title: str | None = None,
        uri: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Put a text in, or replace the one of that id. The collection is made when it is not there."""
        from indexer.types import Document

        document = Document(id, text, title, uri, metadata=metadata or {})
        return shapes.report(store.collection_or_create(collection).upsert([document]))

    return server
