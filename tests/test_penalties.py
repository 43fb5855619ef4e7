"""Penalties: closed forms for critics with known gradients, finite differences, moving averages by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gantool.config.objective import LeCamPenalty, R1Penalty, R1R2Penalty, R2Penalty
from gantool.penalties import Judge, LeCam, Side, gradient_penalty, zero_centred_penalty

ZeroCentred = R1Penalty | R2Penalty | R1R2Penalty


def images(batch: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(seed: int) -> tuple[Judge, float]:
    """D(x) = w.x, which has the gradient w everywhere; and |w|."""
    weight = images(1, seed)
    return lambda x: (x * weight).sum((1, 2, 3)), weight.norm().item()


def square(x: Tensor) -> Tensor:
    """D(x) = |x|^2 / 2 has the gradient x: a penalty tells at which points it was taken."""
    return x.square().sum((1, 2, 3)) / 2


def test_linear_critics_pay_for_their_weights() -> None:
    (first, a), (second, b) = linear(10), linear(11)
    real, fake = Side(first, images()), Side(second, images(seed=1))
    assert zero_centred_penalty(R1Penalty(), 4.0, 0, real, fake).item() == pytest.approx(2 * a**2)
    assert zero_centred_penalty(R2Penalty(), 4.0, 0, real, fake).item() == pytest.approx(2 * b**2)
    assert zero_centred_penalty(R1R2Penalty(), 4.0, 0, real, fake).item() == pytest.approx(2 * (a**2 + b**2))
    mix = torch.rand(4, dtype=torch.float64)
    found = gradient_penalty(10.0, first, real.images, fake.images, mix).item()
    assert found == pytest.approx(10 * (a - 1) ** 2)


def test_penalties_are_taken_where_they_say() -> None:
    real, fake = images(), images(seed=1)
    mix = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64)
    points = mix.view(-1, 1, 1, 1) * real + (1 - mix).view(-1, 1, 1, 1) * fake
    expected = (points.flatten(1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(gradient_penalty(1.0, square, real, fake, mix), expected)
    sides = Side(square, real), Side(square, fake)
    ends = [side.images.square().sum((1, 2, 3)).mean() / 2 for side in sides]
    torch.testing.assert_close(zero_centred_penalty(R1Penalty(), 1.0, 0, *sides), ends[0])
    torch.testing.assert_close(zero_centred_penalty(R2Penalty(), 1.0, 0, *sides), ends[1])
    torch.testing.assert_close(zero_centred_penalty(R1R2Penalty(), 1.0, 0, *sides), ends[0] + ends[1])


@pytest.mark.parametrize("interval", [1, 3, 16])
def test_a_lazy_penalty_is_the_same_on_average(interval: int) -> None:
    calls = []

    def judge(x: Tensor) -> Tensor:
        calls.append(len(x))
        return square(x)

    real, fake = Side(judge, images()), Side(judge, images(seed=1))
    each = zero_centred_penalty(R1R2Penalty(), 2.0, 0, real, fake).item()
    calls.clear()
    settings = R1R2Penalty(interval=interval)
    found = [zero_centred_penalty(settings, 2.0, update, real, fake).item() for update in range(48)]
    assert [update for update, value in enumerate(found) if value] == list(range(0, 48, interval))
    assert sum(found) / 48 == pytest.approx(each)
    assert len(calls) == 2 * 48 // interval  # the critic is not asked in between


def test_images_get_no_gradient_from_a_penalty() -> None:
    real, fake = images().requires_grad_(), images(seed=1).requires_grad_()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def judge(x: Tensor) -> Tensor:
        return weight * square(x)

    zero_centred_penalty(R1R2Penalty(), 1.0, 0, Side(judge, real), Side(judge, fake)).backward()
    gradient_penalty(1.0, judge, real, fake, torch.rand(4, dtype=torch.float64)).backward()
    assert weight.grad is not None and weight.grad.abs() > 0
    assert real.grad is None and fake.grad is None


@pytest.mark.parametrize("settings", [None, R1Penalty(), R2Penalty(), R1R2Penalty(interval=2)], ids=str)
def test_penalties_reach_the_weights_of_the_critic(settings: ZeroCentred | None) -> None:
    real, fake = images(3), images(3, seed=1)
    mix = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)

    def of_weight(weight: Tensor) -> Tensor:
        def judge(x: Tensor) -> Tensor:
            return torch.tanh(x.flatten(1) @ weight).sum(1)

        if settings is None:
            return gradient_penalty(10.0, judge, real, fake, mix)
        return zero_centred_penalty(settings, 3.0, 0, Side(judge, real), Side(judge, fake))

    weight = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(of_weight, weight.requires_grad_())


def test_a_critic_without_slope_has_a_finite_penalty_and_gradient() -> None:
    weight = torch.zeros(12, dtype=torch.float64, requires_grad=True)

    def judge(x: Tensor) -> Tensor:
        return x.flatten(1) @ weight

    found = gradient_penalty(10.0, judge, images(), images(seed=1), torch.rand(4, dtype=torch.float64))
    found.backward()
    assert found.item() == pytest.approx(10, rel=1e-5)
    assert weight.grad is not None and torch.isfinite(weight.grad).all()


def test_lecam_by_hand_over_three_updates() -> None:
    lecam = LeCam(LeCamPenalty(weight=0.5, decay=0.75), torch.device("cpu"))
    batches = [([1.0, 3.0], [-1.0, 0.0]), ([2.0, 6.0], [1.0, -2.0]), ([0.0, 0.0], [4.0, 0.0])]
    average_real, average_fake = 2.0, -0.5  # the means of the first batch
    for number, (reals, fakes) in enumerate(batches):
        if number:
            average_real = 0.75 * average_real + 0.25 * sum(reals) / 2
            average_fake = 0.75 * average_fake + 0.25 * sum(fakes) / 2
        expected = sum((x - average_fake) ** 2 for x in reals) / 2 + sum((x - average_real) ** 2 for x in fakes) / 2
        real, fake = torch.tensor(reals, requires_grad=True), torch.tensor(fakes, requires_grad=True)
        found = lecam.penalty(real, fake, torch.stack([real.detach().mean(), fake.detach().mean()]))
        assert found.item() == pytest.approx(0.5 * expected)
        slopes = torch.autograd.grad(found, (real, fake))  # 1/2 * d/dx mean (x - a)^2 = (x - a) / 2
        assert slopes[0].tolist() == pytest.approx([(x - average_fake) / 2 for x in reals])
        assert slopes[1].tolist() == pytest.approx([(x - average_real) / 2 for x in fakes])
    assert lecam.state.tolist() == pytest.approx([average_real, average_fake, 1])


def test_lecam_goes_on_from_its_state() -> None:
    settings, device = LeCamPenalty(), torch.device("cpu")
    whole, first, second = (LeCam(settings, device) for _ in range(3))
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(6, 2, 8, generator=generator)
    expected = [whole.penalty(*batch, batch.mean(1)) for batch in batches]
    found = [first.penalty(*batch, batch.mean(1)) for batch in batches[:2]]
    second.state = first.state.clone()
    found += [second.penalty(*batch, batch.mean(1)) for batch in batches[2:]]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert torch.equal(second.state, whole.state)
