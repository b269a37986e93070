"""Hostile input: whatever it is, the server answers or refuses it, and stays as it was."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.conftest import running


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("hostile")) as server, server.client() as client:
        yield client


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=30)
    | st.sampled_from(
        ["\ud800", "\x00", "../../etc/passwd", "' OR 1=1 --", '"', "NEAR(", "*", "year = 1", "😀" * 20]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "query",
        "question",
        "input",
        "inputs",
        "texts",
        "model",
        "messages",
        "where",
        "top_k",
        "id",
        "text",
        "metadata",
        "dimensions",
        "documents",
        "history",
        "title",
        "uri",
        "language",
        "stream",
        "name",
        "chunking",
        "offset",
    ]
)
PATHS = [
    "/v1/embeddings", "/v1/chat/completions", "/embed", "/rerank", "/v1/collections",
    "/v1/collections/library/search", "/v1/collections/library/ask", "/v1/collections/library/documents",
    "/v1/collections/library/documents/delete", "/v1/collections/library/documents/x/append",
]  # fmt: skip


@pytest.mark.parametrize("examples", [50, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_body_makes_the_server_fail(target: httpx.Client, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(path=st.sampled_from(PATHS), body=st.dictionaries(FIELDS, JSON, max_size=6) | JSON)
    def requests(path: str, body: object) -> None:
        reply = target.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert reply.status_code < 500, reply.text
        if reply.status_code >= 400:
            assert reply.json()["error"]["message"]

    requests()


HOSTILE = [
    *(
        [
            "a AND",
            "OR",
            "NOT",
            "NEAR(a b)",
            "a NEAR/3 b",
            "a*",
            "*",
            "^a",
            "-a",
            "--",
            "a -",
            "(",
            ")",
            "((((",
            "col:a",
            "{a b}",
            "a + b",
            "%",
            "_",
            "\\",
        ]
    ),
    *(
        '"',
        "'",
        "''",
        '"a" OR "b"',
        "';DROP TABLE chunks;--",
        "' OR '1'='1",
        "\x00",
        "a\x00b",
        "\n\r\t",
        " ",
        "",
    ),
    *(
        "\u202e abc",
        "\ufeff",
        "\u200b",
        "😀",
        "👨\u200d👩\u200d👧",
        "é" * 500,
        "x" * 30_000,
        "a " * 10_000,
        "数" * 5_000,
    ),
    *(
        "<script>",
        "${7*7}",
        "{{7*7}}",
        "%s%n",
        "../../../etc/passwd",
        "file:///etc/passwd",
        "http://169.254.169.254/",
    ),
]


@pytest.mark.parametrize(
    "mode", ["hybrid", *(pytest.param(arm, marks=pytest.mark.slow) for arm in ("dense", "lexical"))]
)
def test_hostile_queries_are_answered_or_refused(target: httpx.Client, mode: str) -> None:
    for query in HOSTILE:
        reply = target.post("/v1/collections/library/search", json={"query": query, "mode": mode})
        assert reply.status_code in (200, 400, 413, 422), (query, reply.text)


def test_hostile_names_never_leave_the_store(target: httpx.Client) -> None:
    for name in ("..", "../x", "%2e%2e%2fx", "a/b", "\x00", "con", "x" * 300, "' OR 1=1", ".hidden", "é"):
        reply = target.post("/v1/collections", json={"name": name})
        assert reply.status_code in (201, 400, 413, 422), (name, reply.text)
    for path in ("/static/../app.py", "/static/..%2f..%2fpyproject.toml", "/static/%00", "/static/x"):
        assert target.get(path).status_code == 404
    assert target.get("/v1/collections/..%2f..%2fetc/documents/..%2f..%2fetc%2fpasswd").status_code == 404


def test_deep_nesting_is_refused(target: httpx.Client) -> None:
    body = '{"query": "a", "where": ' + "[" * 100_000 + "]" * 100_000 + "}"
    reply = target.post(
        "/v1/collections/library/search", content=body, headers={"content-type": "application/json"}
    )
    assert 400 <= reply.status_code < 500


@pytest.mark.parametrize("examples", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_the_server_does_what_its_description_says(tmp_path: Path, examples: int) -> None:
    """Schemathesis makes requests from /openapi.json, `examples` to each operation."""
    import schemathesis
    from schemathesis.checks import not_a_server_error

    with running(tmp_path / "s") as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        for result in schema.get_all_operations():
            operation = result.ok()

            @settings(
                max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
            )
            @given(case=operation.as_strategy())
            def requests(case: schemathesis.Case) -> None:
                case.call_and_validate(checks=[not_a_server_error])

            requests()
