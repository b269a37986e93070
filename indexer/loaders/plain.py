"""Plain text and Markdown: the encoding, the title and the front matter are found, the text is kept."""

import codecs
import re

from indexer.loaders.part import Part, UnreadableFile

_BOMS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
_LEGACY_ENCODINGS = (
    "gb18030 big5 shift_jis euc_jp euc_kr cp1252 cp1250 cp1251 koi8_r cp1253 cp1254 cp1255 cp1256 cp1257 "
    "cp1258 tis_620 latin_1"
)
_SAMPLE_BYTES = 32_768  # enough to recognise an encoding
_HEADING = re.compile(r"^[ ]{0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$|^(\S.*)\n(?:=+|-{3,})[ \t]*$", re.MULTILINE)
# A line of front matter is a field, an item, indented, blank or a comment; else the --- above it is a rule.
_FRONT_MATTER_LINE = re.compile(r"[\w\"'][\w.\"'-]*[ \t]*:|[ \t]|-[ \t]|[]}#]|$")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"^([A-Za-z_][\w-]*)[ \t]*:[ \t]*(.*?)[ \t]*$")
_ITEM = re.compile(r"^[ \t]*-[ \t]+(.*?)[ \t]*$")
_TITLE_WINDOW = 4_096  # a title further down is none


def parse_plain(data: bytes, name: str) -> list[Part]:
    return [Part(decode(data))]


def parse_markdown(data: bytes, name: str) -> list[Part]:
    """The file as written, without its front matter, whose fields become metadata."""
    text = decode(data).replace("\r\n", "\n")
    metadata: dict[str, object] = {}
    front = _FRONT_MATTER.match(text)
    if front and all(map(_FRONT_MATTER_LINE.match, front.group(1).split("\n"))):
        metadata = _front_matter(front.group(1))
        text = text[front.end() :]
    heading = _HEADING.search(text[:_TITLE_WINDOW])
    title = metadata.pop("title", None) or (heading and (heading.group(1) or heading.group(2)))
    return [Part(text, title=str(title) if title else None, metadata=metadata)]


def decode(data: bytes) -> str:
    """Text by its byte order mark, else as UTF-8 or unmarked UTF-16, else in the likeliest old encoding.

    UTF-8 may have some damage, such as a character cut at the end.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _strict(data, encoding)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", errors="replace")
        if not _is_damaged_utf8(text):
            return _strict(data, _guess(data))
    if "\x00" in text[:_SAMPLE_BYTES]:  # ASCII letters in UTF-16 are valid UTF-8 with a NUL between them
        return _strict(data, _guess(data))
    return text


def _is_damaged_utf8(text: str) -> bool:
    """Whether a decoding with U+FFFD is UTF-8 with little damage. An old encoding read as UTF-8 is damaged at
    nearly each letter that is not ASCII, however few these are.
    """
    damaged = text.count("\ufffd")
    beyond_ascii = len(text) - len(text.encode("ascii", errors="ignore"))
    return damaged * 100 < len(text) and damaged * 4 < beyond_ascii


def _guess(data: bytes) -> str:
    sample = data[:_SAMPLE_BYTES]
    if len(sample) < len(data):  # the cut may be inside a character, but neither a line end nor a blank is
        half = len(sample) // 2
        sample = sample[: max(sample.rfind(b"\n", half), sample.rfind(b" ", half)) + 1] or sample
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if max(even, odd) > len(sample) // 8 and len(data) % 2 == 0:
        return "utf-16-le" if odd > even else "utf-16-be"
    if b"\x00" in sample:
        raise UnreadableFile("it is binary data, not text")
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=_LEGACY_ENCODINGS.split(), threshold=0.3).best()
    if best is None:
        raise UnreadableFile("its text encoding is not recognised; save it as UTF-8")
    return best.encoding


def _strict(data: bytes, encoding: str) -> str:
    """Decode; single damaged bytes become U+FFFD, more than 1 in 100 mean that the guess was wrong."""
    text = data.decode(encoding, errors="replace")
    if text.count("\ufffd") * 100 > len(text):
        raise UnreadableFile(
            f"it is not text in {encoding} or any other encoding known here; save it as UTF-8"
        )
    return text


def _front_matter(block: str) -> dict[str, object]:
    """The part of YAML that front matter uses: `key: value`, `[a, b]` and `- item` lists. No tags."""
    fields: dict[str, object] = {}
    key = None
    for line in block.splitlines():
        field, item = _FIELD.match(line), _ITEM.match(line)
        if field:
            key, value = field.groups()
            fields[key] = _scalar(value)
        elif item and key is not None:
            known = fields[key]
            fields[key] = (
                [*known, _scalar(item.group(1))] if isinstance(known, list) else [_scalar(item.group(1))]
            )
    return {key: value for key, value in fields.items() if value is not None}


def _scalar(value: str) -> object:
    if value.startswith("[") and value.endswith("]"):
        return [_scalar(item.strip()) for item in value[1:-1].split(",") if item.strip()]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    if re.fullmatch(r"[+-]?\d{1,15}", value) and not re.match(r"[+-]?0\d", value):
        return int(value)
    if re.fullmatch(r"[+-]?\d{1,15}\.\d{1,15}", value):
        return float(value)
    return {"true": True, "false": False, "null": None, "~": None, "": None}.get(value.lower(), value)
