"""The command line: typer's runner for most, real processes where that matters."""

import fcntl
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from fastapi.testclient import TestClient
from safetensors.numpy import save_file
from typer.testing import CliRunner

from api.app import create_app
from api.cli import app
from api.settings import Settings
from rwkv_embed.embedder import Embedder
from rwkv_embed.rerank import StateReranker
from tests.embedder.test_backends import save_embedder
from tests.embedder.test_rerank import reranker_tensors
from tests.service.conftest import wait_for
from tests.service.fakes import DIM, WordEmbedder

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rwkv_embed

    monkeypatch.setattr(rwkv_embed, "Embedder", WordEmbedder, raising=False)
    monkeypatch.setenv("RWKV_EMBED_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "documents"
    made.mkdir()
    (made / "bees.md").write_text("# Bees\n\nBees make honey. They live in hives.")
    (made / "brot.txt").write_text("Brot ist aus Mehl und Wasser.")
    return made


def run(*arguments: str, code: int = 0, given: str | bytes | None = None) -> str:
    """The stdout of a command that must exit with `code`."""
    result = CliRunner().invoke(app, list(arguments), input=given)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stdout


def failing(*arguments: str, code: int, given: str | bytes | None = None) -> str:
    """The stderr of a command that must fail with `code` and print no results."""
    result = CliRunner().invoke(app, list(arguments), input=given)
    assert (result.exit_code, result.stdout) == (code, ""), (result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result.stderr


def failing_with_results(*arguments: str, code: int) -> str:
    """The stderr of a command that did what it could and must exit with `code`."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code and result.stdout, (result.stdout, result.exception)
    return result.stderr


def run_json(*arguments: str, **options: Any) -> Any:
    return json.loads(run(*arguments, "--json", **options))


def test_index_search_and_keep_up_to_date(folder: Path) -> None:
    first = run_json("index", str(folder))
    assert (first["added"], first["failed"]) == (2, [])
    again = run_json("index", str(folder))
    assert (again["unchanged"], again["chunks_embedded"]) == (2, 0)
    (folder / "brot.txt").unlink()
    assert run_json("index", str(folder), "--delete-missing")["deleted"] == 1

    (hit,) = run_json("search", "bees honey", "--top-k", "1")["hits"]
    promised = {
        "score",
        "document_id",
        "chunk_id",
        "title",
        "uri",
        "language",
        "text",
        "start",
        "end",
        "metadata",
    }
    assert promised <= set(hit)
    assert "Bees make honey." in hit["text"]


def test_long_passages_are_whole_in_a_pipe() -> None:
    text = "Bees make honey in hives " + "of wood " * 60 + "all summer."
    run("add", "a", text)
    assert text in run("search", "bees make honey").replace("**", "")
    assert " \n" not in run("search", "bees make honey")


def test_search_prints_readable_hits(folder: Path) -> None:
    run("index", str(folder))
    shown = run("search", "bees make honey", "-k", "1")
    first = shown.splitlines()[0]
    assert first.startswith(" 1  ") and "Bees" in first and "[en]" in first
    assert "bees.md" in shown
    assert "**Bees make honey.**" in shown  # no colours here, so the matching sentence is in asterisks
    assert "\x1b" not in shown


def test_a_file_that_cannot_be_read_fails_alone(folder: Path) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 not really")
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.txt")).write_text("a name in Latin-1")
    report = json.loads(run("index", str(folder), "--json", code=8))
    assert report["added"] == 2
    reasons = {Path(failure["path"]).name: failure["reason"] for failure in report["failed"]}
    assert set(reasons) == {"broken.pdf", "caf\udce9.txt"}
    assert reasons["caf\udce9.txt"] == "its name is not UTF-8; rename it"
    assert "caf\ufffd.txt: its name is not UTF-8" in failing_with_results("index", str(folder), code=8)


def test_add_append_show_list_delete() -> None:
    assert (
        run_json("add", "a", "Bees make honey.", "--title", "T", "--metadata", '{"year": 2020}')["added"] == 1
    )
    assert run_json("add", "b", given="Text from a pipe — 蜜蜂")["added"] == 1
    assert run_json("append", "a", " They live in hives.")["updated"] == 1
    shown = run_json("show", "a")
    assert (shown["text"], shown["metadata"]) == ("Bees make honey. They live in hives.", {"year": 2020})
    assert run("show", "b") == "Text from a pipe — 蜜蜂\n"
    assert [row["id"] for row in run_json("list")["documents"]] == ["a", "b"]
    assert run_json("list", "--where", "year = 2020")["total"] == 1
    assert [row["name"] for row in run_json("list", "--collections")["collections"]] == ["default"]
    assert run_json("delete", "a", "missing", code=14) == {"deleted": 1}
    assert failing_with_results("delete", "missing", code=14) == (
        "Error: 1 of 1 ids not in the collection; `rwkv-embed list` shows the ids\n"
    )
    assert run("delete", "--whole-collection", "--yes") == "1 deleted\n"
    assert run_json("list", "--collections") == {"collections": []}


def test_deleting_a_collection_asks_first() -> None:
    run("add", "a", "text")
    question = "Delete the collection 'default' with its 1 documents? [y/N]: "
    told = failing("delete", "--whole-collection", code=130, given="n\n")
    assert told == f"{question}Nothing was deleted.\n"
    told = failing("delete", "--whole-collection", code=2, given="")
    assert told.endswith("is closed, so nobody can say yes; nothing was deleted, give --yes\n")
    assert run_json("list")["total"] == 1
    assert run("delete", "--whole-collection", given="y\n") == "1 deleted\n"


def test_what_is_not_there_makes_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing("index", "/no/such/place", code=19)
    told = failing("import", "/no/such/file", code=10)
    assert told == "Error: /no/such/file cannot be imported: there is no such file; nothing was imported\n"
    assert not (tmp_path / "store").exists()
    monkeypatch.setenv("RWKV_EMBED_STORE", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert Settings().store == Settings(store="").store == str(tmp_path / "data" / "rwkv-embed")


def test_serve_says_what_is_wrong_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert failing("serve", "--port", port, code=9) == (
            f"Error: cannot listen on 127.0.0.1 port {port}: Address already in use; "
            "give another --host or --port\n"
        )
    assert "cannot listen on 192.0.2.1 port 8000: " in failing("serve", "--host", "192.0.2.1", code=9)
    for wrong in ("magic", "rwkv", "extractive,openai", "extractive:x"):
        monkeypatch.setenv("RWKV_EMBED_GENERATORS", wrong)
        told = failing("serve", code=2)
        assert "is no generator; use extractive, rwkv:PATH or openai:MODEL" in told


def test_ask_whole_json_and_conversation(folder: Path) -> None:
    run("index", str(folder))
    answer = run_json("ask", "What do bees make?")
    assert set(answer) == {"answer", "abstained", "citations"}
    assert answer["citations"][0]["quote"] == "Bees make honey."
    shown = run("ask", "What do bees make?")
    assert shown.startswith("Bees make honey. [1]\n") and "[1] Bees" in shown
    talk = run("ask", "-i", given="What do bees make?\n/sources\n \n/new\nWhere do they live, in hives?\n")
    assert talk.count("Bees make honey.") == 2 and "They live in hives." in talk


@pytest.mark.parametrize("arguments", [["all.jsonl"], ["all.parquet"], ["all", "--format", "parquet"]])
def test_export_and_import_give_the_same_collection(tmp_path: Path, arguments: list[str]) -> None:
    run("add", "ä/1", "Bees.", "--language", "en", "--metadata", '{"k": [1]}')
    run("add", "2", "Bread\u2028and water.")
    file = tmp_path / arguments[0]
    assert run_json("export", str(file), *arguments[1:])["documents"] == 2
    assert run_json("import", str(file), "-c", "copy")["documents"] == 2
    for document in ("ä/1", "2"):
        copied, own = run_json("show", document, "-c", "copy"), run_json("show", document)
        assert [copied[key] for key in ("text", "metadata", "language")] == [
            own[key] for key in ("text", "metadata", "language")
        ]
    assert "already a collection 'default'" in failing("import", str(file), code=13)


def test_stats_verify_compact_backup_restore(tmp_path: Path) -> None:
    run("add", "a", "Bees make honey.")
    stats = run_json("stats")
    assert (stats["documents"], stats["chunks"], stats["model"], stats["dim"]) == (1, 1, "words", DIM)
    assert "documents    1" in (shown := run("stats")) and "words" in shown and "{" not in shown
    run_json("verify")
    run_json("compact")
    file = tmp_path / "backup"
    assert run_json("backup", str(file))["bytes"] == file.stat().st_size
    restored = tmp_path / "restored"
    run("restore", str(file), "--store", str(restored))
    assert run("show", "a", "--store", str(restored)) == "Bees make honey.\n"


def test_embed_lines_json_and_npy(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run("embed", given="bees make\nhoney\n").splitlines()]
    assert [line["text"] for line in lines] == ["bees make", "honey"]
    expected = WordEmbedder().encode_document(["bees make", "honey"])
    np.testing.assert_allclose([line["embedding"] for line in lines], expected)
    whole = run_json("embed", "bees make", "honey", "--dim", "8", "--kind", "query")
    assert (whole["model"], whole["dim"], np.shape(whole["embeddings"])) == ("words", 8, (2, 8))
    file = tmp_path / "vectors"
    run("embed", "--npy", str(file), given="bees make\nhoney")
    np.testing.assert_array_equal(np.load(file), expected)
    summary = run_json("embed", "a", "--npy", str(file))
    assert summary == {"npy": str(file), "model": "words", "texts": 1, "dim": DIM}
    run("embed", "--npy", str(file), given="")
    assert np.load(file).shape == (0, DIM)


def test_embed_reads_files_and_stdin_alike(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes("\ufeffone\x0ctwo\r\nthree\u2028four\n\nfive".encode())
    for lines in (run("embed", "--file", str(file)), run("embed", given=file.read_bytes())):
        assert [json.loads(line)["text"] for line in lines.split("\n")[:-1]] == [
            "one\x0ctwo",
            "three\u2028four",
            "",
            "five",
        ]
    file.write_bytes(b"one\ntwo\xff\n")
    message = "not UTF-8 text (byte 3 of line 2); convert it with iconv first\n"
    assert failing("embed", "--file", str(file), code=2) == f"Error: {file}: {message}"
    assert failing("embed", given=file.read_bytes(), code=2) == f"Error: standard input: {message}"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "a"], 10, "there is no store at"),
        (["index", "/no/such/place"], 19, "/no/such/place: no such file or directory"),
        (["embed", "a", "--dim", "65"], 2, "--dim 65: words has 64 dimensions; ask for at most that"),
        (["add", "a", "t", "--metadata", "{"], 2, "--metadata: not JSON"),
        (["add", "a", "t", "--metadata", "[1]"], 2, "--metadata: a JSON object is needed"),
        (["add", "a", "t", "--file", "f"], 2, "either as an argument or with --file, not both"),
        (["add", "", "text"], 2, "nothing was added: the id has 0 bytes, 1 to 1024 are allowed"),
        (
            ["add", "a", "t", "--language", "English"],
            2,
            "the language 'English' is no ISO 639 code; give one",
        ),
        (["index", ".", "--part", "3/2"], 2, "--part 3/2: K/N with K from 1 to N is needed, such as 2/4"),
        (["index", ".", "--part", "½"], 2, "--part ½: K/N with K"),
        (["search", "a", "--threshold", "nan"], 2, "--threshold nan: a number is needed"),
        (["add", "a", "--file", "/no/such/file"], 40, "/no/such/file: No such file or directory"),
        (["serve", "--store", "pg://me:secret@host/db"], 10, "pg://host/db is a URL of 'pg'; expected postgresql"),
        (["restore", "f", "--store", "pg://me:secret@host/db"], 10, "pg://host/db is a URL; a backup is restored"),
        (["ask"], 2, "give either a question or -i"),
        (["delete"], 2, "say either which documents to delete"),
        (["search"], 2, "Missing argument"),
        (["search", "a", "--mode", "magic"], 2, "magic"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_errors_are_one_sentence_with_an_exit_code(arguments: list[str], code: int, message: str) -> None:
    assert message in failing(*arguments, code=code)


def test_errors_of_an_existing_store() -> None:
    run("add", "a", "Bees.")
    assert "no collection 'other'; there are: default" in failing("search", "a", "-c", "other", code=12)
    assert failing("show", "nothing", code=14) == (
        "Error: there is no document 'nothing' in the collection; `rwkv-embed list` shows the ids\n"
    )
    assert "template 'g1' is for rwkv:PATH" in failing("ask", "a", "--template", "g1", code=20)
    assert "year >" in failing("search", "a", "--where", "year >", code=17)


def test_control_characters_of_documents_do_not_reach_the_terminal() -> None:
    run("add", "a", "Bees \x1b[31mmake\x07 honey.", "--title", "\x1b]0;owned\x07")
    assert "\x1b" not in run("show", "a") + run("search", "bees") + run("list")


def test_a_row_of_a_list_is_a_line_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    long = "a/" * 100 + "last"
    run("add", long, "Bees.", "--language", "en", "--title", "Two\nlines")
    run("add", "b\nc", "Bees.", "--language", "en")
    assert run("list").splitlines() == [
        f"{'ID':204}  LANG  TITLE",
        f"{long}  en    Two\ufffdlines",
        "b\ufffdc" + " " * 203 + "en",
    ]
    assert run("search", "bees", "-k", "2").count("\n") == 8  # four lines a hit
    assert run("list", "--where", "lang = de") == "" == run("list", "--offset", "2")


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "api.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60, **options)


def test_help_version_and_completion_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv[0] = 'rwkv-embed'\n"
        "from api.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'faiss', 'sqlalchemy', 'numpy', 'fastapi', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    completion = {"_RWKV_EMBED_COMPLETE": "complete_bash", "COMP_WORDS": "rwkv-embed se", "COMP_CWORD": "1"}
    for arguments, extra, shown in (
        (["--help"], {}, "Documents"),
        (["search", "--help"], {}, "--top-k"),
        (["--version"], {}, "rwkv-embed "),
        ([], completion, "search"),
    ):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | extra, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout


def test_results_and_messages_go_to_their_own_pipes(tmp_path: Path) -> None:
    store = str(tmp_path / "none")
    done = process("search", "a", "--store", store)
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr.startswith("Error: there is no store at") and "\x1b" not in done.stderr
    done = process("list", "--collections", "--store", store)
    assert done.returncode == 10
    assert process("--version").stdout.startswith("rwkv-embed ")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
@pytest.mark.parametrize("command", ["embed", "list"])
def test_a_closed_standard_stream_is_an_empty_one(closed: str, command: str) -> None:
    run("add", "a", "Bees.")
    shell = ["bash", "-c", f'"$0" -m api.cli {command} {closed}', sys.executable]
    done = subprocess.run(shell, cwd=ROOT, input="", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    run("add", "a", given="word " * 200_000)
    command = [sys.executable, "-m", "api.cli", "show", "a"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.read(5) == b"word "
        child.stdout.close()
        assert child.wait(30) in (0, 141)  # 0: Python took one large write for done
        assert all(word not in child.stderr.read() for word in (b"Error", b"Exception", b"Traceback"))


def unread(pipe: Any) -> int:
    """How many bytes nobody has taken from a pipe yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_ctrl_c_is_tidy(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "api.cli", "add", "a", "--store", str(tmp_path / "s")]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore it
    )
    assert child.stdin is not None
    child.stdin.write("a text")
    child.stdin.flush()
    wait_for(lambda: unread(child.stdin) == 0)  # it has read this and waits for more
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == 130
    assert stderr.endswith("Stopped.\n") and "Traceback" not in stderr


def test_the_page_about_the_command_line_is_fresh() -> None:
    from api.docs import page

    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == page(), "docs/cli.md is stale: run `make docs`"


def commands_in(page: Path) -> list[list[str]]:
    """The arguments of each `rwkv-embed ...` line in the code blocks of a page."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    lines = shell.splitlines() + re.findall(r"^ {4}(.*)$", text, re.MULTILINE)
    called = (re.match(r"(?:[A-Z_]+=\S+ )*rwkv-embed (.*)", line) for line in lines)
    return [shlex.split(line[1], comments=True) for line in called if line]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_commands_that_the_pages_show_exist(page: Path) -> None:
    for words in commands_in(page):
        command: Any = typer.main.get_command(app)
        arguments = list(itertools.takewhile(lambda word: word not in ("|", ">", "&&", "&"), words))
        while hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        command.make_context("rwkv-embed", arguments)  # a usage error when an option or argument is none


def test_the_pages_show_commands() -> None:
    assert sum(len(commands_in(page)) for page in PAGES) >= 10


def test_the_page_names_every_option() -> None:
    from api.docs import page

    text = page()
    for word in (
        "rwkv-embed index",
        "--delete-missing",
        "--where FILTER",
        "--title TEXT",
        "--limit, -n NUMBER",
        "--dtype float32\\|bfloat16",
        "`RWKV_EMBED_API_KEYS`",
        "| 130 |",
    ):
        assert word in text


def test_binary_stdin_that_is_not_text_is_refused() -> None:
    result = CliRunner().invoke(app, ["add", "a"], input=b"\xff\xfe\x00")
    assert result.exit_code == 2 and "standard input: not UTF-8 text (byte 0)" in result.stderr


def test_eval_prints_a_table_or_json(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    texts = {"d1": "bees make honey", "d2": "bread is made of flour", "d3": "rivers run to the sea"}
    lines = [json.dumps({"_id": key, "title": "", "text": text}) for key, text in texts.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "honey bees"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td1\t1\n")
    scores = run_json("eval", str(tmp_path))
    for mode in ("dense", "lexical", "hybrid"):
        assert {"ndcg@10", "recall@10", "mrr@10"} <= set(scores[mode])
        assert scores[mode]["ndcg@10"] == 1
    assert "| dense |" in run("eval", str(tmp_path), "--mode", "dense", "--compare", "other")
    assert "--rerank: no reranker is named" in failing("eval", str(tmp_path), "--rerank", code=2)


@pytest.fixture
def reranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """A tiny reranker beside a store filled by the embedder it looks at, and the ids in its order for "bees"."""
    import rwkv_embed

    model, reranker = tmp_path / "model", tmp_path / "reranker.safetensors"
    model.mkdir()
    monkeypatch.setattr(rwkv_embed, "Embedder", Embedder)
    monkeypatch.setenv("RWKV_EMBED_MODEL", str(save_embedder(model)))
    tensors = reranker_tensors(n_layer=3, n_head=2, head_size=8)
    save_file({f"reranker.{name}": tensor for name, tensor in tensors.items()}, reranker)
    texts = {f"d{n}": f"{n} bees make honey" for n in range(6)}
    for id, text in texts.items():
        run("add", id, given=text)
    scores = StateReranker(Embedder(model), tensors).score("bees", list(texts.values()))
    return str(reranker), [f"d{n}" for n in np.argsort(-scores)]


def test_search_reranks_with_the_reranker_that_is_named(reranked: tuple[str, list[str]]) -> None:
    reranker, expected = reranked
    hits = run_json("search", "bees", "--rerank", "--reranker", reranker, "--explain")["hits"]
    assert [hit["document_id"] for hit in hits] == expected
    assert sorted(hit["explain"]["first"]["rank"] for hit in hits) == [1, 2, 3, 4, 5, 6]
    message = failing("search", "bees", "--rerank", code=16)
    assert "no reranker is named; name one with --reranker NAME|PATH or RWKV_EMBED_RERANKER" in message
    embedder = str(Path(reranker).with_name("model"))
    result = CliRunner().invoke(app, ["search", "bees", "--rerank", "--reranker", embedder])
    assert f"{embedder} is an embedder, which cannot rerank; name a reranker or a language model" in result.stderr


def test_the_server_reranks_with_the_reranker_of_its_settings(
    reranked: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker, expected = reranked
    monkeypatch.setenv("RWKV_EMBED_RERANKER", reranker)
    with TestClient(create_app(Settings())) as client:
        wait_for(lambda: client.get("/ready").status_code == 200)
        body = {"query": "bees", "rerank": True}
        hits = client.post("/v1/collections/default/search", json=body).json()["hits"]
    assert [hit["document_id"] for hit in hits] == expected


def test_models_are_described_and_converted(tmp_path: Path) -> None:
    assert "bundled" in run("models", "list") or run_json("models", "list")["models"] == []
    assert "no model 'nothing.pth'" in failing("models", "info", "nothing.pth", code=31)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a checkpoint")
    assert "broken.safetensors" in failing("models", "info", str(broken), code=30)
    failing("models", "convert", str(broken), str(tmp_path / "new.safetensors"), code=30)
    assert not (tmp_path / "new.safetensors").exists()
