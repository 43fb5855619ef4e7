"""Adaptive discriminator augmentation (Karras et al., 2020): the `bgc` pipeline (pixel blitting, geometry, colour) and
the rule that moves its probability p.

Changes, distributions and their order agree with `training/augment.py` of StyleGAN2-ADA; only the resampling differs:
bilinear, with the image reflected at its border. It is made of indexing, not of `grid_sample`, for the sake of
gradient penalties and of resuming bit for bit: grid_sample has no second derivative in older torch versions, and its
gradient adds up in any order on a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gantool.config.base import value_at
from gantool.config.objective import AdaAugment

# What is changed, each with its own probability; after it the second axes of shift and drift.
_PLAIN = ("flip", "turn", "shift", "scale", "stretch", "drift", "brightness", "contrast", "invert", "hue", "saturation")
_CHANGES = (*_PLAIN, "rotate", "rotate_again")
_NAMES = (*_CHANGES, "shift_y", "drift_y")

NUM_DRAWS = len(_CHANGES) + len(_NAMES)
"""Random numbers of an image: whether each change happens, then how."""


class Ada:
    """The augmentation with its probability p, which follows the mean sign of the logits of real images."""

    state: Tensor
    """float32 [3], on the device: p, the sum of the mean signs since p last moved, and their number."""

    def __init__(self, settings: AdaAugment, batch: int, device: torch.device) -> None:
        self.settings = settings
        self.step = settings.interval * batch / (settings.kimg * 1000)  # `batch` is over all ranks
        self.state = torch.tensor([value_at(settings.p, 0, 1), 0.0, 0.0], device=device)

    @property
    def p(self) -> Tensor:
        """Probability of each change, float32 scalar on the device."""
        return self.state[0]

    def augment(self, images: Tensor, draws: Tensor) -> Tensor:
        """`augment` with the present p."""
        return augment(self.p, images, draws)

    @torch.no_grad()
    def observe(self, mean_sign: Tensor) -> None:
        """Tell the mean sign of a batch of real logits (around the boundary, over all ranks), a scalar in [-1, 1].

        Every `interval` batches p goes up when their mean is above the target, and down when it is below:
        p <- clamp(p + sign(mean - target) * interval * batch / (1000 kimg), 0, 1) (section 3.1).
        """
        if self.settings.target is None:
            return
        p, total, number = self.state.unbind()
        total, number = total + mean_sign, number + 1
        full = number >= self.settings.interval
        moved = (p + (total / number - self.settings.target).sign() * self.step).clamp(0, 1)
        found = [torch.where(full, moved, p), torch.where(full, 0, total), torch.where(full, 0, number)]
        self.state.copy_(torch.stack(found))


def augment(p: Tensor, images: Tensor, draws: Tensor) -> Tensor:
    """Each change with probability `p`, a scalar tensor; the images as they are, bit for bit, where none happens.

    images: float [B, C, H, W] in [-1, 1], grey or RGB; draws: float32 [B, NUM_DRAWS], uniform in [0, 1). Returns the
    same shape, which may leave [-1, 1].
    """
    happens = draws[:, : len(_CHANGES)]
    # Two rotations, each with 1 - sqrt(1 - p), so that there is any with p.
    happens = torch.cat([happens[:, :-2] < p, happens[:, -2:] < 1 - (1 - p).sqrt()], dim=1)
    happens = torch.cat([happens, happens[:, _index("shift")], happens[:, _index("drift")]], dim=1)
    chosen = draws[:, len(_CHANGES) :]
    signed = 2 * chosen - (1 - 2**-24)  # symmetric around 0, and never -1 or 1, where erfinv is infinite
    uniform = dict(zip(_NAMES, torch.where(happens, signed, 0).unbind(1), strict=True))
    normal = dict(zip(_NAMES, torch.where(happens, math.sqrt(2) * signed.erfinv(), 0).unbind(1), strict=True))
    picked = dict(zip(_NAMES, torch.where(happens, chosen, 0).unbind(1), strict=True))
    images = _resample(images, _geometry(uniform, normal, picked, images.shape[3], images.shape[2]))
    return _color(images, uniform, normal, picked)


def _index(name: str) -> slice:
    place = _NAMES.index(name)
    return slice(place, place + 1)


Numbers = dict[str, Tensor]
"""Number of each change, float [B]; 0 where it does not happen."""


def _geometry(uniform: Numbers, normal: Numbers, picked: Numbers, width: int, height: int) -> Tensor:
    """From pixels of the result to pixels of the image, both counted from the centre: float [B, 3, 3] on (x, y, 1)."""
    ones, zeros = torch.ones_like(uniform["flip"]), torch.zeros_like(uniform["flip"])

    def matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor, x: Tensor = zeros, y: Tensor = zeros) -> Tensor:
        return torch.stack([a, b, x, c, d, y, zeros, zeros, ones], dim=1).view(-1, 3, 3)

    def rotation(angle: Tensor) -> Tensor:
        return matrix(angle.cos(), -angle.sin(), angle.sin(), angle.cos())

    mirror = 1 - 2 * (2 * picked["flip"]).floor()
    turn = (4 * picked["turn"]).floor()  # quarters, with whole numbers as cosine and sine
    cosine, sine = (turn == 0).float() - (turn == 2).float(), (turn == 1).float() - (turn == 3).float()
    shift = (uniform["shift"] * (width / 8)).round(), (uniform["shift_y"] * (height / 8)).round()
    scale, stretch = (-0.2 * normal["scale"]).exp2(), (-0.2 * normal["stretch"]).exp2()
    total = matrix(mirror, zeros, zeros, ones)
    for step in (
        matrix(cosine, -sine, sine, cosine),
        matrix(ones, zeros, zeros, ones, -shift[0], -shift[1]),
        matrix(scale, zeros, zeros, scale),
        rotation(math.pi * uniform["rotate"]),
        matrix(stretch, zeros, zeros, 1 / stretch),
        rotation(math.pi * uniform["rotate_again"]),
        matrix(ones, zeros, zeros, ones, -normal["drift"] * (width / 8), -normal["drift_y"] * (height / 8)),
    ):
        # Not by matmul, which may round to TF32.
        total = (total[:, :, :, None] * step[:, None]).sum(2)
    return total


def _resample(images: Tensor, matrix: Tensor) -> Tensor:
    """`images` at matrix (x, y, 1): bilinear, reflected at the outer edge of the border pixels."""
    batch, channels, height, width = images.shape
    middle = (width - 1) / 2, (height - 1) / 2
    x = torch.arange(width, device=images.device) - middle[0]
    y = (torch.arange(height, device=images.device) - middle[1])[:, None]
    a = matrix[:, :, :, None, None]
    column = a[:, 0, 0] * x + a[:, 0, 1] * y + a[:, 0, 2] + middle[0]  # float [B, H, W], from the upper left pixel
    row = a[:, 1, 0] * x + a[:, 1, 1] * y + a[:, 1, 2] + middle[1]
    left, top = column.floor(), row.floor()
    right_share, lower_share = column - left, row - top
    columns = [_reflect(left.long() + i, width) for i in (0, 1)]
    rows = [_reflect(top.long() + i, height) for i in (0, 1)]
    first = torch.arange(batch, device=images.device).view(-1, 1, 1) * (height * width)
    index = torch.stack([first + rows[i] * width + columns[j] for i in (0, 1) for j in (0, 1)])
    shares = [v * h for v in (1 - lower_share, lower_share) for h in (1 - right_share, right_share)]
    weights = torch.stack(shares)[..., None].to(images.dtype)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    return (pixels[index] * weights).sum(0).permute(0, 3, 1, 2)


def _reflect(positions: Tensor, size: int) -> Tensor:
    positions = positions.remainder(2 * size)
    return torch.where(positions < size, positions, 2 * size - 1 - positions)


def _color(images: Tensor, uniform: Numbers, normal: Numbers, picked: Numbers) -> Tensor:
    """Brightness, contrast, luma inversion, and on RGB images rotation of the hue and saturation, in this order.

    All of them keep the grey axis v = (1, 1, 1) / sqrt(3) and the plane across it. So their product is
    c (1 - 2 i) (m + b) on the mean m of the channels, and c s (cos(h) + sin(h) v x .) on what differs from it.
    """
    contrast = (0.5 * normal["contrast"]).exp2()
    luma = contrast * (1 - 2 * (2 * picked["invert"]).floor())
    offset = luma * (0.2 * normal["brightness"])
    saturation, hue = contrast * normal["saturation"].exp2(), math.pi * uniform["hue"]
    along, across = saturation * hue.cos(), saturation * hue.sin() / math.sqrt(3)
    numbers = torch.stack([luma, offset, along, across]).to(images.dtype)
    luma, offset, along, across = numbers[..., None, None, None].unbind()
    if images.shape[1] == 1:
        return images * luma + offset
    mean = images.mean(dim=1, keepdim=True)
    turned = images.roll(1, dims=1) - images.roll(-1, dims=1)  # sqrt(3) times the cross product of v and the colour
    return images * along + mean * (luma - along) + turned * across + offset
