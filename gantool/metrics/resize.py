"""How images come to the size that an extractor wants: the largest cause of disagreement between tools after weights.

The FID protocols differ in nothing else but the divisor of the covariance. All work on the device, in float32, from
uint8 images, and give normalised ones; none rounds back to whole grey levels. Grey images are repeated to RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 299  # of the Inception network


def like_tf1(images: Tensor, side: int = SIDE) -> Tensor:
    """tf.image.resize_bilinear of TensorFlow 1 (no corner alignment, no half-pixel centres, no antialiasing), then
    (x - 128) / 128: uint8 [n, H, W, 1 or 3] -> float32 [n, 3, side, side], channels last.

    What TTUR and torch-fidelity do, to the last bit; NVIDIA's grid_sample differs by at most 8e-4 grey levels.
    """
    pixels = images.float()
    height, width = images.shape[1:3]
    # Along the rows of the source first, then along columns: the same sums as TensorFlow's, with far fewer of them.
    low, high, weight = _taps(width, side, images.device)
    left, right = pixels[:, :, low], pixels[:, :, high]
    rows = left + (right - left) * weight[:, None]
    low, high, weight = _taps(height, side, images.device)
    top, bottom = rows[:, low], rows[:, high]
    resized = top + (bottom - top) * weight[:, None, None]
    return _rgb(((resized - 128) / 128).permute(0, 3, 1, 2))


def _taps(size: int, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    position = torch.arange(side, dtype=torch.float32, device=device) * torch.tensor(size / side, dtype=torch.float32)
    low = position.long()
    return low, (low + 1).clamp_max(size - 1), position - low


def like_pytorch_fid(images: Tensor, side: int = SIDE) -> Tensor:
    """Bilinear with half-pixel centres and no antialiasing on x / 255, then 2x - 1, as pytorch-fid 0.3 does:
    uint8 [n, H, W, 1 or 3] -> float32 [n, 3, side, side], channels last."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    return _rgb(2 * F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False) - 1)


def like_clean_fid(images: Tensor, side: int = SIDE) -> Tensor:
    """Antialiased bicubic, cut to 0..255, then (x - 128) / 128: uint8 [n, H, W, 1 or 3] -> float32
    [n, 3, side, side], channels last.

    clean-fid (Parmar et al., 2022) does it with Pillow on the CPU; the results agree within 3e-3 grey levels.
    """
    pixels = images.permute(0, 3, 1, 2).float()
    resized = F.interpolate(pixels, (side, side), mode="bicubic", align_corners=False, antialias=True)
    return _rgb((resized.clamp(0, 255) - 128) / 128)


def antialiased(
    images: Tensor,
    side: int,
    mode: Literal["bilinear", "bicubic"],
    mean: Sequence[float],
    deviation: Sequence[float],
) -> Tensor:
    """Antialiased resizing of the whole image, cut to 0..1, then (x - mean) / deviation for each of R, G, B:
    uint8 [n, H, W, 1 or 3] -> float32 [n, 3, side, side], channels last. For classifiers of photographs."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    resized = _rgb(F.interpolate(pixels, (side, side), mode=mode, align_corners=False, antialias=True).clamp(0, 1))
    shift, scale = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, deviation))
    return (resized - shift) / scale


def _rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


class Protocol(NamedTuple):
    """What a FID protocol does besides the network."""

    resize: Callable[[Tensor], Tensor]  # uint8 [n, H, W, C] -> float32 [n, 3, 299, 299], normalised, channels last
    label: str  # of the resize, in protocol strings
    ddof: int  # covariances are divided by n - ddof


PROTOCOLS: dict[str, Protocol] = {
    "tf1": Protocol(like_tf1, "tf1-bilinear", 1),  # TTUR, torch-fidelity
    "pytorch-fid": Protocol(like_pytorch_fid, "torch-bilinear", 1),
    "clean": Protocol(like_clean_fid, "clean-bicubic", 1),  # clean-fid, mode 'clean'
    "stylegan3": Protocol(like_tf1, "tf1-bilinear", 0),  # the features are those of tf1
}
