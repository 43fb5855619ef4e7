"""Batches as functions of the draw, for any number of ranks; augmentation against plain implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gantool import randomness
from gantool.config.objective import AdvancedAugment, BasicAugment, NoAugment
from gantool.data import augment
from gantool.data.loader import RealImages, draw_indices, to_float, to_uint8

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(("num_images", "batch"), [(10, 4), (7, 16), (12, 12), (5, 2)])
def test_every_epoch_shows_each_image_once(num_images: int, batch: int) -> None:
    stream = np.concatenate([draw_indices(3, num_images, batch, draw) for draw in range(num_images * 4)])
    for epoch in range(len(stream) // num_images):
        assert sorted(stream[epoch * num_images : (epoch + 1) * num_images]) == list(range(num_images))
    epochs = stream[: num_images * 4].reshape(4, num_images)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # another order in another epoch
    assert not np.array_equal(
        stream, np.concatenate([draw_indices(4, num_images, batch, d) for d in range(num_images * 4)])
    )


@pytest.mark.parametrize("settings", [NoAugment(), BasicAugment(), AdvancedAugment(cutout=0.5)])
def test_shares_of_ranks_are_the_global_batch(settings: NoAugment | BasicAugment | AdvancedAugment) -> None:
    whole = RealImages(IMAGES, settings, 1, 12, CPU)
    for ranks in (2, 3):
        parts = [RealImages(IMAGES, settings, 1, 12, CPU, rank, ranks) for rank in range(ranks)]
        for draw in (0, 3, 7):
            assert torch.equal(whole.batch(draw), torch.cat([part.batch(draw) for part in parts]))


def test_prefetched_batches_equal_resident_ones_in_any_order() -> None:
    resident, fetched = RealImages(IMAGES, BasicAugment(), 1, 12, CPU), RealImages(IMAGES, BasicAugment(), 1, 12, CPU)
    fetched.resident = False
    for draw in (0, 1, 2, 5, 1):
        assert torch.equal(resident.batch(draw), fetched.batch(draw))


def test_uint8_survives_the_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    floats = to_float(values)
    assert floats.min() == -1 and floats.max() == 1
    assert torch.equal(to_uint8(floats), values)
    assert to_uint8(torch.tensor([[[[-7.0]], [[7.0]]]])).flatten().tolist() == [0, 255]


def test_no_augmentation_gives_the_images() -> None:
    loader = RealImages(IMAGES, NoAugment(), 5, 10, CPU)
    assert np.array_equal(to_uint8(loader.batch(2)).numpy(), IMAGES[draw_indices(5, 50, 10, 2)])


def test_basic_is_a_reflected_shift_and_a_mirror_image() -> None:
    settings = BasicAugment(flip=0.5, shift=3)
    loader = RealImages(IMAGES, settings, 5, 10, CPU)
    got = to_uint8(loader.batch(1)).numpy()
    rng = randomness.generator(5, "augment", 1)
    shifts = rng.integers(-3, 4, size=(2, 10, 1))[:, :, 0]
    flips = rng.random((10, 1))[:, 0] < 0.5
    for image, index, dy, dx, flip in zip(got, draw_indices(5, 50, 10, 1), *shifts, flips, strict=True):
        padded = np.pad(IMAGES[index], ((3, 3), (3, 3), (0, 0)), mode="reflect")
        expected = padded[3 + dy : 11 + dy, 3 + dx : 11 + dx]
        assert np.array_equal(image, expected[:, ::-1] if flip else expected)
    assert 0 < flips.sum() < 10


def test_advanced_without_strength_changes_nothing() -> None:
    settings = AdvancedAugment(flip=0.0, crop=1.0, color=0.0, cutout=0.0)
    loader = RealImages(IMAGES, settings, 5, 10, CPU)
    expected = to_float(torch.from_numpy(IMAGES[draw_indices(5, 50, 10, 0)]))
    torch.testing.assert_close(loader.batch(0), expected, atol=1e-5, rtol=0)


def test_advanced_mirror_crop_colour_and_cutout() -> None:
    images = to_float(torch.from_numpy(IMAGES[:6]))
    draws = torch.zeros(6, 9)
    draws[:, 0], draws[:, 3], draws[:, 7] = 1, -1, 0.999
    mirrored = augment.advanced(AdvancedAugment(), images, draws)
    torch.testing.assert_close(mirrored, images.flip(3), atol=1e-5, rtol=0)
    draws[:, 3] = 1
    draws[:, 0], draws[:, 1], draws[:, 2] = 0.5, -0.5, -0.5  # the upper left quarter, enlarged
    quarter = torch.nn.functional.interpolate(images[:, :, :4, :4], scale_factor=2, mode="bilinear")
    cropped = augment.advanced(AdvancedAugment(), images, draws)
    torch.testing.assert_close(cropped[:, :, 1:-1, 1:-1], quarter[:, :, 1:-1, 1:-1], atol=1e-5, rtol=0)
    draws[:, 0], draws[:, 1], draws[:, 2] = 1, 0, 0
    draws[:, 5] = -1.0  # no contrast is left: every image is its mean
    flat = augment.advanced(AdvancedAugment(color=1.0), images, draws)
    torch.testing.assert_close(flat, images.mean((1, 2, 3), keepdim=True).expand_as(images), atol=1e-4, rtol=0)
    draws[:, 5], draws[:, 7], draws[:, 8] = 0, 0.0, 0.0  # a cut with its centre in the upper left corner
    cut = augment.advanced(AdvancedAugment(cutout=0.5, color=0.0), images, draws)
    assert not cut[:, :, :3, :3].any() and torch.allclose(cut[:, :, 3:], images[:, :, 3:], atol=1e-5)


def test_advanced_draws_stay_in_their_ranges() -> None:
    settings = AdvancedAugment(flip=0.3, crop=0.6, color=0.2, cutout=0.4)
    draws = augment.advanced_draws(settings, np.random.default_rng(0), 20_000)
    side, x, y, mirror = draws[:, :4].T
    assert 0.6 <= side.min() < 0.61 and 0.99 < side.max() <= 1
    assert (np.abs(x) <= 1 - side + 1e-6).all() and (np.abs(y) <= 1 - side + 1e-6).all()
    assert np.isclose((mirror < 0).mean(), 0.3, atol=0.02) and set(mirror) == {-1, 1}
    assert np.abs(draws[:, 4:7]).max() <= 0.2


def test_randomness_is_a_function_of_its_key() -> None:
    first = randomness.generator(1, "noise", 2, 3).standard_normal(4)
    assert np.array_equal(first, randomness.generator(1, "noise", 2, 3).standard_normal(4))
    for key in ((2, "noise", 2, 3), (1, "order", 2, 3), (1, "noise", 3, 2), (1, "noise", 2)):
        assert not np.array_equal(first, randomness.generator(*key).standard_normal(4))  # type: ignore[arg-type]
