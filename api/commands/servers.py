"""serve, mcp: the store over HTTP, and for assistants that speak the Model Context Protocol."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from typing import Annotated, Any

import typer

from api.errors import CannotListen, InvalidRequest
from api.terminal import ModelOption, RerankerOption, StoreOption, note


def register(app: typer.Typer) -> None:
    panel = "Servers"
    app.command(rich_help_panel=panel)(serve)
    app.command(rich_help_panel=panel)(mcp)


def serve(
    host: Annotated[
        str, typer.Option(envvar="RWKV_EMBED_HOST", help="Address to listen on; 0.0.0.0 for all.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="RWKV_EMBED_PORT", min=0, max=65535, help="Port to listen on.")
    ] = 8000,
    store: StoreOption = None,
    model: ModelOption = None,
    reranker: RerankerOption = None,
) -> None:
    """Serve the HTTP API and the search page. Further settings are RWKV_EMBED_* variables; see docs/cli.md.

    Set RWKV_EMBED_API_KEYS before you listen on anything but this machine.
    """
    import uvicorn
    from pydantic import ValidationError

    from api.app import create_app
    from api.settings import Settings
    from indexer.db.database import postgresql_url, without_password

    given: dict[str, Any] = {"store": store, "model": model, "reranker": reranker}
    try:
        settings = Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = error.errors()[0]
        variable = "RWKV_EMBED_" + ".".join(map(str, wrong["loc"])).upper()
        reason = wrong["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"{variable}: {reason}; the value is {wrong['input']!r}") from None
    if "://" in settings.store:
        postgresql_url(settings.store)  # a typing error is told before a server runs
    sockets = _listen(host, port)
    if host not in ("127.0.0.1", "localhost", "::1") and not settings.api_keys:
        note(f"Warning: whoever reaches {host} can read and change the store; set RWKV_EMBED_API_KEYS.")
    note(
        f"Store {without_password(settings.store)}; search page http://{host}:{port}/, API description http://{host}:{port}/docs"
    )
    config = uvicorn.Config(
        create_app(settings),
        log_level="warning",
        timeout_graceful_shutdown=settings.shutdown_seconds,
        server_header=False,
    )
    with suppress(KeyboardInterrupt):  # the way to stop a server
        uvicorn.Server(config).run(sockets)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets of all addresses of a host, before anything is loaded; CannotListen."""
    sockets = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, _, _, _, place in found:
            try:
                sockets.append(socket.create_server(place, family=family))
            except OSError as error:  # `localhost` may also mean ::1 on a machine without IPv6
                last = place == found[-1][4]
                if error.errno != errno.EADDRNOTAVAIL or (last and not sockets):
                    raise
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise CannotListen(
            f"cannot listen on {host} port {port}: {reason}; give another --host or --port"
        ) from None
    return sockets


def mcp(store: StoreOption = None, model: ModelOption = None) -> None:
    """Serve search, ask, list_collections and add_document to an assistant over stdin and stdout."""
    from api.locations import default_store
    from api.mcp import run

    run(store or default_store(), model)
