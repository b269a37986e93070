"""Several servers on one store, which is in PostgreSQL; one of them is killed under load."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest
from fakes import PIPELINE, FakeEmbedder
from sqlalchemy import make_url

from indexer.store import open_store
from tests.index.reliability.watch import server

DOCUMENTS = "/v1/collections/default/documents"
SEARCH = "/v1/collections/default/search"


@pytest.fixture
def url(new_store):
    with new_store("postgresql") as url:
        with open_store(url, lambda model_id: FakeEmbedder(), pipeline=PIPELINE) as store:
            store.create_collection("default")
        yield url


def put(client: httpx.Client, id: str, text: str) -> int:
    return client.post(DOCUMENTS, json=[{"id": id, "text": text}]).status_code


def test_what_one_server_acknowledged_the_other_finds(url):
    with server(url) as (_, one), server(url) as (_, other):
        for n in range(5):
            assert put(one, f"d{n}", f"a text about otters number{n}") == 200
            for mode in ("lexical", "dense", "hybrid"):
                query = {"query": f"a text about otters number{n}", "mode": mode, "top_k": 1}
                hits = other.post(SEARCH, json=query).json()["hits"]
                assert [hit["document_id"] for hit in hits] == [f"d{n}"], mode
        assert other.delete(f"{DOCUMENTS}/d0").status_code == 200
        assert one.get(f"{DOCUMENTS}/d0").status_code == 404
        assert one.delete("/v1/collections/default").status_code == 200
        assert other.post(SEARCH, json={"query": "otters"}).status_code == 404


def test_a_server_whose_database_is_away_is_not_ready_and_recovers(url, postgresql_server):
    name = make_url(url).database
    with server(url) as (_, client), psycopg.connect(postgresql_server, autocommit=True) as administrator:
        assert put(client, "a", "one") == 200
        administrator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        administrator.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        for answer in (client.get("/ready"), client.post(SEARCH, json={"query": "one"})):
            assert answer.status_code == 503, answer.text
            assert "not currently accepting connections" in answer.json()["error"]["message"]
        administrator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert client.get("/ready").status_code == 200
        assert client.post(SEARCH, json={"query": "one"}).json()["hits"][0]["document_id"] == "a"


def test_a_server_that_is_killed_loses_nothing_and_disturbs_nobody(url):
    acknowledged = []

    def write(client: httpx.Client, name: str, count: int) -> None:
        for n in range(count):
            try:
                status = put(client, f"{name}{n}", f"text of many number{n}")
            except httpx.TransportError:
                return
            assert status == 200
            acknowledged.append(f"{name}{n}")
            if name == "a" and n == 5:
                victim.kill()

    def search(client: httpx.Client) -> None:
        for _ in range(15):
            query = {"query": "text of many", "where": "lang = en", "mmr_lambda": 0.5, "top_k": 20}
            answer = client.post(SEARCH, json=query)
            assert answer.status_code == 200, answer.text

    with server(url) as (victim, one), server(url) as (_, other), ThreadPoolExecutor(9) as threads:
        writers = [threads.submit(write, one, name, 100) for name in "abc"]
        others = [threads.submit(write, other, name, 15) for name in "xyz"]
        readers = [threads.submit(search, other) for _ in range(3)]
        for future in (*writers, *others, *readers):
            future.result()
        assert {id for id in acknowledged if id[0] in "xyz"} == {f"{name}{n}" for name in "xyz" for n in range(15)}
        for id in acknowledged:
            assert other.get(f"{DOCUMENTS}/{id}").status_code == 200, id
    with open_store(url, lambda model_id: FakeEmbedder(), pipeline=PIPELINE) as store:
        assert store.verify().problems == []
