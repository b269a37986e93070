"""Zip containers (Office, EPUB) checked before any parser unpacks them."""

import io
import re
import zipfile

from indexer.loaders.part import UnreadableFile

MAX_UNPACKED_BYTES = 512 * 1024 * 1024
MAX_MEMBERS = 20_000
MAX_RATIO = 200  # XML text packs 10 to 50 times; a bomb 1,000 times
_RATIO_FREE_BYTES = 16 * 1024 * 1024  # a small file may pack as well as it likes
_DTD = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)


def open_archive(data: bytes) -> zipfile.ZipFile:
    """The archive, once its declared sizes are sane; `zipfile` unpacks no more of a member than declared."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or unpacked > MAX_UNPACKED_BYTES:
        raise UnreadableFile(
            f"it unpacks to {unpacked:,} bytes in {len(members):,} members (a decompression bomb?); at most "
            f"{MAX_UNPACKED_BYTES:,} and {MAX_MEMBERS:,} are read"
        )
    if unpacked > _RATIO_FREE_BYTES and unpacked > MAX_RATIO * len(data):
        raise UnreadableFile(f"it unpacks to {unpacked // len(data):,} times its size: a decompression bomb")
    if any(member.flag_bits & 1 for member in members):
        raise UnreadableFile("it is encrypted; save it without a password")
    return archive


def refuse_entities(archive: zipfile.ZipFile) -> None:
    """Office formats never have a document type; one can only mean an entity bomb or a stolen file."""
    for member in archive.infolist():
        if member.filename.endswith((".xml", ".rels")):
            with archive.open(member) as file:
                head = file.read(65_536)
            if _DTD.search(head.replace(b"\x00", b"")):  # also in UTF-16
                raise UnreadableFile(f"its part {member.filename} declares XML entities, which are refused")
