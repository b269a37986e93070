"""One writer at a time, by a lock file that says who holds it.

`flock` belongs to an open file: it is released by the kernel when its holder dies, whatever the way, and two
threads of one process exclude each other like two processes do. The text in the file is for people only.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from indexer.errors import StoreError, StoreLocked

DEFAULT_WAIT_S = 30.0
_POLL_S = 0.005
_POLL_MAX_S = 0.1


class WriterLock:
    """The lock of one store. `wait_s` is how long a writer waits for the one before it."""

    def __init__(self, path: Path, wait_s: float = DEFAULT_WAIT_S) -> None:
        self.path, self.wait_s = path, wait_s
        self._threads = threading.Lock()  # fair and cheap among threads; the file is for other processes

    @contextmanager
    def hold(self, purpose: str, wait_s: float | None = None) -> Iterator[None]:
        """Hold the lock, or raise StoreLocked after `wait_s` seconds (0: do not wait)."""
        wait_s = self.wait_s if wait_s is None else wait_s
        deadline = time.monotonic() + wait_s
        if not self._threads.acquire(timeout=wait_s):
            raise StoreLocked(self._message(wait_s))
        try:
            descriptor = self._opened()
            try:
                self._flock(descriptor, deadline, wait_s)
                with suppress(OSError):  # on a full disk the lock holds without a card
                    os.pwrite(descriptor, _card(purpose), 0)
                yield
            finally:
                os.close(descriptor)  # releases the lock
        finally:
            self._threads.release()

    def _opened(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be opened for writing: {error.strerror}") from error

    def _flock(self, descriptor: int, deadline: float, wait_s: float) -> None:
        pause = _POLL_S
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StoreLocked(self._message(wait_s)) from None
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL_MAX_S)

    def _message(self, waited_s: float) -> str:
        try:
            card = json.loads(self.path.read_text("utf-8"))
            who = f"process {card['pid']} on {card['host']} since {card['since']} ({card['purpose']})"
        except (OSError, ValueError, KeyError, TypeError):
            who = "another process"
        return f"{self.path.parent} is being written by {who}; gave up after {waited_s:g} s, try again later"


_CARD_BYTES = 512


def _card(purpose: str) -> bytes:
    """Who holds the lock, padded so that a shorter card covers a longer one."""
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    card = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "purpose": purpose}
    return json.dumps(card).encode().ljust(_CARD_BYTES)
