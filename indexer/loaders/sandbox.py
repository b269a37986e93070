"""Parse a file in another process that may use 2 GiB and 30 seconds, and may write nothing.

One worker process is started when it is first needed and reused, so that a thousand small files cost a
thousand round trips, not a thousand interpreters. The parent sends the bytes and never the path: the worker
has no business on the file system. A worker that runs out of time is killed, one that dies is replaced; only
the file at hand fails.

Wire format, both ways: 8 bytes big-endian length of a JSON header, 8 bytes length of a body, header, body.
"""

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from indexer.limits import LOADER_MEMORY_BYTES, LOADER_SECONDS, MAX_FILE_BYTES
from indexer.loaders.part import Part, UnreadableFile

_FILES_PER_WORKER = 500  # then a fresh one: parsers leak
_MAX_REPLY_BYTES = 4 * MAX_FILE_BYTES
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def parse(kind: str, data: bytes, name: str) -> list[Part]:
    """The parts of a file of the given kind. Raises UnreadableFile: the parser's reason, or how it died."""
    with _lock:
        return _worker().parse(kind, data, name)


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.files = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "indexer.loaders.worker", str(LOADER_MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={
                "PYTHONPATH": os.pathsep.join([str(_PACKAGE_ROOT), *filter(None, sys.path)]),
                "PYTHONWARNINGS": "ignore",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",  # each thread reserves address space, which is limited
            },
        )

    @property
    def usable(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None and self.files < _FILES_PER_WORKER

    def parse(self, kind: str, data: bytes, name: str) -> list[Part]:
        self.files += 1
        deadline = time.monotonic() + LOADER_SECONDS
        try:
            self._send({"kind": kind, "name": name}, data, deadline)
            header, body = self._receive(deadline)
        except TimeoutError:
            self.close()
            raise UnreadableFile(f"reading it took more than {LOADER_SECONDS} seconds") from None
        except (BrokenPipeError, EOFError):
            code = self.process.wait()
            self.close()
            raise UnreadableFile(
                f"its parser crashed ({'signal' if code < 0 else 'exit code'} {abs(code)})"
            ) from None
        if "error" in header:
            raise UnreadableFile(header["error"])
        return [Part(**fields) for fields in json.loads(body)]

    def _send(self, header: dict[str, Any], body: bytes, deadline: float) -> None:
        pipe = self._pipe("stdin")
        os.set_blocking(pipe.fileno(), False)
        encoded = json.dumps(header).encode()
        frame = len(encoded).to_bytes(8, "big") + len(body).to_bytes(8, "big") + encoded
        for piece in (memoryview(frame), memoryview(body)):
            sent = 0
            while sent < len(piece):
                _wait(deadline, write=pipe)
                sent += os.write(pipe.fileno(), piece[sent : sent + 1_048_576])

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        lengths = self._read(16, deadline)
        header_bytes, body_bytes = int.from_bytes(lengths[:8], "big"), int.from_bytes(lengths[8:], "big")
        if header_bytes + body_bytes > _MAX_REPLY_BYTES:
            self.close()
            raise UnreadableFile(f"its text is over {_MAX_REPLY_BYTES:,} bytes")
        return json.loads(self._read(header_bytes, deadline)), self._read(body_bytes, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        pipe = self._pipe("stdout")
        received = bytearray()
        while len(received) < size:
            _wait(deadline, read=pipe)
            piece = os.read(pipe.fileno(), min(size - len(received), 1_048_576))
            if not piece:
                raise EOFError
            received += piece
        return bytes(received)

    def _pipe(self, name: str) -> BinaryIO:
        pipe: BinaryIO = getattr(self.process, name)
        return pipe

    def close(self) -> None:
        """End the process. A child of a fork only lets go of the pipes: the process is not its own."""
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
        for name in ("stdin", "stdout"):
            with contextlib.suppress(BrokenPipeError):
                self._pipe(name).close()


def _wait(deadline: float, read: BinaryIO | None = None, write: BinaryIO | None = None) -> None:
    left = deadline - time.monotonic()
    ready = select.select([read] if read else [], [write] if write else [], [], max(0.0, left))
    if not (ready[0] or ready[1]):
        raise TimeoutError


_lock = threading.Lock()
_current: _Worker | None = None


def _worker() -> _Worker:
    global _current
    if _current is None or not _current.usable:
        if _current is not None:
            _current.close()
        _current = _Worker()
    return _current


@atexit.register
def close() -> None:
    """End the worker, if one is running. Called at exit; safe at any time."""
    global _current
    if _current is not None:
        _current.close()
        _current = None
