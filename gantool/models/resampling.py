"""A convolution beside a change of size, as one strided convolution with a 4x4 kernel: the same sums with 4/9 of the
multiplications, forward and backward, and without the feature map at the large size.

Repeating pixels and then convolving with w is a transposed convolution with w convolved with a box of 2x2 ones;
convolving with w and then averaging 2x2 pixels is a convolution with the same kernel, divided by 4. The kernel is
computed from the weight in each pass, so parameters, gradients of any order, spectral norms and files are those of the
plain form, and numbers agree up to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_wanted = [True]


@contextlib.contextmanager
def rewritten(wanted: bool) -> Iterator[None]:
    """Whether layers may take the strided form; how it was before comes back afterwards."""
    before, _wanted[0] = _wanted[0], wanted
    try:
        yield
    finally:
        _wanted[0] = before


def doubled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv`, 3x3 with padding 1, of x with each pixel repeated twice along both axes.

    float [B, C, H, W] -> [B, D, 2H, 2W].
    """
    if _pays(conv, 2 * x.shape[2], least=32 if torch.is_autocast_enabled("cpu") else 16):
        return strided_doubled(x, conv)
    out: Tensor = conv(F.interpolate(x, scale_factor=2))
    return out


def strided_doubled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The same as a transposed convolution."""
    kernel = _with_box(conv.weight).flip(2, 3).transpose(0, 1)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def bilinear(x: Tensor) -> Tensor:
    """Bilinear upsampling of x (half-pixel centres): float [B, C, H, W] -> [B, C, 2H, 2W]."""
    if _wanted[0] and x.device.type == "cpu":
        return F.interpolate(x, scale_factor=2, mode="bilinear")
    # Repeated pixels and [1, 2, 1] / 4, as two boxes that shrink at the edges: the backward pass of interpolate is not
    # deterministic on CUDA.
    x = F.interpolate(x, scale_factor=2)
    return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1, padding=1, count_include_pad=False), 2, stride=1)


def pooled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Means of 2x2 pixels of `conv`, 3x3 with padding 1, of x.

    float [B, C, 2H, 2W] -> [B, D, H, W].
    """
    return strided_pooled(x, conv) if _pays(conv, x.shape[2]) else F.avg_pool2d(conv(x), 2)


def strided_pooled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The same as a convolution with stride 2."""
    return F.conv2d(x, _with_box(conv.weight) / 4, conv.bias, stride=2, padding=1)


def _pays(conv: nn.Conv2d, size: int, least: int = 16) -> bool:
    """Whether the strided form is faster where the large side has size x size pixels. A rule from measurements
    (tests/benchmarks/resampling.py) and no measurement at run time, so that a run has the same bits on each machine of
    a kind. On GPUs it has not been measured: there the plain form stays."""
    return _wanted[0] and conv.weight.device.type == "cpu" and size >= least


def _with_box(weight: Tensor) -> Tensor:
    """float [D, C, 3, 3] convolved with a box of 2x2 ones -> [D, C, 4, 4]."""
    wide = F.pad(weight, (1, 1, 1, 1))
    wide = wide[:, :, 1:] + wide[:, :, :-1]
    return wide[..., 1:] + wide[..., :-1]
