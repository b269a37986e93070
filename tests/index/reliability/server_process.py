"""The HTTP server as `rwkv-embed serve` runs it, with a predictable embedder, until it is killed.

`python server_process.py STORE` prints the port it listens on.
"""

import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import uvicorn
from fakes import PIPELINE, FakeEmbedder

from api.app import create_app
from api.settings import Settings
from indexer import vectors
from indexer.store import open_store


def main() -> None:
    vectors.SNAPSHOT_ROWS = 40  # so that there is a snapshot being written at many of the moments
    embedder = FakeEmbedder()
    app = create_app(
        Settings(store=sys.argv[1]),
        open_store=lambda location, *_: open_store(location, lambda model_id: embedder, pipeline=PIPELINE),
    )
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])


if __name__ == "__main__":
    main()
