"""`kill -9` of the server under load: every upsert that was answered 200 is there after the restart.

Clients write down what they are going to send and what was acknowledged; `checker.py` compares their log with
the database. The next server is started on what the last one left.
"""

import os
import queue
import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import pytest
from fakes import PIPELINE, FakeEmbedder

from indexer.store import open_store
from tests.index.reliability.watch import SLACK_S, check_opened, look, server

CLIENTS = 4
MOST_BATCHES = 20  # acknowledged before a kill
DOCUMENTS = "/v1/collections/default/documents"


def write(client: httpx.Client, log: int, number: int, trial: int, acknowledged: queue.Queue) -> None:
    """Put documents of this client in until the server is gone; tell of each batch that was acknowledged."""
    chance = random.Random(trial * CLIENTS + number)
    for n in count():
        ids = chance.sample(range(number, 200, CLIENTS), 5)
        batch = [(f"d{id}", f"trial{trial}x{n} number{id}") for id in ids]
        os.write(log, "".join(f"intent {id} {text}\n" for id, text in batch).encode())
        try:
            answer = client.post(DOCUMENTS, json=[{"id": id, "text": text} for id, text in batch])
        except httpx.TransportError:
            return
        assert answer.status_code == 200, answer.text
        os.write(log, "".join(f"done {id} {text}\n" for id, text in batch).encode())
        acknowledged.put(len(batch))


def search(client: httpx.Client) -> None:
    while True:
        try:
            answer = client.post("/v1/collections/default/search", json={"query": "number7", "mode": "dense"})
        except httpx.TransportError:
            return
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_what_the_server_acknowledged_survives_its_kill(tmp_path, kills):
    store, log_path = tmp_path / "store", tmp_path / "log"
    with open_store(store, lambda model_id: FakeEmbedder(), pipeline=PIPELINE) as made:
        made.create_collection("default")
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    random.seed(kills)
    acknowledged: queue.Queue[int] = queue.Queue()
    for trial in range(kills):
        with server(store) as (process, client), ThreadPoolExecutor(CLIENTS + 1) as pool:
            clients = [
                *(pool.submit(write, client, log, number, trial, acknowledged) for number in range(CLIENTS)),
                pool.submit(search, client),
            ]
            begun = time.monotonic()
            batches = random.randint(1, MOST_BATCHES)
            for _ in range(
                batches
            ):  # by progress, not by the clock, so that a slow machine is killed in the act
                acknowledged.get(timeout=SLACK_S)
            time.sleep(random.uniform(0, 2 * (time.monotonic() - begun) / batches))
            process.kill()
            for client in clients:
                client.result()  # raises what the client did not expect
        assert look(store, log_path) == "", f"after kill {trial}"
    os.close(log)
    check_opened(store)
    done = log_path.read_text().count("done ")
    print(f"{kills} kills, {done} documents acknowledged")
    assert done >= 5 * kills
