"""Augmentation of real images, drawn for the whole global batch from (seed, draw) and applied to a rank's share.

Mirror images and shifts are index arithmetic on uint8, done while the images are gathered; crops, colour and cutout
work on float images in [-1, 1].
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gantool.config.objective import AdvancedAugment, BasicAugment


def basic_indices(
    settings: BasicAugment, rng: np.random.Generator, batch: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Source rows and columns of each image, int64 [batch, size] both: a random shift with the border reflected
    (without repeating the edge), then a random mirror image."""
    shifts = rng.integers(-settings.shift, settings.shift + 1, size=(2, batch, 1))
    flips = rng.random((batch, 1)) < settings.flip
    line = np.arange(size)
    rows, columns = (_reflect(line + shift, size) for shift in shifts)
    return rows, np.where(flips, columns[:, ::-1], columns)


def advanced_draws(settings: AdvancedAugment, rng: np.random.Generator, batch: int) -> np.ndarray:
    """All random numbers of `advanced` for a batch: float32 [batch, 9], see `advanced`."""
    draws = rng.random((batch, 9), dtype=np.float32)
    side = settings.crop + (1 - settings.crop) * draws[:, 0]
    centre = (1 - side)[:, None] * (2 * draws[:, 1:3] - 1)  # of the crop, in [-1, 1] coordinates
    mirror = np.where(draws[:, 3] < settings.flip, -1, 1)
    strengths = settings.color * (2 * draws[:, 4:7] - 1)
    return np.column_stack([side, centre, mirror, strengths, draws[:, 7:9]]).astype(np.float32)


def advanced(settings: AdvancedAugment, images: Tensor, draws: Tensor) -> Tensor:
    """Random crop (resized back, bilinear), mirror image, brightness, contrast, saturation, cutout.

    images: float [B, C, H, W] in [-1, 1]; draws: float [B, 9] of `advanced_draws`; returns the same shape and range.
    """
    side, mirror = draws[:, 0], draws[:, 3]
    zeros = torch.zeros_like(side)
    theta = torch.stack([side * mirror, zeros, draws[:, 1], zeros, side, draws[:, 2]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if settings.color:
        brightness, contrast, saturation = (draws[:, i].view(-1, 1, 1, 1) for i in (4, 5, 6))
        images = images + brightness
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (1 + contrast)
        grey = images.mean(dim=1, keepdim=True)
        images = (grey + (images - grey) * (1 + saturation)).clamp(-1, 1)
    if settings.cutout:
        images = images * _cutout_mask(settings.cutout, images.shape[-1], draws[:, 7], draws[:, 8])
    return images.contiguous(memory_format=torch.channels_last)


def _cutout_mask(probability: float, size: int, first: Tensor, second: Tensor) -> Tensor:
    """1 where the image stays, 0 in a square of half the side with its centre anywhere in the image."""
    line = torch.arange(size, device=first.device)
    row = (first / probability * size).floor().view(-1, 1)  # given that the cut happens, uniform in [0, size)
    column = (second * size).floor().view(-1, 1)
    inside = ((line - row).abs() <= size // 4)[:, :, None] & ((line - column).abs() <= size // 4)[:, None, :]
    cut = inside & (first < probability).view(-1, 1, 1)
    return (~cut).float()[:, None]


def _reflect(positions: np.ndarray, size: int) -> np.ndarray:
    period = 2 * (size - 1)
    positions = np.abs(positions) % period
    return np.where(positions >= size, period - positions, positions)
