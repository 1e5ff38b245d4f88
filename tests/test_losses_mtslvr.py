"""The objectives against slow versions written from the papers, and in closed form."""

import math

import pytest
import torch

from mtslvr_hf.losses_mtslvr import (
    AugmentationPredictionLoss,
    NegativeCosineLoss,
    NTXentLoss,
    ParameterDifferenceLoss,
)


def slow_nt_xent(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> torch.Tensor:
    """Algorithm 1 of SimCLR, one pair after the other: views 2k - 1 and 2k belong to one clip."""
    z = [row for pair in zip(z1, z2) for row in pair]
    count = len(z)

    def similarity(i: int, j: int) -> torch.Tensor:
        return z[i] @ z[j] / (z[i].norm() * z[j].norm())

    def loss(i: int, j: int) -> torch.Tensor:
        others = sum(torch.exp(similarity(i, k) / temperature) for k in range(count) if k != i)
        return -torch.log(torch.exp(similarity(i, j) / temperature) / others)

    return sum(loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(count // 2)) / count


@pytest.mark.parametrize("temperature", (0.07, 0.5))
@pytest.mark.parametrize("batch", (2, 5))
def test_nt_xent_is_the_papers(batch, temperature):
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(batch, 6, generator=generator).requires_grad_() for _ in range(2))
    fast, slow = NTXentLoss(temperature)(z1, z2), slow_nt_xent(z1, z2, temperature)
    torch.testing.assert_close(fast, slow)
    for ours, theirs in zip(torch.autograd.grad(fast, (z1, z2)), torch.autograd.grad(slow, (z1, z2))):
        torch.testing.assert_close(ours, theirs)


def test_nt_xent_in_closed_form():
    eye = torch.eye(4)  # the positive at similarity 1, the 6 others of 2B - 1 = 7 at 0
    expected = -math.log(math.e**2 / (math.e**2 + 6))
    assert NTXentLoss(0.5)(eye, eye).item() == pytest.approx(expected, rel=1e-6)
    same = torch.ones(4, 4)  # collapsed: all alike
    assert NTXentLoss(0.5)(same, same).item() == pytest.approx(math.log(7), rel=1e-6)


def test_nt_xent_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="at least two clips"):
        NTXentLoss()(torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(3, 4\)"):
        NTXentLoss()(torch.ones(2, 4), torch.ones(3, 4))
    with pytest.raises(ValueError, match="greater than 0"):
        NTXentLoss(0)


def test_negative_cosine_and_its_stopped_gradient():
    p1, p2, z1, z2 = (torch.randn(3, 5, requires_grad=True) for _ in range(4))
    loss = NegativeCosineLoss()(p1, p2, z1, z2)

    def cosine(a, b):
        return sum(x @ y / (x.norm() * y.norm()) for x, y in zip(a, b)) / len(a)

    torch.testing.assert_close(loss, -(cosine(p1, z2) + cosine(p2, z1)) / 2)
    loss.backward()
    assert p1.grad is not None and z1.grad is None and z2.grad is None
    assert NegativeCosineLoss()(z1, z2, z2, z1).item() == pytest.approx(-1)


def test_augmentation_prediction_is_mean_binary_cross_entropy():
    logits, labels = torch.randn(6, 7), torch.randint(0, 2, (6, 7)).float()
    slow = (
        -sum(
            math.log(1 / (1 + math.exp(-x))) if y else math.log(1 - 1 / (1 + math.exp(-x)))
            for x, y in zip(logits.flatten().tolist(), labels.flatten().tolist())
        )
        / logits.numel()
    )
    assert AugmentationPredictionLoss()(logits, labels).item() == pytest.approx(slow, rel=1e-5)


def test_losses_stay_in_float32_under_autocast():
    z1, z2 = torch.randn(4, 16), torch.randn(4, 16)
    logits, labels = torch.randn(4, 7), torch.ones(4, 7)
    expected = [
        NTXentLoss()(z1, z2),
        NegativeCosineLoss()(z1, z2, z2, z1),
        AugmentationPredictionLoss()(logits, labels),
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = [
            NTXentLoss()(z1, z2),
            NegativeCosineLoss()(z1, z2, z2, z1),
            AugmentationPredictionLoss()(logits, labels),
        ]
    for a, b in zip(got, expected):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_parameter_differences_count_where_their_augmentation_was_applied():
    predictions = torch.tensor([[1.0, 0.0, 5.0], [2.0, 1.0, 5.0], [0.0, 3.0, 5.0]], requires_grad=True)
    differences = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [100.0, 1.0, 0.0]])
    mask = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # no clip has the third
    loss = ParameterDifferenceLoss()(predictions, differences, mask)
    assert loss.item() == pytest.approx(((1 + 4) / 2 + 4) / 2)  # mean over clips, then over the two targets
    loss.backward()
    expected = torch.tensor([[2 * 1 / 4, 0, 0], [2 * -2 / 4, 0, 0], [0, 2 * 2 / 2, 0]])
    assert torch.equal(predictions.grad, expected)


def test_a_batch_without_any_target_has_loss_0_and_gradients():
    predictions = torch.randn(3, 2, requires_grad=True)
    loss = ParameterDifferenceLoss()(predictions, torch.randn(3, 2), torch.zeros(3, 2))
    loss.backward()  # DistributedDataParallel needs a gradient of every parameter
    assert loss.item() == 0 and torch.equal(predictions.grad, torch.zeros(3, 2))


def test_parameter_differences_stay_in_float32_under_autocast():
    predictions, differences, mask = torch.randn(4, 3), torch.randn(4, 3), torch.ones(4, 3)
    expected = ParameterDifferenceLoss()(predictions, differences, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ParameterDifferenceLoss()(predictions, differences, mask), expected)
        low = ParameterDifferenceLoss()(predictions.bfloat16(), differences, mask)
    assert low.dtype == torch.float32 and expected.item() == pytest.approx((predictions - differences).square().mean())
