"""Streams: pieces equal the whole, looking disturbs nothing, a stream outlives its process."""

import json
import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from rwkv_embed.embedder import Embedder
from rwkv_embed.errors import StateError
from rwkv_embed.stream import HOLD, split_complete
from tests.embedder.numpy_rwkv import NumpyBackend

SAMPLE = (
    "An RNN reads once.  Its state\tstays small,\n\nhowever long the text; el niño, Ünïcode, it's 3.14!\n"
    "東京は日本の首都です。人口は約1400万人。 מה שלומך היום? สวัสดีครับ नमस्ते दुनिया"
)


class UnigramTokenizer:
    """A unigram model with Metaspace, of the default model's kind, trained on a few sentences."""

    def __init__(self) -> None:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

        self._rust = Tokenizer(models.Unigram())
        self._rust.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
        self._rust.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
        self._rust.train_from_iterator([SAMPLE, "reading writing reader writer read write"] * 3, trainer)
        self.vocab_size = self._rust.get_vocab_size() + 1

    def encode(self, text: str) -> list[int]:
        return self._rust.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


class WorldTokenizer:
    def __init__(self) -> None:
        from pyrwkv_tokenizer import RWKVTokenizer

        self._rust = RWKVTokenizer()
        self.vocab_size = 65536

    def encode(self, text: str) -> list[int]:
        return list(self._rust.encode(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


TOKENIZERS = {"unigram": UnigramTokenizer(), "world": WorldTokenizer()}


def cut(text: str, places: Sequence[int]) -> list[str]:
    marks = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(marks)]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    text=st.text(alphabet=[*SAMPLE, *"\x1c\x1d\x1e\x1f"], max_size=60),
    places=st.lists(st.integers(0, 10_000), max_size=8),
)
@example(text="hello\x1cworld a\x1f b", places=[5, 6, 14])
@example(text=SAMPLE, places=[3, 20, 21, 22, 23, 31, 40, 41, 60, 90, 100])
@settings(deadline=None, max_examples=150)
def test_the_tokens_of_the_pieces_are_those_of_the_text(name: str, text: str, places: list[int]) -> None:
    tokenizer, pending, tokens = TOKENIZERS[name], "", []
    for piece in cut(text, places):
        parts, pending = split_complete(pending + piece)
        tokens += [token for part in parts for token in tokenizer.encode(part)]
    assert tokens + tokenizer.encode(pending) == tokenizer.encode(text)


@given(
    text=st.text(alphabet="漢字かな。a ", min_size=HOLD // 2, max_size=3 * HOLD),
    places=st.lists(st.integers(0, 10_000), max_size=8),
)
@example(text="漢" * (2 * HOLD + 1), places=[1, HOLD, HOLD + 1])
@example(text="漢" * HOLD + "a b", places=[])
@settings(deadline=None, max_examples=100)
def test_long_runs_are_cut_at_the_same_places_however_they_arrive(text: str, places: list[int]) -> None:
    def forced_cuts(pieces: list[str]) -> tuple[set[int], int]:
        """Places where text was cut though no word ended there, and the most that was held back."""
        pending, done, cuts, held = "", 0, set(), 0
        for piece in pieces:
            parts, pending = split_complete(pending + piece)
            for part in parts:
                done += len(part)
                if not (text[done - 1].isalnum() and text[done : done + 1].isspace()):
                    cuts.add(done)
            held = max(held, len(pending))
        return cuts, held

    whole, held = forced_cuts([text])
    assert held <= HOLD
    pieces, held = forced_cuts(cut(text, places))
    assert pieces == whole
    assert held <= HOLD


def test_a_long_run_is_cut_after_a_sentence() -> None:
    sentence = "東" * 99 + "。"
    parts, rest = split_complete(sentence * 6)
    assert parts == [sentence * 5]
    assert rest == sentence


@pytest.mark.parametrize("pooling", ["head", "mean", "state"])
def test_a_stream_equals_its_document_at_every_moment(pooling: str) -> None:
    embedder = Embedder(NumpyBackend(prompts={"document": "passage: "}), pooling=pooling)  # type: ignore[arg-type]
    stream = embedder.stream()
    np.testing.assert_allclose(stream.vector(), embedder.encode_document(""), atol=1e-6)
    fed = ""
    for piece in ["Log", " line", " one\n", "", "and two"]:
        stream.feed(piece)
        fed += piece
        np.testing.assert_allclose(stream.vector(), embedder.encode_document(fed), atol=1e-6)
        np.testing.assert_array_equal(stream.vector(), stream.vector())
        assert stream.tokens == len("passage: " + fed)


def test_appending_costs_only_the_new_tokens() -> None:
    backend = NumpyBackend()
    embedder = Embedder(backend)
    stream = embedder.stream()
    stream.feed("a long text " * 50)
    saved = stream.state_bytes()
    backend.tokens_read = 0
    later = embedder.stream(saved)
    later.feed("and more")
    later.vector()
    assert backend.tokens_read <= len("text and more") + 1


@pytest.mark.parametrize("pooling", ["head", "mean", "summary"])
def test_a_saved_stream_goes_on(pooling: str) -> None:
    eos = 257 if pooling == "head" else None
    embedder = Embedder(NumpyBackend(eos=eos), pooling=pooling)  # type: ignore[arg-type]
    stream = embedder.stream()
    stream.feed("first wo")
    data = stream.state_bytes()
    other = Embedder(NumpyBackend(eos=eos), pooling=pooling).stream(data)  # type: ignore[arg-type]
    assert other.tokens == stream.tokens
    for each in (stream, other):
        each.feed("rds, then more")
    np.testing.assert_array_equal(stream.vector(), other.vector())
    np.testing.assert_allclose(other.vector(), embedder.encode("first words, then more"), atol=1e-6)
    assert stream.state_bytes() == other.state_bytes()
    untouched = embedder.stream(embedder.stream().state_bytes())
    np.testing.assert_allclose(untouched.vector(), embedder.encode(""), atol=1e-6)


def test_states_of_others_and_damaged_states_are_refused() -> None:
    embedder = Embedder(NumpyBackend())
    stream = embedder.stream()
    stream.feed("some words here")
    data = stream.state_bytes()
    with pytest.raises(StateError, match="belongs to another model or pooling"):
        Embedder(NumpyBackend(seed=1)).stream(data)
    for damaged in (b"", b"x", data[:-1], data[:40], b"\xff" * 100):
        with pytest.raises(StateError, match="the saved state is damaged"):
            embedder.stream(damaged)
    with pytest.raises(StateError, match="has format None, expected 'rwkv-embed reading 1'"):
        embedder.stream(save({"hidden": np.zeros(8, np.float32)}))
    (length,) = struct.unpack_from("<Q", data)
    about = json.loads(data[8 : 8 + length])["__metadata__"]
    arrays = load(data)
    arrays["state.1"] = np.zeros((1, 2), np.float32)
    with pytest.raises(StateError, match="the saved state does not fit this model"):
        embedder.stream(save(arrays, metadata=about))


def test_what_is_wrong_in_a_saved_state_is_said() -> None:
    embedder = Embedder(NumpyBackend())
    stream = embedder.stream()
    stream.feed("some words here")
    data = stream.state_bytes()
    (length,) = struct.unpack_from("<Q", data)
    facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["reading"])
    arrays = load(data)
    without = {name: array for name, array in arrays.items() if name != "state.1"}
    width = len(arrays["hidden"])
    hidden = rf"damaged \(hidden is .*, expected finite float32 \({width},\)\); read the text again"
    values = r"damaged \(it has NaN or infinite values, or is not float32\)"
    tokens = r"damaged \(it is of .* tokens, with \d+ arrays\)"
    for damaged, about, message in (
        (arrays, [1], r"damaged \(its facts are a list\)"),
        (arrays, {**facts, "tokens": "x"}, tokens),
        (arrays, {**facts, "tokens": 0}, tokens),
        (arrays, {name: fact for name, fact in facts.items() if name != "tokens"}, tokens),
        (arrays, {name: fact for name, fact in facts.items() if name != "pending"}, "not of a stream"),
        (without, facts, r"damaged \(an array of it is missing\)"),
        ({"hidden": arrays["hidden"]}, facts, tokens),
        (arrays | {"hidden": arrays["hidden"][:3]}, facts, hidden),
        (arrays | {"hidden": arrays["hidden"] * np.float32(np.nan)}, facts, hidden),
        (arrays | {"hidden": arrays["hidden"].astype(np.float64)}, facts, hidden),
        (arrays | {"state.0": arrays["state.0"] * np.float32(np.inf)}, facts, values),
        (arrays | {"state.0": arrays["state.0"].astype(np.int32)}, facts, values),
    ):
        with pytest.raises(StateError, match=message):
            embedder.stream(save(damaged, metadata={"reading": json.dumps(about)}))
