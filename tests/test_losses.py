"""Losses and penalties: closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gantool.config.schema import GradientPenalty, NoPenalty, R1Penalty
from gantool.losses import LOSSES, penalty


def test_bce_is_the_binary_cross_entropy_of_the_paper() -> None:
    real, fake = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    reference = F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, zeros)
    torch.testing.assert_close(LOSSES["bce"].discriminator(real, fake), reference)
    torch.testing.assert_close(LOSSES["bce"].generator(fake), F.binary_cross_entropy_with_logits(fake, ones))
    undecided = torch.zeros(3)
    assert LOSSES["bce"].discriminator(undecided, undecided).item() == pytest.approx(2 * math.log(2))


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    assert LOSSES["hinge"].discriminator(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 4) / 3)
    assert LOSSES["hinge"].generator(fake).item() == pytest.approx(-1 / 3)


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_by_finite_differences(kind: str) -> None:
    loss = LOSSES[kind]
    real = torch.randn(6, dtype=torch.float64, requires_grad=True)
    fake = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradcheck(loss.generator, (fake,))


def test_penalties_of_a_linear_critic_are_those_of_its_weights() -> None:
    # D(x) = w.x has the gradient w everywhere.
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False), nn.Flatten(0))
    real, fake, mix = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), torch.rand(4)
    norm = critic[1].weight.norm().item()
    gp = penalty(GradientPenalty(weight=10.0), critic, real, fake, mix).item()
    assert gp == pytest.approx(10 * (norm - 1) ** 2, rel=1e-4)
    assert penalty(R1Penalty(weight=4.0), critic, real, fake, mix).item() == pytest.approx(2 * norm**2, rel=1e-4)
    assert penalty(NoPenalty(), critic, real, fake, mix).item() == 0


def test_gradient_penalty_is_taken_between_real_and_fake() -> None:
    # D(x) = |x|^2 / 2 has the gradient x: the penalty tells at which points it was taken.
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.square().flatten(1).sum(1) / 2

    real, fake, mix = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.tensor([0.0, 0.3, 0.5, 1.0])
    points = mix.view(-1, 1, 1, 1) * real + (1 - mix).view(-1, 1, 1, 1) * fake
    expected = (points.flatten(1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(penalty(GradientPenalty(weight=1.0), Square(), real, fake, mix), expected)


def test_penalty_reaches_the_weights_of_the_critic() -> None:
    weight = torch.randn(4, dtype=torch.float64)

    class Critic(nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x.flatten(1) * self.weight).sum(1)

    real, fake, mix = (torch.randn(3, 1, 2, 2, dtype=torch.float64) for _ in range(3))

    def of_weight(w: torch.Tensor) -> torch.Tensor:
        return penalty(GradientPenalty(), Critic(w), real, fake, mix[:, 0, 0, 0].sigmoid())

    assert torch.autograd.gradcheck(of_weight, weight.requires_grad_())
