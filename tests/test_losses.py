"""Losses: closed forms, second implementations, finite differences; loss files of the user's own, right and wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

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
from gantool.losses import LOSSES, Loss, accuracies, build_loss

BUILT_IN = [
    BceLoss(),
    BceLoss(saturating=True, smoothing=0.1),
    LeastSquaresLoss(),
    LeastSquaresLoss(smoothing=0.2),
    HingeLoss(),
    WassersteinLoss(),
    RelativisticLoss(),
]

FILE = """\
from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Targets:
    real: float = 1.0
    fake: float = -1.0


def discriminator(real, fake):
    return (real - Targets().real).square().mean() + (fake - Targets().fake).square().mean()


def generator(real, fake):
    return fake.square().mean()
"""


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def custom(tmp_path: Path, source: str, **settings: object) -> CustomLoss:
    path = tmp_path / "loss.py"
    path.write_text(source)
    return CustomLoss(file=str(path), **settings)  # type: ignore[arg-type]


def test_every_kind_of_the_config_has_its_loss() -> None:
    assert set(LOSSES) == {settings.model_fields["kind"].default for settings in get_args(AnyLoss)}


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_bce_is_the_cross_entropy_with_soft_targets(smoothing: float) -> None:
    real, fake = logits(50), logits(50, seed=1)
    loss = build_loss(BceLoss(smoothing=smoothing))
    reference = F.binary_cross_entropy_with_logits(real, torch.full_like(real, 1 - smoothing))
    reference += F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
    torch.testing.assert_close(loss.discriminator(real, fake), reference)
    ones = torch.ones_like(fake)
    torch.testing.assert_close(loss.generator(None, fake), F.binary_cross_entropy_with_logits(fake, ones))


def test_smoothed_bce_is_least_where_the_sigmoid_is_the_target() -> None:
    loss = build_loss(BceLoss(smoothing=0.1))
    real = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss.discriminator(real, real.detach()), real)
    assert slope.item() == pytest.approx(0, abs=1e-12)


def test_bce_of_an_undecided_discriminator() -> None:
    undecided = torch.zeros(3)
    assert build_loss(BceLoss()).discriminator(undecided, undecided).item() == pytest.approx(2 * math.log(2))


def test_saturating_generator_minimises_the_value_of_the_game() -> None:
    fake = logits(50)
    value = build_loss(BceLoss(saturating=True)).generator(None, fake)
    torch.testing.assert_close(value, torch.log(1 - torch.sigmoid(fake)).mean())
    # The discriminator's side of the same game: what one of them gains by the fakes, the other loses.
    discriminator = build_loss(BceLoss(saturating=True)).discriminator
    real = torch.full_like(fake, 1e6)
    torch.testing.assert_close(discriminator(real, fake), -value)


def test_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    hinge, squares = build_loss(HingeLoss()), build_loss(LeastSquaresLoss(smoothing=0.25))
    assert hinge.discriminator(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 4) / 3)
    assert hinge.generator(None, fake).item() == pytest.approx(-1 / 3)
    expected = (1.25**2 + 0.25**2 + 1.75**2) / 6 + (4 + 0 + 9) / 6
    assert squares.discriminator(real, fake).item() == pytest.approx(expected)
    assert squares.generator(None, fake).item() == pytest.approx((9 + 1 + 4) / 6)
    wasserstein = build_loss(WassersteinLoss())
    assert wasserstein.discriminator(real, fake).item() == pytest.approx(1 / 3 - 1.5 / 3)
    assert wasserstein.generator(None, fake).item() == pytest.approx(-1 / 3)


def test_relativistic_compares_pairs() -> None:
    loss = build_loss(RelativisticLoss())
    real, fake = logits(50), logits(50, seed=1)
    torch.testing.assert_close(loss.discriminator(real, fake), -torch.log(torch.sigmoid(real - fake)).mean())
    torch.testing.assert_close(loss.generator(real, fake), -torch.log(torch.sigmoid(fake - real)).mean())
    torch.testing.assert_close(loss.discriminator(real + 7, fake + 7), loss.discriminator(real, fake))
    assert not torch.isclose(loss.discriminator(real.flip(0), fake), loss.discriminator(real, fake))


@pytest.mark.parametrize("settings", BUILT_IN, ids=str)
def test_gradients_by_finite_differences(settings: AnyLoss) -> None:
    loss = build_loss(settings)
    real, fake = logits(6).requires_grad_(), logits(6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    first = real if loss.paired else None
    assert torch.autograd.gradcheck(lambda logits: loss.generator(first, logits), (fake,))


@pytest.mark.parametrize("settings", BUILT_IN, ids=str)
def test_a_loss_is_the_mean_over_the_images(settings: AnyLoss) -> None:
    loss = build_loss(settings)
    real, fake = logits(6), logits(6, seed=1)
    each = torch.stack([loss.discriminator(real[i : i + 1], fake[i : i + 1]) for i in range(6)]).mean()
    torch.testing.assert_close(loss.discriminator(real, fake), each)
    each = torch.stack([loss.generator(real[i : i + 1], fake[i : i + 1]) for i in range(6)]).mean()
    torch.testing.assert_close(loss.generator(real, fake), each)


def test_accuracies_count_from_the_boundary_of_the_loss() -> None:
    real, fake = torch.tensor([0.7, 0.2, -1.0, 0.0]), torch.tensor([0.6, 0.3, -2.0, 5.0])
    bce, squares = build_loss(BceLoss()), build_loss(LeastSquaresLoss())
    assert [x.item() for x in accuracies(bce, real, fake)] == [0.5, 0.25]
    assert [x.item() for x in accuracies(squares, real, fake)] == [0.25, 0.5]
    for settings in (WassersteinLoss(), RelativisticLoss()):
        assert [x.item() for x in accuracies(build_loss(settings), real, fake)] == [0.5, 0.5]


def test_a_loss_file_of_the_users_own(tmp_path: Path) -> None:
    loss = build_loss(custom(tmp_path, FILE, boundary=0.25))
    real, fake = logits(5), logits(5, seed=1)
    expected = (real - 1).square().mean() + (fake + 1).square().mean()
    torch.testing.assert_close(loss.discriminator(real, fake), expected)
    torch.testing.assert_close(loss.generator(None, fake), fake.square().mean())
    assert (loss.paired, loss.boundary) == (False, 0.25)


def test_a_paired_loss_file_gets_real_logits(tmp_path: Path) -> None:
    source = FILE.replace("return fake.square().mean()", "return (real - fake).square().mean()")
    loss = build_loss(custom(tmp_path, source, paired=True, boundary=None))
    assert loss.paired and loss.boundary is None
    assert loss.generator(torch.ones(2), torch.zeros(2)).item() == 1
    with pytest.raises(UsageError, match=r"generator\(real, fake\): TypeError.*\(line 19\)") as found:
        build_loss(custom(tmp_path, source))
    assert "loss.paired" in str(found.value.hint)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("import torch\n", "import torch\n1 / 0\n", "ZeroDivisionError"),
        ("import torch\n", "import no_such_package\n", "no_such_package"),
        ("def generator", "del discriminator\ndef generator", "has no function discriminator"),
        (".square().mean() +", ".square() +", r"discriminator\(real, fake\) returns a tensor of shape \[4\]"),
        ("return fake.square().mean()", "return 3.0", r"generator\(real, fake\) returns a float"),
        ("return fake.square().mean()", "return fake.detach().mean()", "a scalar without a gradient"),
        ("return fake.square().mean()", "return fakes.mean()", "name 'fakes' is not defined"),
        ("def generator(real, fake)", "def generator(fake)", "takes 1 positional argument"),
    ],
)
def test_wrong_loss_files_are_told_before_the_first_step(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in FILE
    settings = custom(tmp_path, FILE.replace(old, new))
    with pytest.raises(UsageError, match=message) as found:
        build_loss(settings)
    assert str(tmp_path / "loss.py") in found.value.message and found.value.hint


def test_a_loss_file_that_is_changed_or_gone(tmp_path: Path) -> None:
    settings = custom(tmp_path, FILE)
    assert isinstance(build_loss(settings), Loss)
    path = Path(settings.file)
    path.write_text(FILE.replace("1.0", "2.0"))
    with pytest.raises(UsageError, match=str(settings.digest)):
        build_loss(settings)
    path.unlink()
    with pytest.raises(UsageError, match=r"loss\.py: cannot be read"):
        build_loss(settings)
