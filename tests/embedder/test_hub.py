"""Names to files, against a real HTTP server that speaks as much of the hub's protocol as its client uses."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rwkv_embed import hub
from rwkv_embed.errors import CheckpointError, ModelNotFound

COMMIT, TAGGED = "c0ffee" + "0" * 34, "decade" + "0" * 34  # of `main` and of `v1`
WEIGHTS = bytes(range(256)) * 300  # the hub does not look inside


def repositories() -> dict[str, dict[str, bytes]]:
    """Repository -> file -> content."""
    return {
        "org/one": {"model.safetensors": WEIGHTS, "config.json": b'{"eos_token_id": 1}', "README.md": b"hi"},
        "org/two": {"small.pth": b"small", "large.pth": b"large", "tokenizer.json": b"{}"},
        "org/sharded": {
            "config.json": b'{"model_type": "rwkv6"}',
            "model.safetensors.index.json": json.dumps(
                {"weight_map": {name: f"model-0000{name}-of-00002.safetensors" for name in "12"}}
            ).encode(),
            "model-00001-of-00002.safetensors": b"first",
            "model-00002-of-00002.safetensors": b"second",
        },
        "org/empty": {"README.md": b"nothing here"},
        "org/damaged": {"model.safetensors": WEIGHTS},
        "org/truncated": {"model.safetensors": WEIGHTS},
    }


class FakeHub(BaseHTTPRequestHandler):
    """`/api/models/REPO/revision/main` and `/REPO/resolve/REVISION/FILE`, and all ways in which they fail."""

    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *args: Any) -> None:
        self.requests.append(f"{self.command} {self.path}")

    def _answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        is_api = parts[0] == "api"
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        if repo == "org/gated":
            return self._refuse(401, "GatedRepo")
        if repo == "org/broken":
            return self._refuse(500, "")
        files = repositories().get(repo)
        if files is None:
            return self._refuse(404, "RepoNotFound")
        revision = parts[5] if is_api and len(parts) > 5 else parts[3]
        if revision not in ("main", "v1", COMMIT, TAGGED, repo.split("/")[1]):
            return self._refuse(404, "RevisionNotFound")
        commit = TAGGED if revision in ("v1", TAGGED) else COMMIT
        if is_api:
            siblings = [{"rfilename": name} for name in files]
            return self._send(
                json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode(), {}, body
            )
        name = "/".join(parts[4:])
        if name not in files:
            return self._refuse(404, "EntryNotFound")
        content = files[name] + (b"\n" if commit == TAGGED else b"")
        large = name.endswith((".safetensors", ".pth"))  # kept in LFS: known by sha256
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        etag = hashlib.sha256(content).hexdigest() if large else blob
        if repo == "org/damaged" and body:
            content = b"\xff" + content[1:]
        return self._send(
            content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, body, repo == "org/truncated"
        )

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str], body: bool, truncated: bool = False) -> None:
        start = 0
        if (wanted := self.headers.get("Range", "")) and wanted.startswith("bytes="):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            self.wfile.write(content[start : start + 100] if truncated else content[start:])
        if truncated:
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[str]:
    FakeHub.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


PROGRAM = """
import json, sys
from rwkv_embed import hub
answers = []
for name in json.loads(sys.argv[1]):
    try:
        if name == "list_models":
            answers.append([[m.name, m.bytes, m.source] for m in hub.list_models() if m.source == "hub"])
            continue
        found = hub.resolve(name)
        answers.append({"name": found.name, "weights": str(found.weights), "identity": found.identity})
    except Exception as error:
        answers.append({"error": type(error).__name__, "message": str(error)})
print(json.dumps(answers))
"""


def resolve(home: Path, endpoint: str, *names: str, **environment: str) -> list[Any]:
    """Resolve in a fresh interpreter: the hub's client reads its environment when it is imported."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(names)],
        env=known | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_a_model_is_downloaded_once_and_found_offline(tmp_path: Path, server: str) -> None:
    first, again, listed = resolve(tmp_path, server, "org/one", "org/one", "list_models")
    weights = Path(first["weights"])
    assert weights.read_bytes() == WEIGHTS
    assert (weights.parent / "config.json").read_bytes() == b'{"eos_token_id": 1}'
    assert not (weights.parent / "README.md").exists()
    assert first["name"] == "org/one"
    assert again == first
    downloads = [request for request in FakeHub.requests if request.startswith("GET /org/one/resolve")]
    assert sorted(request.split("/")[-1] for request in downloads) == ["config.json", "model.safetensors"]
    assert listed == [["org/one:model.safetensors", len(WEIGHTS), "hub"]]

    FakeHub.requests.clear()
    offline = resolve(tmp_path, server, "org/one", "org/two:small.pth", HF_HUB_OFFLINE="1")
    assert offline[0] == first
    assert offline[1]["error"] == "DownloadError"
    assert "org/two is not in the cache" in offline[1]["message"]
    assert "HF_HUB_OFFLINE is set" in offline[1]["message"]
    assert FakeHub.requests == []
    assert resolve(tmp_path, "http://127.0.0.1:9", "org/one") == [first]  # cached: nobody has to be there


def test_choosing_among_files(tmp_path: Path, server: str) -> None:
    several, one, missing, sharded, empty = resolve(
        tmp_path, server, "org/two", "org/two:large.pth", "org/two:x.pth", "org/sharded", "org/empty"
    )
    assert several["error"] == missing["error"] == empty["error"] == "ModelNotFound"
    assert several["message"] == (
        "org/two holds 2 models; name one of them, as org/two:small.pth: small.pth, large.pth"
    )
    assert Path(one["weights"]).read_bytes() == b"large"
    assert one["name"] == "org/two:large.pth"
    assert (Path(one["weights"]).parent / "tokenizer.json").is_file()
    assert missing["message"] == "org/two has no file 'x.pth'; it has: small.pth, large.pth, tokenizer.json"
    folder = Path(sharded["weights"])
    assert sorted(file.name for file in folder.iterdir()) == sorted(repositories()["org/sharded"])
    assert empty["message"] == "org/empty holds no .safetensors or .pth weights; it has: README.md"


def test_an_interrupted_download_of_shards_goes_on(tmp_path: Path, server: str) -> None:
    (whole,) = resolve(tmp_path, server, "org/sharded")
    folder = Path(whole["weights"])
    for left_out in (
        ["model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ["model.safetensors.index.json"],
    ):
        for name in left_out:
            (folder / name).unlink()
        (offline,) = resolve(tmp_path, server, "org/sharded", HF_HUB_OFFLINE="1")
        assert offline["message"].startswith("org/sharded is not in the cache")
        assert resolve(tmp_path, server, "org/sharded") == [whole]
        assert sorted(file.name for file in folder.iterdir()) == sorted(repositories()["org/sharded"])


def test_a_name_keeps_its_revision(tmp_path: Path, server: str) -> None:
    names = ["org/one", "org/one@v1", "org/one:model.safetensors@v1"]
    *found, listed = resolve(tmp_path, server, *names, "list_models")
    assert [model["name"] for model in found] == names
    assert [Path(model["weights"]).read_bytes() for model in found] == [
        WEIGHTS,
        WEIGHTS + b"\n",
        WEIGHTS + b"\n",
    ]
    assert resolve(tmp_path, server, *(model["name"] for model in found)) == found
    assert listed == [
        ["org/one:model.safetensors", len(WEIGHTS), "hub"],
        ["org/one:model.safetensors@v1", len(WEIGHTS) + 1, "hub"],
    ]


def test_what_the_hub_refuses(tmp_path: Path, server: str) -> None:
    unknown, revision, gated, broken = resolve(
        tmp_path, server, "org/unknown", "org/one@v9", "org/gated", "org/broken"
    )
    assert unknown["error"] == "ModelNotFound"
    assert unknown["message"].startswith(
        "the hub has no model org/unknown, or it is private: check the spelling"
    )
    assert revision["error"] == "ModelNotFound"
    assert revision["message"] == "org/one has no such revision; leave @REVISION out for the newest"
    assert gated["error"] == "DownloadError"
    assert gated["message"].startswith("org/gated is gated: accept its terms on its page and set HF_TOKEN")
    assert broken["error"] == "DownloadError"
    assert broken["message"].startswith("downloading org/broken failed (")
    (nobody,) = resolve(tmp_path, "http://127.0.0.1:9", "org/one")
    assert nobody["error"] == "DownloadError"
    assert "try again, or give the path of a local copy" in nobody["message"]


def test_a_damaged_download_is_not_kept(tmp_path: Path, server: str) -> None:
    damaged, again = resolve(tmp_path, server, "org/damaged", "org/damaged")
    assert damaged["error"] == again["error"] == "DownloadError"
    assert damaged["message"].startswith("org/damaged:model.safetensors arrived damaged: checksum ")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
def test_a_truncated_download_is_not_kept(tmp_path: Path, server: str) -> None:
    """Slow: the hub's client tries five times, with pauses."""
    (truncated,) = resolve(tmp_path, server, "org/truncated")
    assert truncated["error"] == "DownloadError"
    assert truncated["message"].startswith("downloading org/truncated failed (")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_local_files_and_folders(tmp_path: Path) -> None:
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"weights")
    assert hub.resolve(weights).weights == weights
    assert hub.resolve(str(tmp_path)).weights == weights
    assert hub.resolve(weights).name == str(weights.resolve())
    assert hub.resolve(hub.resolve(weights).name) == hub.resolve(weights)
    assert hub.resolve(weights).settings == {}
    before = hub.resolve(weights).identity
    assert hub.ModelFiles("model", weights, "world").identity != before
    (tmp_path / "tokenizer.json").write_text("{}")
    assert hub.resolve(weights).identity != before
    (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
    assert hub.resolve(tmp_path).weights == tmp_path  # Hugging Face layout: its config.json belongs to it
    assert hub.resolve(tmp_path).identity == hub.resolve(weights).identity
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        hub.resolve(weights).settings  # noqa: B018  reading it is the test
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list, expected a JSON object"):
        hub.resolve(weights).settings  # noqa: B018


def test_the_identity_is_of_the_files_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
    weights = tmp_path / "pytorch_model.bin"
    weights.write_bytes(b"weights")
    before = hub.resolve(tmp_path).identity
    (tmp_path / "adapter.safetensors").write_bytes(b"something else")
    assert hub.resolve(tmp_path).identity == before
    weights.write_bytes(b"other weights")
    changed = hub.resolve(tmp_path).identity
    assert changed != before
    (tmp_path / "20B_tokenizer.json").write_text("{}")
    assert hub.resolve(tmp_path).identity not in (before, changed)
    tokenizers = tmp_path / "other"
    tokenizers.mkdir()
    seen = set()
    for content in ("{}", "[]"):
        (tokenizers / "tokenizer.json").write_text(content)
        seen.add(hub.ModelFiles("model", weights, tokenizers).identity)
    assert len(seen) == 2
    assert hub.ModelFiles("model", weights, tokenizers / "tokenizer.json").identity in seen


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    nowhere = ("no-such-model", "./missing.pth", "some/where/model.pth", "org/model.safetensors")
    for name in (*nowhere, "~nosuchuser/x", "a" * 5000):
        with pytest.raises(
            ModelNotFound, match="is not a file or folder here, and a hub name looks like ORG/REPO"
        ):
            hub.resolve(name)
    with pytest.raises(ModelNotFound, match=r"no weights in .*: expected a \.safetensors or \.pth file"):
        hub.resolve(tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelNotFound, match=r"holds 2 models; name one of its files: a\.pth, b\.pth"):
        hub.resolve(tmp_path)


@pytest.mark.skipif(not hub.DEFAULT.is_dir(), reason="the bundled model is not in this checkout")
@pytest.mark.parametrize("flips", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_the_bundled_model_states_its_identity_and_is_not_believed_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flips: int
) -> None:
    """Single bits, 64 zeroed bytes and cut ends in the weights and in the tokenizer."""
    files = hub.resolve(None)
    assert files == hub.resolve("default") == hub.resolve(files.name)
    assert files.identity == files.settings["sha256"]
    monkeypatch.setattr(hub, "DEFAULT", tmp_path / "default")
    shutil.copytree(files.folder, hub.DEFAULT)
    chance = random.Random(flips)
    for name in ("model.safetensors", "tokenizer.json"):
        sound = (hub.DEFAULT / name).read_bytes()
        for _ in range(flips):
            with open(hub.DEFAULT / name, "r+b") as file:
                place = file.seek(chance.randrange(len(sound)))
                file.write(bytes([sound[place] ^ 1 << chance.randrange(8)]))
            assert_damaged()
            with open(hub.DEFAULT / name, "r+b") as file:
                file.seek(place)
                file.write(sound[place : place + 1])
        middle = len(sound) // 2
        (hub.DEFAULT / name).write_bytes(sound[:middle] + bytes(64) + sound[middle + 64 :])
        assert_damaged()
        for end in range(0, len(sound), len(sound) // min(20, flips)):
            (hub.DEFAULT / name).write_bytes(sound[:end])
            assert_damaged()
        (hub.DEFAULT / name).write_bytes(sound)
    assert hub.resolve(None).identity == files.identity


def assert_damaged() -> None:
    with pytest.raises(
        CheckpointError, match=r"the bundled model in .* is damaged .*; install rwkv-embed again"
    ):
        _ = hub.resolve(None).identity
