"""Collections, documents, search, ask, map, TEI and operation, over a real connection."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.service.conftest import LIBRARY, Running, running, wait_for


def error(reply: httpx.Response, status: int) -> str:
    """The message of an error in OpenAI's shape."""
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error"}
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    return str(reply.json()["error"]["message"])


@pytest.fixture
def mine(client: httpx.Client) -> Iterator[str]:
    """The path of an empty collection."""
    assert (
        client.post("/v1/collections", json={"name": "mine", "metadata": {"owner": "me"}}).status_code == 201
    )
    yield "/v1/collections/mine"
    client.delete("/v1/collections/mine")


def test_collections_come_and_go(client: httpx.Client, mine: str) -> None:
    assert [each["name"] for each in client.get("/v1/collections").json()["data"]] == ["library", "mine"]
    info = client.get(mine).json()
    assert (info["model"], info["dim"], info["documents"], info["metadata"]) == (
        "words",
        64,
        0,
        {"owner": "me"},
    )
    assert info["chunking"] == {"max_tokens": 200, "overlap_tokens": 0, "context": "chunk"}
    assert "already a collection 'mine'" in error(client.post("/v1/collections", json={"name": "mine"}), 409)
    assert client.delete(mine).json() == {"object": "collection", "name": "mine", "deleted": True}
    assert "no collection 'mine'" in error(client.get(mine), 404)


def test_documents_one_or_many(client: httpx.Client, mine: str) -> None:
    one = {
        "id": "a/b c?#%.txt",
        "text": "Bees make honey.",
        "metadata": {"year": 2020},
        "title": "T",
        "language": "en",
    }
    many = [{"id": "2", "text": "Bread."}, {"id": "3", "text": "Water."}]
    assert client.post(f"{mine}/documents", json=one).json()["added"] == 1
    assert client.post(f"{mine}/documents", json=many).json()["added"] == 2
    again = client.post(
        f"{mine}/documents", json={"documents": [one, many[0] | {"text": "Bread and salt."}]}
    ).json()
    assert (again["added"], again["updated"], again["unchanged"]) == (0, 1, 1)

    got = client.get(f"{mine}/documents/a/b%20c%3F%23%25.txt").json()
    assert {key: got[key] for key in one} == one
    assert [chunk["text"] for chunk in got["chunks"]] == ["Bees make honey."]
    listed = client.get(f"{mine}/documents", params={"limit": 2, "offset": 1}).json()
    assert ([row["id"] for row in listed["data"]], listed["total"]) == (["2", "3"], 3)
    assert client.delete(f"{mine}/documents/a/b%20c%3F%23%25.txt").json() == {"deleted": 1}
    assert "a/b c?#%.txt" in error(client.delete(f"{mine}/documents/a/b%20c%3F%23%25.txt"), 404)
    assert client.post(f"{mine}/documents/delete", json={"ids": ["2", "3", "4"]}).json() == {"deleted": 2}


def test_an_id_that_ends_in_a_newline_is_not_taken_for_another(client: httpx.Client, mine: str) -> None:
    texts = [{"id": "a", "text": "one"}, {"id": "a\n", "text": "two"}, {"id": "a\nb/c", "text": "three"}]
    client.post(f"{mine}/documents", json=texts)
    assert client.get(f"{mine}/documents/a%0Ab/c").json()["text"] == "three"
    assert client.delete(f"{mine}/documents/a%0A").json() == {"deleted": 1}
    assert client.get(f"{mine}/documents/a").json()["text"] == "one"


def test_ids_that_clients_fold_out_of_an_address_are_refused(client: httpx.Client, mine: str) -> None:
    folded = ["..", ".", "a/../..", "a\\..\\b"]  # DELETE of the first would reach the collection instead
    documents = [{"id": id, "text": "x"} for id in [*folded, "a/..b/...", "a.b"]]
    report = client.post(f"{mine}/documents", json=documents).json()
    assert report["added"] == 2
    assert [failure["path"] for failure in report["failed"]] == sorted(folded)
    assert report["failed"][0]["reason"].startswith("the id has a part that is `.` or `..`")
    rows = ("rows.csv", b"id,text\n../..,one\ntwo,two\n")
    report = client.post(f"{mine}/documents/upload", files=[("files", rows)]).json()
    assert (report["added"], [failure["path"] for failure in report["failed"]]) == (1, ["rows.csv#../.."])


def test_append_adds_to_the_end(client: httpx.Client, mine: str) -> None:
    client.post(f"{mine}/documents", json={"id": "log", "text": "Bees make honey."})
    assert (
        client.post(f"{mine}/documents/log/append", json={"text": " They live in hives."}).json()["updated"]
        == 1
    )
    assert client.get(f"{mine}/documents/log").json()["text"] == "Bees make honey. They live in hives."
    missing = client.post(f"{mine}/documents/missing/append", json={"text": "x"})
    assert error(missing, 404) == "there is no document 'missing' in the collection"


def test_uploads_are_read_and_named_by_their_last_part(client: httpx.Client, mine: str) -> None:
    files = [
        ("files", ("../../etc/notes.txt", b"Bees make honey.")),
        (
            "files",
            ("C:\\temp\\page.html", b"<html><title>Bread</title><body><p>Flour and water.</p></body></html>"),
        ),
        ("files", ("broken.pdf", b"%PDF-1.7 not really")),
    ]
    report = client.post(f"{mine}/documents/upload", files=files).json()
    assert report["added"] == 2
    assert [failure["path"] for failure in report["failed"]] == ["broken.pdf"]
    assert client.get(f"{mine}/documents/notes.txt").json()["text"].strip() == "Bees make honey."
    assert "Flour and water." in client.get(f"{mine}/documents/page.html").json()["text"]


def test_uploads_may_have_long_names_in_any_script(client: httpx.Client, mine: str) -> None:
    long = "水" * 90  # 270 bytes: more than a file system takes
    files = [("files", (f"{long}.txt", b"Water.")), ("files", (f"{long}.csv", b"id,text\n1,Rain.\n"))]
    report = client.post(f"{mine}/documents/upload", files=files).json()
    assert (report["added"], report["failed"]) == (2, [])
    got = client.get(f"{mine}/documents/{long}.txt").json()
    assert (got["text"], got["title"], got["uri"]) == ("Water.", f"{long}.txt", f"{long}.txt")
    assert client.get(f"{mine}/documents/{long}.csv%231").json()["text"] == "Rain."
    twice = client.post(f"{mine}/documents/upload", files=[files[0], files[0]])
    assert "two files are called" in error(twice, 400)


@pytest.mark.parametrize("name", ["..", "/", ".", "a/..", "\\", "\x01"])
def test_uploads_without_a_name_are_refused(client: httpx.Client, mine: str, name: str) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="'
        + name.encode()
        + b'"\r\n\r\nhi\r\n--x--\r\n'
    )
    reply = client.post(
        f"{mine}/documents/upload", content=body, headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert "name" in error(reply, 400)


def test_search_finds_by_words_and_meaning(client: httpx.Client) -> None:
    body = {"query": "bees make honey", "top_k": 3, "explain": True}
    reply = client.post("/v1/collections/library/search", json=body).json()
    best = reply["hits"][0]
    assert best["document_id"] == "en/bees"
    assert best["text"] == LIBRARY[0].text[best["start"] : best["end"]]
    assert (best["title"], best["uri"], best["language"]) == ("Bees", "https://example.org/bees", "en")
    assert best["metadata"] == {"year": 2020}
    assert len(reply["hits"]) <= 3 and "explain" in best
    got = client.get("/v1/collections/library/search", params={"q": "bees make honey", "top_k": 3}).json()
    assert [hit["chunk_id"] for hit in got["hits"]] == [hit["chunk_id"] for hit in reply["hits"]]


@pytest.mark.parametrize("where", ["year >= 2022", {"field": "year", "op": ">=", "value": 2022}])
def test_search_filters(client: httpx.Client, where: object) -> None:
    hits = client.post("/v1/collections/library/search", json={"query": "bees", "where": where}).json()[
        "hits"
    ]
    assert {hit["document_id"] for hit in hits} <= {"de/bienen", "ar/nahl", "zh/mifeng"} and hits


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"query": "a", "where": "year >="}, 400, "year"),
        ({"query": "a", "top_k": 0}, 422, "top_k must be greater than or equal to 1, not 0"),
        ({"query": "a", "top_k": "3"}, 422, 'top_k must be an integer, not "3"'),
        ({"query": "a", "where": 5}, 422, "where must be a string or an object, not 5"),
        ({"query": "a", "topk": 3}, 422, "topk is not a field of this request; /docs lists those"),
        ({"query": "a", "mode": "magic"}, 422, "mode"),
        ({}, 422, "query is missing"),
        ({"query": "\ud800"}, 422, "query has half a character"),
        ({"query": "x" * 40_000}, 413, "32"),
        ({"query": "a", "score_threshold": float("nan")}, 422, "score_threshold"),
    ],
)
def test_search_errors(client: httpx.Client, body: dict, status: int, message: str) -> None:
    reply = client.post(
        "/v1/collections/library/search",
        content=json.dumps(body),
        headers={"content-type": "application/json"},
    )
    assert message in error(reply, status)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 422, "the body is missing"),
        (b"[]", 422, "the body must be an object, not []"),
        (b'{"input": null, "model": "m"}', 422, "input must be a string or a list, not null"),
        (b'{"input": ["a", 1], "model": "m"}', 422, "input.1 must be a string or a list, not 1"),
        (
            b'{"input": [true], "model": "m"}',
            422,
            "input.0 must be a string or an integer or a list, not true",
        ),
        (b'{"input": "a", "model": "m", "dimensions": true}', 422, "dimensions must be an integer, not true"),
        (b'{"input": ' + b"[" * 100_000, 400, "the body cannot be read as JSON: it is nested too deeply"),
        (
            b'{"dimensions": ' + b"9" * 5000 + b"}",
            400,
            "the body cannot be read as JSON: it has a number with",
        ),
        (b'{"a": "\xff"}', 400, "the body cannot be read as JSON: byte 7 is not"),
    ],
)
def test_a_body_that_is_wrong_is_told_why(
    client: httpx.Client, content: bytes, status: int, message: str
) -> None:
    headers = {"content-type": "application/json"}
    assert error(client.post("/v1/embeddings", content=content, headers=headers), status).startswith(message)


def test_a_body_that_is_not_declared_as_json_is_told_so(client: httpx.Client) -> None:
    body = {"input": "a", "model": "default"}
    reply = client.post("/v1/embeddings", content=json.dumps(body), headers={"content-type": "text/plain"})
    assert error(reply, 422).endswith("send it with `content-type: application/json`")


def test_ask_whole_and_streamed(client: httpx.Client) -> None:
    path, body = "/v1/collections/library/ask", {"question": "What do bees make?"}
    whole = client.post(path, json=body).json()
    assert whole["abstained"] is False
    assert whole["citations"][0]["quote"] == "Bees make honey."
    streamed = client.post(path, json=body, headers={"accept": "text/event-stream"})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = [
        block.split("\n") for block in streamed.text.split("\n\n") if block and not block.startswith(":")
    ]
    names = [lines[0].removeprefix("event: ") for lines in events]
    data = [json.loads(lines[1].removeprefix("data: ")) for lines in events]
    assert names == ["token"] * (len(names) - 1) + ["answer"]
    assert "".join(each["text"] for each in data[:-1]) == whole["answer"]
    assert data[-1] == whole


def test_ask_errors_come_before_the_stream(client: httpx.Client) -> None:
    body = {"question": "a", "stream": True}
    assert "no collection 'no'" in error(client.post("/v1/collections/no/ask", json=body), 404)
    body["question"] = " "
    assert "the question is empty" in error(client.post("/v1/collections/library/ask", json=body), 400)


def test_map_puts_passages_on_a_plane(client: httpx.Client) -> None:
    reply = client.get("/v1/collections/library/map").json()
    assert reply["total"] == len(reply["points"]) == len(LIBRARY)
    assert all(-1 <= point["x"] <= 1 and -1 <= point["y"] <= 1 for point in reply["points"])
    assert [point["document_id"] for point in reply["points"]] == [document.id for document in LIBRARY]
    assert len(client.get("/v1/collections/library/map", params={"limit": 2}).json()["points"]) == 2


def test_map_of_nothing(client: httpx.Client, mine: str) -> None:
    assert client.get(f"{mine}/map").json() == {"points": [], "total": 0}


def test_tei(client: httpx.Client, server: Running) -> None:
    rows = client.post("/embed", json={"inputs": ["bees", "honey"], "truncate": True}).json()
    np.testing.assert_allclose(rows, server.embedder.encode_document(["bees", "honey"]), atol=1e-7)
    assert len(client.post("/embed", json={"inputs": "bees", "dimensions": 8}).json()[0]) == 8
    ranked = client.post(
        "/rerank", json={"query": "bees", "texts": ["bread", "bees"], "return_text": True}
    ).json()
    assert [(entry["index"], entry["text"]) for entry in ranked] == [(1, "bees"), (0, "bread")]
    assert ranked[0]["score"] == pytest.approx(1, abs=1e-5)
    no_query = client.post("/rerank", json={"query": " ", "texts": ["bees"]})
    assert "the query is empty; send what the texts are to be compared with" in error(no_query, 400)
    assert client.get("/info").json()["model_id"] == "words"


def test_unknown_places_have_the_same_error_shape(client: httpx.Client) -> None:
    assert "there is nothing at GET /v2" in error(client.get("/v2"), 404)
    assert "/health does not take PUT" in error(client.put("/health"), 405)
    assert "JSON" in error(
        client.post("/embed", content=b"{", headers={"content-type": "application/json"}), 422
    )


def test_every_answer_has_a_request_id(client: httpx.Client) -> None:
    assert client.get("/health", headers={"x-request-id": "abc-1.2"}).headers["x-request-id"] == "abc-1.2"
    forged = client.get("/health", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    assert len(forged) == 32
    assert client.get("/nope").headers["x-request-id"]


def test_metrics_count_routes_and_never_what_clients_send(client: httpx.Client) -> None:
    client.get("/v1/collections/SECRET-NAME")
    client.get("/secret/path")
    text = client.get("/metrics").text
    line = 'rwkv_embed_requests_total{method="GET",route="/v1/collections/{collection}",status="404"}'
    assert line in text and 'route="unmatched",status="404"' in text
    assert "SECRET" not in text and "secret" not in text


def test_metrics_count_the_passages_of_documents(client: httpx.Client, mine: str) -> None:
    def embedded() -> float:
        return float(client.get("/metrics").text.partition("\nrwkv_embed_texts_embedded_total ")[2].split()[0])

    before = embedded()
    client.post(f"{mine}/documents", json={"id": "log", "text": "Ants dig."})
    client.post(f"{mine}/documents/log/append", json={"text": " Wax is soft."})
    client.post(f"{mine}/documents/upload", files=[("files", ("a.txt", b"Water."))])
    assert embedded() == before + 3


def test_a_store_that_is_there_later_is_opened_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    from api import service
    from api.app import create_app
    from api.settings import Settings

    monkeypatch.setattr(service, "START_SECONDS", 0.1)
    place = tmp_path / "store"
    place.write_text("")
    with TestClient(create_app(Settings(store=str(place)))) as client:
        while "still loading" in (message := error(client.get("/ready"), 503)):
            pass
        assert "could not start" in message
        place.unlink()
        wait_for(lambda: client.get("/ready").status_code == 200)
        assert client.get("/v1/collections").json()["data"] == []


def test_a_store_that_cannot_be_opened_is_told_by_ready(tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from api.app import create_app
    from api.settings import Settings

    (tmp_path / "file").write_text("")
    with TestClient(create_app(Settings(store=str(tmp_path / "file")))) as broken:
        assert broken.get("/health").status_code == 200
        while "still loading" in (message := error(broken.get("/ready"), 503)):
            pass
        assert "could not start" in message and "is a file" in message
        assert "could not start" in error(broken.get("/v1/collections"), 503)
    with TestClient(create_app(Settings(store=str(tmp_path / "file"), api_keys="key"))) as broken:
        while "still loading" in (message := error(broken.get("/ready"), 503)):
            pass
        assert message == "the server could not start; whoever runs it finds the reason in its log"
        told = broken.get("/v1/collections", headers={"x-api-key": "key"})
        assert "is a file" in error(told, 503)


def test_head_is_get_without_a_body(client: httpx.Client) -> None:
    for path in ("/", "/health", "/v1/models"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
    assert client.head("/nowhere").status_code == 404
    assert 'method="HEAD",route="/health",status="200"' in client.get("/metrics").text


def test_a_store_that_others_write_to_says_when_to_come_back(tmp_path: Path) -> None:
    with running(tmp_path / "s") as server, server.client() as client:
        store = server.app.state.service.store
        store.database._writer.wait_s = 0.1
        with store.database.exclusive("the test"):
            reply = client.post("/v1/collections/library/documents", json={"id": "a", "text": "a"})
    assert "the test" in error(reply, 503)
    assert (reply.json()["error"]["code"], reply.headers["retry-after"]) == ("store_locked", "5")


def test_a_fault_of_ours_is_a_500_without_details(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(tmp_path / "s") as server, server.client() as client:
        body = {"model": "words", "input": "POISON"}
        message = error(client.post("/v1/embeddings", json=body), 500)
        assert message == "internal error (ValueError); the log has the details"
        assert client.post("/v1/embeddings", json=body).headers["x-request-id"]
    assert "poisoned" in caplog.text


def test_a_body_that_is_no_json_is_told_where(client: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    reply = client.post("/v1/collections/library/search", content=b'{"query": ', headers=headers)
    message = error(reply, 422)
    assert message.startswith("the body is not JSON: ") and message.endswith(" at character 10")


def test_info_is_that_of_the_model(client: httpx.Client) -> None:
    told = client.get("/info").json()
    assert (told["model_id"], told["dim"], told["model_type"]) == (
        "words",
        64,
        {"embedding": {"pooling": "mean"}},
    )
