"""Adversarial losses as pairs of functions on logits, and gradient penalties. Logits are float [B], positive for real;
every loss is a scalar mean over its batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantool.config.schema import GradientPenalty, NoPenalty, R1Penalty


def bce_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-E[log D(x)] - E[log(1 - D(G(z)))] with D = sigmoid(logit) (Goodfellow et al., 2014, eq. 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def bce_generator(fake: Tensor) -> Tensor:
    """-E[log D(G(z))], the non-saturating form (Goodfellow et al., 2014, section 3)."""
    return F.softplus(-fake).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (Miyato et al., 2018, eq. 16)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """-E[D(G(z))] (Miyato et al., 2018, eq. 17)."""
    return -fake.mean()


class Loss(NamedTuple):
    """The losses of the two players: discriminator(real logits, fake logits) and generator(fake logits)."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


LOSSES = {
    "bce": Loss(bce_discriminator, bce_generator),
    "hinge": Loss(hinge_discriminator, hinge_generator),
}


def penalty(
    settings: NoPenalty | GradientPenalty | R1Penalty,
    network: nn.Module,
    real: Tensor,
    fake: Tensor,
    mix: Tensor | None = None,
) -> Tensor:
    """The weighted gradient penalty of `network` at images float [B, C, H, W]; gp needs `mix`, float [B] in [0, 1).

    gp: weight * E[(|grad D(x^)| - 1)^2] at x^ = mix x + (1 - mix) G(z) (Gulrajani et al., 2017, eq. 3);
    r1: weight/2 * E[|grad D(x)|^2] on real images (Mescheder et al., 2018, eq. 9).
    """
    if isinstance(settings, GradientPenalty):
        assert mix is not None
        points = torch.lerp(fake, real, mix.view(-1, 1, 1, 1))
        squared = _squared_gradient_norm(network, points)
        return settings.weight * ((squared + 1e-12).sqrt() - 1).square().mean()
    if isinstance(settings, R1Penalty):
        return settings.weight / 2 * _squared_gradient_norm(network, real).mean()
    return real.new_zeros(())


def _squared_gradient_norm(network: nn.Module, images: Tensor) -> Tensor:
    points = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(points).sum(), points, create_graph=True)
    return gradient.square().flatten(1).sum(1)
