"""Files to documents: `load(path, root)`. One registry by suffix, one module per family of formats.

Every file is treated as hostile. It is opened without following a link that leaves `root`, must be a regular
file under `MAX_FILE_BYTES`, and is recognised by its first bytes, not by its name: a PDF named `.txt` is read
as a PDF. Plain text is decoded here (reading bounded bytes is safe and 20 times faster); everything that
needs a parser goes to a worker process with limits on memory and time (`sandbox`). Whatever goes wrong is one
`LoaderError` with the reason.

A document's language is what the file declares (`<html lang>`, `dc:language`, a field `lang` or `language` of
the front matter, row or object); without a declaration it is left to be identified.

A document's text is plain text in which headings are Markdown headings (`# Title`), whatever the format was.
"""

from pathlib import Path

from indexer.errors import LoaderError
from indexer.language import declared_language
from indexer.limits import MAX_DOCUMENT_CHARS, MAX_TITLE_CHARS
from indexer.loaders import sandbox
from indexer.loaders.detect import NAMES, SUFFIXES, detect
from indexer.loaders.files import read_file
from indexer.loaders.part import Part, UnreadableFile
from indexer.loaders.plain import parse_markdown, parse_plain
from indexer.types import Document

__all__ = ["SUFFIXES", "load", "supported"]

_IN_PROCESS = {"text": parse_plain, "markdown": parse_markdown}


def supported(path: Path) -> bool:
    """Whether a folder walk should offer this file: its suffix or name is one of a known format."""
    return path.suffix.lower() in SUFFIXES or path.name.lower() in NAMES


def load(path: Path, root: Path | None = None) -> list[Document]:
    """The documents in one file; tables and JSON lines give one per row. An empty file is a document without
    text, but for formats that are never empty.

    `id` and `uri` are the path relative to `root` (as given when there is no root), with `#row` or the row's
    own id behind the id of a row. Raises LoaderError with the reason; nothing else.
    """
    name = _relative(path, root)
    try:
        data = read_file(path, root)
        kind = detect(data, path.name)
        parse = _IN_PROCESS.get(kind)
        parts = parse(data, path.name) if parse else sandbox.parse(kind, data, path.name)
        return [_document(name, part) for part in parts]
    except UnreadableFile as error:
        raise LoaderError(name, str(error)) from None
    except OSError as error:
        raise LoaderError(name, (error.strerror or str(error)).lower()) from error


def _relative(path: Path, root: Path | None) -> str:
    if root is not None and path.is_relative_to(root):
        path = path.relative_to(root)
    return path.as_posix()


def _document(name: str, part: Part) -> Document:
    if len(part.text) > MAX_DOCUMENT_CHARS:
        raise UnreadableFile(
            f"its text has {len(part.text):,} characters, over {MAX_DOCUMENT_CHARS:,}; split the file"
        )
    title = " ".join((part.title or "").split())[:MAX_TITLE_CHARS] or None
    return Document(
        id=name if part.key is None else f"{name}#{part.key}",
        text=part.text,
        title=title or (Path(name).name if part.key is None else None),
        uri=name,
        language=_declared(part),
        metadata=part.metadata,
    )


def _declared(part: Part) -> str | None:
    """The first language tag of a part that is one."""
    tags = (part.language, part.metadata.get("lang"), part.metadata.get("language"))
    return next((code for code in map(declared_language, tags) if code), None)
