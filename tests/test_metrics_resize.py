"""Resizing for the extractors: by hand, by Pillow, and by the way NVIDIA wrote it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from gantool.metrics.resize import PROTOCOLS, antialiased, like_clean_fid, like_pytorch_fid, like_tf1


def noise(num: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(num)
    return torch.randint(0, 256, (num, height, width, channels), generator=rng, dtype=torch.uint8)


def straight_resize(images: Tensor, side: int) -> Tensor:
    """TensorFlow 1's resize_bilinear as its kernel is written: four neighbours of each target pixel, x first."""
    height, width = images.shape[1:3]
    out = torch.empty(len(images), side, side, images.shape[3])
    pixels, scales = images.float(), torch.tensor([height / side, width / side], dtype=torch.float32)
    for i in range(side):
        y = torch.tensor(float(i)) * scales[0]
        top, dy = int(y), y - int(y)
        bottom = min(top + 1, height - 1)
        for j in range(side):
            x = torch.tensor(float(j)) * scales[1]
            left, dx = int(x), x - int(x)
            right = min(left + 1, width - 1)
            above = pixels[:, top, left] + (pixels[:, top, right] - pixels[:, top, left]) * dx
            below = pixels[:, bottom, left] + (pixels[:, bottom, right] - pixels[:, bottom, left]) * dx
            out[:, i, j] = above + (below - above) * dy
    return out


@pytest.mark.parametrize(("height", "width", "side"), [(8, 12, 29), (28, 28, 37), (40, 64, 37), (31, 31, 31)])
def test_tf1_is_tensorflows_to_the_last_bit(height: int, width: int, side: int) -> None:
    images = noise(2, height, width)
    expected = (straight_resize(images, side) - 128) / 128
    assert torch.equal(like_tf1(images, side), expected.permute(0, 3, 1, 2))


@pytest.mark.parametrize("size", [32, 512])
def test_tf1_is_nvidias_grid_sample_within_a_fraction_of_a_grey_level(size: int) -> None:
    images = noise(2, size, size)
    theta = torch.eye(2, 3)
    theta[:, 2] += 1 / size - 1 / 299
    grid = F.affine_grid(theta.expand(2, -1, -1), [2, 3, 299, 299], align_corners=False)
    pixels = images.permute(0, 3, 1, 2).float()
    expected = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    error = (like_tf1(images) * 128 + 128 - expected).abs().max()
    assert float(error) < (1e-3 if size == 32 else 3e-2)  # its coordinates are float32 numbers in -1..1


@pytest.mark.parametrize(("size", "side"), [(8, 29), (40, 37), (31, 31)])
def test_pytorch_fids_has_half_pixel_centres_and_no_antialiasing(size: int, side: int) -> None:
    images = noise(2, size, size)
    centre = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, None)
    low = centre.astype(int)
    matrix = np.zeros((side, size))
    for i in range(side):
        matrix[i, low[i]] += 1 - (centre[i] - low[i])
        matrix[i, min(low[i] + 1, size - 1)] += centre[i] - low[i]
    expected = np.einsum("iy,nyxc,jx->ncij", matrix, images.numpy() / 255, matrix) * 2 - 1
    np.testing.assert_allclose(like_pytorch_fid(images, side).numpy(), expected, atol=1e-5)


def pillow(images: Tensor, side: int, method: Image.Resampling) -> Tensor:
    """Each channel for itself as Pillow resizes floats."""
    planes = [
        np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize((side, side), method))
        for image in images.numpy()
        for c in range(images.shape[3])
    ]
    return torch.from_numpy(np.stack(planes)).reshape(len(images), images.shape[3], side, side)


@pytest.mark.parametrize("size", [32, 299, 512])
def test_clean_is_pillows_bicubic(size: int) -> None:
    images = noise(2, size, size)
    expected = pillow(images, 299, Image.Resampling.BICUBIC).clamp(0, 255)
    error = (like_clean_fid(images) * 128 + 128 - expected).abs().max()
    assert float(error) < 5e-3  # grey levels


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 300])
def test_antialiased_is_pillows(mode: str, size: int) -> None:
    images = noise(2, size, size)
    mean, deviation = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    found = antialiased(images, 64, mode, mean, deviation)
    expected = pillow(images, 64, Image.Resampling[mode.upper()]).clamp(0, 255) / 255
    expected = (expected - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    assert float((found - expected).abs().max()) < 1e-4


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(PROTOCOLS)),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 3]),
    st.integers(0, 255),
)
def test_an_even_image_stays_even(protocol: str, height: int, width: int, channels: int, grey: int) -> None:
    images = torch.full((1, height, width, channels), grey, dtype=torch.uint8)
    found = PROTOCOLS[protocol].resize(images)
    expected = grey / 127.5 - 1 if protocol == "pytorch-fid" else (grey - 128) / 128
    assert found.shape == (1, 3, 299, 299) and found.dtype == torch.float32
    assert float((found - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_grey_is_repeated_and_the_channels_come_last(protocol: str) -> None:
    grey = noise(2, 12, 20, 1)
    found = PROTOCOLS[protocol].resize(grey)
    torch.testing.assert_close(found, PROTOCOLS[protocol].resize(grey.expand(-1, -1, -1, 3)), rtol=0, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    # The resizes of two protocols either are the same function, or have different labels.
    for other, (resize, label, _) in PROTOCOLS.items():
        assert (label == PROTOCOLS[protocol].label) == (resize is PROTOCOLS[protocol].resize), other
        assert torch.equal(found, resize(grey)) == (label == PROTOCOLS[protocol].label)
