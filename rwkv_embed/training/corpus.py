"""Reads the training corpus and draws the mixture that the default model is trained on.

The corpus is a folder of `par_*`, `mono_*` and `pair_*` files, one JSON object a line, zstd compressed:
    par_*   {"en": "...", "fr": "...", ...}         one text in several languages
    mono_*  {"l": "xx", "t": "text"}                one text in one language
    pair_*  {"l": "xx", "q": "question", "p": "passage"}
Every drawn line becomes a `Line`: texts that share one meaning, and which of them the teacher reads. For
parallel text that is the English side, whatever the language: the student learns one vector per meaning,
not one per language. Paragraphs are made of neighbouring lines, so that longer texts are seen as well.
"""

import io
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zstandard

QUOTAS = {
    # natural language, drawn nearly whole
    "par_newstest": 50_000,
    "par_wmt2122": 16_000,
    "par_wesnoth": 9_000,
    "par_games": 18_000,
    "par_bible": 7_000,
    "par_storybooks": 4_800,
    "par_ud_en": 14_000,
    "par_ud_pud": 1_000,
    "par_udhr": 66,
    "par_quran": 3_000,
    "par_afriqa": 7_000,
    # interface, help and reference text, drawn down
    "par_education": 5_000,
    "par_android_apps": 3_700,
    "par_android_aosp": 2_000,
    "par_apps": 5_000,
    "par_qtedu": 4_000,
    "par_scratch": 1_500,
    "par_wikiedu": 660,
    "par_gnomehelp": 2_500,
    "par_yelphelp": 1_500,
    "par_libreoffice_help": 2_500,
    "par_pydocs": 3_000,
    "par_reactdocs": 2_500,
    "par_vuedocs": 1_500,
    "par_ddtp": 6_000,
    # one language
    "mono_commonvoice": 80_000,
    "mono_lingua": 20_000,
    "mono_ud": 12_000,
    "pair_nativeqa": 4_500,
    "pair_debhandbook": 1_000,
    "pair_gnomehelp": 500,
}
PARAGRAPH_SOURCES = ("par_newstest", "par_wmt2122", "par_bible", "par_storybooks", "par_wesnoth")
PARAGRAPHS = 7_000
MAX_CHARS = 1_200
MIN_CHARS = 3


@dataclass(frozen=True, slots=True)
class Line:
    """Texts of one meaning by language; the teacher reads `texts[anchor]` with `prefix`."""

    source: str
    anchor: str
    texts: dict[str, str]
    prefix: str = "passage: "


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of one `.jsonl.zst` file (long windows allowed)."""
    with path.open("rb") as file:
        stream = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(file)
        for line in io.TextIOWrapper(stream, "utf-8"):
            yield json.loads(line)


def draw(corpus: Path, seed: int = 0) -> list[Line]:
    """The mixture: `QUOTAS` lines of each source and `PARAGRAPHS` paragraphs, in random order."""
    rng = random.Random(seed)
    lines: list[Line] = []
    for source, quota in QUOTAS.items():
        rows = list(read_jsonl(corpus / f"{source}.jsonl.zst"))
        if source in PARAGRAPH_SOURCES:
            lines += _paragraphs(source, rows, PARAGRAPHS // len(PARAGRAPH_SOURCES), rng)
        if source.startswith("mono_"):
            lines += _by_language(source, rows, quota, rng)
            continue
        rng.shuffle(rows)
        drawn = [line for row in rows for line in _lines(source, row)]
        lines += drawn[: quota * (2 if source.startswith("pair_") else 1)]
    rng.shuffle(lines)
    return lines


def _lines(source: str, row: dict[str, Any]) -> list[Line]:
    if source.startswith("pair_"):
        if not (len(row["q"]) >= MIN_CHARS and len(row["p"]) >= MIN_CHARS):
            return []
        language = row["l"]
        return [
            Line(source, language, {language: row["q"][:MAX_CHARS]}, "query: "),
            Line(source, language, {language: row["p"][:MAX_CHARS]}),
        ]
    texts = {language: text for language, text in row.items() if MIN_CHARS <= len(text) <= MAX_CHARS}
    if "en" not in texts or len(texts) < 2 or len(texts["en"]) > 500:
        return []
    return [Line(source, "en", texts, "query: " if source == "par_afriqa" else "passage: ")]


def _by_language(source: str, rows: list[dict[str, Any]], quota: int, rng: random.Random) -> list[Line]:
    """The same number of lines from every language, as far as they go."""
    by_language: dict[str, list[str]] = {}
    for row in rows:
        by_language.setdefault(row["l"], []).append(row["t"])
    share = quota // len(by_language)
    return [
        Line(source, language, {language: text[:MAX_CHARS]})
        for language, texts in by_language.items()
        for text in rng.sample(texts, min(share, len(texts)))
        if len(text) >= MIN_CHARS
    ]


def _paragraphs(source: str, rows: list[dict[str, Any]], count: int, rng: random.Random) -> list[Line]:
    """Neighbouring lines joined, in the languages that have them all."""
    paragraphs: list[Line] = []
    for _ in range(8 * count):
        size = rng.randint(2, 6)
        start = rng.randrange(max(1, len(rows) - size))
        block = rows[start : start + size]
        languages = set.intersection(*(set(row) for row in block))
        texts = {
            lang: ("" if lang in ("zh", "zh-TW", "ja", "th") else " ").join(row[lang] for row in block)
            for lang in sorted(languages)
        }
        texts = {lang: text for lang, text in texts.items() if len(text) <= MAX_CHARS}
        if "en" in texts and len(texts) > 1:
            paragraphs.append(Line(source + "/paragraph", "en", texts))
        if len(paragraphs) == count:
            break
    return paragraphs


def save_lines(lines: list[Line], path: Path) -> None:
    with zstandard.open(path, "wt", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")


def load_lines(path: Path) -> list[Line]:
    return [Line(**row) for row in read_jsonl(path)]
