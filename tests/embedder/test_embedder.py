"""The public face: shapes, dtypes, prompts, order, and vectors against the obvious formula."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_embed import embedder as module
from rwkv_embed import reading
from rwkv_embed.embedder import Embedder
from rwkv_embed.pooling import SUMMARY_PROMPT, state_vector
from rwkv_embed.quantize import Int8Ranges
from rwkv_embed.whitening import Whitening
from tests.embedder.numpy_rwkv import NumpyBackend, step

TEXTS = [
    "a longer text about rivers",
    "",
    "zwölf Boxkämpfer",
    "x",
    "日本語の文",
    "a longer text about rivers",
]


@pytest.fixture(scope="module")
def backend() -> NumpyBackend:
    return NumpyBackend(prompts={"query": "query: ", "document": ""})


@pytest.fixture(scope="module")
def embedder(backend: NumpyBackend) -> Embedder:
    return Embedder(backend)


@pytest.fixture(scope="module")
def language_model() -> NumpyBackend:
    return NumpyBackend(eos=None)


def run(backend: NumpyBackend, tokens: list[int]) -> tuple[np.ndarray, Any]:
    """All hidden states (T, C) and the final state, one token after the other."""
    state, hidden = backend.zero, []
    for token in tokens:
        one, state = step(backend.tensors, state, token)
        hidden.append(one)
    return np.stack(hidden), state


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_vectors_are_the_head_of_the_hidden_state_at_eos(embedder: Embedder, backend: NumpyBackend) -> None:
    vectors = embedder.encode(TEXTS)
    assert vectors.shape == (6, 8)
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        hidden, _ = run(backend, [*backend.tokenizer.encode(text), 257])
        assert backend.info.head is not None
        np.testing.assert_allclose(vector, unit(backend.info.head(hidden[-1:])[0]), atol=1e-6)


def test_language_model_poolings(language_model: NumpyBackend) -> None:
    tokens = [0, *language_model.tokenizer.encode("some words")]
    hidden, state = run(language_model, tokens)
    expected = {
        None: hidden[-1],
        "last": hidden[-1],
        "mean": hidden.mean(axis=0),
        "state": state_vector("7", state),
    }
    before, after = (language_model.tokenizer.encode(part) for part in SUMMARY_PROMPT)
    expected["summary"] = run(language_model, [0, *before, *tokens[1:], *after])[0][-1]
    for pooling, vector in expected.items():
        embedder = Embedder(language_model, pooling=pooling)  # type: ignore[arg-type]
        np.testing.assert_allclose(
            embedder.encode("some words"), unit(vector), atol=1e-6, err_msg=str(pooling)
        )
        assert embedder.dim == len(vector)
        assert np.linalg.norm(embedder.encode("")) == pytest.approx(1)


def test_one_text_gives_one_vector_and_none_give_an_empty_matrix(embedder: Embedder) -> None:
    assert embedder.encode("x").shape == (8,)
    for encode in (embedder.encode, embedder.encode_query, embedder.encode_document):
        empty = encode([])
        assert empty.shape == (0, 8)
        assert empty.dtype == np.float32
    assert embedder.encode_chunks("text", []).shape == (0, 8)
    assert embedder.encode([], truncate_dim=4).shape == (0, 4)
    assert embedder.count_tokens([]) == []


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6), st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_a_vector_depends_neither_on_neighbours_nor_on_order(texts: list[str], batch_size: int) -> None:
    embedder = Embedder(NumpyBackend(n_layer=1))
    alone = np.stack([embedder.encode(text) for text in texts])
    np.testing.assert_allclose(embedder.encode(texts, batch_size=batch_size), alone, atol=1e-6)
    np.testing.assert_allclose(embedder.encode(texts[::-1]), alone[::-1], atol=1e-6)


def test_batches_keep_the_token_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_TOKENS", 10)
    batches = list(module._batches([3, 12, 1, 5, 4, 2], 3))
    assert batches == [[1], [3, 4], [0, 5, 2]]


def test_long_texts_are_read_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a text of some length", "short", ""]
    whole = {pooling: Embedder(NumpyBackend(), pooling=pooling).encode(texts) for pooling in ("head", "mean")}
    monkeypatch.setattr(reading, "WINDOW", 4)
    for pooling, expected in whole.items():
        backend = NumpyBackend()
        np.testing.assert_allclose(Embedder(backend, pooling=pooling).encode(texts), expected, atol=1e-6)
        assert backend.longest_call == (4 if pooling == "mean" else 22)  # states need no windows


def test_prompts(embedder: Embedder) -> None:
    assert embedder.prompts == {"query": "query: ", "document": ""}
    prompted = embedder.encode("query: rivers")
    np.testing.assert_array_equal(embedder.encode_query("rivers"), prompted)
    np.testing.assert_array_equal(embedder.encode("rivers", prompt_name="query"), prompted)
    np.testing.assert_array_equal(embedder.encode("rivers", prompt="query: "), prompted)
    np.testing.assert_array_equal(embedder.encode_query("rivers", prompt=""), embedder.encode("rivers"))
    np.testing.assert_array_equal(embedder.encode_document(["rivers"])[0], embedder.encode("rivers"))
    with pytest.raises(ValueError, match="tiny has no prompt called 'qurey'; it has query, document"):
        embedder.encode("x", prompt_name="qurey")


def test_truncation_comes_before_normalisation(embedder: Embedder, backend: NumpyBackend) -> None:
    full = embedder.encode(TEXTS, normalize_embeddings=False)
    assert not np.allclose(np.linalg.norm(full, axis=1), 1)
    short = embedder.encode(TEXTS, truncate_dim=3)
    np.testing.assert_allclose(short, [unit(vector[:3]) for vector in full], atol=1e-6)
    always = Embedder(backend, truncate_dim=3)
    assert always.dim == 3
    np.testing.assert_array_equal(always.encode(TEXTS), short)
    np.testing.assert_array_equal(always.encode_chunks("river", [(0, 5)])[0], always.encode("river"))
    for bad in (0, 9):
        with pytest.raises(ValueError, match=f"truncate_dim is {bad}, the model has 8 dimensions"):
            Embedder(backend, truncate_dim=bad)


def test_what_does_not_fit_is_refused_before_anything_is_read() -> None:
    class Unread(NumpyBackend):
        def hidden(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("texts were read")

    unread = Embedder(Unread())
    unread.tokenizer.encode_batch = unread.backend.hidden  # type: ignore[method-assign, assignment]
    arguments: list[tuple[dict[str, Any], str]] = [
        ({"truncate_dim": 9}, "truncate_dim is 9, the model has 8 dimensions"),
        ({"truncate_dim": 0}, "truncate_dim is 0, the model has 8 dimensions"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"batch_size": -1}, "batch_size is -1, expected at least 1"),
        ({"precision": ""}, "precision is '', expected one of float32, float16, int8"),
        ({"precision": "int8"}, "precision 'int8' needs fitted ranges"),
        ({"prompt_name": ""}, "tiny has no prompt called ''; it has query, document"),
    ]
    for argument, message in arguments:
        with pytest.raises(ValueError, match=message):
            unread.encode_query(["x"], **argument)
    unread.int8_ranges = Int8Ranges.fit(np.eye(8, dtype=np.float32))
    with pytest.raises(ValueError, match=r"int8 ranges were fitted for \[8\] dimensions, not for 4"):
        unread.encode(["x"], precision="int8", truncate_dim=4)


def test_precision(backend: NumpyBackend) -> None:
    embedder = Embedder(backend)
    vectors = embedder.encode(TEXTS)
    half = embedder.encode(TEXTS, precision="float16")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, vectors, atol=1e-3)
    bits = embedder.encode(TEXTS, precision="ubinary")
    assert bits.shape == (6, 1)
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1), vectors > 0)
    with pytest.raises(ValueError, match=r"precision 'int8' needs fitted ranges.*fit_int8"):
        embedder.encode(TEXTS, precision="int8")
    embedder.fit_int8([f"text {i}" for i in range(20)], dims=[4])
    codes = embedder.encode(TEXTS, precision="int8")
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes[0], embedder.encode(TEXTS[:1], precision="int8")[0])
    assert embedder.encode("x", precision="uint8", truncate_dim=4).shape == (4,)
    with pytest.raises(ValueError, match="precision is 'int4', expected one of float32, float16, int8"):
        embedder.encode("x", precision="int4")  # type: ignore[arg-type]
    assert Embedder(backend, precision="binary").encode("x").dtype == np.int8


def test_lone_surrogates_and_nul_are_texts_like_others(embedder: Embedder) -> None:
    np.testing.assert_array_equal(embedder.encode("a\ud800b"), embedder.encode("a\ufffdb"))
    assert embedder.count_tokens(["a\ud800b", "\0", ""]) == [5, 1, 0]
    assert np.isfinite(embedder.encode("\0")).all()
    stream = embedder.stream()
    stream.feed("a\udfff b")
    np.testing.assert_allclose(stream.vector(), embedder.encode("a\ufffd b"), atol=1e-6)


def test_bad_arguments(embedder: Embedder, language_model: NumpyBackend) -> None:
    with pytest.raises(TypeError, match="expected a text, got int"):
        embedder.encode(["a", 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="unexpected keyword argument 'normalise_embeddings'"):
        embedder.encode("a", normalise_embeddings=True)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="tiny is a language model without an embedding head"):
        Embedder(language_model, pooling="head")
    with pytest.raises(ValueError, match="tiny is an embedder and cannot be asked for a summary; use head"):
        Embedder(NumpyBackend(), pooling="summary")
    with pytest.raises(
        ValueError, match="pooling is 'max', expected one of head, last, mean, state, summary"
    ):
        Embedder(language_model, pooling="max")  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["head", "last", "state"])
def test_a_chunk_vector_knows_what_comes_before_it(pooling: Any) -> None:
    """The span's vector is that of the document up to the span's end."""
    backend = NumpyBackend()
    embedder = Embedder(backend, pooling=pooling)
    text = "One sentence. Another one. The third."
    spans = [(14, 26), (0, 13), (27, 37), (5, 26)]
    backend.tokens_read = 0
    vectors = embedder.encode_chunks(text, spans)
    # the document once, and one EOS a span
    assert backend.tokens_read == len(text) + len(spans)
    for vector, (_, end) in zip(vectors, spans, strict=True):
        np.testing.assert_allclose(vector, embedder.encode_document(text[:end]), atol=1e-6)


def test_chunks_of_language_models(language_model: NumpyBackend) -> None:
    text, spans = "One sentence. Another one.", [(0, 13), (14, 26), (6, 20), (4, 4)]
    summary = Embedder(language_model, pooling="summary")
    for vector, (_, end) in zip(summary.encode_chunks(text, spans), spans, strict=True):
        np.testing.assert_allclose(vector, summary.encode(text[:end]), atol=1e-6)

    hidden, _ = run(language_model, [0, *language_model.tokenizer.encode(text)])
    mean = Embedder(language_model, pooling="mean").encode_chunks(text, spans)
    for vector, (start, end) in zip(mean, spans, strict=True):
        # position i of `hidden` is after i characters; the first span also owns the start token
        first = 0 if start == 0 else start + 1
        rows = hidden[first : end + 1] if end > start else hidden[end : end + 1]
        np.testing.assert_allclose(vector, unit(rows.mean(axis=0)), atol=1e-6)


def test_the_span_of_everything_is_the_document() -> None:
    for pooling in ("head", "mean", "state"):
        for prompts in ({}, {"document": "passage: "}):
            embedder = Embedder(NumpyBackend(prompts=prompts), pooling=pooling)
            for text in ("two words", ""):
                vectors = embedder.encode_chunks(text, [(0, len(text))])
                np.testing.assert_allclose(vectors[0], embedder.encode_document(text), atol=1e-6)


def test_many_chunks_are_finished_as_they_come(monkeypatch: pytest.MonkeyPatch, embedder: Embedder) -> None:
    spans = [(i, i + 1) for i in range(9)]
    expected = embedder.encode_chunks("a b c d e", spans)
    monkeypatch.setattr(module, "BATCH_TEXTS", 2)
    np.testing.assert_allclose(embedder.encode_chunks("a b c d e", spans), expected, atol=1e-6)


@pytest.mark.parametrize("span", [(-1, 2), (3, 2), (0, 5)])
def test_spans_outside_the_text(embedder: Embedder, span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"span \(.*\) is not inside the text of 4 characters"):
        embedder.encode_chunks("text", [span])


def test_fingerprint_changes_with_all_that_changes_vectors() -> None:
    whitening = Whitening.remove_top(np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32))
    embedders = [
        Embedder(NumpyBackend()),
        Embedder(NumpyBackend(seed=1)),
        Embedder(NumpyBackend(), pooling="last"),
        Embedder(NumpyBackend(), truncate_dim=4),
        Embedder(NumpyBackend(prompts={"query": "query: "})),
        Embedder(NumpyBackend(), whitening=whitening),
    ]
    assert len({embedder.fingerprint for embedder in embedders}) == len(embedders)
    assert Embedder(NumpyBackend()).fingerprint == embedders[0].fingerprint
    assert Embedder(NumpyBackend(), precision="float16").fingerprint == embedders[0].fingerprint


def test_whitening_is_applied_before_truncation(backend: NumpyBackend) -> None:
    texts = [f"text number {i}" for i in range(30)]
    raw = Embedder(backend).encode(texts)
    whitening = Whitening.whiten(raw, dim=5)
    embedder = Embedder(backend, whitening=whitening)
    assert embedder.dim == 5
    expected = (
        Embedder(backend).encode("rivers", normalize_embeddings=False) - whitening.mean
    ) @ whitening.matrix
    np.testing.assert_allclose(embedder.encode("rivers"), unit(expected), atol=1e-5)
    np.testing.assert_allclose(embedder.encode("rivers", truncate_dim=2), unit(expected[:2]), atol=1e-5)


def test_progress_bar_goes_to_stderr(embedder: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    embedder.encode(["a", "b"], show_progress_bar=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Embedding" in captured.err
    embedder.encode(["a", "b"])
    assert capsys.readouterr().err == ""


def test_importing_the_embedder_does_not_import_torch() -> None:
    code = "import sys, rwkv_embed.embedder, rwkv_embed.rerank; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
