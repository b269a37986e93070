"""Tokens drawn to those that the teacher reads alike: other forms of a word, and its translations.

Of a rare token the texts say little, and that with noise. What the teacher makes of a token alone says which
others it is like, and of some of those the texts say more. The mean of the neighbours' vectors is nearer to what a
token has learned (cosine 0.71) than a linear map of the teacher's vector is (0.62); docs/log.md, 2026-11-26.
"""

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

NEIGHBOURS = 32
SHARPNESS = 10.0  # a neighbour weighs exp(SHARPNESS cosine)
SHARE, FEW_USES = 0.6, 30  # a token of n uses is drawn by SHARE FEW_USES / (FEW_USES + n)
LIST_SIZE, LISTS_SEARCHED, TRAINED_ON = 560, 8, 40  # of the index; tokens of a list it is trained on
AT_ONCE = 4_096

Indices = NDArray[np.int64]


def nearest(read: NDArray[np.float32], scripts: NDArray[np.str_]) -> tuple[Indices, NDArray[np.float32]]:
    """The tokens (V, k) that are read most like each one, and the cosines; -1 where there are no more.

    `read` (V, any): the teacher's vector of each token, zeros where it has none, which is near nothing. `scripts`
    (V,) of the tokens: what all tokens of one have in common says nothing about what they mean.
    """
    vectors = F.normalize(torch.from_numpy(read).float(), dim=1)
    which = torch.from_numpy(np.unique(scripts, return_inverse=True)[1])
    means = torch.zeros(int(which.max()) + 1, read.shape[1]).index_add_(0, which, vectors)
    means /= torch.bincount(which)[:, None]
    vectors = F.normalize(vectors - means[which], dim=1)
    unread: NDArray[np.bool_] = np.square(read).sum(1) == 0
    vectors[torch.from_numpy(unread)] = 0
    V = len(vectors)
    index = _searchable(vectors.numpy())
    near = np.empty((V, NEIGHBOURS), np.int64)
    cosines = np.empty((V, NEIGHBOURS), np.float32)
    for first in range(0, V, AT_ONCE):
        rows = slice(first, min(V, first + AT_ONCE))
        likeness, found = index.search(vectors[rows].numpy(), NEIGHBOURS + 1)
        nothing = (found < 0) | unread[found] | unread[rows, None]
        likeness[nothing | np.equal(found, np.arange(rows.start, rows.stop)[:, None])] = -np.inf
        found[np.isneginf(likeness)] = -1
        order = np.argsort(-likeness, 1, kind="stable")[:, :NEIGHBOURS]
        near[rows] = np.take_along_axis(found, order, 1)
        cosines[rows] = np.take_along_axis(likeness, order, 1)
    return near, cosines


def _searchable(vectors: NDArray[np.float32]) -> faiss.Index:
    """By inner product: of few vectors all, of many those in the nearest lists."""
    V, width = vectors.shape
    lists = V // LIST_SIZE
    if lists <= LISTS_SEARCHED:
        exact = faiss.IndexFlatIP(width)
        exact.add(vectors)
        return exact
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[np.random.default_rng(0).permutation(V)[: TRAINED_ON * lists]])
    index.nprobe = LISTS_SEARCHED
    index.add(vectors)
    return index


def drawn(vectors: Tensor, near: Indices, cosines: NDArray[np.float32], uses: NDArray[np.int64]) -> Tensor:
    """(V, C) unit vectors, those of tokens with few uses (V,) drawn to their neighbours'."""
    moved = torch.empty_like(vectors)
    for first in range(0, len(vectors), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        weights = torch.softmax(SHARPNESS * torch.from_numpy(cosines[rows]), 1).nan_to_num_(0)
        others = F.normalize(vectors[torch.from_numpy(near[rows]).clamp(min=0)], dim=2)
        goal = F.normalize((weights[:, None] @ others)[:, 0], dim=1)
        share = SHARE * FEW_USES / (FEW_USES + torch.from_numpy(uses[rows]).float())
        moved[rows] = F.normalize(F.normalize(vectors[rows], dim=1) + share[:, None] * goal, dim=1)
    return moved
