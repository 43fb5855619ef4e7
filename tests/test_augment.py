"""DiffAugment and ADA: plain numpy versions, exact permutations, gradients of both orders, the rule that moves p."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage, special
from torch import Tensor

from gantool.config.base import Ramp
from gantool.config.objective import AdaAugment, R1Penalty
from gantool.data import ada, diffaugment
from gantool.data.ada import Ada
from gantool.penalties import Side, zero_centred_penalty

CPU = torch.device("cpu")
POLICY = ("color", "translation", "cutout")
LAST = 1 - 2**-24  # the largest draw


def some_images(batch: int, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(-1, 1, (batch, channels, size, size)).astype(np.float32))


def some_draws(batch: int, num: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((batch, num), dtype=np.float32))


# DiffAugment


def plain_diffaugment(policy: tuple[str, ...], image: np.ndarray, draws: list[float]) -> np.ndarray:
    brightness, saturation, contrast, down, right, row, column = draws
    size = image.shape[-1]
    if "color" in policy:
        image = image + (brightness - 0.5)
        image = image.mean(0) + (image - image.mean(0)) * (2 * saturation)
        image = image.mean() + (image - image.mean()) * (contrast + 0.5)
    if "translation" in policy:
        most = math.floor(size / 8 + 0.5)
        dy, dx = (math.floor(u * (2 * most + 1)) - most for u in (down, right))
        padded = np.pad(image, ((0, 0), (most, most), (most, most)))
        image = padded[:, most - dy : most - dy + size, most - dx : most - dx + size]
    if "cutout" in policy:
        length = size // 2
        places = size + 1 - length % 2
        y, x = (math.floor(u * places) - length // 2 for u in (row, column))
        image = image.copy()
        image[:, max(y, 0) : y + length, max(x, 0) : x + length] = 0
    return image


@pytest.mark.parametrize("policy", [("color",), ("translation",), ("cutout",), POLICY, POLICY[::-1]])
@pytest.mark.parametrize(("size", "channels"), [(8, 3), (20, 3), (28, 1)])
def test_diffaugment_is_what_plain_numpy_does(policy: tuple[str, ...], size: int, channels: int) -> None:
    images, draws = some_images(16, channels, size), some_draws(16, diffaugment.NUM_DRAWS)
    found = diffaugment.diffaugment(policy, images, draws)
    expected = [plain_diffaugment(policy, i.double().numpy(), d.tolist()) for i, d in zip(images, draws, strict=True)]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-5)


def test_translation_goes_as_far_to_both_sides() -> None:
    images = torch.zeros(3, 1, 16, 16)
    images[:, :, 7, 7] = 1
    draws = torch.full((3, diffaugment.NUM_DRAWS), 0.5)
    draws[1, 3:5], draws[2, 3:5] = 0.0, LAST
    found = diffaugment.diffaugment(("translation",), images, draws)
    assert found.nonzero()[:, 2:].tolist() == [[7, 7], [5, 5], [9, 9]]


def test_cutout_is_half_the_side_and_reaches_every_corner() -> None:
    draws = torch.full((3, diffaugment.NUM_DRAWS), 0.5)
    draws[1, 5:], draws[2, 5:] = 0.0, LAST
    found = diffaugment.diffaugment(("cutout",), torch.ones(3, 2, 16, 16), draws)
    expected = torch.ones(3, 2, 16, 16)
    expected[0, :, 4:12, 4:12] = expected[1, :, :4, :4] = expected[2, :, 12:, 12:] = 0
    assert torch.equal(found, expected)


# ADA: the changes


def column(name: str) -> int:
    """Where the number of a change is among the draws."""
    return len(ada._CHANGES) + ada._NAMES.index(name)


def neutral_draws(batch: int, **numbers: float) -> Tensor:
    """Draws with which nothing but the named changes has an effect, at any p."""
    draws = torch.full((batch, ada.NUM_DRAWS), 0.5)
    for name in ("flip", "turn", "invert"):
        draws[:, column(name)] = 0
    for name, number in numbers.items():
        draws[:, column(name)] = number
    return draws


def plain_ada(p: float, image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The pipeline as StyleGAN2-ADA writes it: 3x3 and 4x4 matrices, resampled by scipy."""
    rotation_p = 1 - math.sqrt(1 - p)
    gates = {name: draws[i] < (rotation_p if "rotate" in name else p) for i, name in enumerate(ada._CHANGES)}
    gates |= {"shift_y": gates["shift"], "drift_y": gates["drift"]}

    def uniform(name: str) -> float:
        return gates[name] * (2 * draws[column(name)] - 1)

    def normal(name: str) -> float:
        return gates[name] * special.ndtri(draws[column(name)] + 2**-25)

    def choice(name: str, num: int) -> int:
        return int(gates[name] * math.floor(num * draws[column(name)]))

    def rotation(angle: float) -> np.ndarray:
        c, s = math.cos(angle), math.sin(angle)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

    def translation(x: float, y: float) -> np.ndarray:
        return np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])

    channels, size = image.shape[0], image.shape[1]
    scale, stretch = 2 ** (0.2 * normal("scale")), 2 ** (0.2 * normal("stretch"))
    inverse = np.diag([1 - 2 * choice("flip", 2), 1, 1]) @ rotation(math.pi / 2 * choice("turn", 4))
    inverse = inverse @ translation(round(uniform("shift") * size / 8), round(uniform("shift_y") * size / 8))
    inverse = inverse @ np.diag([1 / scale, 1 / scale, 1]) @ rotation(math.pi * uniform("rotate"))
    inverse = inverse @ np.diag([1 / stretch, stretch, 1]) @ rotation(math.pi * uniform("rotate_again"))
    inverse = inverse @ translation(normal("drift") * size / 8, normal("drift_y") * size / 8)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    at = np.einsum("ij,jyx->iyx", inverse, np.stack([x, y, np.ones_like(x)])) + (size - 1) / 2
    image = np.stack([ndimage.map_coordinates(c, [at[1], at[0]], order=1, mode="reflect") for c in image])

    axis = np.array([1, 1, 1, 0]) / math.sqrt(3)
    along = np.outer(axis, axis)
    cross = np.zeros((4, 4))
    cross[:3, :3] = np.cross(axis[:3], np.eye(3)).T  # the product axis x .
    brightness, contrast = np.eye(4), np.diag([2 ** (0.5 * normal("contrast"))] * 3 + [1.0])
    brightness[:3, 3] = 0.2 * normal("brightness")
    color = (np.eye(4) - 2 * choice("invert", 2) * along) @ contrast @ brightness
    if channels == 3:
        angle, across = math.pi * uniform("hue"), np.diag([1.0, 1, 1, 0]) - along
        turn = np.diag([0.0, 0, 0, 1]) + along + math.cos(angle) * across + math.sin(angle) * cross
        color = (np.diag([0.0, 0, 0, 1]) + along + 2 ** normal("saturation") * across) @ turn @ color
        return np.einsum("ij,jyx->iyx", color[:3, :3], image) + color[:3, 3, None, None]
    mean = color[:3].mean(0)
    return image * mean[:3].sum() + mean[3]


@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize(("size", "channels"), [(8, 3), (12, 1), (28, 3)])
def test_ada_is_what_plain_matrices_do(p: float, size: int, channels: int) -> None:
    images, draws = some_images(24, channels, size), some_draws(24, ada.NUM_DRAWS)
    found = ada.augment(torch.tensor(p), images, draws)
    expected = [plain_ada(p, i.double().numpy(), d.double().numpy()) for i, d in zip(images, draws, strict=True)]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_bit_for_bit_where_nothing_happens(channels: int) -> None:
    images = some_images(50, channels, 12).contiguous(memory_format=torch.channels_last)
    draws = some_draws(50, ada.NUM_DRAWS)
    found = ada.augment(torch.tensor(0.0), images, draws)
    assert torch.equal(found, images) and found.is_contiguous(memory_format=torch.channels_last)
    draws[:25, : len(ada._CHANGES)] = LAST  # above p: not for these images
    found = ada.augment(torch.tensor(LAST), images, draws)
    assert torch.equal(found[:25], images[:25])
    assert (found[25:] != images[25:]).flatten(1).any(1).all()


def test_flips_turns_and_shifts_move_whole_pixels() -> None:
    images, p = some_images(2, 3, 8), torch.tensor(1.0)
    for numbers, expected in (
        ({"flip": 0.5}, images.flip(3)),
        ({"turn": 0.25}, images.rot90(1, (2, 3))),
        ({"turn": 0.5}, images.flip(2, 3)),
        ({"turn": LAST}, images.rot90(3, (2, 3))),
        ({"flip": LAST, "turn": 0.3}, images.flip(3).rot90(1, (2, 3))),
        ({"shift": LAST}, torch.cat([images[..., :1], images[..., :-1]], 3)),
        ({"shift_y": 0.0}, torch.cat([images[:, :, 1:], images[:, :, -1:]], 2)),
    ):
        found = ada.augment(p, images, neutral_draws(2, **numbers))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=str(numbers))


def test_colours_by_hand() -> None:
    images, p = some_images(2), torch.tensor(1.0)
    inverted = ada.augment(p, images, neutral_draws(2, invert=LAST))
    mean = images.mean(1, keepdim=True)
    torch.testing.assert_close(inverted, images - 2 * mean, atol=1e-5, rtol=0)
    third = ada.augment(p, images, neutral_draws(2, hue=0.5 + 1 / 3))  # 120 degrees: red becomes green
    torch.testing.assert_close(third, images.roll(1, 1), atol=1e-5, rtol=0)
    one = float(special.ndtr(1.0))
    for name, expected in (
        ("brightness", images + 0.2),
        ("contrast", images * math.sqrt(2)),
        ("saturation", mean + 2 * (images - mean)),
    ):
        found = ada.augment(p, images, neutral_draws(2, **{name: one}))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=name)
    grey = some_images(2, 1)
    found = ada.augment(p, grey, neutral_draws(2, hue=0.9, saturation=0.9, invert=0.7))
    torch.testing.assert_close(found, -grey, atol=1e-5, rtol=0)


def test_the_extreme_draws_are_finite() -> None:
    draws = torch.stack([torch.zeros(ada.NUM_DRAWS), torch.full((ada.NUM_DRAWS,), LAST)])
    assert torch.isfinite(ada.augment(torch.tensor(1.0), some_images(2), draws)).all()


def test_each_rotation_has_its_own_share_of_p() -> None:
    # P(either of the two) = p: at p = 0.75 each has 1/2.
    images = some_images(4)
    draws = neutral_draws(4, rotate=0.8)
    draws[:, : len(ada._CHANGES)] = LAST
    draws[:, ada._CHANGES.index("rotate")] = torch.tensor([0.0, 0.499, 0.501, 0.74])
    changed = (ada.augment(torch.tensor(0.75), images, draws) != images).flatten(1).any(1)
    assert changed.tolist() == [True, True, False, False]


# Both


def change_by_diffaugment(images: Tensor) -> Tensor:
    return diffaugment.diffaugment(POLICY, images, some_draws(len(images), diffaugment.NUM_DRAWS, 2))


def change_by_ada(images: Tensor) -> Tensor:
    return ada.augment(torch.tensor(0.7), images, some_draws(len(images), ada.NUM_DRAWS, 2))


both = pytest.mark.parametrize("change", [change_by_diffaugment, change_by_ada])


@both
def test_gradients_reach_the_images(change: Callable[[Tensor], Tensor]) -> None:
    images = some_images(2, 3, 4).double().requires_grad_()
    assert change(images).dtype == torch.float64
    assert torch.autograd.gradcheck(change, (images,))
    assert torch.autograd.gradgradcheck(lambda x: change(x).tanh(), (images,))


@both
def test_a_gradient_penalty_through_the_change_is_the_one_of_its_matrix(change: Callable[[Tensor], Tensor]) -> None:
    # The change is x -> A x + b, so the critic w.(A x + b) has the gradient A' w.
    image, size = some_images(1, 3, 4).double(), 48
    offset = change(torch.zeros_like(image)).flatten()
    columns = [change(unit.view(1, 3, 4, 4)).flatten() - offset for unit in torch.eye(size, dtype=torch.float64)]
    weight = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    expected = (torch.stack(columns) @ weight).square().sum() / 2
    side = Side(lambda x: change(x).flatten(1) @ weight, image)
    found = zero_centred_penalty(R1Penalty(), 1.0, 0, side, side)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(value, weight)[0] for value in (found, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("name", ["diffaugment", "ada"])
def test_shares_of_ranks_are_the_global_batch(name: str) -> None:
    images = some_images(12)
    draws = some_draws(12, (ada if name == "ada" else diffaugment).NUM_DRAWS)

    def change(rows: slice) -> Tensor:
        if name == "ada":
            return ada.augment(torch.tensor(0.6), images[rows], draws[rows])
        return diffaugment.diffaugment(POLICY, images[rows], draws[rows])

    whole = change(slice(0, 12))
    assert not torch.equal(whole, images)
    for ranks in (2, 3):
        share = 12 // ranks
        parts = torch.cat([change(slice(r * share, (r + 1) * share)) for r in range(ranks)])
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)


# ADA: how p moves


def observed(settings: AdaAugment, batch: int, signs: list[float]) -> list[float]:
    held = Ada(settings, batch, CPU)
    found = []
    for sign in signs:
        held.observe(torch.tensor(sign))
        found.append(held.p.item())
    return found


def test_p_moves_by_the_sign_of_the_mean_of_an_interval() -> None:
    settings = AdaAugment(target=0.5, p=0.25, interval=2, kimg=1.0)  # 2 * 64 / 1000 at a time
    step = 0.128
    # Means: 0.6 (up), 0.4 (down), exactly 0.5 (stays), 0.9 (up).
    found = observed(settings, 64, [0.2, 1.0, 0.9, -0.1, 0.25, 0.75, 0.8, 1.0])
    up = 0.25 + step
    assert found == pytest.approx([0.25, up, up, 0.25, 0.25, 0.25, 0.25, up])


def test_p_stays_between_0_and_1_and_takes_kimg_for_the_way() -> None:
    settings = AdaAugment(target=0.6, interval=4, kimg=1.6)
    up = observed(settings, 16, [1.0] * 120)
    assert up[98] < 0.99 and up[99] == pytest.approx(1.0, abs=1e-5)  # 100 batches of 16 are 1.6 kimg
    assert max(up) == up[-1] == 1
    assert min(observed(settings, 16, [-1.0] * 40)) == 0
    down = observed(AdaAugment(p=0.5, interval=4, kimg=1.6), 16, [-1.0] * 120)
    assert down[-1] == 0 == min(down)


def test_p_stays_without_a_target() -> None:
    assert observed(AdaAugment(target=None, p=0.25, interval=1), 64, [1.0, -1.0, 1.0]) == [0.25] * 3
    assert Ada(AdaAugment(target=None, p=Ramp(start=0.125, end=0.5)), 64, CPU).p.item() == 0.125


@pytest.mark.parametrize("stop", range(1, 8))
def test_p_goes_on_from_its_state_in_the_middle_of_an_interval(stop: int) -> None:
    settings = AdaAugment(target=0.1, p=0.3, interval=3, kimg=5.0)
    signs = torch.tensor([0.3, -0.2, 0.7, 0.1, -0.9, 0.2, 0.4, 0.4, 0.4])
    whole, first, second = (Ada(settings, 32, CPU) for _ in range(3))
    for sign in signs:
        whole.observe(sign)
    for sign in signs[:stop]:
        first.observe(sign)
    second.state = first.state.clone()
    for sign in signs[stop:]:
        second.observe(sign)
    assert torch.equal(whole.state, second.state)
    assert whole.p.item() != settings.p


def test_the_held_p_is_the_one_that_augments() -> None:
    images, draws = some_images(8), some_draws(8, ada.NUM_DRAWS)
    held = Ada(AdaAugment(target=0.0, interval=1, kimg=0.01), 5, CPU)
    assert torch.equal(held.augment(images, draws), images)
    held.observe(torch.tensor(1.0))
    assert torch.equal(held.augment(images, draws), ada.augment(torch.tensor(0.5), images, draws))
