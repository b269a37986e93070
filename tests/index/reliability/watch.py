"""What the kill tests share: processes, the independent look at a store, and the store's own look at itself."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from fakes import PIPELINE, FakeEmbedder
from sqlalchemy import select

from indexer.db.tables import ChunkRow
from indexer.store import open_store

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
SLACK_S = 600  # a busy machine starts Python slowly


def look(store: Path, *log: Path) -> str:
    """What the independent checker finds wrong; that it cannot read the store is wrong as well."""
    command = [sys.executable, "-I", HERE / "checker.py", store, *log]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SLACK_S)
    return (done.stdout + done.stderr).strip()


def check_opened(store: Path) -> None:
    """Open the store, verify it with its own means, compare the vector index with SQL."""
    embedder = FakeEmbedder()
    with open_store(store, lambda model_id: embedder, create=False, pipeline=PIPELINE) as opened:
        assert opened.verify().problems == []
        collection = opened.collection("default")
        view = collection.vectors
        assert len(view) == collection.info.chunks
        ids = view.ids[view.alive][:50]
        with collection.session() as session:
            texts = dict(
                session.execute(select(ChunkRow.id, ChunkRow.text).where(ChunkRow.id.in_(ids.tolist()))).all()
            )
        fresh = embedder.encode_document([texts[id] for id in ids.tolist()])
        np.testing.assert_allclose(view.get(ids), fresh, atol=1e-3)


@contextmanager
def server(store: Path | str) -> Iterator[tuple[subprocess.Popen, httpx.Client]]:
    """A server process, and a client for it once it is ready."""
    command = [sys.executable, HERE / "server_process.py", store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT) as process:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        try:
            with httpx.Client(base_url=url, timeout=SLACK_S) as client:
                while client.get("/ready").status_code != 200:
                    time.sleep(0.05)
                yield process, client
        finally:
            process.kill()
