"""Words of several pieces as tokens of their own.

A third to more than half of the tokens of a text are parts of such words, and what a word means is known, not
composed of its pieces: a network that reads them does not learn it (docs/log.md). The teacher reads a word whole,
and parallel text says what its translations are. Each word becomes a sum of a few rows (sparse.py), which takes a
tenth of a row's room, so that the vocabulary may have several times as many words as the table has rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rwkv_embed.training.contrast import Rows
from rwkv_embed.training.vocabulary import FIRST_PIECE, Piece, is_letter, script_of

MOST_PIECES = 6
MOST_WORDS = 1_120_000  # by use, languages tempered; those that no training text has in the end are left out
LANGUAGE_POWER = 0.6  # a word of a language of n words counts n ** -LANGUAGE_POWER
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
READ_WHOLE = 1.5  # what the teacher's reading of a word counts for, where the sum of its pieces counts 1
FULL_USE = 1_000  # uses from which on a piece says all it can about how the teacher's vectors map to rows
RIDGE = 1e-4

Word = tuple[int, ...]


@dataclass(frozen=True)
class Runs:
    """Where the words of texts begin, how many tokens each has, and the number of its language; each (n,)."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    languages: NDArray[np.int64]


def runs(rows: Rows, pieces: Sequence[Piece]) -> Runs:
    """The words of the texts. `pieces[i]` has the id `FIRST_PIECE + i`.

    A word begins with a space, which may be a piece of its own, and goes on to the end of its letters.
    """
    letters = np.array([False] * FIRST_PIECE + [_is_word(piece) for piece, _ in pieces])
    begins = np.array([False] * FIRST_PIECE + [piece.startswith("▁") for piece, _ in pieces])
    space = np.array([False] * FIRST_PIECE + [piece == "▁" for piece, _ in pieces])
    tokens = rows.tokens
    inside = letters[tokens]
    edge = np.ones(len(tokens) + 1, bool)  # where a word may not go on
    edge[:-1] = begins[tokens] | ~inside
    edge[rows.offsets] = True
    starts = np.flatnonzero((inside & begins[tokens]) | (space[tokens] & ~edge[1:]))
    ends = np.flatnonzero(edge)
    lengths = ends[np.searchsorted(ends, starts, side="right")] - starts
    texts = np.searchsorted(rows.offsets, starts, side="right") - 1
    return Runs(starts, lengths, rows.language[texts].astype(np.int64))


def collect(rows: Rows, pieces: Sequence[Piece]) -> list[Word]:
    """The words of the texts that are used at least twice, the most used first, as the ids of their pieces.

    `pieces[i]` has the id `FIRST_PIECE + i`.
    """
    spans = runs(rows, pieces)
    several = (spans.lengths >= 2) & (spans.lengths <= MOST_PIECES)
    starts, lengths, languages = spans.starts[several], spans.lengths[several], spans.languages[several]
    tokens = rows.tokens
    spelled = np.zeros((len(starts), MOST_PIECES), np.int32)
    for i in range(MOST_PIECES):
        longer = lengths > i
        spelled[longer, i] = tokens[starts[longer] + i]
    counts = np.bincount(languages).astype(np.float64)[languages] ** -LANGUAGE_POWER
    keys = spelled.view(np.dtype((np.void, spelled.itemsize * MOST_PIECES))).ravel()
    _, first, which, used = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    weights = np.where(used >= 2, np.bincount(which, counts), 0.0)
    order = first[np.argsort(-weights, kind="stable")[: int((used >= 2).sum())]]
    found: dict[str, Word] = {}  # some are spelled in several ways, or as a piece is
    known = {piece for piece, _ in pieces}
    for i in order[:MOST_WORDS]:
        word = tuple(spelled[i, : lengths[i]].tolist())
        text = "".join(pieces[token - FIRST_PIECE][0] for token in word)
        if text not in known:
            found.setdefault(text, word)
    return list(found.values())


def as_pieces(words: Sequence[Word], pieces: Sequence[Piece]) -> list[Piece]:
    """The words as pieces of a tokenizer, which are taken wherever their own pieces would be.

    Not where a shorter word and a piece would: scores are rounded up, the shorter word's perhaps by more.
    `stems.longest_first` sees to that.
    """
    found = []
    for word in words:
        parts = [pieces[token - FIRST_PIECE] for token in word]
        found.append(("".join(piece for piece, _ in parts), above(sum(score for _, score in parts))))
    return found


def above(score: float) -> float:
    """A little more than the score; whole, since fewer different numbers make a smaller file."""
    return float(math.ceil(score + 0.01))


@dataclass(frozen=True)
class Reading:
    """How the vector of a word follows from its pieces' and the teacher's."""

    rows: Tensor  # (V, C) of the pieces, as the model's norm leaves them; the last number carries the importance
    importance: Tensor  # (V,)
    scripts: NDArray[np.int64]  # (V,) numbers; the largest has no letter
    mapping: Tensor  # (width of the teacher + scripts, C - 1)

    @classmethod
    def fit(
        cls, rows: Tensor, importance: Tensor, vectors: NDArray[np.float32], scripts: NDArray[np.str_],
        uses: Tensor,
    ) -> "Reading":
        """`vectors` (V, any) are the teacher's of the pieces, `uses` (V,) says how often texts have them: the map
        from the ones to the others is found by ridge regression, with a constant for each script."""
        names, numbers = np.unique(np.where(scripts == "-", "~", scripts), return_inverse=True)
        x = _with_script(vectors, numbers, len(names))
        weight = uses.clamp(max=FULL_USE).sqrt()[:, None]
        goal = F.normalize(rows[:, :-1], dim=1)
        ridge = RIDGE * float(weight.sum()) / vectors.shape[1] * torch.eye(x.shape[1])
        mapping = torch.linalg.solve((x * weight).T @ x + ridge, (x * weight).T @ goal)
        return cls(rows, importance, numbers, mapping)

    def goals(self, words: Sequence[Word], vectors: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Unit vectors (n, C - 1) of words, and how much each counts (n,); `vectors` (n, any) by the teacher."""
        lengths = torch.tensor([len(word) for word in words])
        tokens = torch.tensor([token for word in words for token in word])
        counted = self.rows[:, :-1] * self.importance[:, None]
        summed = F.embedding_bag(tokens, counted, torch.cumsum(lengths, 0) - lengths, mode="sum")
        scripts = [min(int(self.scripts[token]) for token in word) for word in words]
        whole = F.normalize(_with_script(vectors, np.array(scripts), self._names) @ self.mapping, dim=1)
        return F.normalize(F.normalize(summed, dim=1) + READ_WHOLE * whole, dim=1), summed.norm(dim=1)

    @property
    def _names(self) -> int:
        return int(self.scripts.max()) + 1


def _is_word(piece: str) -> bool:
    """Whether the piece may be part of a word: with letters, of a script that puts spaces between words."""
    return any(map(is_letter, piece)) and script_of(piece).split("-")[0] not in UNSPACED


def _with_script(vectors: NDArray[np.float32], scripts: NDArray[np.int64], count: int) -> Tensor:
    """Unit vectors (n, width), and beside them which script it is: (n, width + count)."""
    script = F.one_hot(torch.from_numpy(scripts).long(), count).float()
    return torch.cat([F.normalize(torch.from_numpy(vectors).float(), dim=1), script], 1)
