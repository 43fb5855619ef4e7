"""Convolutions that change the size, on CPUs in the form that is fastest: the same sums, in another order. On GPUs,
where nothing of this has been measured yet, they stay as they are.

A 3x3 convolution beside a change of size becomes one strided convolution with a 4x4 kernel: 4/9 of the multiplications,
forward and backward, and no feature map at the large size.

Repeating pixels and then convolving with w is a transposed convolution with w convolved with a box of 2x2 ones;
convolving with w and then averaging 2x2 pixels is a convolution with the same kernel, divided by 4. The kernel is
computed from the weight in each pass, so parameters, gradients of any order, spectral norms and files are those of the
plain form, and numbers agree up to rounding.

A 4x4 convolution with stride 2, or its transpose, becomes one product of matrices in mixed precision where the small
side has few pixels: there the library spends its time on the layout of the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_wanted = [True]


@contextlib.contextmanager
def rewritten(wanted: bool) -> Iterator[None]:
    """Whether layers may take another form than the plain one; how it was before comes back afterwards."""
    before, _wanted[0] = _wanted[0], wanted
    try:
        yield
    finally:
        _wanted[0] = before


def rewrites_wanted() -> bool:
    """What `rewritten` said last."""
    return _wanted[0]


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
    return doubled(x, kernel, conv.bias)


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
    return strided_pooled(x, conv) if _pays(conv, x.shape[2], least=8) else F.avg_pool2d(conv(x), 2)


def strided_pooled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The same as a convolution with stride 2."""
    return halved(x, _with_box(conv.weight) / 4, conv.bias)


class Halving(nn.Conv2d):
    """4x4 convolution with stride 2 and padding 1: float [B, inputs, 2H, 2W] -> [B, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 4, stride=2, padding=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return halved(input, self.weight, self.bias)


class Doubling(nn.ConvTranspose2d):
    """4x4 transposed convolution with stride 2 and padding 1: float [B, inputs, H, W] -> [B, outputs, 2H, 2W]."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 4, stride=2, padding=1, bias=bias)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """See the class; other output sizes there are none."""
        assert output_size is None
        return doubled(input, self.weight, self.bias)


def halved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """float [B, C, 2H, 2W] convolved with weight [D, C, 4, 4], stride 2, padding 1 -> [B, D, H, W]."""
    batch, _, height, width = x.shape
    if height % 2 or width % 2 or not _pays_as_product(weight, height * width // 4):
        return F.conv2d(x, weight, bias, stride=2, padding=1)
    x, weight = _cast(x), _cast(weight)
    columns: Tensor = _Columns.apply(x)
    rows = columns @ weight.permute(2, 3, 1, 0).flatten(0, 2)
    out = rows.view(batch, height // 2, width // 2, len(weight)).permute(0, 3, 1, 2)
    return out if bias is None else out + _cast(bias)[:, None, None]


def doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """float [B, C, H, W] convolved, transposed, with weight [C, D, 4, 4], stride 2, padding 1 -> [B, D, 2H, 2W]."""
    _, channels, height, width = x.shape
    if not _pays_as_product(weight, height * width):
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
    x, weight = _cast(x), _cast(weight)
    columns = x.permute(0, 2, 3, 1).reshape(-1, channels) @ weight.permute(0, 2, 3, 1).flatten(1)
    out: Tensor = _Folded.apply(columns, height, width)
    return out if bias is None else out + _cast(bias)[:, None, None]


def _pays_as_product(weight: Tensor, pixels: int) -> bool:
    """Whether the product of matrices is faster where the small side has so many pixels (see `_pays`)."""
    size = weight.shape[0] * weight.shape[1]
    on_cpu = _wanted[0] and weight.device.type == "cpu"
    return on_cpu and torch.is_autocast_enabled("cpu") and pixels <= 16 and size >= 2**13


def _cast(x: Tensor) -> Tensor:
    """In mixed precision, as autocast would for a convolution."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


class _Columns(torch.autograd.Function):
    """The windows of 4x4 pixels, padding 1, stride 2: float [B, C, 2H, 2W] -> [B H W, 16 C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        ctx.small = height, width = height // 2, width // 2
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        b, h, w, c = padded.stride()
        windows = padded.as_strided((batch, height, width, 4, 4, channels), (b, 2 * h, 2 * w, h, w, c))
        return windows.reshape(batch * height * width, 16 * channels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        folded: Tensor = _Folded.apply(gradient, *ctx.small)
        return folded


class _Folded(torch.autograd.Function):
    """The adjoint of `_Columns`, sums where windows overlap: float [B H W, 16 C] -> [B, C, 2H, 2W]."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, height: int, width: int) -> Tensor:
        windows = columns.view(-1, height, width, 4, 4, columns.shape[1] // 16)
        batch, channels = len(windows), windows.shape[-1]
        tall = columns.new_empty(batch, height, 2, width, 4, channels)
        _overlap(windows.movedim(3, 0), tall.movedim(2, 0), 1)
        out = columns.new_empty(batch, height, 2, width, 2, channels)
        _overlap(tall.movedim(4, 0), out.movedim(4, 0), 3)
        return out.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        columns: Tensor = _Columns.apply(gradient)
        return columns, None, None


def _overlap(taps: Tensor, out: Tensor, axis: int) -> None:
    """Along `axis`, even pixels are tap 1 and tap 3 of the window before, odd ones tap 2 and tap 0 of the next one.
    float [4, ...] -> [2, ...]."""
    size = out[0].shape[axis]
    for place, here, other, from_, to in ((0, 1, 3, 0, 1), (1, 2, 0, 1, 0)):
        torch.add(
            taps[here].narrow(axis, to, size - 1),
            taps[other].narrow(axis, from_, size - 1),
            out=out[place].narrow(axis, to, size - 1),
        )
        edge = 0 if to else size - 1
        out[place].select(axis, edge).copy_(taps[here].select(axis, edge))


def _pays(conv: nn.Conv2d, size: int, least: int = 16) -> bool:
    """Whether the strided form is faster where the large side has size x size pixels. A rule from measurements
    (tests/benchmarks/convolutions.py) and no measurement at run time, so that a run has the same bits on each machine
    of a kind."""
    return _wanted[0] and conv.weight.device.type == "cpu" and size >= least


def _with_box(weight: Tensor) -> Tensor:
    """float [D, C, 3, 3] convolved with a box of 2x2 ones -> [D, C, 4, 4]."""
    wide = F.pad(weight, (1, 1, 1, 1))
    wide = wide[:, :, 1:] + wide[:, :, :-1]
    return wide[..., 1:] + wide[..., :-1]
