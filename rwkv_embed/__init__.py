"""Embeddings from the state of an RNN: RWKV-4 to RWKV-7, on a CPU.

The public names are loaded on first use, so that importing the package costs nothing: torch, in
particular, is imported only by what needs it.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Embedder", "__version__", "load_model"]

_HOME = {"Embedder": "rwkv_embed.embedder", "load_model": "rwkv_embed.models"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
