"""Errors of the index room. Each message says what failed, the value seen, the value expected and the next step.

IndexerError
├── StoreError             the store cannot be opened, is damaged, or belongs to a newer version
│   └── StoreLocked        another process is writing; the message says who and since when
├── CollectionNotFound     no collection of that name
├── CollectionExists       a collection of that name is already there
├── InvalidCollection      a new collection's name or chunking makes no sense
├── DocumentNotFound       no document of that id in the collection
├── ModelMismatch          the collection was built with another model, dimension or recipe
├── InvalidQuery           a query or its options make no sense
│   └── InvalidFilter      a filter expression cannot be understood
├── LimitExceeded          an input is over one of `indexer.limits`
├── LoaderError            one file cannot be read; carries the reason, the run goes on
└── GeneratorError         an answer generator failed or is not configured
"""


class IndexerError(Exception):
    """Base of everything the indexer raises on purpose."""


class StoreError(IndexerError):
    """The store cannot be opened, is damaged, or belongs to a newer version."""


class StoreLocked(StoreError):
    """Another process is writing; the message says who and since when."""


class CollectionNotFound(IndexerError):
    """No collection of that name."""


class CollectionExists(IndexerError):
    """A collection of that name is already there."""


class InvalidCollection(IndexerError):
    """A new collection's name or chunking makes no sense."""


class DocumentNotFound(IndexerError):
    """No document of that id in the collection."""


class ModelMismatch(IndexerError):
    """The collection was built with another model, dimension or recipe."""


class InvalidQuery(IndexerError):
    """A query or its options make no sense."""


class InvalidFilter(InvalidQuery):
    """A filter expression cannot be understood."""


class LimitExceeded(IndexerError):
    """An input is over one of `indexer.limits`."""


class LoaderError(IndexerError):
    """One file cannot be read. `path` and `reason` are reported; the run goes on."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class GeneratorError(IndexerError):
    """An answer generator failed or is not configured."""
