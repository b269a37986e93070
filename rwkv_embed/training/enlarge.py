"""Makes the vocabulary many times as large as the table: words become tokens, and most tokens sums of rows.

A row in few different values takes 190 bytes, a sum of four or five rows ten, compressed. As a sum a rare token
is found no worse than as a row in the coarser steps that a larger table would need (docs/log.md).
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rwkv_embed.sums import Sums
from rwkv_embed.tokenizer import Tokenizer
from rwkv_embed.training import words
from rwkv_embed.training.align import OF_WORDS, Belief, moved, translation_table
from rwkv_embed.training.contrast import Rows
from rwkv_embed.training.data import Texts
from rwkv_embed.training.model import Bag, importance_of
from rwkv_embed.training.neighbours import drawn, nearest
from rwkv_embed.training.quantize import Quantized, quantize
from rwkv_embed.training.sparse import as_sums, pursue
from rwkv_embed.training.stages import replacing, saved_tokenizer
from rwkv_embed.training.stems import grow, longest_first
from rwkv_embed.training.views import Counted
from rwkv_embed.training.vocabulary import FIRST_PIECE, Piece, scripts_of

STORED_ROWS = 1 << 16  # parts of sums are 16-bit numbers
TRANSLATES = 0.5  # translations by an English token that make it one of the stored rows
WORDS_SHARE, PIECES_SHARE = 2.0, 0.5  # of a token's translations; the pieces have been drawn to theirs before

Tokenize = Callable[[Tokenizer, Path], tuple[Texts, Rows]]  # training texts, kept in a folder
ReadWords = Callable[[list[words.Word]], NDArray[np.float32]]  # the teacher's vectors (n, any)
# What texts teach about the tokens, whose translations are a table (V, V).
LearnViews = Callable[[Counted, Tokenizer, Texts, Rows, Tensor], Counted]

log = logging.getLogger("rwkv_embed.training")


@dataclass(frozen=True)
class Large:
    """A bag of the rows that are kept, as they are coded, the tokens that are sums of them, and the training texts
    in these tokens."""

    bag: Bag
    table: Quantized
    sums: Sums
    texts: Texts
    rows: Rows


@torch.no_grad()
def enlarge(
    bag: Bag, pieces: list[Piece], vectors: NDArray[np.float32], english: Tensor, rows: Rows,
    tokenize: Tokenize, read_words: ReadWords, learn_views: LearnViews, work: Path,
) -> Large:  # fmt: skip
    """Of a trained `bag` whose tokens are `pieces`, `vectors` (V, any) the teacher's for them.

    `english` (V,): how often each has translated another; `rows`: texts in these tokens. Writes the final
    tokenizer.json to `work`: stored rows first, then sums.
    """
    found = words.collect(rows, pieces)
    log.info("%d words", len(found))
    table = F.layer_norm(bag.emb, bag.emb.shape[1:])
    importance = importance_of(bag, bag.emb)
    known = [("", 0.0)] * FIRST_PIECE + pieces
    uses = torch.from_numpy(np.bincount(rows.tokens, minlength=len(table)))
    reading = words.Reading.fit(table, importance, vectors, scripts_of(known), uses)
    read = read_words(found)
    goals, sizes = reading.goals(found, read)
    spelled = words.as_pieces(found, pieces)
    kept = work / "words"
    tokenizer = saved_tokenizer([longest_first(piece) for piece in [*pieces, *spelled]], kept)
    texts, rows = tokenize(tokenizer, kept)

    unit = torch.cat([F.normalize(table[:, :-1], dim=1), goals])
    counts = torch.cat([importance, sizes / math.sqrt(table.shape[1])])
    translations = translations_of(rows, unit, counts, OF_WORDS, kept)
    share = torch.cat([torch.full((len(table), 1), PIECES_SHARE), torch.full((len(goals), 1), WORDS_SHARE)])
    tokens = Counted(moved(unit, translations, OF_WORDS, share), counts)
    del unit

    grown = grow(tokens, known + spelled, rows, words=len(known))
    tokens, everything, numbers = grown.tokens, grown.pieces, grown.numbers
    log.info("%d stems, instead of %d words", grown.stems, int((numbers < 0).sum()))
    kept = work / "stems"
    tokenizer = saved_tokenizer(everything[FIRST_PIECE:], kept)
    texts, rows = tokenize(tokenizer, kept)
    tokens = learn_views(tokens, tokenizer, texts, rows, renumbered(translations, numbers, len(everything)))
    del translations

    alone = np.zeros((len(everything), vectors.shape[1]), np.float32)  # nobody has read the stems
    alone[numbers[numbers >= 0]] = np.concatenate([vectors, read])[numbers >= 0]
    near, cosines = nearest(alone, scripts_of(everything))
    met = np.bincount(rows.tokens, minlength=len(everything))
    tokens = Counted(drawn(tokens.vectors, near, cosines, met), tokens.importance)

    stored = stored_tokens(english.numpy() > TRANSLATES, STORED_ROWS)
    used = np.bincount(np.concatenate([texts.tokens, rows.tokens]), minlength=len(everything)) > 0
    used[len(everything) - grown.stems :] = True  # they are for texts that are not here
    used[: len(table)] = True
    used[stored] = False
    others = np.array(sorted(np.flatnonzero(used), key=lambda token: everything[token][0]))  # compresses best
    log.info("%d rows, %d sums of them", len(stored), len(others))
    large = Bag(F.pad(tokens.vectors[stored], (0, 1)), tokens.importance[stored])
    quantized = quantize(large.emb.detach().numpy())
    large.emb.data = torch.from_numpy(quantized.rows())
    centred = (large.emb - large.emb.mean(1, keepdim=True))[:, :-1]  # as the model's norm has them
    parts, weights, _ = pursue(tokens.vectors[others], F.normalize(centred, dim=1))

    order = np.concatenate([stored, others])
    placed = np.full(len(everything), -1, np.int32)
    placed[order] = np.arange(len(order))
    texts.tokens, rows.tokens = placed[texts.tokens], placed[rows.tokens]
    saved_tokenizer([everything[token] for token in order[FIRST_PIECE:]], work)
    return Large(large, quantized, as_sums(parts, weights, centred), texts, rows)


def stored_tokens(translates: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """Tokens that get a row, ascending: EOS and bytes, those that translate others, then the most used."""
    first = np.arange(len(translates)) < FIRST_PIECE
    worth = np.lexsort([np.arange(len(translates)), ~(translates | first)])
    return np.sort(worth[:most])


def translations_of(rows: Rows, vectors: Tensor, importance: Tensor, belief: Belief, folder: Path) -> Tensor:
    """(V, V) sparse, kept in `folder`: see `translation_table`."""
    path = folder / "translations.pt"
    if not path.exists():
        log.info("aligning translations")
        with replacing(path) as partial:
            torch.save(translation_table(rows, vectors, importance, belief), partial)
    table: Tensor = torch.load(path, weights_only=True)
    return table


def renumbered(translations: Tensor, numbers: NDArray[np.int64], size: int) -> Tensor:
    """The table (size, size) of tokens whose numbers are new ones (V,), -1 for those that are no more."""
    table = translations.coalesce()
    indices = torch.from_numpy(numbers)[table.indices()]
    kept = (indices >= 0).all(0)
    return torch.sparse_coo_tensor(indices[:, kept], table.values()[kept], (size, size), check_invariants=True)
