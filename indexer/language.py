"""Which language a passage is written in: ISO 639-1 codes where they exist, else 639-3; None without letters.

The script is counted first. A script of one language (Hangul, Thai, Georgian, …) decides at once, a few
languages are told by letters or small words that only they use. What is left goes to py3langid (naive Bayes
over byte n-grams, https://pypi.org/project/py3langid/), restricted to the languages written in that script: a
short text in Arabic letters can then never come out as English. Its model (about 0.8 s) is loaded when a text
first needs it.

Chinese is "zh" in both kinds of characters. What a file says of itself comes before any guess
(`declared_language`).
"""

import re
from bisect import bisect_right
from collections import Counter
from functools import lru_cache
from typing import Any

SAMPLE_CHARS = 1_000  # the beginning of a text; a longer look changes no answer worth its time
MARKER_SHARE = 0.01  # of the letters that must be a language's own before they decide
KANA_SHARE = 0.05  # Japanese prose is half kana; a Chinese text that names a product is far below this

# First and last code point of a script's blocks, with the script's name.
_BLOCKS = sorted(
    (start, end, script)
    for script, ranges in {
        "latin": [(0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)],
        "greek": [(0x370, 0x3FF), (0x1F00, 0x1FFF)],
        "cyrillic": [(0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)],
        "armenian": [(0x530, 0x58F)],
        "hebrew": [(0x590, 0x5FF), (0xFB1D, 0xFB4F)],
        "arabic": [(0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC)],
        "syriac": [(0x700, 0x74F)],
        "thaana": [(0x780, 0x7BF)],
        "nko": [(0x7C0, 0x7FF)],
        "devanagari": [(0x900, 0x97F), (0xA8E0, 0xA8FF)],
        "bengali": [(0x980, 0x9FF)],
        "gurmukhi": [(0xA00, 0xA7F)],
        "gujarati": [(0xA80, 0xAFF)],
        "odia": [(0xB00, 0xB7F)],
        "tamil": [(0xB80, 0xBFF)],
        "telugu": [(0xC00, 0xC7F)],
        "kannada": [(0xC80, 0xCFF)],
        "malayalam": [(0xD00, 0xD7F)],
        "sinhala": [(0xD80, 0xDFF)],
        "thai": [(0xE00, 0xE7F)],
        "lao": [(0xE80, 0xEFF)],
        "tibetan": [(0xF00, 0xFFF)],
        "myanmar": [(0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)],
        "georgian": [(0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)],
        "hangul": [(0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)],
        "ethiopic": [(0x1200, 0x139F), (0x2D80, 0x2DDF), (0xAB00, 0xAB2F)],
        "cherokee": [(0x13A0, 0x13FF), (0xAB70, 0xABBF)],
        "canadian": [(0x1400, 0x167F), (0x18B0, 0x18FF)],
        "khmer": [(0x1780, 0x17FF)],
        "mongolian": [(0x1800, 0x18AF)],
        "olchiki": [(0x1C50, 0x1C7F)],
        "tifinagh": [(0x2D30, 0x2D7F)],
        "kana": [(0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)],
        "han": [
            (0x2E80, 0x2FDF),
            (0x3005, 0x3007),
            (0x3400, 0x4DBF),
            (0x4E00, 0x9FFF),
            (0xF900, 0xFAFF),
            (0x20000, 0x323AF),
        ],
        "meetei": [(0xAAE0, 0xAAFF), (0xABC0, 0xABFF)],
        "yi": [(0xA000, 0xA4CF)],
    }.items()
    for start, end in ranges
)
_WEIGHTS = {"han": 3, "kana": 2, "hangul": 2}  # one letter says as much as so many of an alphabet
_STARTS = [start for start, _, _ in _BLOCKS]

_ONE_LANGUAGE = {
    "greek": "el", "armenian": "hy", "syriac": "syr", "thaana": "dv", "nko": "nqo", "gurmukhi": "pa",
    "gujarati": "gu", "odia": "or", "tamil": "ta", "telugu": "te", "kannada": "kn", "malayalam": "ml",
    "sinhala": "si", "thai": "th", "lao": "lo", "myanmar": "my", "georgian": "ka", "hangul": "ko",
    "cherokee": "chr", "canadian": "iu", "khmer": "km", "mongolian": "mn", "olchiki": "sat",
    "tifinagh": "zgh", "kana": "ja", "han": "zh", "meetei": "mni", "yi": "ii", "ethiopic": "am",
    "tibetan": "bo", "hebrew": "he",
}  # fmt: skip

# Letters that one language of a shared script uses and its neighbours do not.
_MARKERS = {
    "arabic": [("ٻڄڃڀٿٺڦڪڳڱڻ", "sd"), ("ێڵڕ", "ckb")],
    "ethiopic": [("ኣኸኹኺኻኼኽኾዃቐቑቒቓቔቕቖ", "ti")],
    "han": [("嘅喺咗冇佢哋嚟嗰啲", "yue")],
    "hebrew": [("װױײ", "yi")],
}

# Small words of languages in Latin letters that py3langid does not know and would take for a neighbour.
_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "gn": "ha umi avei térã haguã hagua kuéra peteĩ oguereko va'erã ichupe yvypóra tetã upe hese rupi mayma",
        "mi": "te nga ngā kia tetahi tētahi ranei rānei hoki tangata tona tōna ona ōna tenei tēnei katoa roto",
        "nv": "t'áá dóó áádóó doo éí bee díí biyi' yee kéyah diné góne' la' nidi áko bił dah hólǫ́",
        "wo": "ci sañ ak ñu mu am nit wàllu ku yi bu lépp kenn réew mën yu ay ñi moom gu",
    }.items()
}
_WORD_SHARE = 0.12  # of all words, and three different ones: a quoted phrase does not decide
_WORD = re.compile(r"[\w']+")
_TAG = re.compile(r"([A-Za-z]{2,3})(?:[-_][A-Za-z0-9_-]{1,32})?")
_APOSTROPHES = str.maketrans("’ʼ‘", "'''")
# Malay and Indonesian share most words. There is far more Indonesian; it never writes these.
_MALAY = frozenset(("bahawa", "kerana", "ialah", "hendaklah", "sesiapa", "sahaja", "kereta", "mahu"))

# What py3langid may answer for each script. Its dialects and rare varieties (ary, ext, gcf, …) are left out:
# they win short texts of the large language next to them far more often than they are right.
_CANDIDATES = {
    "latin": "af az br bs ca cs cy da de en eo es et eu fi fo fr fy ga gd gl ha hr ht hu id ig is it jv ku "
    "la lb lg ln lt lv mg ms mt nl nn no nso oc om pl pt qu ro rw "
    "sk sl sn so sq sr st sv sw tk tl tr uz vi vo wa xh yo zu",
    "cyrillic": "ba be bg kk ky mk mn ru sr tg tt uk",
    "arabic": "ar fa ps ug ur",
    "devanagari": "hi mr ne sa",
    "bengali": "as bn",
}


def identify_language(text: str) -> str | None:
    """The code of the language most of `text` is written in, such as "de" or "ckb"; None without letters."""
    letters = Counter(text[:SAMPLE_CHARS])
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        script = _script(letter)
        if script:
            scripts[script] += count * _WEIGHTS.get(script, 1)
    if not scripts:
        return None
    script = "han" if scripts["kana"] and scripts["kana"] + scripts["han"] > scripts.total() / 2 else ""
    script = script or scripts.most_common(1)[0][0]
    if script in ("han", "kana"):
        japanese = scripts["kana"] >= KANA_SHARE * (scripts["kana"] + scripts["han"])
        script = "kana" if japanese else "han"
    for marker_letters, language in _MARKERS.get(script, ()):
        if sum(letters[letter] for letter in marker_letters) >= MARKER_SHARE * scripts[script]:
            return language
    return _ONE_LANGUAGE.get(script) or _classify(text[:SAMPLE_CHARS], script)


def declared_language(tag: object) -> str | None:
    """The code in a language tag that a file carries: "de-AT" is "de", "zh-Hant" is "zh"; None if it is none."""
    match = _TAG.fullmatch(tag.strip()) if isinstance(tag, str) else None
    code = match[1].lower() if match else None
    return None if code in ("und", "mul", "zxx", "mis") else code


def _script(letter: str) -> str | None:
    """The script of a letter; None for digits, marks, punctuation and scripts not in the table."""
    if not letter.isalpha():
        return None
    code = ord(letter)
    position = bisect_right(_STARTS, code) - 1
    if position < 0 or code > _BLOCKS[position][1]:
        return None
    return _BLOCKS[position][2]


def _classify(text: str, script: str) -> str:
    words = _WORD.findall(text.casefold().translate(_APOSTROPHES)) if script == "latin" else []
    for language, own in _WORDS.items():
        found = [word for word in words if word in own]
        if len(set(found)) >= 3 and len(found) >= _WORD_SHARE * len(words):
            return language
    candidates = frozenset(_CANDIDATES[script].split())
    language = next(language for language, _ in _identifier().rank(text) if language in candidates)
    return "id" if language == "ms" and _MALAY.isdisjoint(words) else language


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
