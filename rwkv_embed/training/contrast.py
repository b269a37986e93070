"""Pairs of texts that belong together, for the contrastive loss; nothing here needs the teacher.

- translations: one row of a `par_*` file in two languages.
- surroundings: a few words of one sentence, and the sentences around it in the same or another language (the
  inverse cloze task of Lee et al., 2019): what a question asks of a paragraph, wherever there are paragraphs.
  Neighbouring paragraphs of one document are drawn together, so that they are told apart, too.
- questions: a question or a title and its passage, from the `pair_*` files; neighbours are drawn together as well.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.tokenizer import Tokenizer
from rwkv_embed.training.corpus import MAX_CHARS, MIN_CHARS, read_jsonl
from rwkv_embed.training.data import LANGUAGE_TEMPERATURE

Tokens = NDArray[np.int32]

# How often a text of a source is drawn: natural language as it is, interface and help text a little.
TRANSLATIONS = {
    "par_newstest": 1.0,
    "par_wmt2122": 1.0,
    "par_wesnoth": 1.0,
    "par_games": 0.7,
    "par_bible": 0.7,
    "par_storybooks": 2.0,
    "par_ud_en": 1.0,
    "par_ud_pud": 1.0,
    "par_udhr": 1.0,
    "par_quran": 0.7,
    "par_afriqa": 1.5,
    "par_education": 0.5,
    "par_android_apps": 0.5,
    "par_android_aosp": 0.2,
    "par_apps": 0.2,
    "par_qtedu": 0.5,
    "par_scratch": 0.2,
    "par_wikiedu": 0.5,
    "par_gnomehelp": 0.2,
    "par_yelphelp": 0.2,
    "par_libreoffice_help": 0.1,
    "par_pydocs": 0.2,
    "par_reactdocs": 0.2,
    "par_vuedocs": 0.2,
    "par_ddtp": 0.2,
}
DOCUMENTS = {  # sources whose rows follow one another as in the document
    "par_newstest": 1.0,
    "par_wmt2122": 1.0,
    "par_wesnoth": 0.5,
    "par_bible": 0.5,
    "par_storybooks": 2.0,
    "par_udhr": 1.0,
    "par_quran": 0.3,
    "par_gnomehelp": 0.2,
    "par_reactdocs": 0.2,
}
QUESTIONS = {"pair_nativeqa": 1.0, "pair_debhandbook": 0.2, "pair_gnomehelp": 0.2, "pair_reactdocs": 0.1}
RARELY_DRAWN = 0.2  # of such a source, every third row is enough
NOT_THE_LANGUAGE = {("par_udhr", "fr")}  # a dialect under this code
ENGLISH_SHARE = 0.5  # of the partners: English joins the languages
MAX_TOKENS = 256
MISSING = 0.2  # of the paragraphs lack the sentence that asks for them: its neighbours must do
NEIGHBOURS = 4  # passages of one document that are drawn together


@dataclass(slots=True)
class Rows:
    """All rows in the order of their files. Texts of a row stand together, languages in ascending order."""

    tokens: Tokens
    offsets: NDArray[np.int64]  # (texts + 1,)
    language: NDArray[np.int16]  # (texts,)
    row: NDArray[np.int32]  # (texts,)
    source: NDArray[np.int16]  # (rows,)
    names: dict[str, list[str]]  # "sources" and "languages" by number

    def save(self, path: Path) -> None:
        arrays = {name: getattr(self, name) for name in ("tokens", "offsets", "language", "row", "source")}
        np.savez(path, names=json.dumps(self.names), **arrays)

    @classmethod
    def load(cls, path: Path) -> "Rows":
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("tokens", "offsets", "language", "row", "source")}
            return cls(**arrays, names=json.loads(str(file["names"])))

    def text(self, index: int) -> Tokens:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]][:MAX_TOKENS]


def read_rows(corpus: Path, tokenizer: Tokenizer, block: int = 2_000) -> Rows:
    """Tokenise the `par_*` and `pair_*` files. A row of a pair file is two texts: the question, the passage."""
    sources = [*TRANSLATIONS, *QUESTIONS]
    languages: dict[str, int] = {}
    tokens: list[Tokens] = []
    lengths: list[int] = []
    language: list[int] = []
    row: list[int] = []
    source: list[int] = []
    for part in _blocks(corpus, sources, block):
        encoded = tokenizer.encode_batch([text for _, texts in part for _, text in texts])
        tokens += [np.array(ids, np.int32) for ids in encoded]
        lengths += [len(ids) for ids in encoded]
        for number, texts in part:
            row += [len(source)] * len(texts)
            language += [languages.setdefault(name, len(languages)) for name, _ in texts]
            source.append(number)
    return Rows(
        np.concatenate(tokens),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array(language, np.int16),
        np.array(row, np.int32),
        np.array(source, np.int16),
        {"sources": sources, "languages": list(languages)},
    )


def _blocks(
    corpus: Path, sources: list[str], block: int
) -> Iterator[list[tuple[int, list[tuple[str, str]]]]]:
    part: list[tuple[int, list[tuple[str, str]]]] = []
    for number, source in enumerate(sources):
        in_order = source in DOCUMENTS or source in QUESTIONS
        step = 1 if in_order or TRANSLATIONS[source] > RARELY_DRAWN else 3
        for entry in islice(read_jsonl(corpus / f"{source}.jsonl.zst"), 0, None, step):
            texts = _texts(source, entry)
            if len(texts) > 1:
                part.append((number, texts))
            if len(part) == block:
                yield part
                part = []
    yield part


def _texts(source: str, entry: dict[str, Any]) -> list[tuple[str, str]]:
    if source in QUESTIONS:
        both = entry["q"], entry["p"]
        return [(entry["l"], text[:MAX_CHARS]) for text in both if len(text) >= MIN_CHARS]
    return [
        (language, text)
        for language, text in sorted(entry.items())
        if MIN_CHARS <= len(text) <= MAX_CHARS and (source, language) not in NOT_THE_LANGUAGE
    ]


@dataclass(frozen=True, slots=True)
class Drawn:
    """`left[i]` belongs to `right[i]`, and to every other `right[j]` of the same `meaning`."""

    left: list[Tokens]
    right: list[Tokens]
    meaning: NDArray[np.int64]


class Pairs:
    """Draws pairs with replacement; languages by temperature, sources by their weights."""

    def __init__(self, rows: Rows, seed: int) -> None:
        self.rows, self.random = rows, np.random.default_rng(seed)
        self.first = np.searchsorted(rows.row, np.arange(len(rows.source) + 1))  # a row's texts
        self.english = rows.names["languages"].index("en")
        self.key = rows.row.astype(np.int64) * len(rows.names["languages"]) + rows.language
        self.cumulative = {
            kind: self._weigh(weights)
            for kind, weights in (
                ("translations", TRANSLATIONS),
                ("documents", DOCUMENTS),
                ("questions", QUESTIONS),
            )
        }

    def _weigh(self, weights: dict[str, float]) -> NDArray[np.float64]:
        by_source = np.array([weights.get(name, 0.0) for name in self.rows.names["sources"]])
        weight = by_source[self.rows.source[self.rows.row]]
        size = np.bincount(self.rows.language, weights=weight > 0)[self.rows.language]
        return np.cumsum(weight * np.maximum(size, 1.0) ** (LANGUAGE_TEMPERATURE - 1.0))

    def _draw(self, kind: str, count: int) -> NDArray[np.int64]:
        points = self.random.random(count) * self.cumulative[kind][-1]
        return np.searchsorted(self.cumulative[kind], points)

    def _find(self, row: int, language: int) -> int | None:
        """The text of a row in a language."""
        key = row * len(self.rows.names["languages"]) + language
        at = int(np.searchsorted(self.key, key))
        return at if at < len(self.key) and self.key[at] == key else None

    def _partner(self, text: int) -> int:
        """Another text of the same row."""
        row = int(self.rows.row[text])
        if self.random.random() < ENGLISH_SHARE:
            english = self._find(row, self.english)
            if english is not None and english != text:
                return english
        first, last = int(self.first[row]), int(self.first[row + 1])
        other = int(self.random.integers(first, last - 1))
        return other + (other >= text)

    def translations(self, count: int) -> Drawn:
        chosen = self._draw("translations", count)
        left = [self.rows.text(int(text)) for text in chosen]
        right = [self.rows.text(self._partner(int(text))) for text in chosen]
        return Drawn(left, right, self.rows.row[chosen].astype(np.int64))

    def of_english(self, count: int, number: NDArray[np.int64]) -> tuple[list[Tokens], NDArray[np.int64]]:
        """Texts whose row has English, and that text's `number` (texts,); none where it is below 0."""
        texts: list[Tokens] = []
        numbers: list[int] = []
        while len(texts) < count:
            for text in self._draw("translations", count - len(texts)):
                english = self._find(int(self.rows.row[text]), self.english)
                if english is not None and number[english] >= 0:
                    texts.append(self.rows.text(int(text)))
                    numbers.append(int(number[english]))
        return texts, np.array(numbers)

    def surroundings(self, count: int) -> Drawn:
        left: list[Tokens] = []
        right: list[Tokens] = []
        while len(left) < count:
            text = int(self._draw("documents", 1)[0])
            ours, theirs = int(self.rows.language[text]), int(self.rows.language[self._partner(text)])
            pair = (ours, theirs)[self.random.integers(2)], (ours, theirs)[self.random.integers(2)]
            row = int(self.rows.row[text])
            for _ in range(NEIGHBOURS):
                drawn = self._paragraph(row, *pair)
                if drawn is None:
                    break
                query, passage, size = drawn
                left.append(query)
                right.append(passage)
                row += size
        return Drawn(left[:count], right[:count], np.arange(count))

    def _paragraph(self, row: int, asked: int, told: int) -> tuple[Tokens, Tokens, int] | None:
        """A few words in one language and the paragraph from `row` on in the other; and its rows."""
        rows = self.rows
        size = int(self.random.integers(2, 7))
        window = []
        for r in range(row, min(row + size, len(rows.source))):
            text = self._find(r, told)
            if text is None or rows.source[r] != rows.source[row]:
                break
            window.append(text)
        candidates = [
            (i, found) for i in range(len(window)) if (found := self._find(row + i, asked)) is not None
        ]
        if len(window) < 2 or not candidates:
            return None
        place, sentence = candidates[int(self.random.integers(len(candidates)))]
        if self.random.random() < MISSING:
            del window[place]
        paragraph = np.concatenate([rows.text(i) for i in window])[:MAX_TOKENS]
        return self._excerpt(rows.text(sentence)), paragraph, size

    def _excerpt(self, tokens: Tokens, shortest: int = 4, longest: int = 20) -> Tokens:
        """Some tokens in a row, as many as a question has."""
        size = int(self.random.integers(shortest, longest + 1))
        start = int(self.random.integers(max(1, len(tokens) - size + 1)))
        return tokens[start : start + size]

    def questions(self, count: int) -> Drawn:
        left: list[Tokens] = []
        right: list[Tokens] = []
        meaning: list[int] = []
        while len(left) < count:
            row = int(self.rows.row[self._draw("questions", 1)[0]])
            for r in range(row, min(row + NEIGHBOURS, len(self.rows.source))):
                question = int(self.first[r])
                passage = self.rows.text(question + 1)
                left.append(self.rows.text(question))
                right.append(passage)
                meaning.append(zlib.crc32(passage.tobytes()))
        return Drawn(left[:count], right[:count], np.array(meaning[:count], np.int64))
