"""Images that somebody else made, as one set to score: a folder, a zip, a .npz, a .npy, or a part of a packed dataset.

Files are decoded by the rules of `images` and never resized; an array is never unpickled. What is read:

    folder, .zip     images in any depth, sorted by folder and name; folders side by side with all images are classes
    .npz             `images` and `labels` as `gantool sample` writes them, or `arr_0` and `arr_1` (Dhariwal and
                     Nichol, 2021, whose samples and reference batches have these names); uint8, labels may lack
    .npy             uint8 [n, H, W, C] or grey [n, H, W]; the train split when it is one of gantool's packed datasets

Nothing is held in memory but the images that are asked for; only what np.savez_compressed wrote must be unpacked, which
takes n * H * W * C bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gantool import container, files
from gantool.data import archives, images
from gantool.data.arrays import PixelArray, check_num, read_npy, read_npz
from gantool.data.folders import SPLIT_FOLDERS, without_common_folder
from gantool.data.images import Labels, Payload, Pixels, UnreadableImage
from gantool.data.pack import PackedDataset
from gantool.errors import DataError
from gantool.progress import Progress

_AT_ONCE = 256  # files between two words of progress
_ENDINGS = ", ".join(suffix[1:] for suffix in archives.SUFFIXES)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """n images of one size, readable in any order."""

    title: str  # for tables and protocol strings: the path's name, or what made them
    digest: str  # SHA-256 (hex) over shape, content in its order, and labels: of the pixels where they come as an
    # array, of the encoded files where they come as files (so the same for a folder and its zip); names do not count
    num: int
    shape: tuple[int, int, int]  # [H, W, C], C 1 or 3
    part: Callable[[int, int], Tensor]  # (start, stop) -> uint8 [stop - start, H, W, C], 0..255, on any device
    labels: Labels | None = None  # int64 [num], -1 where there is none
    classes: tuple[str, ...] = ()  # their names in the order of the labels; () when only the numbers are known
    notes: tuple[str, ...] = ()  # warnings for every score

    def parts(self, size: int = _AT_ONCE) -> Iterator[Tensor]:
        """All images in order, `size` at a time (the last: what is left)."""
        for start in range(0, self.num, size):
            yield self.part(start, min(self.num, start + size))


def open_images(path: Path, progress: Progress) -> ImageSet:
    """The images at `path` (see above). Everything is read once, for the digest, and nothing but headers decoded.

    DataError when they are fewer than two, not of one size, damaged, or not uint8; what only decoding shows (a
    corrupt PNG with a good header) is a DataError of `part`, with the file's name.
    """
    if not path.exists():
        hint = container.if_absent(path, f"give a folder, .zip, .npz or .npy: {_ENDINGS}")
        raise DataError(f"{path}: there is no such file or folder", hint)
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{path}: neither a file nor a folder", "give a folder, .zip, .npz or .npy")
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".npz":
        return _array_set(path, read_npz(path, progress))
    if path.is_file() and suffix == ".npy":
        packed = packed_at(path)
        return packed_set(packed, "train", None) if packed else _array_set(path, read_npy(path, progress))
    if path.is_dir() or zipfile.is_zipfile(path):
        return _open_files(path, progress)
    found = "no zip archive, or its end is missing" if suffix == ".zip" else f"a {suffix or 'file'}"
    raise DataError(f"{path}: found {found}, expected a folder, .zip, .npz or .npy", "unpack a tar, or zip its images")


def packed_set(data: PackedDataset, split: str, num: int | None) -> ImageSet:
    """`num` images spread evenly over a split (None, or more than there are: all of them), with their labels.

    The digest comes from that of `data` and the places of the images, so nothing is read.
    """
    pixels, labels = data.split(split)
    start, end = data.splits[split]
    num = len(pixels) if num is None else min(num, len(pixels))
    check_num(f"{data.title}:{split}", num)
    # Evenly, not the first ones: a split may be in the order of its classes.
    indices = np.arange(num, dtype=np.int64) * len(pixels) // num
    chosen = labels[indices] if data.classes else None
    digest = hashlib.sha256(f"{data.digest} {start} {end} {num}".encode()).hexdigest()

    def part(first: int, last: int) -> Tensor:
        return torch.from_numpy(np.array(pixels[indices[first:last]]))

    height, width, channels = pixels.shape[1:]
    return ImageSet(f"{data.title}:{split}", digest, num, (height, width, channels), part, chosen, data.classes)


# --- files


class _Header(NamedTuple):
    """What one file says about its image before it is decoded."""

    height: int
    width: int
    grey: bool
    jpeg: bool
    digest: bytes  # SHA-256 of the file


def _open_files(path: Path, progress: Progress) -> ImageSet:
    names = archives.image_names(path, progress)
    if not names:
        raise DataError(f"{path}: there is no image in it", f"these endings count, in any case: {_ENDINGS}")
    check_num(str(path), len(names))
    labels, classes = _classes(names, path)
    read = _reader(path, names)
    headers = _headers(path, names, read, progress)
    height, width = headers[0][:2]
    channels = 1 if all(header.grey for header in headers) else 3
    digest = hashlib.sha256(repr((len(names), height, width, channels)).encode())
    for header in headers:
        digest.update(header.digest)
    jpegs = sum(header.jpeg for header in headers)
    kind = "the" if jpegs == len(names) else f"{jpegs} of the {len(names)}"

    def decode(index: int) -> Pixels:
        return _decode(*read(index), (height, width, channels))

    def part(start: int, stop: int) -> Tensor:
        with _threads() as pool:
            return torch.from_numpy(np.stack(list(pool.map(decode, range(start, stop)))))

    return ImageSet(
        title=_title(path),
        digest=_with_labels(digest, labels),
        num=len(names),
        shape=(height, width, channels),
        part=part,
        labels=labels,
        classes=classes,
        notes=(f"{_title(path)}: {kind} images are JPEG: compression moves FID; PNG is exact",) if jpegs else (),
    )


def _classes(names: list[str], path: Path) -> tuple[Labels | None, tuple[str, ...]]:
    """Labels and class names where all images lie in two or more folders side by side; else (None, ())."""
    rests = without_common_folder(names, keep={})
    tops = [rest.split("/")[0] if "/" in rest else "" for rest in rests]
    found = tuple(sorted(set(tops)))
    if len(found) > 1 and all(top.lower() in SPLIT_FOLDERS for top in found):
        raise DataError(f"{path}: holds the splits {', '.join(found)}, expected one set", "give one of them alone")
    if len(found) < 2 or any(rest.count("/") != 1 for rest in rests):
        return None, ()
    number = {name: index for index, name in enumerate(found)}
    return np.array([number[top] for top in tops], np.int64), found


def _reader(path: Path, names: list[str]) -> Callable[[int], tuple[str, Payload]]:
    """Index -> (name for messages, payload) of the image files at `path`; a zip stays open."""
    if path.is_dir():
        return lambda index: (str(path / names[index]), path / names[index])
    archive = zipfile.ZipFile(path)
    members = {archives.image_name(info.filename, path): info for info in archive.infolist()}

    def read(index: int) -> tuple[str, Payload]:
        info = members[names[index]]
        return f"{path}: {info.filename}", archives.read_zip_member(archive, info, path)

    return read


def _headers(
    path: Path, names: list[str], read: Callable[[int], tuple[str, Payload]], progress: Progress
) -> list[_Header]:
    """The headers of all files; DataError at the first image of another size."""
    found: list[_Header] = []
    with _threads() as pool:
        for start in range(0, len(names), _AT_ONCE):
            indices = range(start, min(len(names), start + _AT_ONCE))
            found += pool.map(lambda index: _header(*read(index)), indices)
            for index in indices:
                if found[index][:2] != found[0][:2]:
                    first, other = (f"{names[i]} has {found[i].width}x{found[i].height}" for i in (0, index))
                    text = f"{path}: images of different sizes: {first} pixels, {other}"
                    raise DataError(text, "resize them to one size first; saved as PNG they stay exact")
            progress.step(f"reading {_title(path)}", len(found), len(names))
    return found


def _header(name: str, payload: Payload) -> _Header:
    blob = _encoded(payload)
    try:
        with Image.open(io.BytesIO(blob), formats=images.FORMATS) as image:
            width, height = image.size
            # Looking for the EXIF data behind a PNG's pixels would decode them; so does turning, which few images need.
            if (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112, 1) >= 5:
                width, height = ImageOps.exif_transpose(image).size
            grey = (image.mode in ("1", "L", "I") or image.mode.startswith("I;16")) and not image.has_transparency_data
            return _Header(height, width, grey, image.format in ("JPEG", "MPO"), hashlib.sha256(blob).digest())
    except Exception as error:  # PIL's readers raise nearly anything on damaged files
        raise UnreadableImage(f"{name}: not a readable image ({images.reason_of(error, blob)})") from error


def _decode(name: str, payload: Payload, shape: tuple[int, int, int]) -> Pixels:
    image = images.in_mode(images.decode(_encoded(payload), name), "L" if shape[2] == 1 else "RGB")
    pixels = np.asarray(image)
    if pixels.shape[:2] != shape[:2]:
        raise DataError(f"{name}: decodes to {image.width}x{image.height} pixels, expected {shape[1]}x{shape[0]}")
    return pixels.reshape(shape)


def _encoded(payload: Payload) -> bytes:
    if isinstance(payload, UnreadableImage):
        raise payload
    assert not isinstance(payload, np.ndarray)
    return images.read_file(payload) if isinstance(payload, Path) else payload


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """A few threads to decode in (PIL and hashlib let go of the interpreter), without PIL's warnings; an image that
    cannot be read is the user's to repair."""
    num = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ThreadPoolExecutor(num) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # beyond twice its limit it is an error
        warnings.simplefilter("ignore", UserWarning)  # doubts about metadata do not concern the pixels
        try:
            yield pool
        except UnreadableImage as error:
            raise DataError(error.message, "repair the file, or leave it out") from error
        finally:
            pool.shutdown(cancel_futures=True)


# --- arrays


def _array_set(path: Path, found: PixelArray) -> ImageSet:
    def part(start: int, stop: int) -> Tensor:
        return torch.from_numpy(found.part(start, stop))

    num, height, width, channels = found.shape
    digest = _with_labels(hashlib.sha256(found.digest.encode()), found.labels)
    return ImageSet(_title(path), digest, num, (height, width, channels), part, found.labels)


def packed_at(path: Path) -> PackedDataset | None:
    """The packed dataset whose array file is `path`; None when the json beside it does not say that it is one."""
    facts = files.read_json(path.with_suffix(".json"))
    if not isinstance(facts, dict) or not {"splits", "digest", "shape", "classes", "title"} <= facts.keys():
        return None
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        labels = np.load(path.with_suffix(".labels.npy"), allow_pickle=False)
        splits = {name: (int(start), int(end)) for name, (start, end) in facts["splits"].items()}
        if pixels.dtype != np.uint8 or list(pixels.shape) != facts["shape"] or labels.shape != pixels.shape[:1]:
            raise ValueError(f"images are {pixels.dtype} {list(pixels.shape)}, labels {list(labels.shape)}")
        return PackedDataset(path, pixels, labels, tuple(facts["classes"]), splits, facts["digest"], facts["title"])
    except (OSError, ValueError, EOFError, TypeError, AttributeError) as error:
        hint = "prepare it again; as a plain array it needs another name than its .json"
        raise DataError(f"{path}: the packed dataset is damaged ({error})", hint) from error


def _with_labels(digest: Any, labels: Labels | None) -> str:
    if labels is not None:
        digest.update(b"labels" + labels.astype("<i8").tobytes())
    return str(digest.hexdigest())


def _title(path: Path) -> str:
    return path.name or path.resolve().name or str(path)
