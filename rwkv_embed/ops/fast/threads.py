"""Single-threaded matrix products while the engine has threads of its own.

Two texts at a time on one core each beat one text on two cores, and OpenBLAS's own threads spin for a while
after each product. The setting is the process's, so it is counted: the first in sets it, the last out restores it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

from threadpoolctl import ThreadpoolController

_lock = Lock()
_users = 0
_original: list[int] = []


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Matrix products use the calling thread only, until the last of the nested or concurrent users leaves."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _original[:] = [library.num_threads for library in _blas().lib_controllers]
            _set([1] * len(_original))
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _set(_original)


def _set(counts: list[int]) -> None:
    for library, count in zip(_blas().lib_controllers, counts, strict=True):
        library.set_num_threads(count)
