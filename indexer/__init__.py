"""Documents, chunks, collections, search and answers. Is handed an embedder; SQL is the truth.

The public names are loaded on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

__all__ = ["Collection", "Store", "open_store"]

_HOME = {"open_store": "indexer.store", "Store": "indexer.store", "Collection": "indexer.collection"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
