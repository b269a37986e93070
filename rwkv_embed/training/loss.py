"""What the student is asked: the teacher's vector, the teacher's neighbours, and which texts belong together."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.05
NEIGHBOUR_WEIGHT = 0.5
COMPANY = 512  # texts of a batch that are compared with each other
DIMENSIONS = (128, 384)  # Matryoshka: the first numbers of a vector are a vector, too


def distillation_loss(vectors: Tensor, targets: Tensor, others: Tensor) -> Tensor:
    """Mean over `DIMENSIONS` of 2 (1 - cos) + 0.5 KL(teacher's neighbours || student's neighbours).

    vectors (B, C) of the student, any length; targets (B, C) and others (M, C) of the teacher, unit length.
    A text's neighbours are the targets of its `COMPANY` batch neighbours and the others: teacher vectors
    are cheap company for the softmax, since nothing has to be encoded.
    """
    total = vectors.new_zeros(())
    parts = zip(vectors.split(COMPANY), targets.split(COMPANY), strict=True)
    for student, teacher in parts:
        everyone = torch.cat([teacher, others])
        wanted = torch.softmax(teacher @ everyone.T / TEMPERATURE, 1)
        entropy = -(wanted * torch.log(wanted + 1e-9)).sum()  # taken off: a perfect student has loss 0
        for dim in DIMENSIONS:
            s, e = F.normalize(student[:, :dim], dim=1), F.normalize(everyone[:, :dim], dim=1)
            similarity = s @ e.T
            neighbours = -(wanted * torch.log_softmax(similarity / TEMPERATURE, 1)).sum()
            distance = 2 * (len(s) - similarity.diagonal().sum())
            total = total + distance + NEIGHBOUR_WEIGHT * (neighbours - entropy)
    return total / (len(DIMENSIONS) * len(vectors))


def info_nce(
    queries: Tensor, documents: Tensor, positive: Tensor, other: Tensor, dims: Sequence[int] = DIMENSIONS
) -> Tensor:
    """Mean over `dims` and queries of -log softmax(cosine / TEMPERATURE) at the query's positive.

    queries (B, C), documents (M, C), any length; positive (B,) indexes documents; other (B, M) is True where
    a document is another right answer to the query, which must not push it away.
    """
    total = queries.new_zeros(())
    for dim in dims:
        q, d = F.normalize(queries[:, :dim], dim=1), F.normalize(documents[:, :dim], dim=1)
        similarity = (q @ d.T / TEMPERATURE).masked_fill(other, -torch.inf)
        total = total + F.cross_entropy(similarity, positive)
    return total / len(dims)


def contrastive_loss(left: Tensor, right: Tensor, meaning: Tensor) -> Tensor:
    """`info_nce` in both directions: `left[i]` must find `right[i]` among all of `right`, and the reverse.

    meaning (B,) integers: pairs of one meaning are not each other's negatives.
    """
    same = meaning[:, None] == meaning[None, :]
    same.fill_diagonal_(False)
    answer = torch.arange(len(left))
    return (info_nce(left, right, answer, same) + info_nce(right, left, answer, same)) / 2
