"""Adversarial losses as pairs of functions on logits: one for each player, each a scalar mean over its batch.

Logits are float [B], the higher the more real. A loss file of the user's own is tried out here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gantool import custom
from gantool.config.objective import (
    AnyLoss,
    BceLoss,
    CustomLoss,
    HingeLoss,
    LeastSquaresLoss,
    RelativisticLoss,
    WassersteinLoss,
)
from gantool.errors import UsageError


class Loss(NamedTuple):
    """What the two players minimise, and what a logit means."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    """(real logits, generated logits), float [B] both -> scalar."""
    generator: Callable[[Tensor | None, Tensor], Tensor]
    """(real logits, generated logits) -> scalar; the real ones may be None unless `paired`."""
    paired: bool = False
    """The generator's loss needs real logits too, as many as generated ones."""
    boundary: float | None = 0.0
    """The logit between real and generated; None: only differences of logits mean something."""


def build_loss(settings: AnyLoss) -> Loss:
    """The losses of `settings`; UsageError when a file of the user's own cannot be used."""
    return LOSSES[settings.kind](settings)


def accuracies(loss: Loss, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Share of real logits above the boundary and of generated ones below it, scalars in [0, 1].

    Without a boundary both are the share of pairs in which the real logit is the higher one.
    """
    if loss.boundary is None:
        right = (real > fake).float().mean()
        return right, right
    return (real > loss.boundary).float().mean(), (fake < loss.boundary).float().mean()


def _bce(settings: BceLoss) -> Loss:
    """Goodfellow et al., 2014: with D = sigmoid(logit) and the target t = 1 - smoothing of real images,

    discriminator: -E[t log D(x) + (1 - t) log(1 - D(x))] - E[log(1 - D(G(z)))] (eq. 1 where t = 1);
    generator: -E[log D(G(z))] (section 3), saturating: E[log(1 - D(G(z)))] (eq. 1).
    """

    def discriminator(real: Tensor, fake: Tensor) -> Tensor:
        # -t log D - (1 - t) log(1 - D) = softplus(-logit) + (1 - t) logit
        return (F.softplus(-real) + settings.smoothing * real).mean() + F.softplus(fake).mean()

    def generator(real: Tensor | None, fake: Tensor) -> Tensor:
        return -F.softplus(fake).mean() if settings.saturating else F.softplus(-fake).mean()

    return Loss(discriminator, generator)


def _least_squares(settings: LeastSquaresLoss) -> Loss:
    """Mao et al., 2017, eq. 9: 1/2 E[(D(x) - (1 - smoothing))^2] + 1/2 E[D(G(z))^2] and 1/2 E[(D(G(z)) - 1)^2]."""

    def discriminator(real: Tensor, fake: Tensor) -> Tensor:
        return ((real - (1 - settings.smoothing)).square().mean() + fake.square().mean()) / 2

    def generator(real: Tensor | None, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean() / 2

    return Loss(discriminator, generator, boundary=0.5)


def _hinge(settings: HingeLoss) -> Loss:
    """Miyato et al., 2018, eq. 16 and 17: E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] and -E[D(G(z))]."""

    def discriminator(real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    return Loss(discriminator, _minus_mean)


def _wasserstein(settings: WassersteinLoss) -> Loss:
    """Arjovsky et al., 2017: E[D(G(z))] - E[D(x)] and -E[D(G(z))]."""

    def discriminator(real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    return Loss(discriminator, _minus_mean, boundary=None)


def _minus_mean(real: Tensor | None, fake: Tensor) -> Tensor:
    return -fake.mean()


def _relativistic(settings: RelativisticLoss) -> Loss:
    """Jolicoeur-Martineau, 2019 (RpGAN); Huang et al., 2024: -E[log sigmoid(D(x) - D(G(z)))] over pairs, and the same
    with the sides exchanged for the generator."""

    def discriminator(real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(fake - real).mean()

    def generator(real: Tensor | None, fake: Tensor) -> Tensor:
        assert real is not None
        return F.softplus(real - fake).mean()

    return Loss(discriminator, generator, paired=True, boundary=None)


def _custom(settings: CustomLoss) -> Loss:
    """The functions discriminator(real, fake) and generator(real, fake) of the user's file, each tried out once."""
    module = custom.load(settings)
    discriminator, generator = (_function(settings, module, player) for player in ("discriminator", "generator"))
    return Loss(discriminator, generator, settings.paired, settings.boundary)


def _function(settings: CustomLoss, module: ModuleType, player: str) -> Callable[..., Tensor]:
    """The function of a player, tried out once: UsageError now, not in the middle of the first step."""
    needs_real = player == "discriminator" or settings.paired
    hint = f"{player}(real, fake) gets logits, float [B], and must return a scalar tensor with a gradient"
    if not needs_real:
        hint += "; real is None unless loss.paired is true"
    function: Any = getattr(module, player, None)
    if not callable(function):
        raise UsageError(f"{settings.file}: has no function {player}", hint)
    fake = torch.linspace(-1, 2, 4, requires_grad=True)
    real = torch.linspace(2, -1, 4, requires_grad=True) if needs_real else None
    try:
        with custom.words_to_stderr():
            value = function(real, fake)
    except (Exception, SystemExit) as error:
        told = custom.failure(f"{settings.file}: {player}(real, fake)", settings.file, error)
        raise UsageError(told.message, hint) from error
    if not (isinstance(value, Tensor) and value.ndim == 0 and value.requires_grad):
        found = f"a {type(value).__name__}"
        if isinstance(value, Tensor):
            found = f"a tensor of shape {list(value.shape)}" if value.ndim else "a scalar without a gradient"
        raise UsageError(f"{settings.file}: {player}(real, fake) returns {found}", hint)
    return function  # type: ignore[no-any-return]


LOSSES: dict[str, Callable[[Any], Loss]] = {
    "bce": _bce,
    "least_squares": _least_squares,
    "hinge": _hinge,
    "wasserstein": _wasserstein,
    "relativistic": _relativistic,
    "custom": _custom,
}
