"""One update of each player: how often weights are normalised, which weights move, what the numbers are made of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from gantool.config.base import Ramp, value_at
from gantool.config.schema import RunConfig
from gantool.data.loader import RealImages
from gantool.data.pack import ensure_packed
from gantool.models.layers import SpectralNorm
from gantool.players import SCALARS, Players
from gantool.progress import Silent
from gantool.runtime import Runtime
from gantool.state import State

SMALL = {"width": 4, "max_width": 4}


def players(data_dir: Path, **settings: Any) -> Players:
    """The players of a small run on `shapes` at 8x8, with 100 steps."""
    tree = {"data": {"name": "shapes", "size": 8}, "batch": 6, "steps": 100, "runtime": {"device": "cpu"}} | settings
    config = RunConfig.model_validate(tree)
    data = ensure_packed(config.data, data_dir, Silent())
    images, labels = data.split("train")
    state = State(config, torch.device("cpu"), len(data.classes))
    real = RealImages(images, config.augment, config.seed, config.batch, torch.device("cpu"))
    return Players(config, state, real, labels, 10, Runtime(config.runtime), lambda length: int(length))


@pytest.mark.parametrize("penalty", ["none", "r1_r2", "gp"])
def test_each_weight_is_normalised_once_and_iterated_once_in_an_update(
    penalty: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    normal = {"spectral_norm": True, **SMALL}
    both = players(
        data_dir,
        generator={"kind": "resnet", "latent_dim": 4, **normal},
        discriminator={"kind": "resnet", **normal},
        loss="hinge",
        penalty=penalty,
    )
    counts = {"forward": 0, "iterate": 0}
    for name in counts:
        original = getattr(SpectralNorm, name)

        def counted(self: SpectralNorm, *args: Any, name: str = name, original: Any = original) -> Any:
            counts[name] += 1
            return original(self, *args)

        monkeypatch.setattr(SpectralNorm, name, counted)
    weights = {
        name: sum(isinstance(m, SpectralNorm) for m in getattr(both.state, name).modules())
        for name in ("generator", "discriminator")
    }
    both.update_discriminator(0)
    assert counts == {"forward": weights["generator"] + weights["discriminator"], "iterate": weights["discriminator"]}
    counts.update(forward=0, iterate=0)
    both.update_generator()
    assert counts == {"forward": weights["generator"] + weights["discriminator"], "iterate": weights["generator"]}


@pytest.mark.parametrize("kind", ["conv", "mlp"])
def test_an_update_moves_its_own_player_alone(kind: str, data_dir: Path) -> None:
    settings = {"kind": kind, "norm": "none", **SMALL} if kind == "conv" else {"kind": kind, "widths": [8]}
    own = {key: value for key, value in settings.items() if not (kind == "mlp" and key == "norm")}
    both = players(data_dir, generator={"latent_dim": 4, **settings}, discriminator=own)
    for update, moved, still in (
        (lambda: both.update_discriminator(0), "discriminator", "generator"),
        (both.update_generator, "generator", "discriminator"),
    ):
        before = {p: [w.clone() for w in getattr(both.state, p).parameters()] for p in ("generator", "discriminator")}
        update()
        after = {p: list(getattr(both.state, p).parameters()) for p in before}
        assert all(torch.equal(a, b) for a, b in zip(before[still], after[still], strict=True))
        assert all(not torch.equal(a, b) for a, b in zip(before[moved], after[moved], strict=True))


def test_the_auxiliary_classifier_is_part_of_both_losses(data_dir: Path) -> None:
    condition = {"kind": "acgan", "weight": 3.0, "generator_weight": 0.5}
    both = players(
        data_dir,
        generator={"kind": "mlp", "latent_dim": 4, "widths": [8], "norm": "none", "condition": "concat"},
        discriminator={"kind": "mlp", "widths": [8], "dropout": 0.0, "condition": condition},
    )
    state = both.state
    real, labels = both.real.batch(0), both.labels_of(both.real, 0)
    fake_labels = both.random_labels("discriminator", 0, 0)
    with torch.no_grad():
        fake = state.generator(both.latents("discriminator", 0, 0), fake_labels)
        (real_logits, classes), (fake_logits, _) = state.discriminator(real), state.discriminator(fake)
        expected = (
            F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean() + 3 * F.cross_entropy(classes, labels)
        )
    numbers = dict(zip(SCALARS, both.update_discriminator(0).tolist(), strict=True))
    assert numbers["loss_d"] == pytest.approx(expected.item(), rel=1e-5)
    labels = both.random_labels("generator", 0)
    with torch.no_grad():
        logits, classes = state.discriminator(state.generator(both.latents("generator", 0), labels))
        expected = F.softplus(-logits).mean() + 0.5 * F.cross_entropy(classes, labels)
    assert both.update_generator().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_relativistic_step_pairs_images_of_one_class(data_dir: Path) -> None:
    both = players(
        data_dir,
        generator={"kind": "mlp", "latent_dim": 4, "widths": [8], "norm": "none", "condition": "concat"},
        discriminator={"kind": "mlp", "widths": [8], "dropout": 0.0, "condition": "projection"},
        loss="relativistic",
    )
    state, images = both.state, both.real_of_generator
    real, labels = images.batch(0), both.labels_of(images, 0)
    assert not torch.equal(real, both.real.batch(0))  # an independent batch
    with torch.no_grad():
        fake = state.generator(both.latents("generator", 0), labels)
        expected = F.softplus(state.discriminator(real, labels) - state.discriminator(fake, labels)).mean()
    assert both.update_generator().item() == pytest.approx(expected.item(), rel=1e-5)


def test_ramps_reach_the_optimizers(data_dir: Path) -> None:
    ramp = {"start": 1e-3, "end": 0.0}
    both = players(
        data_dir,
        generator={"latent_dim": 4, **SMALL},
        discriminator=SMALL,
        optimizer={
            "generator": {"lr": ramp, "beta2": {"start": 0.9, "end": 0.99, "shape": "cosine", "over": 50}},
            "discriminator": {"kind": "sgd", "lr": {"start": 0.1, "end": 0.2, "over": 10}},
        },
    )
    for step, lr, beta2, rate in ((0, 1e-3, 0.9, 0.1), (25, 7.5e-4, 0.945, 0.2), (99, 1e-5, 0.99, 0.2)):
        both.state.step = step
        both.step()
        (generator,), (discriminator,) = (both.state.optimizers[p].param_groups for p in ("generator", "discriminator"))
        assert generator["lr"] == pytest.approx(lr) and generator["betas"] == pytest.approx((0.5, beta2))
        assert discriminator["lr"] == pytest.approx(rate)


def test_ramps_in_closed_form() -> None:
    line, wave = Ramp(start=2.0, end=1.0), Ramp(start=2.0, end=1.0, shape="cosine")
    assert [value_at(line, step, 10) for step in (0, 5, 10, 20)] == [2.0, 1.5, 1.0, 1.0]
    assert [value_at(wave, step, 12) for step in (0, 4, 6, 12, 20)] == pytest.approx([2.0, 1.75, 1.5, 1.0, 1.0])
    assert value_at(0.3, 7, 10) == 0.3


def test_what_a_network_froze_stays_frozen(data_dir: Path) -> None:
    both = players(data_dir, generator={"latent_dim": 4, **SMALL}, discriminator={"norm": "none", **SMALL})
    frozen = next(m for m in both.state.discriminator.modules() if isinstance(m, nn.Conv2d)).weight
    frozen.requires_grad_(False)
    again = Players(
        both.config, both.state, both.real, both.labels, 10, both.runtime, lambda length: 100
    )  # fmt: skip
    before = frozen.clone()
    again.step()
    assert torch.equal(before, frozen) and not frozen.requires_grad


@pytest.mark.parametrize("n_dis", [1, 3])
def test_reused_images_are_those_of_the_discriminators_last_update(n_dis: int, data_dir: Path) -> None:
    """The same weights as a loop written out, in which the generator's update has no pass of its own."""
    mlp = {"kind": "mlp", "widths": [8]}
    nets = {"generator": {"latent_dim": 4, **mlp}, "discriminator": {"dropout": 0.0, **mlp}}
    both = players(data_dir, reuse_fakes=True, n_dis=n_dis, **nets)
    names = ("generator", "discriminator")
    generator, discriminator = (copy.deepcopy(getattr(both.state, name)) for name in names)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
    of_generator = torch.optim.Adam(generator.parameters(), **adam)
    of_discriminator = torch.optim.Adam(discriminator.parameters(), **adam)
    bce = F.binary_cross_entropy_with_logits
    for step in range(3):
        both.step()
        for update in range(n_dis):
            real = both.real.batch(step * n_dis + update)
            fake = generator(both.latents("discriminator", step, update))
            real_logits, fake_logits = discriminator(real), discriminator(fake.detach())
            loss = bce(real_logits, torch.ones(6)) + bce(fake_logits, torch.zeros(6))
            of_discriminator.zero_grad()
            loss.backward()
            of_discriminator.step()
        loss = bce(discriminator(fake), torch.ones(6))
        of_generator.zero_grad()
        loss.backward()
        of_generator.step()
        both.state.step += 1
    for name, network in zip(names, (generator, discriminator), strict=True):
        for one, other in zip(getattr(both.state, name).parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"generator_batch": 4}, "generator_batch is 4"), ({"loss": "relativistic"}, "real images of the same classes")],
)
def test_images_that_cannot_be_reused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        RunConfig.model_validate({"reuse_fakes": True, "batch": 6, **changes})
