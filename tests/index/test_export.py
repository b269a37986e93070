"""Export and import: what comes back is what was there, and what is damaged does not come in."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
from fakes import PIPELINE, FakeEmbedder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from indexer import export, export_formats
from indexer.errors import CollectionExists, StoreError
from indexer.pipeline import Pipeline
from indexer.search import search
from indexer.store import open_store
from indexer.types import ChunkingOptions, Document, SearchOptions
from rwkv_embed.errors import MissingDependency

BOTH_DATABASES = True

DOCUMENTS = [
    Document("a", "one two\nthree", title="A", uri="file:///a", metadata={"year": 2020}),
    Document("b", "数据库\n部署", language="zh"),
    Document("empty", ""),
]
NAMES = ["c.jsonl", "c.jsonl.gz", "c.parquet"]
REAL_TERMS = replace(PIPELINE, fulltext=Pipeline().fulltext)


def no_model(name):
    raise AssertionError("the model was loaded")


@pytest.fixture
def filled(collection):
    collection.upsert(DOCUMENTS)
    return collection


def passage_ids(collection):
    documents = (collection.get(one["id"]) for one in collection.documents())
    return [chunk["id"] for document in documents for chunk in document["chunks"]]


@pytest.mark.parametrize("to", ["sqlite", "postgresql"])
@pytest.mark.parametrize("name", NAMES)
def test_an_export_comes_back_without_a_model(filled, tmp_path, new_store, name, to):
    assert filled.export(tmp_path / name) == 3
    with new_store(to) as elsewhere, open_store(elsewhere, no_model, pipeline=PIPELINE) as other:
        copy = other.import_collection(tmp_path / name)
        same = ("id", "text", "title", "uri", "language", "metadata", "content_hash", "chunks")
        for document in DOCUMENTS:
            mine, theirs = filled.get(document.id), copy.get(document.id)
            assert {key: mine[key] for key in same} == {key: theirs[key] for key in same}
        ids = passage_ids(filled)
        np.testing.assert_array_equal(copy.vectors.get(ids), filled.vectors.get(ids))
        assert copy.info.fingerprint == filled.info.fingerprint
        assert copy.upsert(DOCUMENTS).unchanged == 3
        with pytest.raises(CollectionExists, match="already a collection 'default'"):
            other.import_collection(tmp_path / name)
        second = other.import_collection(tmp_path / name, name="second")
        assert (second.count(), passage_ids(second)) == (3, [5, 6, 7, 8])
        assert other.verify().problems == []
    with pytest.raises(StoreError, match="exists; give another name, an export never overwrites"):
        filled.export(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


LINES = st.text(st.sampled_from('ab 数é\t"\\\u2028\0🦆'), max_size=9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | LINES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(LINES, inner, max_size=2),
    max_leaves=4,
)
ROUND = st.builds(
    Document,
    id=st.sampled_from("abcdef"),
    text=st.lists(LINES, max_size=4).map("\n".join),
    title=st.none() | LINES,
    uri=st.none() | LINES,
    language=st.none() | st.sampled_from(["en", "zh"]),
    metadata=st.dictionaries(LINES, JSON, max_size=2),
)
CHANGES = st.lists(ROUND | st.sampled_from("abcdef"), max_size=12)  # an id: delete that document


def answers(collection):
    """Everything that searches give, ids and scores included, as bytes."""
    return repr(
        [
            search(collection, query, SearchOptions(mode=mode, group_by=group, top_k=50))
            for query in ("a", "数 b", "ab é")
            for mode in ("dense", "lexical", "hybrid")
            for group in ("chunk", "document")
        ]
    )


@pytest.mark.parametrize("context", ["chunk", "document"])
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
@example(changes=[Document("a", "")])  # without a passage
def test_answers_after_a_round_trip_are_equal_byte_for_byte(tmp_path_factory, empty_store, context, changes):
    """Documents come, change and go; each copy answers from its own terms and vectors, with the same ids."""
    folder = tmp_path_factory.mktemp("round")

    def opened(name):
        shutil.copytree(empty_store, folder / name)
        return open_store(folder / name, lambda model_id: FakeEmbedder(), pipeline=REAL_TERMS)

    with opened("store") as store:
        mine = store.create_collection("c", chunking=ChunkingOptions(context=context))
        for change in changes:
            if isinstance(change, str):
                mine.delete([change])
            else:
                assert not mine.upsert([change]).failed
        expected = answers(mine)
        for name in NAMES:
            assert mine.export(folder / name) == mine.count()
            with opened(f"copy-{name}") as other:
                copy = other.import_collection(folder / name)
                assert answers(copy) == expected
                copy.export(folder / f"again-{name}")
                assert other.verify().problems == []
            assert contents(folder / f"again-{name}") == contents(folder / name)


def contents(path):
    with export_formats.reader(path) as (header, records):
        return header, list(records)


@pytest.mark.sqlite_only
def test_another_program_reads_the_parquet_file(filled, tmp_path):
    """With pyarrow alone: plain columns, and vectors that are unit float32."""
    filled.export(tmp_path / "c.parquet")
    rows = pyarrow.parquet.read_table(tmp_path / "c.parquet").to_pylist()
    assert [(row["id"], row["text"], row["language"]) for row in rows] == [
        ("a", "one two\nthree", "en"),
        ("b", "数据库\n部署", "zh"),
        ("empty", "", None),
    ]
    assert json.loads(rows[0]["metadata"]) == {"year": 2020}
    (first, second) = rows[0]["chunks"]
    assert (first["start"], first["end"], second["start"], second["end"]) == (0, 7, 8, 13)
    expected = FakeEmbedder().encode_document(["one two"])[0].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.array(first["vector"], np.float32), expected)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "", "line 1 is not JSON"),
        (1, "[]", "line 1 is not a JSON object"),
        (1, '{"format": "x"}', "is not an export of rwkv-embed .its format is 'x', this version reads"),
        (2, "{}", "line 2 is not an exported document .KeyError"),
        (2, '{"id": 5', "line 2 is not JSON"),
    ],
)
def test_bad_exports_are_refused_with_the_line(filled, store, tmp_path, line, text, message):
    filled.export(tmp_path / "c.jsonl")
    lines = (tmp_path / "c.jsonl").read_text().splitlines()
    lines[line - 1] = text
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    with pytest.raises(StoreError, match=message):
        store.import_collection(tmp_path / "c.jsonl", name="copy")


def lying(document, what):
    """Make an exported document say something that it should not."""
    chunk = document["chunks"][0]
    match what:
        case "text":
            document["text"] = document["text"].replace("one", "two")
        case "title":
            document["title"] = "B"
        case "vector":
            chunk["vector"] = ("B" if chunk["vector"][0] == "A" else "A") + chunk["vector"][1:]
        case "size":
            chunk["vector"] = "AAAA"
        case "place":
            chunk["start"] = 1
        case "id":
            chunk["id"] = 0
        case "same id":
            document["chunks"][1]["id"] = chunk["id"]
        case "uri":
            document["uri"] = ["x"]
        case "metadata":
            document["metadata"] = [1]
        case "language":
            document["language"] = "sw"
            return document
    document["checksum"] = export._checksum(document)  # a liar would not forget it
    return document


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("text", "line 2 .*the document does not match its content_hash"),
        ("title", "the document does not match its content_hash"),
        ("vector", "passage 0 does not match its checksum"),
        ("size", "a vector is not 32 finite float16 values"),
        ("place", "passage 0 does not match its checksum"),
        ("id", "passage 0 has an impossible place or id"),
        ("same id", "UNIQUE constraint failed: chunks.id; nothing was imported"),
        ("uri", r"its uri is \['x'\]"),
        ("metadata", "it must be an object"),
        ("end", "it has 2 documents and should have 3; nothing was imported"),
        ("twice", "UNIQUE constraint failed: chunks.id"),
        ("language", "line 2 is not an exported document .*it does not match its checksum"),
        ("header", "its header does not match its checksum"),
    ],
)
def test_an_export_that_lies_is_refused_as_a_whole(filled, store, tmp_path, what, message):
    filled.export(tmp_path / "c.jsonl")
    header, first, *others = (tmp_path / "c.jsonl").read_text().splitlines()
    if what == "end":
        others.pop()
    if what == "twice":
        others.append(first)
    if what == "header":
        header = header.replace('"documents": 3', '"documents": 4')
    lines = [header, json.dumps(lying(json.loads(first), what)), *others]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(StoreError, match=message):
        store.import_collection(tmp_path / "c.jsonl", name="copy")
    assert [info.name for info in store.collections()] == ["default"]
    assert store.verify().problems == []


@pytest.mark.sqlite_only
@pytest.mark.parametrize(("flips", "cuts"), [(8, 3), pytest.param(200, 20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_damage_to_an_export_is_noticed_or_harmless(filled, tmp_path, empty_store, name, flips, cuts):
    """What comes in is what was exported, or nothing. Harmless: a time in gzip's head, Parquet's statistics."""
    filled.export(tmp_path / name)
    sound = (tmp_path / name).read_bytes()
    expected = contents(tmp_path / name)
    chance = np.random.default_rng(0)
    damaged = [sound[:end] for end in np.linspace(0, len(sound) - 2, cuts).astype(int)]
    damaged.append(sound[: len(sound) // 2] + bytes(64) + sound[len(sound) // 2 + 64 :])
    for place in chance.integers(0, len(sound), flips):
        damaged.append(sound[:place] + bytes([sound[place] ^ 1 << chance.integers(8)]) + sound[place + 1 :])
    accepted = []
    for n, content in enumerate(damaged):
        (tmp_path / name).write_bytes(content)
        shutil.copytree(empty_store, tmp_path / f"store{n}")
        with open_store(tmp_path / f"store{n}", no_model, pipeline=PIPELINE) as store:
            try:
                copy = store.import_collection(tmp_path / name)
            except StoreError:
                assert store.collections() == []
                continue
            copy.export(tmp_path / f"{n}-{name}")
        assert contents(tmp_path / f"{n}-{name}") == expected
        accepted.append(n)
    print(f"{name}: {len(damaged) - len(accepted)} noticed, {len(accepted)} harmless")
    assert min(accepted, default=cuts + 1) > cuts  # neither a cut nor zeros


@pytest.mark.sqlite_only
def test_the_name_or_the_option_says_the_format(filled, store, tmp_path, monkeypatch):
    with pytest.raises(
        StoreError, match=r"the name c\.txt does not say the format .* \.jsonl, \.jsonl\.gz, "
    ):
        filled.export(tmp_path / "c.txt")
    filled.export(tmp_path / "c.txt", "parquet")
    assert (tmp_path / "c.txt").read_bytes()[:4] == b"PAR1"
    assert store.import_collection(tmp_path / "c.txt", "copy").count() == 3  # told by its content
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"pip install 'rwkv-embed\[parquet\]'"):
        filled.export(tmp_path / "d.parquet")
    with pytest.raises(MissingDependency, match=r"pip install 'rwkv-embed\[parquet\]'"):
        store.import_collection(tmp_path / "c.txt", "again")


def test_a_parquet_file_of_another_program_is_refused(store, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(StoreError, match="it is not an export of rwkv-embed; nothing was imported"):
        store.import_collection(tmp_path / "x.parquet")
    with pytest.raises(StoreError, match=r"gone\.jsonl cannot be imported: .*No such file"):
        store.import_collection(tmp_path / "gone.jsonl")
