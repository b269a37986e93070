"""Open a file that may be anything: a link out of the root, a FIFO, a device, 2 GB of nothing."""

import os
import stat
from pathlib import Path

from indexer.limits import MAX_FILE_BYTES
from indexer.loaders.part import UnreadableFile


def read_file(path: Path, root: Path | None) -> bytes:
    """The bytes of a regular file of at most `MAX_FILE_BYTES` inside `root`. Never blocks on a FIFO.

    Raises UnreadableFile with the reason, or OSError.
    """
    real = Path(os.path.realpath(path, strict=True))  # resolve() raises RuntimeError for links in a circle
    if root is not None and not real.is_relative_to(root.resolve()):
        raise UnreadableFile(
            f"it is a link to {real}, outside the folder {root}; index that folder itself instead"
        )
    # The path is resolved: a link now means that it was exchanged after the check above.
    descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableFile(f"it is {_kind(status.st_mode)}, not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise UnreadableFile(f"it has {status.st_size:,} bytes; a file may have {MAX_FILE_BYTES:,}")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise UnreadableFile(f"it grew over {MAX_FILE_BYTES:,} bytes while it was read")
    return data


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")
