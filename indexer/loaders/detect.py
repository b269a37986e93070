"""Which parser reads a file: its first bytes decide, the suffix only chooses between kinds of text."""

import io
import zipfile
from pathlib import PurePath

from indexer.loaders.part import UnreadableFile

_SOURCE = (
    "py pyi ipynb js mjs cjs ts tsx jsx java kt kts scala c h cc cpp cxx hpp hh cs go rs rb php pl pm lua r "
    "jl swift m mm sh bash zsh fish ps1 bat sql vue svelte css scss less dart ex exs erl hs ml clj lisp "
    "el vim tex bib toml yaml yml ini cfg conf properties env cmake gradle tf proto graphql diff patch po "
    "srt vtt"
)
SUFFIXES: dict[str, str] = {
    ".txt": "text", ".text": "text", ".log": "text", ".rst": "text", ".adoc": "text", ".org": "text",
    ".md": "markdown", ".markdown": "markdown", ".mdx": "markdown",
    ".html": "html", ".htm": "html", ".xhtml": "html",
    ".xml": "xml",
    ".pdf": "pdf", ".docx": "docx", ".pptx": "pptx", ".xlsx": "xlsx", ".epub": "epub",
    ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".eml": "eml",
    **{f".{suffix}": "text" for suffix in _SOURCE.split()},
}  # fmt: skip
NAMES = frozenset(
    {"readme", "license", "licence", "copying", "authors", "changelog", "makefile", "dockerfile", "notice"}
)

_BINARY = {"pdf", "docx", "pptx", "xlsx", "epub"}  # formats that their first bytes must prove
_OTHER_MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
    b"SQLite format 3\x00": "a SQLite database",
    b"OggS": "an audio file",
    **{b"ID3" + bytes([version]): "an audio file" for version in (2, 3, 4)},  # ID3v2; text may begin with ID3
    b"\xd0\xcf\x11\xe0": "an old or encrypted Office file; save it as docx, pptx or xlsx without a password",
}


def detect(data: bytes, name: str) -> str:
    """The kind of a file, a value of `SUFFIXES`. Raises UnreadableFile when nothing here can read it."""
    suffix = PurePath(name).suffix.lower()
    named = SUFFIXES.get(suffix)
    if not data and named in _BINARY:
        raise UnreadableFile(f"it is damaged: a {named} file is never empty")
    if not data:
        return "text"
    if b"%PDF-" in data[:1024] and (named == "pdf" or data[:1024].lstrip().startswith(b"%PDF-")):
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        return _zip_kind(data)
    for magic, what in _OTHER_MAGIC.items():
        if data.startswith(magic):
            raise UnreadableFile(f"it is {what}")
    if named in _BINARY:
        raise UnreadableFile(
            f"it is named {suffix} but is not a {named} file (it begins with {data[:8].hex(' ')})"
        )
    if data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    return named or "text"


def _zip_kind(data: bytes) -> str:
    """Office formats and EPUB are zip archives with known members."""
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise UnreadableFile(f"it is a damaged zip archive or Office file ({error})") from None
    for member, kind in (
        ("word/", "docx"), ("ppt/", "pptx"), ("xl/", "xlsx"), ("META-INF/container.xml", "epub"),
    ):  # fmt: skip
        if any(name.startswith(member) for name in names):
            return kind
    raise UnreadableFile("it is a zip archive; unpack it first")
