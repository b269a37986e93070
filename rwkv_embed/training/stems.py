"""Stems: how words begin, as tokens, so that a form that no text has had is told by those that some have.

A fifth of the words of a Polish or Russian text are in pieces, since the corpus lacks this very form of a word.
The mean of the words that begin alike comes as near to what a word has learned as the teacher's reading of it
(cosine 0.71; 0.85 where eight letters are shared). So a stem becomes a token with the mean of its family, and what
follows it stays in pieces, which count little. Where letters before a word are particles, as in Arabic and Hebrew,
stems may stand inside a word. Rare words of which a stem says as much make room for the stems.

Stems are chosen greedily (lazy evaluation: Minoux, 1978) by how much of the forms that the corpus has in pieces
they tell, and of words that it has seldom, as if these were not known. docs/log.md, 2026-11-26, has the figures.
"""

import heapq
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from torch import Tensor

from rwkv_embed.training.contrast import Rows
from rwkv_embed.training.views import Counted
from rwkv_embed.training.vocabulary import FIRST_PIECE, Piece, is_letter, script_of
from rwkv_embed.training.words import above, runs

MOST_STEMS = 270_000
LEAST_LETTERS, LEAST_SHARE = 4, 0.6  # of a form that a stem tells
LONGEST_ENDING, MOST_MEMBERS = 3, 60  # of a stem's family
LONGEST_FORM = 5  # letters more than the stem's
CHOICES = 3  # stems of a form: the longest, and shorter ones that tell more forms
LANGUAGE_POWER = 0.3  # a form in a language of n words counts n ** -LANGUAGE_POWER
RARE_SHARE, RARE_USES = 0.3, 4  # what a known word of so few uses counts, where a form in pieces counts 1
# Cosine of a family's mean to what a word has learned, by the letters of the stem, and if it has several
# members by how far these agree; and that of a word's pieces.
BY_LETTERS = (0.5, 0.62, 0.73, 0.79, 0.82)  # of LEAST_LETTERS and more
AGREEING = (-0.24, 1.15)
IN_PIECES = 0.42
PER_LETTER = 0.95  # what is left of that for each letter that a form has beyond a stem and one letter
REPLACED_USES, REPLACED_COSINE = 6, 0.8  # a word of so few uses, so near to its stem, is left out
BONUS, MOST_LETTERS = 3.0, 16  # in log probability, a letter: so that the longest known beginning is taken
PARTICLES = {"ARABIC": (1, 2), "HEBREW": (1, 2)}  # letters before a word that may be particles
LONG_PARTICLES = ("وال", "بال", "فال", "كال", "ولل", "وبال")
VOWELS_UNWRITTEN = tuple(PARTICLES)  # a letter says more
AT_ONCE = 20_000


@dataclass(frozen=True)
class Grown:
    """Tokens with stems among them, and their pieces as a tokenizer has them; `numbers` (V,) is where each token
    of before is now, -1 for the words that stems replace. The last `stems` tokens are stems."""

    tokens: Counted
    pieces: list[Piece]
    numbers: NDArray[np.int64]
    stems: int


class Families:
    """Known words by how they begin."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        """`pieces[i]` is token i."""
        begins = ((piece[1:], token) for token, (piece, _) in enumerate(pieces) if piece.startswith("▁"))
        self.tokens = {text: token for text, token in begins if token >= FIRST_PIECE and _letters(text)}
        self._sorted = sorted(self.tokens)
        self._begins_with = cache(self._found)

    def members(self, stem: str) -> list[int]:
        """Tokens of the words that begin with the stem and end soon after it, small letters or not."""
        found = self._begins_with(stem)
        if stem.lower() != stem:
            found = found + self._begins_with(stem.lower())
        return [self.tokens[word] for word in found[:MOST_MEMBERS]]

    def beginnings(self, form: str, known: bool = False) -> list[str]:
        """The longest beginning of a form that a family has, and shorter ones; `known`: the form is a word that
        is not to count."""
        found = self._longest(form, known)
        if form.lower() != form and not known:
            found = max(found, self._longest(form.lower(), known))
        return [form[:length] for length in range(found, max(found - CHOICES, _least(form) - 1), -1)]

    def insides(self, form: str) -> list[str]:
        """Stems after what may be particles."""
        script = script_of(form)
        lengths = {*PARTICLES.get(script, ())}
        if script == "ARABIC":
            lengths |= {len(particle) for particle in LONG_PARTICLES if form.startswith(particle)}
        found: list[str] = []
        for length in sorted(lengths):
            rest = form[length:]
            if len(rest) >= LEAST_LETTERS:
                found += [rest] if rest in self.tokens else []
                found += [stem for stem in self.beginnings(rest) if stem not in found]
        return found

    def _longest(self, form: str, known: bool) -> int:
        shortest = max(_least(form), len(form) - LONGEST_FORM)
        for length in range(len(form) - known, shortest - 1, -1):
            found = self._begins_with(form[:length])
            if found and not (known and found == [form]):
                return length
        return 0

    def _found(self, stem: str) -> list[str]:
        found: list[str] = []
        for place in range(bisect_left(self._sorted, stem), len(self._sorted)):
            word = self._sorted[place]
            if not word.startswith(stem) or len(found) == MOST_MEMBERS:
                break
            if len(word) <= len(stem) + LONGEST_ENDING:
                found.append(word)
        return found


def weighed(rows: Rows, pieces: Sequence[Piece]) -> tuple[dict[str, float], NDArray[np.float64]]:
    """What the words of several tokens are used, form by form, and what a use of each token (V,) counts on average
    where it is a word. A use counts less in languages of many words. `pieces[i]` is token i."""
    found = runs(rows, pieces[FIRST_PIECE:])
    weights = np.bincount(found.languages).astype(np.float64)[found.languages] ** -LANGUAGE_POWER
    forms: dict[str, float] = {}
    several = found.lengths > 1
    for start, length, weight in zip(
        found.starts[several].tolist(), found.lengths[several].tolist(), weights[several].tolist(), strict=True
    ):
        parts = rows.tokens[start : start + length].tolist()
        form = "".join(pieces[token][0] for token in parts).removeprefix("▁")
        if len(form) > LEAST_LETTERS and _letters(form):
            forms[form] = forms.get(form, 0.0) + weight
    whole = rows.tokens[found.starts[~several]]
    times = np.bincount(whole, minlength=len(pieces))
    return forms, np.bincount(whole, weights[~several], len(pieces)) / np.maximum(times, 1)


def grow(tokens: Counted, pieces: list[Piece], rows: Rows, words: int, most: int = MOST_STEMS) -> Grown:
    """Put stems among the tokens. `pieces[i]` is token i; those from `words` on are words of several pieces, the
    only ones that may be replaced. `rows` are texts in these tokens."""
    families = Families(pieces)
    uses = np.bincount(rows.tokens, minlength=len(pieces))
    forms, weights = weighed(rows, pieces)
    rare = {
        word: RARE_SHARE * float(weights[token])
        for word, token in families.tokens.items()
        if 1 < uses[token] <= RARE_USES and len(word) > LEAST_LETTERS
    }
    stems = choose(forms, rare, families, tokens.vectors, {piece for piece, _ in pieces}, most)
    members = [families.members(stem.removeprefix("▁")) for stem in stems]
    vectors, _ = _means(tokens.vectors, members)
    counts = torch.tensor([float(tokens.importance[family].mean()) for family in members])
    gone = replaced(families, dict(zip(stems, vectors, strict=True)), tokens.vectors, uses, words)
    kept = np.setdiff1d(np.arange(len(pieces)), gone)
    numbers = np.full(len(pieces), -1)
    numbers[kept] = np.arange(len(kept))
    grown = Counted(
        torch.cat([tokens.vectors[kept], vectors.to(tokens.vectors.dtype)]),
        torch.cat([tokens.importance[kept], counts]),
    )
    scored = [longest_first(pieces[token]) for token in kept]
    scored += [(text, score + _bonus(text)) for text, score in spelled(stems, pieces)]
    return Grown(grown, scored, numbers, len(stems))


def choose(
    forms: Mapping[str, float], rare: Mapping[str, float], families: Families, vectors: Tensor, known: set[str],
    most: int,
) -> list[str]:  # fmt: skip
    """Stems as pieces ("▁" before those that begin words), the most useful first.

    `forms` and `rare` words of the families: how much each counts.
    """
    told: list[tuple[float, str, list[str]]] = []
    for form, weight in forms.items():
        stems = ["▁" + stem for stem in families.beginnings(form)] + families.insides(form)
        told.append((weight, form, stems))
    for word, weight in rare.items():
        told.append((weight, word, ["▁" + stem for stem in families.beginnings(word, known=True)]))
    candidates = sorted({stem for _, _, stems in told for stem in stems})
    number = {stem: i for i, stem in enumerate(candidates)}
    better = _better_than_pieces(candidates, families, vectors)
    tells: list[list[tuple[int, float]]] = [[] for _ in candidates]
    for i, (_, form, stems) in enumerate(told):
        for stem in stems:
            beyond = len(form) - len(stem.removeprefix("▁")) - 1
            tells[number[stem]].append((i, better[number[stem]] * PER_LETTER ** max(0, beyond)))
    covered = [0.0] * len(told)

    def gain(candidate: int) -> float:
        return sum(told[i][0] * max(0.0, worth - covered[i]) for i, worth in tells[candidate])

    def cover(candidate: int) -> None:
        for i, worth in tells[candidate]:
            covered[i] = max(covered[i], worth)

    for stem, i in number.items():
        if stem in known:
            cover(i)
    queue = [(-gain(i), i) for stem, i in number.items() if stem not in known]
    heapq.heapify(queue)
    chosen: list[str] = []
    while queue and len(chosen) < most:
        _, candidate = heapq.heappop(queue)
        now = gain(candidate)
        if now <= 0:
            continue
        if queue and -now > queue[0][0]:
            heapq.heappush(queue, (-now, candidate))
            continue
        chosen.append(candidates[candidate])
        cover(candidate)
    return chosen


def replaced(
    families: Families, stems: Mapping[str, Tensor], vectors: Tensor, uses: NDArray[np.int64], words: int
) -> NDArray[np.int64]:
    """Tokens of rare words, from `words` on, that lie where the longest stem or word that they begin with does."""
    gone, needed = [], set()
    for word, token in families.tokens.items():
        if token < words or uses[token] > REPLACED_USES:
            continue
        for length in range(len(word) - 1, _least(word) - 1, -1):
            begin, stem = families.tokens.get(word[:length]), stems.get("▁" + word[:length])
            if begin is None and stem is None:
                continue
            vector = vectors[begin].float() if stem is None else stem.float()
            if F.cosine_similarity(vectors[token].float(), vector, dim=0) >= REPLACED_COSINE:
                gone.append(token)
                needed.add(begin)
            break
    return np.array([token for token in sorted(gone) if token not in needed], np.int64)


def spelled(texts: Sequence[str], pieces: Sequence[Piece]) -> list[Piece]:
    """The texts as pieces of a tokenizer, each a little more probable than the pieces that it has now."""
    plain = Tokenizer(models.Unigram([("<unk>", 0.0), *pieces[FIRST_PIECE:]], 0, False))
    scores = [0.0, *(score for _, score in pieces[FIRST_PIECE:])]
    encoded = plain.encode_batch_fast(list(texts), add_special_tokens=False)
    sums = (sum(scores[token] for token in encoding.ids) for encoding in encoded)
    return [(text, above(total)) for text, total in zip(texts, sums, strict=True)]


def longest_first(piece: Piece) -> Piece:
    """The piece, scored so that a word is cut after the longest beginning that is known."""
    text, score = piece
    return text, score + (_bonus(text) if text.startswith("▁") and any(map(is_letter, text)) else 0.0)


def _bonus(text: str) -> float:
    letters = len(text.removeprefix("▁"))
    return BONUS * min(letters, MOST_LETTERS) if letters >= LEAST_LETTERS else 0.0


def _better_than_pieces(stems: Sequence[str], families: Families, vectors: Tensor) -> list[float]:
    """By how much the cosine to what forms of the stem mean is expected to be higher than that of their pieces."""
    better = []
    for rows in _slices(len(stems)):
        texts = [stem.removeprefix("▁") for stem in stems[rows]]
        members = [families.members(text) for text in texts]
        _, agreement = _means(vectors, members)
        for text, family, agreed in zip(texts, members, agreement.tolist(), strict=True):
            letters = len(text) + (script_of(text) in VOWELS_UNWRITTEN) - LEAST_LETTERS
            cosine = BY_LETTERS[min(letters, len(BY_LETTERS) - 1)]
            if len(family) > 2:
                cosine = (cosine + AGREEING[0] + AGREEING[1] * agreed) / 2
            better.append(max(0.0, cosine - IN_PIECES) if family else 0.0)
    return better


def _means(vectors: Tensor, members: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Unit vectors (n, C) of families, and how far their members agree (n,): 1 where they are the same."""
    means, agreement = torch.zeros(len(members), vectors.shape[1]), torch.zeros(len(members))
    for rows in _slices(len(members)):
        lengths = torch.tensor([len(family) for family in members[rows]])
        flat = torch.tensor([token for family in members[rows] for token in family], dtype=torch.long)
        unit = F.normalize(vectors[flat].float(), dim=1)
        mean = F.embedding_bag(torch.arange(len(flat)), unit, torch.cumsum(lengths, 0) - lengths, mode="mean")
        means[rows], agreement[rows] = F.normalize(mean, dim=1), mean.norm(dim=1)
    return means, agreement


def _slices(count: int) -> Iterator[slice]:
    for first in range(0, count, AT_ONCE):
        yield slice(first, min(count, first + AT_ONCE))


def _least(form: str) -> int:
    """Letters that a stem of the form has to have; after particles as many as otherwise."""
    least = max(LEAST_LETTERS, math.ceil(LEAST_SHARE * len(form) - 0.01))
    long = [len(particle) for particle in ("ال", "لل", *LONG_PARTICLES) if form.startswith(particle)]
    return max([least, *(length + LEAST_LETTERS - 1 for length in long)])


def _letters(text: str) -> bool:
    return bool(text) and all(map(is_letter, text))
