"""What a parser makes of a file: one or more parts, each of which becomes a document."""

from dataclasses import dataclass, field
from typing import Any

from indexer.loaders.clean import clean_metadata, clean_text


class UnreadableFile(Exception):
    """A file cannot be read; the message is the reason, without the path."""


@dataclass(slots=True)
class Part:
    """One text of a file. `key` tells it from the file's other parts; None when it is the only one.

    `language` is the tag that the file declares for itself, as written.
    """

    text: str
    title: str | None = None
    key: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    language: str | None = None

    def __post_init__(self) -> None:
        self.text = clean_text(self.text)
        self.title = clean_text(self.title) if self.title else None
        self.metadata = clean_metadata(self.metadata)
