"""The picture that shows whether a generator remembers: its images, beside each the real images nearest to it."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gantool.data.image_sets import ImageSet
from gantool.metrics.neighbours import nearest
from gantool.metrics.statistics import FloatRows
from gantool.sample import make_grid

ROWS, NEAREST = 8, 7
SIDE = 64  # to which small images are enlarged, about
CAPTION = "left: scored image; beside it the nearest training images, nearest first"


def picture_of_nearest(
    scored: ImageSet, scored_rows: FloatRows, real: ImageSet, real_rows: FloatRows, device: torch.device
) -> Image.Image:
    """In each row one of the first 8 scored images and the 7 real ones nearest to it by their features, nearest first.

    *_rows: the features of the images, float32 [n, d]. Real images of another size are resized, small ones enlarged.
    """
    rows, columns = min(ROWS, scored.num), min(NEAREST, real.num)
    found, _ = nearest(torch.from_numpy(scored_rows[:rows]).to(device), torch.from_numpy(real_rows).to(device), columns)
    height, width, _ = scored.shape
    parts = []
    for k in range(rows):
        parts.append(scored.part(k, k + 1).cpu())
        parts += [_resized(real.part(int(i), int(i) + 1).cpu(), height, width) for i in found[k]]
    return _with_caption(make_grid(torch.cat(parts).numpy(), rows, columns + 1), max(1, SIDE // max(height, width)))


def _with_caption(picture: Image.Image, factor: int) -> Image.Image:
    """The picture enlarged by a whole factor, below a line that says what is where."""
    width, height = (side * factor for side in picture.size)
    font = ImageFont.load_default(12)
    sheet = Image.new(picture.mode, (max(width, 4 + int(font.getlength(CAPTION))), height + 18), "white")
    ImageDraw.Draw(sheet).text((2, 2), CAPTION, "black", font)
    sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (0, 18))
    return sheet


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[1:3] == (height, width):
        return image
    floats = image.permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(floats, (height, width), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
