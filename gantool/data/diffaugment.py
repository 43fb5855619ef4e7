"""DiffAugment (Zhao et al., 2020): differentiable changes of real and generated images before the discriminator.

Agrees with `DiffAugment_pytorch.py` of the authors; the random numbers come from outside, one row for each image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NUM_DRAWS = 7
"""Random numbers of an image: brightness, saturation, contrast, shift down and right, row and column of the cutout."""


def diffaugment(policy: Sequence[str], images: Tensor, draws: Tensor) -> Tensor:
    """The changes that `policy` names, in the order color, translation, cutout.

    images: float [B, C, H, W] in [-1, 1]; draws: float32 [B, NUM_DRAWS], uniform in [0, 1). Returns the same shape;
    color may leave [-1, 1], and what comes in from outside or is cut out is 0 (mid-grey).
    """
    if "color" in policy:
        images = _color(images, draws[:, :3].to(images.dtype))
    if "translation" in policy:
        images = _translation(images, draws[:, 3], draws[:, 4])
    if "cutout" in policy:
        images = _cutout(images, draws[:, 5], draws[:, 6])
    return images


def _color(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness + U(-0.5, 0.5), saturation * U(0, 2), contrast * U(0.5, 1.5)."""
    brightness, saturation, contrast = draws.view(-1, 3, 1, 1, 1).unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def _translation(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """A whole number of pixels along each axis, uniform up to an eighth of the side."""
    for dim, draw in ((2, down), (3, right)):
        size = images.shape[dim]
        most = int(size / 8 + 0.5)
        shift = (draw * (2 * most + 1)).floor().long() - most
        source = torch.arange(size, device=images.device) - shift[:, None]  # int64 [B, size]
        shape = [len(source), 1, size, 1] if dim == 2 else [len(source), 1, 1, size]
        index = source.clamp(0, size - 1).view(shape).expand(images.shape)
        inside = ((source >= 0) & (source < size)).view(shape)
        # A pixel gets the gradient of at most one other, and zeros: no sum whose order varies on a GPU.
        images = torch.where(inside, images.gather(dim, index), 0)
    return images


def _cutout(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Zeros in a square of half the side with its centre anywhere in the image."""
    cut = torch.ones((), dtype=torch.bool, device=images.device)
    for dim, draw in ((2, down), (3, right)):
        size = images.shape[dim]
        length = int(size / 2 + 0.5)
        centre = (draw * (size + 1 - length % 2)).floor()[:, None]
        first = centre - length // 2
        line = torch.arange(size, device=images.device)
        shape = [len(draw), 1, size, 1] if dim == 2 else [len(draw), 1, 1, size]
        cut = cut & ((line >= first) & (line < first + length)).view(shape)
    return images.masked_fill(cut, 0)
