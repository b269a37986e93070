"""The default model's vocabulary: all of the teacher's unigram pieces, the most used first, and the 256 bytes.

Pruned to 110,000 pieces, Arabic texts had 38 % more tokens and Russian ones 25 %, fragments without a meaning of
their own, and every figure was lower by 0.02 to 0.06 (docs/log.md).
"""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

EOS = "<eos>"
UNK = "<unk>"
NO_PIECES = {"<s>", "</s>", "<pad>", "<mask>", UNK}
FIRST_PIECE = 258  # after EOS, unknown and the bytes
SPECIAL_SCORE = 0.0
BYTE_SCORE = -20.0  # below every piece, so that bytes are the last resort

Piece = tuple[str, float]


def build_tokenizer(pieces: Sequence[Piece]) -> Tokenizer:
    """Ids: 0 EOS, 1 unknown (never produced, bytes come first), 2-257 bytes, then the pieces."""
    vocabulary = [(EOS, SPECIAL_SCORE), (UNK, SPECIAL_SCORE)]
    vocabulary += [(f"<0x{byte:02X}>", BYTE_SCORE) for byte in range(256)]
    vocabulary += [(piece, round(score, 3)) for piece, score in pieces]  # half the file's compressed size
    tokenizer = Tokenizer(models.Unigram(vocabulary, 1, True))
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


def by_use(pieces: Sequence[Piece], counts: NDArray[np.int64]) -> list[int]:
    """Indices of the pieces, the most used first; of equally used ones the more probable."""
    kept = [i for i, (piece, _) in enumerate(pieces) if piece not in NO_PIECES]
    return sorted(kept, key=lambda i: (-counts[i], -pieces[i][1]))


def centre_by_script(
    vectors: NDArray[np.float32], pieces: Sequence[Piece], usage: NDArray[np.float64]
) -> None:
    """Take the mean vector of its script from each piece, in place; `usage` weighs the pieces.

    What all pieces of a script share says which script it is and nothing else. In a sum over a long text it
    drowns the meaning: question to English paragraph 0.144 with one mean for all, 0.231 with one per script.
    """
    scripts = scripts_of(pieces)
    overall = np.average(vectors, axis=0, weights=usage)
    for script in np.unique(scripts):
        rows = np.flatnonzero(scripts == script)
        rare = len(rows) < 20 or usage[rows].sum() == 0
        vectors[rows] -= overall if rare else np.average(vectors[rows], axis=0, weights=usage[rows])


def scripts_of(pieces: Sequence[Piece]) -> NDArray[np.str_]:
    """`script_of` each piece."""
    return np.array([script_of(piece) for piece, _ in pieces])


def script_of(text: str) -> str:
    """The first word of the Unicode name of its first letter: LATIN, CJK, ARABIC ...; "-" without one."""
    letter = next((character for character in text if character.isalpha()), None)
    return unicodedata.name(letter, "?").split()[0] if letter else "-"


@cache
def is_letter(character: str) -> bool:
    """Letters, and the marks on them."""
    return unicodedata.category(character)[0] in "LM"
