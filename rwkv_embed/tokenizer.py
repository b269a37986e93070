"""Text to token ids and back. Small adapters around tokenizers written in Rust; no torch.

- World: RWKV's own vocabulary of 65,529 tokens (`pyrwkv-tokenizer`); ids 1 to 65529, 0 ends a text.
- NeoX: GPT-NeoX-20B, for the RWKV-4 models trained on the Pile; its tokenizer.json is not shipped.
- any `tokenizer.json` (Hugging Face `tokenizers`), which the default model has beside its weights.
- bytes: for models with a vocabulary of 256.

Lone surrogates, which UTF-8 cannot hold, are read as U+FFFD.
"""

import ast
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from rwkv_embed.errors import TokenizerError
from rwkv_embed.unigram import cache_table, cached_table

WORLD_VOCABULARY = 65536  # rows of a World model's table; the ids above 65529 have no text
_NEOX_SIZES = range(50254, 50433)  # 50,277 tokens, padded differently by different models
_NEOX_REPOSITORIES = ("EleutherAI/gpt-neox-20b", "RWKV/rwkv-4-169m-pile")


class Tokenizer(Protocol):
    """What a model needs of a tokenizer. No end-of-text token is ever added: the caller knows which it
    wants.
    """

    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; bytes that are not UTF-8 (half a character) become U+FFFD."""
        ...


def _utf8(text: str) -> str:
    """The text, without what cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _outside(token: int, size: int) -> TokenizerError:
    return TokenizerError(
        f"token id {token} is outside the vocabulary of {size}; decode with the model's own tokenizer"
    )


class WorldTokenizer:
    """RWKV World: the longest known byte string first."""

    vocab_size = WORLD_VOCABULARY

    def __init__(self) -> None:
        from pyrwkv_tokenizer import RWKVTokenizer

        self._rust = RWKVTokenizer()

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._rust.encode_batch([_utf8(text) for text in texts])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        # The Rust decoder panics on half characters and on ids without text, so this is done here.
        table = _world_bytes(self._rust.vocab_filepath)
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise _outside(token, self.vocab_size)
        return b"".join(table.get(token, b"") for token in ids).decode("utf-8", "replace")


@lru_cache(maxsize=1)
def _world_bytes(path: str) -> dict[int, bytes]:
    """id -> bytes. A line of the file is: id, a Python literal (str or bytes), length in bytes."""
    table: dict[int, bytes] = {}
    for line in Path(path).read_text("utf-8").splitlines():
        token, rest = line.split(" ", 1)
        literal, length = rest.rsplit(" ", 1)
        value = ast.literal_eval(literal)
        table[int(token)] = value.encode() if isinstance(value, str) else value
        if len(table[int(token)]) != int(length):
            raise TokenizerError(
                f"{path}: token {token} is {len(table[int(token)])} bytes long, expected {length}; reinstall"
                " pyrwkv-tokenizer"
            )
    return table


class FileTokenizer:
    """A `tokenizer.json` of Hugging Face's `tokenizers`; one like the bundled model's is read by `unigram`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table = cached_table(path)
        if self._table is None and cache_table(path):
            self._table = cached_table(path)
        self.vocab_size: int = self._table.vocab_size if self._table else self._rust.get_vocab_size()

    @cached_property
    def _rust(self) -> Any:
        from tokenizers import Tokenizer as RustTokenizer

        try:
            rust = RustTokenizer.from_file(str(self._path))
        except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
            raise TokenizerError(
                f"{self._path} is not a tokenizer.json ({error}); download it again"
            ) from error
        rust.no_padding()
        rust.no_truncation()
        return rust

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        clean = [_utf8(text) for text in texts]
        if self._table is not None:
            return self._table.encode_batch(clean)
        return [encoding.ids for encoding in self._rust.encode_batch_fast(clean, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise _outside(token, self.vocab_size)
        text: str = self._rust.decode(list(ids), skip_special_tokens=False)
        return text


class ByteTokenizer:
    """One token a UTF-8 byte."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(_utf8(text).encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise _outside(token, self.vocab_size)
        return bytes(ids).decode("utf-8", "replace")


def load_tokenizer(
    choice: str | Path | None = None, *, vocab_size: int | None = None, beside: Path | None = None
) -> Tokenizer:
    """The tokenizer of a model.

    `choice`: "world", "neox", "byte", or the path of a tokenizer.json (or of its folder). Without one, the
    tokenizer.json `beside` the weights (their file or folder) is used, else the one of the vocabulary size.
    Raises TokenizerError, with the next step, when none can be found or it has more tokens than the model.
    """
    tokenizer = _named(str(choice), beside) if choice is not None else _guessed(vocab_size, beside)
    if (
        vocab_size is not None
        and tokenizer.vocab_size > vocab_size
        and not isinstance(tokenizer, WorldTokenizer)
    ):
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {vocab_size}; it belongs to"
            " another model"
        )
    return tokenizer


def tokenizer_file(choice: str | Path | None, beside: Path | None) -> Path | None:
    """The file that `load_tokenizer` reads; None for the built-in ones, and for GPT-NeoX-20B from the cache."""
    if choice is None or str(choice) == "neox":
        return _file_beside(beside)
    if str(choice) in ("world", "byte"):
        return None
    path = Path(choice)
    return path / "tokenizer.json" if path.is_dir() else path


def describe_tokenizer(vocab_size: int, beside: Path | None = None) -> str:
    """Which tokenizer a model would get, in words, without loading it."""
    file = _file_beside(beside)
    if file is not None:
        return str(file)
    if vocab_size == 256:
        return "bytes"
    if 65529 <= vocab_size <= WORLD_VOCABULARY:
        return "RWKV World"
    return (
        "GPT-NeoX-20B"
        if vocab_size in _NEOX_SIZES
        else f"unknown ({vocab_size} tokens): name a tokenizer.json"
    )


def _named(choice: str, beside: Path | None) -> Tokenizer:
    if choice == "world":
        return WorldTokenizer()
    if choice == "byte":
        return ByteTokenizer()
    if choice == "neox":
        return _neox(beside)
    path = tokenizer_file(choice, beside)
    if path is None or not path.is_file():
        raise TokenizerError(
            f"no tokenizer {choice!r}; give 'world', 'neox', 'byte' or the path of a tokenizer.json"
        )
    return FileTokenizer(path)


def _guessed(vocab_size: int | None, beside: Path | None) -> Tokenizer:
    file = _file_beside(beside)
    if file is not None:
        return FileTokenizer(file)
    if vocab_size == 256:
        return ByteTokenizer()
    if vocab_size is None or 65529 <= vocab_size <= WORLD_VOCABULARY:
        return WorldTokenizer()
    if vocab_size in _NEOX_SIZES:
        return _neox(beside)
    raise TokenizerError(
        f"no known tokenizer has {vocab_size} tokens; put its tokenizer.json beside the weights, or name it"
    )


def _file_beside(beside: Path | None) -> Path | None:
    if beside is None:
        return None
    folder = beside if beside.is_dir() else beside.parent
    names = ("tokenizer.json", "20B_tokenizer.json")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _neox(beside: Path | None) -> Tokenizer:
    """GPT-NeoX-20B from beside the weights or from the Hugging Face cache; nothing is downloaded."""
    file = _file_beside(beside)
    if file is not None:
        return FileTokenizer(file)
    from huggingface_hub import try_to_load_from_cache

    for repository in _NEOX_REPOSITORIES:
        cached = try_to_load_from_cache(repository, "tokenizer.json")
        if isinstance(cached, str):
            return FileTokenizer(Path(cached))
    raise TokenizerError(
        "the GPT-NeoX-20B tokenizer is not on this machine; put its tokenizer.json (Hugging Face, "
        f"{_NEOX_REPOSITORIES[0]}) beside the weights, or give its path as the tokenizer"
    )
