"""What the student is asked: the teacher's vector, the teacher's neighbours, and which texts belong together."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.05
NEIGHBOUR_WEIGHT = 0.5
COMPANY = 512  # texts of a batch that are compared with each other
SHORTEST = 128  # Matryoshka: the first numbers of a vector are a vector, too


def distillation_loss(vectors: Tensor, targets: Tensor, others: Tensor) -> Tensor:
    """Mean over the first numbers and all of 2 (1 - cos) + 0.5 KL(teacher's neighbours || student's neighbours).

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
        for dim in (SHORTEST, vectors.shape[1]):
            s, e = F.normalize(student[:, :dim], dim=1), F.normalize(everyone[:, :dim], dim=1)
            similarity = s @ e.T
            neighbours = -(wanted * torch.log_softmax(similarity / TEMPERATURE, 1)).sum()
            distance = 2 * (len(s) - similarity.diagonal().sum())
            total = total + distance + NEIGHBOUR_WEIGHT * (neighbours - entropy)
    return total / (2 * len(vectors))


def neighbour_loss(vectors: Tensor, targets: Tensor, line: Tensor) -> Tensor:
    """Mean over the first numbers and all of KL(teacher's neighbours || student's neighbours) in a batch.

    vectors (B, C) of the student, targets (B, any) of the teacher: of the two spaces only distances are
    compared. line (B,): texts of one line have one target, and are not each other's neighbours.
    """
    same = line[:, None] == line[None, :]
    wanted = log_neighbours(targets, same)
    total = vectors.new_zeros(())
    for dim in (SHORTEST, vectors.shape[1]):
        found = log_neighbours(vectors[:, :dim], same)
        total = total + F.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return total / 2


def log_neighbours(vectors: Tensor, same: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """(B, B) log softmax(cosine / temperature) of vectors (B, any), without those that are the `same` (B, B)."""
    unit = F.normalize(vectors, dim=1)
    return torch.log_softmax((unit @ unit.T / temperature).masked_fill(same, -1e4), 1)


def info_nce(
    queries: Tensor, documents: Tensor, positive: Tensor, other: Tensor, dims: Sequence[int]
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
    dims = SHORTEST, left.shape[1]
    return (info_nce(left, right, answer, same, dims) + info_nce(right, left, answer, same, dims)) / 2
