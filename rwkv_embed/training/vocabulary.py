"""The default model's vocabulary: the teacher's unigram pieces, pruned to what the size budget holds.

A unigram model re-segments a text without the missing pieces, so pruning costs rare words only; single
characters and the 256 byte tokens are kept, so that every text has tokens.
"""

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

EOS = "<eos>"
UNK = "<unk>"
SPECIAL_SCORE = 0.0
BYTE_SCORE = -20.0  # below every piece, so that bytes are the last resort

Piece = tuple[str, float]


def build_tokenizer(pieces: Sequence[Piece]) -> Tokenizer:
    """Ids: 0 EOS, 1 unknown (never produced, bytes come first), 2-257 bytes, then the pieces."""
    vocabulary = [(EOS, SPECIAL_SCORE), (UNK, SPECIAL_SCORE)]
    vocabulary += [(f"<0x{byte:02X}>", BYTE_SCORE) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram([*vocabulary, *pieces], 1, True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(replacement="▁")])
    return tokenizer


def count_pieces(pieces: Sequence[Piece], unknown: int, batches: Iterable[list[str]]) -> NDArray[np.int64]:
    """How often each of the teacher's pieces is used in the texts."""
    tokenizer = build_tokenizer([])
    tokenizer.model = models.Unigram(list(pieces), unknown, False)
    counts = np.zeros(len(pieces), np.int64)
    for texts in batches:
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            np.add.at(counts, encoding.ids, 1)
    counts[unknown] = 0  # no piece
    return counts


def prune(pieces: Sequence[Piece], counts: NDArray[np.int64], size: int) -> list[int]:
    """Indices of the pieces to keep: every used single character, then the most used."""
    single = [i for i, (piece, _) in enumerate(pieces) if len(piece.strip("▁")) <= 1 and counts[i] > 0]
    kept = set(single)
    for index in np.argsort(-counts, kind="stable"):
        if len(kept) == size or counts[index] == 0:
            break
        kept.add(int(index))
    return sorted(kept, key=lambda i: (-counts[i], i))


def centre_by_script(
    vectors: NDArray[np.float32], pieces: Sequence[Piece], usage: NDArray[np.float64]
) -> None:
    """Take the mean vector of its script from each piece, in place; `usage` weighs the pieces.

    What all pieces of a script share says which script it is and nothing else. In a sum over a long text it
    drowns the meaning: question to English paragraph 0.144 with one mean for all, 0.231 with one per script.
    """
    scripts = np.array([_script(piece) for piece, _ in pieces])
    overall = np.average(vectors, axis=0, weights=usage)
    for script in np.unique(scripts):
        rows = np.flatnonzero(scripts == script)
        rare = len(rows) < 20 or usage[rows].sum() == 0
        vectors[rows] -= overall if rare else np.average(vectors[rows], axis=0, weights=usage[rows])


def _script(piece: str) -> str:
    """The first word of the first letter's Unicode name: LATIN, CJK, ARABIC ..."""
    letter = next((character for character in piece if character.isalpha()), None)
    return unicodedata.name(letter, "?").split()[0] if letter else "-"
