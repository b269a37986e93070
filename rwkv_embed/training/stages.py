"""Results of stages in a folder: whole or not there, and of one vocabulary."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rwkv_embed.errors import TrainingDataError
from rwkv_embed.tokenizer import FileTokenizer
from rwkv_embed.training.vocabulary import Piece, build_tokenizer


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, with the same suffix, that becomes `path` when all went well."""
    partial = path.with_name(f"partial-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def saved_tokenizer(pieces: list[Piece], folder: Path) -> FileTokenizer:
    """The tokenizer of these pieces, kept in the folder, which is made.

    TrainingDataError: the folder has another one, whose token numbers are in what else is kept there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, made = folder / "tokenizer.json", build_tokenizer(pieces).to_str()
    if path.exists() and path.read_text("utf-8") != made:
        raise TrainingDataError(
            f"{folder} was made with another vocabulary than is chosen now: the corpus, an option or the number "
            "of threads is not what it was; go on as before, or begin in a new folder"
        )
    with replacing(path) as partial:
        partial.write_text(made, "utf-8")
    return FileTokenizer(path)
