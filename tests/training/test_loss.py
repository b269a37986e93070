"""What the student is asked, against the plain formulas."""


import pytest
import torch

from rwkv_embed.training.loss import contrastive_loss, distillation_loss, neighbour_loss


def test_perfect_student_has_no_loss_and_a_wrong_one_has() -> None:
    targets = torch.nn.functional.normalize(
        torch.randn(8, 384, generator=torch.Generator().manual_seed(0)), dim=1
    )
    others = targets.flip(1)
    assert distillation_loss(3 * targets, targets, others) == pytest.approx(0.0, abs=1e-5)
    assert distillation_loss(-targets, targets, others) > 4.0


def test_a_student_in_other_axes_needs_only_the_teachers_neighbours() -> None:
    torch.manual_seed(0)
    targets = torch.nn.functional.normalize(
        torch.randn(12, 160, generator=torch.Generator().manual_seed(0)), dim=1
    )
    line = torch.arange(12) // 2  # two texts of each line: their targets are the same
    targets[1::2] = targets[::2]
    narrow = torch.linalg.svd(targets)[2][:12].T  # axes that hold all targets
    student = torch.nn.functional.pad(targets @ narrow, (0, 200))
    assert neighbour_loss(3 * student, targets, line) == pytest.approx(0.0, abs=1e-5)
    assert neighbour_loss(student.flip(0)[torch.randperm(12)], targets, line) > 0.05
    moved = student.clone()
    moved[1] = torch.randn(212)  # it is the other text of line 0
    assert neighbour_loss(moved, targets, line) > 0.01


def test_contrast_is_cross_entropy_in_both_directions_and_knows_equal_meanings() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(3, 384, generator=generator), torch.randn(3, 384, generator=generator)
    meaning = torch.tensor([4, 9, 4])
    expected = []
    for dim in (128, 384):
        a, b = (x[:, :dim] / x[:, :dim].norm(dim=1, keepdim=True) for x in (left, right))
        score = torch.exp(a @ b.T / 0.05)
        for i, others in ((0, [0, 1]), (1, [0, 1, 2]), (2, [1, 2])):  # 0 and 2 mean the same
            expected.append(-torch.log(score[i, i] / score[i, others].sum()))
            expected.append(-torch.log(score[i, i] / score[others, i].sum()))
    assert contrastive_loss(left, right, meaning).item() == pytest.approx(
        torch.stack(expected).mean().item(), rel=1e-5
    )
