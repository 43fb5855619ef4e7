"""One image from anywhere as a uint8 square: how it is decoded, made grey or RGB, and fitted to the packed size.

The rules, the same for every dataset:
- 16-bit grey is scaled by 255/65535 and rounded; a palette, CMYK or YCbCr image becomes RGB; of an animation the
  first frame counts; the EXIF orientation is applied; what is transparent is composited over black.
- Grey from RGB is the ITU-R 601 luma, RGB from grey repeats it.
- Resizing is PIL's LANCZOS, whose support grows with the reduction (antialiased), on 8-bit values; it is what Parmar
  et al. (2022, "On Aliased Resizing") recommend for scores that can be compared. An image of the right size is not
  touched.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from gantool.config.schema import DataConfig
from gantool.errors import DataError

Pixels: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.int64]

MAX_FILE_BYTES = 256 * 2**20
# A file's name says nothing about its content, so no format is opened that would start other programs (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


class UnreadableImage(DataError):
    """One image cannot be read; `data.on_bad_image: skip` leaves it out."""


Payload: TypeAlias = "Pixels | bytes | Path | UnreadableImage"
"""An image as a reader hands it over: pixels uint8 [H, W, C] (C 1 or 3), an encoded file, where that file lies, or why
it could not be had."""


@dataclass(frozen=True)
class Source:
    """Original images: `labels` and `splits` are known at once, the images are streamed.

    `read()` starts over on each call and gives (index, name for messages, payload) for each image in any order.
    """

    title: str
    classes: tuple[str, ...]
    labels: Labels  # int64 [N], -1 where there is none
    splits: dict[str, tuple[int, int]]
    read: Callable[[], Iterable[tuple[int, str, Payload]]]


def splits_of(counts: dict[str, int]) -> dict[str, tuple[int, int]]:
    """{'train': 50, 'test': 10} as the ranges {'train': (0, 50), 'test': (50, 60)}."""
    ends = np.cumsum(list(counts.values())).tolist()
    return {name: (end - count, end) for (name, count), end in zip(counts.items(), ends, strict=True)}


def to_square(payload: Payload, data: DataConfig, name: str) -> Pixels:
    """`payload` as pixels uint8 [size, size, channels] of `data`; UnreadableImage (with `name`) when it is none."""
    size, channels = data.image_size, data.image_channels
    if isinstance(payload, UnreadableImage):
        raise payload
    if isinstance(payload, np.ndarray):
        if payload.shape == (size, size, channels):
            return payload
        image = Image.fromarray(payload[..., 0] if payload.shape[-1] == 1 else payload)
    else:
        image = decode(read_file(payload) if isinstance(payload, Path) else payload, name)
    image = in_mode(image, "L" if channels == 1 else "RGB")
    return np.asarray(fit_square(image, size, data.fit)).reshape(size, size, channels)


def fit_square(image: Image.Image, size: int, fit: Literal["crop", "pad", "squash"]) -> Image.Image:
    """`image` as a square of `size` pixels.

    crop: the centred square of the short side, resized. pad: the long side resized to `size` when it is longer (an
    image that is smaller keeps its pixels), centred on black. squash: both sides resized, whatever the aspect.
    """
    width, height = image.size
    if fit == "pad":
        scale = min(1.0, size / max(width, height))
        inner = _resize(image, max(1, round(width * scale)), max(1, round(height * scale)))
        square = Image.new(image.mode, (size, size))
        square.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
        return square
    if fit == "crop" and width != height:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return _resize(image, size, size)


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def read_file(path: Path) -> bytes:
    """The bytes of a file; UnreadableImage when it cannot be read, or is too large to be a picture."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a named pipe would wait forever
            raise UnreadableImage(f"{path}: is no regular file")
        if found.st_size > MAX_FILE_BYTES:
            raise UnreadableImage(f"{path}: {found.st_size} bytes, more than the {MAX_FILE_BYTES} of a plausible image")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path}: cannot be read: {error.strerror or error}") from error


def decode(blob: bytes, name: str) -> Image.Image:
    """The first frame of an encoded image, upright, opaque, in mode L or RGB."""
    try:
        image: Image.Image = Image.open(io.BytesIO(blob), formats=FORMATS)
        ImageOps.exif_transpose(image, in_place=True)
        return _opaque_8_bit(image)
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error.message}") from error
    except Exception as error:  # PIL's readers raise nearly anything on damaged files (struct.error, IndexError, ...)
        raise UnreadableImage(f"{name}: not a readable image ({reason_of(error, blob)})") from error


def reason_of(error: Exception, blob: bytes) -> str:
    """What is wrong with an encoded image, in words."""
    if not blob:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of {', '.join(FORMATS)}"
    return str(error) or type(error).__name__


def _opaque_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # both hold 0..65535
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnreadableImage("32-bit pixels have no agreed white; expected 8 or 16 bits")
    if image.has_transparency_data:
        layer: Any = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return in_mode(image, "L" if image.mode in ("1", "L") else "RGB")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in a mode of Pillow."""
    return image if image.mode == mode else image.convert(mode)
