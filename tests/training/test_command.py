"""The training command from a corpus to a model folder, with teachers that are made up, and its stages' files."""

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from numpy.typing import NDArray

from rwkv_embed import Embedder
from rwkv_embed.errors import TrainingDataError
from rwkv_embed.quantize import Int8Ranges
from rwkv_embed.tokenizer import FileTokenizer
from rwkv_embed.training import __main__ as command
from rwkv_embed.training import contrast, corpus, enlarge, matryoshka, teacher
from rwkv_embed.training.data import Texts
from rwkv_embed.training.stages import replacing, saved_tokenizer

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def vectors_of(keys: list[str]) -> NDArray[np.float32]:
    """Unit vectors (n, 384), the same for the same key."""
    seeds = [int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) for key in keys]
    vectors = np.array([np.random.default_rng(seed).normal(size=384) for seed in seeds], np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Multilingual:
    """A teacher whose pieces are syllables and letters; a text is the mean of its pieces."""

    bos, eos, unk = 0, 2, 3

    def __init__(self) -> None:
        self.pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
        self.pieces += [(mark + syllable, -5.0) for mark in ("▁", "") for syllable in SYLLABLES]
        self.pieces += [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz?.,"]
        self.table = vectors_of([piece for piece, _ in self.pieces])
        self.weights = {"emb.word": torch.from_numpy(self.table)}

    def tokens(self, texts: list[str], max_tokens: int) -> list[list[int]]:
        numbers = {piece: i for i, (piece, _) in enumerate(self.pieces)}
        first = [[numbers.get("▁" + word[:2], self.unk) for word in text.split()] for text in texts]
        return [[self.bos, *row, self.eos] for row in first]

    def encode_tokens(self, tokens: list[list[int]]) -> NDArray[np.float32]:
        means = np.stack([self.table[row].mean(0) for row in tokens])
        return means / np.linalg.norm(means, axis=1, keepdims=True)


class English:
    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        return vectors_of(texts)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of words from syllables in three languages; everything that takes long is small."""
    monkeypatch.setattr(command, "Teacher", Multilingual)
    monkeypatch.setattr(teacher, "Teacher", Multilingual)
    monkeypatch.setattr(command, "MiniLM", English)
    monkeypatch.setattr(enlarge, "STORED_ROWS", 300)
    monkeypatch.setattr(command, "MEASURED_TEXTS", 100)
    monkeypatch.setattr(matryoshka, "STEPS", 2)
    monkeypatch.setattr(matryoshka, "PAIRS", 64)
    rng = random.Random(0)

    def word() -> str:
        return "".join(rng.choices(SYLLABLES, k=rng.randint(1, 3)))

    words = [[word() for _ in range(3)] for _ in range(200)]
    made = tmp_path / "corpus"
    made.mkdir()
    for source in sorted({*corpus.QUOTAS, *contrast.TRANSLATIONS, *contrast.QUESTIONS}):
        with zstandard.open(made / f"{source}.jsonl.zst", "wt", encoding="utf-8") as file:
            for _ in range(60):
                text = rng.choices(words, k=rng.randint(4, 12))
                said = {code: " ".join(word[i] for word in text) for i, code in enumerate(("en", "de", "fr"))}
                row = {"l": "en", "q": said["en"][:12] + "?", "p": said["en"]}
                if source.startswith("par_"):
                    row = said
                elif source.startswith("mono_"):
                    row = {"l": "de", "t": said["de"]}
                file.write(json.dumps(row) + "\n")
    return made


def test_from_a_corpus_to_a_model_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"

    def run(*options: str) -> None:
        minutes = [f"--{stage}-minutes=0.002" for stage in ("network", "bag", "view", "delta")]
        threads = str(torch.get_num_threads())
        monkeypatch.setattr(
            sys, "argv", ["training", str(folder), str(work), *minutes, "--threads", threads, *options]
        )
        command.main()

    run()
    embedder = Embedder(work)
    assert embedder.backend.info.eos == 0 and embedder.dim == 512
    assert embedder.backend.info.sentence_share == 0.4
    assert Int8Ranges.load(work / "int8_ranges.safetensors").low.keys() == {128, 256, 384, 512}
    assert embedder.encode(["ba de", "fi gu"], precision="int8").shape == (2, 512)
    lines = corpus.load_lines(work / "lines.jsonl.zst")
    for kept in ("pieces", "words", "stems"):
        tokenizer, texts = FileTokenizer(work / kept / "tokenizer.json"), Texts.load(work / kept / "texts.npz")
        for i in range(0, len(texts.line), 50):
            assert tokenizer.decode(texts.text(i).tolist()).strip() in lines[texts.line[i]].texts.values()

    first = embedder.encode(["ba de", "fi gu"])
    run()  # all stages are there
    np.testing.assert_allclose(Embedder(work).encode(["ba de", "fi gu"]), first, rtol=0, atol=1e-4)
    with pytest.raises(TrainingDataError, match=r"is for [\d,]+ lines, but 20 are asked for; give --targets"):
        run("--targets", "20")
    assert not list(work.rglob("partial-*"))


def test_a_stage_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    for text in ("whole", "anew"):
        with replacing(path) as partial:
            partial.write_text(text)
        assert (path.read_text(), list(tmp_path.iterdir())) == (text, [path])


def test_token_numbers_of_another_vocabulary_are_not_gone_on_with(tmp_path: Path) -> None:
    pieces = [("▁a", -1.0), ("▁b", -2.0)]
    made, again = (saved_tokenizer(pieces, tmp_path / "stems") for _ in range(2))
    assert made.encode("b") == again.encode("b")
    with pytest.raises(TrainingDataError, match=r"stems was made with another vocabulary than is chosen now"):
        saved_tokenizer(pieces[::-1], tmp_path / "stems")
