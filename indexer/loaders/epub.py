"""EPUB: the pages of the spine, in reading order."""

import posixpath
import zipfile
from typing import Any
from urllib.parse import unquote

from defusedxml.ElementTree import fromstring

from indexer.loaders.archive import open_archive
from indexer.loaders.markup import html_text
from indexer.loaders.part import Part, UnreadableFile
from indexer.loaders.plain import decode

_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
_OPF = "{http://www.idpf.org/2007/opf}"
_DC = "{http://purl.org/dc/elements/1.1/}"


def parse_epub(data: bytes, name: str) -> list[Part]:
    """One text of all pages. Title, authors and date come from the package file."""
    archive = open_archive(data)
    if "META-INF/encryption.xml" in archive.namelist() and "META-INF/rights.xml" in archive.namelist():
        raise UnreadableFile("it is protected by digital rights management")
    rootfile = _xml(archive, "META-INF/container.xml").find(f".//{_CONTAINER}rootfile")
    if rootfile is None:
        raise UnreadableFile("its container names no package file")
    package_path = rootfile.get("full-path", "")
    package = _xml(archive, package_path)
    folder = posixpath.dirname(package_path)
    hrefs = {item.get("id"): item.get("href", "") for item in package.iter(f"{_OPF}item")}
    pages = []
    for reference in package.iter(f"{_OPF}itemref"):
        href = hrefs.get(reference.get("idref"))
        member = posixpath.normpath(posixpath.join(folder, unquote(href))) if href else None
        if member in archive.namelist():
            pages.append(html_text(decode(archive.read(member))))
    authors = [creator.text for creator in package.iter(f"{_DC}creator") if creator.text]
    metadata = {"author": ", ".join(authors), "date": package.findtext(f".//{_DC}date")}
    return [
        Part(
            "\n\n".join(page for page in pages if page),
            title=package.findtext(f".//{_DC}title"),
            metadata={key: value for key, value in metadata.items() if value},
            language=package.findtext(f".//{_DC}language"),
        )
    ]


def _xml(archive: zipfile.ZipFile, member: str) -> Any:
    try:
        return fromstring(archive.read(member))
    except KeyError:
        raise UnreadableFile(f"its part {member or 'package file'!r} is missing") from None
