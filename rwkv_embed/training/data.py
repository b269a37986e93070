"""Tokenised training texts with their targets, drawn in batches.

`Texts` is flat: all tokens in one array, `offsets` to cut it, and for each text its line (whose target it
shares) and its language. Targets are the teacher's vectors, centred and rotated:
- the mean vector of their language and prompt is taken away (teacher vectors lie in a narrow cone), shrunk
  to the mean of all where a language is rare;
- rotated to principal axes, so that the first 128 or 256 numbers of a vector are the best short vector, and
  softly whitened: each axis is divided by the root of its deviation. A few axes carry most of the teacher's
  variance and drown the others (question to passage 0.684 as it is, 0.756 softly whitened).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.tokenizer import Tokenizer
from rwkv_embed.training.axes import principal_axes
from rwkv_embed.training.corpus import Line
from rwkv_embed.training.stages import replacing

WHITENING = 0.5  # 0: the teacher's space as it is, 1: every axis alike
SHRINKAGE = 200  # a language with this many lines is halfway between its own mean and the mean of all
LANGUAGES_PER_LINE = 8  # of some lines there are a hundred
LANGUAGE_TEMPERATURE = 0.7  # a language of n texts is drawn n**0.7 times as often as one of 1 text


@dataclass(slots=True)
class Texts:
    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]  # (n + 1,)
    line: NDArray[np.int32]  # (n,)
    language: NDArray[np.int32]  # (n,)

    def save(self, path: Path) -> None:
        np.savez(path, tokens=self.tokens, offsets=self.offsets, line=self.line, language=self.language)

    def text(self, index: int) -> NDArray[np.int32]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def load(cls, path: Path) -> "Texts":
        with np.load(path) as file:
            return cls(*(file[name] for name in ("tokens", "offsets", "line", "language")))


def tokenize(lines: list[Line], tokenizer: Tokenizer, block: int = 20_000) -> Texts:
    """Up to `LANGUAGES_PER_LINE` texts of every line; languages are numbered in sorted order."""
    random = Random(0)
    names = {name: i for i, name in enumerate(sorted({lang for line in lines for lang in line.texts}))}
    tokens, lengths, owners, languages = [], [], [], []
    for first in range(0, len(lines), block):
        part = [
            (first + i, lang, text)
            for i, line in enumerate(lines[first : first + block])
            for lang, text in random.sample(
                sorted(line.texts.items()), min(LANGUAGES_PER_LINE, len(line.texts))
            )
        ]
        encoded = tokenizer.encode_batch([text for _, _, text in part])
        tokens += [np.array(ids, np.int32) for ids in encoded]
        lengths += [len(ids) for ids in encoded]
        owners += [i for i, _, _ in part]
        languages += [names[lang] for _, lang, _ in part]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Texts(np.concatenate(tokens), offsets, np.array(owners, np.int32), np.array(languages, np.int32))


def load_targets(folder: Path, lines: list[Line]) -> NDArray[np.float32]:
    """Targets (n, 384) of the lines done so far.

    The projection is fitted once and kept in `folder/projection.npy`: a later run must aim at the same space.
    """
    done = json.loads((folder / "targets.json").read_text())["done"]
    targets = np.load(folder / "targets.npy", mmap_mode="r")[:done].astype(np.float32)
    overall = targets.mean(0)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, line in enumerate(lines[:done]):
        groups.setdefault((line.anchor, line.prefix), []).append(i)
    for rows in groups.values():
        weight = len(rows) / (len(rows) + SHRINKAGE)
        targets[rows] -= weight * targets[rows].mean(0) + (1 - weight) * overall
    kept = folder / "projection.npy"
    if not kept.exists():
        with replacing(kept) as partial:
            np.save(partial, principal_axes(targets, WHITENING))
    targets = targets @ np.load(kept)
    return targets / np.linalg.norm(targets, axis=1, keepdims=True)


class Sampler:
    """Draws texts with replacement, languages by temperature, within a range of lengths."""

    def __init__(self, texts: Texts, done: int, seed: int, shortest: int = 1, longest: int = 512) -> None:
        lengths = np.diff(texts.offsets)
        self.texts = texts
        self.rows = np.flatnonzero((texts.line < done) & (lengths >= shortest) & (lengths <= longest))
        share = np.bincount(texts.language[self.rows])[texts.language[self.rows]]
        self.cumulative = np.cumsum(share ** (LANGUAGE_TEMPERATURE - 1.0))
        self.random = np.random.default_rng(seed)

    def draw(self, count: int) -> NDArray[np.int64]:
        """`count` row numbers."""
        points = self.random.random(count) * self.cumulative[-1]
        return self.rows[np.searchsorted(self.cumulative, points)]


def pack(texts: list[NDArray[np.int32]], eos: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of the texts one after another, each ended by EOS, and where each starts (+ the end)."""
    end = np.array([eos], np.int32)
    packed = np.concatenate([part for text in texts for part in (text, end)]).astype(np.int64)
    return packed, np.concatenate([[0], np.cumsum([len(text) + 1 for text in texts])]).astype(np.int64)
