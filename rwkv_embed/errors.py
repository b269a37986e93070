"""Errors of the tensor room. A message says what failed, the value seen, what was expected and the next step.

RWKVEmbedError
├── CheckpointError        a weights file cannot be read, is damaged, or has missing or misshapen tensors
├── ModelNotFound          a model name or path leads to nothing
├── DownloadError          a hub download failed, was refused or did not match its checksum
├── TokenizerError         a vocabulary is missing or damaged, or a token id is outside it
├── StateError             a saved state is damaged or belongs to another model
├── TrainingDataError      pairs to fine-tune on are missing, malformed or too few
├── NotImproved            a training did not make the model better, and nothing was written
└── MissingDependency      an optional extra is not installed
"""


class RWKVEmbedError(Exception):
    """Base of everything rwkv_embed raises on purpose."""


class CheckpointError(RWKVEmbedError):
    """A weights file cannot be read, is damaged, or has missing or misshapen tensors."""


class ModelNotFound(RWKVEmbedError):
    """A model name or path leads to nothing."""


class DownloadError(RWKVEmbedError):
    """A hub download failed, was refused or did not match its checksum."""


class TokenizerError(RWKVEmbedError):
    """A vocabulary is missing or damaged, or a token id is outside it."""


class StateError(RWKVEmbedError):
    """A saved state is damaged or belongs to another model."""


class TrainingDataError(RWKVEmbedError):
    """Pairs to fine-tune on are missing, malformed or too few."""


class NotImproved(RWKVEmbedError):
    """A training did not make the model better, and nothing was written."""


class MissingDependency(RWKVEmbedError):
    """An optional extra is not installed; the message has the install command."""
