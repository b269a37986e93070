"""The functions ingestion is made of. Each can be replaced, by tests or by an application."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from indexer.types import Chunk, ChunkingOptions, Document

if TYPE_CHECKING:
    from indexer.fulltext import FullText

CountTokens = Callable[[Sequence[str]], list[int]]


def _load(path: Path, root: Path | None) -> list[Document]:
    from indexer.loaders import load

    return load(path, root)


def _supported(path: Path) -> bool:
    from indexer.loaders import supported

    return supported(path)


def _chunk(text: str, options: ChunkingOptions, count_tokens: CountTokens) -> list[Chunk]:
    from indexer.chunking import chunk_text

    return chunk_text(text, options, count_tokens)


def _identify_language(text: str) -> str | None:
    from indexer.language import identify_language

    return identify_language(text)


def _fulltext(engine: Engine) -> "FullText":
    from indexer.fulltext import fulltext_for

    return fulltext_for(engine)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """file -> Document -> Chunk -> language -> terms. The defaults are imported when first used."""

    load: Callable[[Path, Path | None], list[Document]] = _load
    supported: Callable[[Path], bool] = _supported
    chunk: Callable[[str, ChunkingOptions, CountTokens], list[Chunk]] = _chunk
    identify_language: Callable[[str], str | None] = _identify_language
    fulltext: Callable[[Engine], "FullText"] = _fulltext
