"""3x3 convolutions on CPUs with a quarter of the multiplications, forward and backward: F(4x4, 3x3) of Lavin & Gray
(2016).

A window of 6x6 pixels and the kernel are each changed linearly to 6x6 numbers; their products, summed over the
channels, are changed linearly to 4x4 pixels of the output: 36 multiplications in place of 144. The gradient by the
input is the same convolution with the kernel turned; the gradient by the weight is the transpose of the changes around
the same products. Both are written with each other, so there are gradients of any order. The numbers are those of the
plain form up to rounding (in float32 about 1e-5 of the largest one).

Images are taken some at a time, so that what is between the changes fits into a cache, and it lies in memory that is
kept from call to call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gantool.models.resampling import rewrites_wanted

OUT, WINDOW = 4, 6  # pixels of output, and of input, that one tile has along an axis
_NUMBERS_AT_ONCE = 2**21  # of changed windows, 8 MB in float32; half and twice as many were no faster
_MOST_OF_AN_IMAGE = 2**23  # of numbers of one image, 32 MB in float32: memory of this size is kept


class Conv3x3(nn.Conv2d):
    """3x3 convolution with padding 1: float [B, inputs, H, W] -> [B, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        weight = self.weight  # once: it may be computed, by a spectral norm
        form = winograd if _pays(input, weight) else self._conv_forward
        return form(input, weight, self.bias)


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """float [B, C, H, W] convolved with weight [D, C, 3, 3], padding 1 -> [B, D, H, W]; B at least 1, H and W multiples
    of 4."""
    out: Tensor = _Convolution.apply(x, weight)
    return out if bias is None else out.add_(bias[:, None, None])


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether this is faster than the library (tests/benchmarks/convolutions.py): a rule and no measurement at run
    time, so that a run has the same bits on each machine of a kind."""
    outputs, inputs = weight.shape[:2]
    height, width = x.shape[2:]
    return (
        rewrites_wanted()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and height % OUT == 0
        and width % OUT == 0
        and min(inputs, outputs) >= 128
        and len(x) * height * width * inputs >= 2**20
        and _numbers(height * width * max(inputs, outputs)) <= _MOST_OF_AN_IMAGE
    )


def _numbers(pixels: int) -> int:
    """How many the windows of so many pixels, times channels, become."""
    return pixels * WINDOW**2 // OUT**2


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        _save(ctx, x, weight)
        return _convolved(x, weight)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        return (
            None if weight is None else _Convolution.apply(slope, _turned(weight)),
            None if x is None else _WeightGradient.apply(x, slope),
        )


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        _save(ctx, x, slope)
        return _weight_gradient(x, slope)

    @staticmethod
    def backward(ctx: Any, of_weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, slope = ctx.saved_tensors
        return (
            None if slope is None else _Convolution.apply(slope, _turned(of_weight)),
            None if x is None else _Convolution.apply(x, of_weight),
        )


def _save(ctx: Any, a: Tensor, b: Tensor) -> None:
    """Of the inputs of a function that is linear in each: what a wanted gradient needs, else None."""
    of_a, of_b = ctx.needs_input_grad
    ctx.save_for_backward(a if of_b else None, b if of_a else None)


def _turned(weight: Tensor) -> Tensor:
    """The kernel of the transposed convolution: float [D, C, 3, 3] -> [C, D, 3, 3]."""
    return weight.flip(2, 3).transpose(0, 1)


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    """float [B, C, H, W], [D, C, 3, 3] -> [B, D, H, W], channels last."""
    batch, channels, height, width = x.shape
    outputs, down, across = len(weight), height // OUT, width // OUT
    kernel = (_of_kernel(weight) @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(WINDOW**2, channels, outputs)
    out = torch.empty(batch, outputs, height, width, dtype=x.dtype, memory_format=torch.channels_last)
    for images in _parts(x, max(channels, outputs)):
        windows = _changed_windows(x[images])
        products = _kept("products", x, WINDOW**2, windows.shape[1], outputs)
        torch.bmm(windows, kernel, out=products)
        taken = out[images].permute(0, 2, 3, 1).view(-1, down, OUT, across, OUT, outputs)
        columns = products.view(WINDOW, WINDOW, len(taken), down, across, outputs)
        rows = _kept("rows", x, OUT, *columns.shape[1:])
        _to_pixels(columns, rows)
        _to_pixels(rows.transpose(0, 1), taken.permute(4, 2, 0, 1, 3, 5))
    return out


def _weight_gradient(x: Tensor, slope: Tensor) -> Tensor:
    """float [B, C, H, W] and the gradient by the output [B, D, H, W] -> gradient by the weight [D, C, 3, 3]."""
    channels, outputs = x.shape[1], slope.shape[1]
    total = x.new_zeros(WINDOW**2, channels, outputs)
    for images in _parts(x, max(channels, outputs)):
        windows = _changed_windows(x[images])
        torch.baddbmm(total, windows.transpose(1, 2), _changed_slope(slope[images]), out=total)
    found = _of_kernel(x).t() @ total.view(WINDOW**2, -1)
    return found.view(3, 3, channels, outputs).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def _parts(x: Tensor, channels: int) -> Iterator[slice]:
    """Images of x that are taken at once, about equally many each time; so many channels at most are in or out."""
    most = max(1, _NUMBERS_AT_ONCE // _numbers(x.shape[2] * x.shape[3] * channels))
    size = -(-len(x) // -(-len(x) // most))
    return (slice(start, start + size) for start in range(0, len(x), size))


def _changed_windows(x: Tensor) -> Tensor:
    """The overlapping windows of each tile, padding 1: float [B, C, H, W] -> [36, tiles of the batch, C]."""
    batch, channels, height, width = x.shape
    down, across = height // OUT, width // OUT
    padded = _kept("padded", x, batch, height + OUT, width + OUT, channels)
    for edge in (padded[:, :1], padded[:, height + 1 :], padded[:, :, :1], padded[:, :, width + 1 :]):
        edge.zero_()
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    rows = _kept("rows", x, WINDOW, batch, down, width + OUT, channels)
    _from_window(_windows(padded.view(batch, down + 1, OUT, width + OUT, channels).movedim(2, 0), 1), rows)
    columns = rows.view(WINDOW, batch, down, across + 1, OUT, channels).movedim(4, 0)
    out = _kept("windows", x, WINDOW, WINDOW, batch, down, across, channels)
    _from_window(_windows(columns, 3), out.transpose(0, 1))
    return out.view(WINDOW**2, batch * down * across, channels)


def _windows(places: Tensor, axis: int) -> list[Tensor]:
    """From pixels [4, ...] by their place in a tile, one tile too many along `axis` of each: the pixels at each of the
    6 places of a window, which reaches into the next tile."""
    count = places[0].shape[axis] - 1
    return [places[i % OUT].narrow(axis, i // OUT, count) for i in range(WINDOW)]


def _changed_slope(slope: Tensor) -> Tensor:
    """Gradient by the output float [B, D, H, W] -> [36, tiles of the batch, D]."""
    batch, outputs, height, width = slope.shape
    down, across = height // OUT, width // OUT
    pixels = slope.permute(0, 2, 3, 1).reshape(batch, down, OUT, width, outputs).movedim(2, 0)
    rows = _kept("rows", slope, WINDOW, batch, down, width, outputs)
    _from_pixels(pixels, rows)
    out = _kept("products", slope, WINDOW, WINDOW, batch, down, across, outputs)
    _from_pixels(rows.view(WINDOW, batch, down, across, OUT, outputs).movedim(4, 0), out.transpose(0, 1))
    return out.view(WINDOW**2, batch * down * across, outputs)


# The matrices of the paper (section 4.3: B^T, G, A^T), with sums that several rows have in common formed once.


def _of_kernel(like: Tensor) -> Tensor:
    """G along both axes: float [36, 9]."""
    rows = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
    rows += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
    one = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(one, one).to(like.dtype)


def _from_window(d: Sequence[Tensor], out: Tensor) -> None:
    """B^T, with the rows
    4 0 -5 0 1 0; 0 -4 -4 1 1 0; 0 4 -4 -1 1 0; 0 -2 -1 2 1 0; 0 2 -1 -2 1 0; 0 4 0 -5 0 1."""
    part = _kept("part", out, *out.shape[1:])
    torch.sub(d[4], d[2], alpha=4, out=out[1])
    torch.sub(d[3], d[1], alpha=4, out=part)
    torch.sub(out[1], part, out=out[2])
    out[1].add_(part)
    torch.sub(d[3], d[1], out=part)
    torch.sub(d[4], d[2], out=out[4])
    torch.sub(d[0], d[2], out=out[0])
    torch.add(out[4], out[0], alpha=4, out=out[0])
    torch.add(out[4], part, alpha=2, out=out[3])
    out[4].sub_(part, alpha=2)
    torch.sub(d[5], d[3], out=out[5])
    out[5].sub_(part, alpha=4)


def _to_pixels(m: Tensor, out: Tensor) -> None:
    """A^T, with the rows 1 1 1 1 1 0; 0 1 -1 2 -2 0; 0 1 1 4 4 0; 0 1 -1 8 -8 1. `m` is written over."""
    torch.add(m[1], m[2], out=out[2])
    m[1].sub_(m[2])
    torch.add(m[3], m[4], out=out[3])
    m[3].sub_(m[4])
    torch.add(m[0], out[2], out=out[0])
    out[0].add_(out[3])
    out[2].add_(out[3], alpha=4)
    torch.add(m[1], m[3], alpha=2, out=out[1])
    torch.add(m[1], m[3], alpha=8, out=out[3])
    out[3].add_(m[5])


def _from_pixels(y: Tensor, out: Tensor) -> None:
    """A."""
    odd = out[5]
    torch.add(y[0], y[2], out=out[1])
    torch.add(y[1], y[3], out=odd)
    torch.sub(out[1], odd, out=out[2])
    out[1].add_(odd)
    torch.add(y[0], y[2], alpha=4, out=out[3])
    torch.add(y[1], y[3], alpha=4, out=odd)
    torch.sub(out[3], odd, alpha=2, out=out[4])
    out[3].add_(odd, alpha=2)
    out[0].copy_(y[0])
    out[5].copy_(y[3])


class _Memory(threading.local):
    def __init__(self) -> None:
        self.blocks: dict[tuple[str, torch.dtype], Tensor] = {}


_memory = _Memory()


def _kept(name: str, like: Tensor, *shape: int) -> Tensor:
    """Memory of this name and of the dtype of `like`, whatever is in it, as [*shape]; the same in the next call."""
    size = torch.Size(shape).numel()
    key = name, like.dtype
    if key not in _memory.blocks or _memory.blocks[key].numel() < size:
        with torch.inference_mode(False):  # what is made within could not be written to without it
            _memory.blocks[key] = torch.empty(size, dtype=like.dtype)
    return _memory.blocks[key][:size].view(shape)
