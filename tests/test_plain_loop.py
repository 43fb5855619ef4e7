"""50 steps of the trainer, convolutions in their other forms, against a loop as one writes it in a notebook."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_players import players
from torch import Tensor

from gantool.data.loader import RealImages
from gantool.models import resampling, winograd
from gantool.models.resampling import rewritten
from gantool.players import Players

DCGAN = {
    "generator": {"kind": "conv", "latent_dim": 8, "width": 8, "max_width": 16, "norm": "batch"},
    "discriminator": {"kind": "conv", "width": 8, "max_width": 16, "norm": "batch"},
    "loss": "bce",
}
WGAN_GP = {
    "generator": {"kind": "resnet", "latent_dim": 8, "width": 8, "max_width": 8, "upsample": "nearest"},
    "discriminator": {"kind": "resnet", "width": 8, "max_width": 8},
    "loss": "wasserstein",
    "penalty": {"kind": "gp", "weight": 10.0},
    "n_dis": 2,
}


def bce(real: Tensor, fake: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros_like(fake)
    )


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "bce": (bce, lambda fake: F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))),
    "wasserstein": (lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()),
}


@pytest.mark.parametrize(
    ("settings", "forms"),
    [(DCGAN, {"forward"}), (WGAN_GP, {"_with_box", "_convolved", "forward"})],
    ids=["dcgan", "wgan-gp"],
)
def test_50_steps_are_those_of_a_plain_loop(
    settings: dict[str, Any], forms: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In float64: 50 steps make of the roundings of float32 whatever they like.
    monkeypatch.setattr(Players, "call", lambda self, network, inputs, labels: network(inputs))
    monkeypatch.setattr(Players, "share", lambda self, values, share=Players.share: share(self, values).double())
    monkeypatch.setattr(RealImages, "batch", lambda self, draw, batch=RealImages.batch: batch(self, draw).double())
    rates = {name: {"lr": 5e-4, "beta1": 0.5, "beta2": 0.9} for name in ("generator", "discriminator")}
    ema = {"decay": 0.9, "warmup": False}
    data = {"name": "shapes", "size": 16}
    torch.set_default_dtype(torch.float64)
    try:
        fast = players(tmp_path, data=data, optimizer=rates, ema=ema, **settings)
    finally:
        torch.set_default_dtype(torch.float32)
    config, state = fast.config, fast.state
    for module, rule in ((resampling, "_pays_as_product"), (winograd, "_pays")):
        monkeypatch.setattr(module, rule, lambda *_: resampling.rewrites_wanted())
    used = set()
    for module, name in ((resampling, "_with_box"), (winograd, "_convolved"), (resampling._Columns, "forward")):
        form = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, f=form: used.add(n) or f(*a))

    # Plain: own copies, real and generated images in passes of their own, torch's Adam, nothing frozen, nothing shared.
    generator, discriminator, average = (copy.deepcopy(n) for n in (state.generator, state.discriminator, state.ema))
    of_generator, of_discriminator = (
        torch.optim.Adam(network.parameters(), lr=5e-4, betas=(0.5, 0.9)) for network in (generator, discriminator)
    )
    of_both, of_fakes = LOSSES[config.loss.kind]

    def penalty(real: Tensor, fake: Tensor) -> Tensor:
        mix = fast._mix()[:, None, None, None]
        mixed = (mix * real + (1 - mix) * fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
        return 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()

    def plain_step(step: int) -> tuple[float, float]:
        total = 0.0
        for update in range(config.n_dis):
            fast.update = update
            of_discriminator.zero_grad()
            real = fast.real.batch(step * config.n_dis + update)
            fake = generator(fast.latents("discriminator", step, update)).detach()
            loss = of_both(discriminator(real), discriminator(fake))
            total += loss.item()
            if config.penalty.kind == "gp":
                loss = loss + penalty(real, fake)
            loss.backward()
            of_discriminator.step()
        of_generator.zero_grad()
        loss = of_fakes(discriminator(generator(fast.latents("generator", step))))
        loss.backward()
        of_generator.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), generator.parameters(), strict=True):
                mean.mul_(0.9).add_(value, alpha=0.1)
        return total / config.n_dis, loss.item()

    for step in range(50):
        state.step = step
        with rewritten(False):
            expected = plain_step(step)
        assert fast.step()[:2].tolist() == pytest.approx(expected, rel=1e-6)
        state.update_ema()
    for ours, plain in ((state.generator, generator), (state.discriminator, discriminator)):
        torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-6, atol=1e-8)
    for mean, value in zip(state.ema.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(mean, value, rtol=1e-6, atol=1e-8)
    assert used == forms
