"""PDF text, page by page, with pypdf. Scanned pages have no text and are said to need OCR."""

import io
import re

from indexer.loaders.part import Part, UnreadableFile

_HYPHEN = re.compile(r"(?<=[^\W\d_])-\n(?=[a-zà-öø-ÿа-яё])")  # a word divided at the end of a line
_TRAILING_BLANKS = re.compile(r"[ \t]+\n")


def parse_pdf(data: bytes, name: str) -> list[Part]:
    """All pages, an empty line between them. A file that opens with the empty password is read."""
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(data), strict=False)
    if reader.is_encrypted and not reader.decrypt(""):
        raise UnreadableFile("it is encrypted; save it without a password")
    pages = [
        _HYPHEN.sub("", _TRAILING_BLANKS.sub("\n", page.extract_text())).strip() for page in reader.pages
    ]
    text = "\n\n".join(page for page in pages if page)
    if pages and not text:
        raise UnreadableFile("it has no text, only images; run OCR on it first")
    information = reader.metadata
    metadata: dict[str, object] = {"pages": len(pages)}
    if information and information.author:
        metadata["author"] = str(information.author)
    return [
        Part(
            text,
            title=str(information.title) if information and information.title else None,
            metadata=metadata,
        )
    ]
