"""Penalties in the discriminator's loss: of its gradient with respect to the images, or of its logits (LeCam).

A penalty sees a critic as a function from images, float [B, C, H, W], to logits, float [B]: labels, augmentation and
dropout are bound into it. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gantool.config.objective import LeCamPenalty, R1Penalty, R1R2Penalty, R2Penalty

Judge = Callable[[Tensor], Tensor]
"""Images, float [B, C, H, W] -> logits, float [B], each of its own image alone."""


class Side(NamedTuple):
    """Images and the critic that looks at them."""

    judge: Judge
    images: Tensor


def gradient_penalty(weight: float, judge: Judge, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """weight * E[(|grad D(x^)| - 1)^2] at x^ = mix x + (1 - mix) G(z) (Gulrajani et al., 2017, eq. 3).

    real, fake: float [B, C, H, W]; mix: float [B] in [0, 1). Returns a scalar.
    """
    points = torch.lerp(fake, real, mix.view(-1, 1, 1, 1))
    norm = (_squared_gradient_norm(judge, points) + 1e-12).sqrt()  # the root has no derivative at 0
    return weight * (norm - 1).square().mean()


def zero_centred_penalty(
    settings: R1Penalty | R2Penalty | R1R2Penalty, weight: float | Tensor, update: int, real: Side, fake: Side
) -> Tensor:
    """The penalty of discriminator update number `update`, a scalar; `weight` is gamma at this step, a number or a
    float64 scalar.

    r1: gamma/2 * E[|grad D(x)|^2] on real images (Mescheder et al., 2018, eq. 9);
    r2: gamma/2 * E[|grad D(G(z))|^2] on generated images (eq. 10);
    r1_r2: the sum of both (Huang et al., 2024).
    Every `interval`-th update has it, `interval` times as strong, the others 0 (Karras et al., 2020, appendix B).
    """
    total = real.images.new_zeros(())
    if update % settings.interval:
        return total
    sides = {"r1": (real,), "r2": (fake,), "r1_r2": (real, fake)}[settings.kind]
    for judge, images in sides:
        total = total + _squared_gradient_norm(judge, images).mean()
    strength = settings.interval * weight / 2
    return (strength.to(total.dtype) if isinstance(strength, Tensor) else strength) * total


def _squared_gradient_norm(judge: Judge, images: Tensor) -> Tensor:
    points = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(judge(points).sum(), points, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


class LeCam:
    """weight * (E[(D(x) - a_fake)^2] + E[(D(G(z)) - a_real)^2]) with moving averages of the mean logits a_real and
    a_fake (Tseng et al., 2021)."""

    state: Tensor
    """float32 [3], on the device: a_real, a_fake, and 1 when there are averages yet (else 0)."""

    def __init__(self, settings: LeCamPenalty, device: torch.device) -> None:
        self.settings = settings
        self.state = torch.zeros(3, device=device)

    def penalty(self, real: Tensor, fake: Tensor, means: Tensor) -> Tensor:
        """Take the means of this update into the averages (the first ones become them), then the penalty, a scalar.

        real, fake: logits, float [B]; means: their means over all ranks, float [2].
        """
        means = means.detach().float()
        averages = torch.where(self.state[2] > 0, torch.lerp(means, self.state[:2], self.settings.decay), means)
        self.state.copy_(torch.cat([averages, averages.new_ones(1)]))
        return self.settings.weight * ((real - averages[1]).square().mean() + (fake - averages[0]).square().mean())
