"""The IDX files of MNIST, Fashion-MNIST, KMNIST and EMNIST, gzipped or not, as torchvision.datasets.MNIST reads them.

A file is a big-endian header (two zero bytes, type 8 = uint8, number of dimensions, then each dimension as a 32-bit
integer) and the values. EMNIST's images are stored transposed; of EMNIST the "balanced" part is read.
"""

from __future__ import annotations

import contextlib
import gzip
import string
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from gantool.data.images import Labels, Payload, Source, splits_of
from gantool.errors import DataError

_BLOCK = 1000  # images held at a time
_MAX_SIDE = 4096


class _Family(NamedTuple):
    folder: str  # the subfolder that torchvision downloads to
    prefixes: dict[str, str]
    classes: tuple[str, ...]
    transposed: bool = False


_MNIST = {"train": "train", "test": "t10k"}
_EMNIST = {"train": "emnist-balanced-train", "test": "emnist-balanced-test"}
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FAMILIES = {
    "mnist": _Family("MNIST", _MNIST, tuple(string.digits)),
    "fashion_mnist": _Family("FashionMNIST", _MNIST, _FASHION),
    "kmnist": _Family("KMNIST", _MNIST, ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
    "emnist": _Family("EMNIST", _EMNIST, tuple(string.digits + string.ascii_uppercase + "abdefghnqrt"), True),
}


class _Images(NamedTuple):
    path: Path
    num: int
    height: int
    width: int


def find_idx(name: str, source: Path) -> Path | None:
    """The folder at or under `source` that holds the training images of dataset `name`; None when there is none."""
    family = FAMILIES[name]
    root = source if source.is_dir() else source.parent
    candidates = [root / family.folder / "raw", root, root / "raw", root / family.folder, root / "gzip"]
    return next((folder for folder in candidates if _find(folder, family.prefixes["train"], "images", 3)), None)


def open_idx(name: str, folder: Path) -> Source:
    """The images and labels of dataset `name` in `folder`; DataError when a header or a label is wrong."""
    family = FAMILIES[name]
    parts: dict[str, _Images] = {}
    labels: list[Labels] = []
    for split, prefix in family.prefixes.items():
        images_path, labels_path = _find(folder, prefix, "images", 3), _find(folder, prefix, "labels", 1)
        if split == "test" and not images_path and not labels_path:
            continue
        for path, kind in ((images_path, "images-idx3"), (labels_path, "labels-idx1")):
            if path is None:
                raise DataError(f"{folder}: there is no {prefix}-{kind}-ubyte (or .gz)", "put all four files there")
        assert images_path and labels_path
        parts[split] = _read_images_header(images_path)
        labels.append(_read_labels(labels_path, len(family.classes)))
        if parts[split].num != len(labels[-1]):
            found = f"{len(labels[-1])} labels for the {parts[split].num} images of {images_path.name}"
            raise DataError(f"{labels_path}: {found}", "the two files do not belong together: get both again")

    def read() -> Iterator[tuple[int, str, Payload]]:
        index = 0
        for part in parts.values():
            for position, image in enumerate(_read_pixels(part)):
                image = image.T if family.transposed else image
                yield index, f"{part.path}[{position}]", image[:, :, None]
                index += 1

    splits = splits_of({split: part.num for split, part in parts.items()})
    return Source(name, family.classes, np.concatenate(labels), splits, read)


def _find(folder: Path, prefix: str, what: str, num_dims: int) -> Path | None:
    stems = (f"{prefix}-{what}-idx{num_dims}-ubyte", f"{prefix}-{what}.idx{num_dims}-ubyte")
    paths = (folder / f"{stem}{suffix}" for stem in stems for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The content of `path`, decompressed; what goes wrong while reading it is a DataError."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not zipped:
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as file:
                yield file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        text = "truncated gzip file" if isinstance(error, EOFError) else f"cannot be read: {error}"
        raise DataError(f"{path}: {text}", "get the file again") from error


def _read_header(file: IO[bytes], path: Path, num_dims: int) -> list[int]:
    head = file.read(4)
    if head != bytes([0, 0, 8, num_dims]):
        expected = f"expected {bytes([0, 0, 8, num_dims]).hex()} (IDX, uint8, {num_dims} dimensions)"
        raise DataError(f"{path}: starts with {head.hex() or 'nothing'}, {expected}", "get the file again")
    sizes = file.read(4 * num_dims)
    if len(sizes) < 4 * num_dims:
        raise DataError(f"{path}: ends inside its header", "get the file again")
    return list(struct.unpack(f">{num_dims}I", sizes))


def _read_images_header(path: Path) -> _Images:
    with _opened(path) as file:
        count, height, width = _read_header(file, path, 3)
    if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE and count):
        raise DataError(f"{path}: its header says {count} images of {width}x{height} pixels", "get the file again")
    return _Images(path, count, height, width)


def _read_labels(path: Path, num_classes: int) -> Labels:
    with _opened(path) as file:
        (count,) = _read_header(file, path, 1)
        content = file.read(count + 1)
    if len(content) != count:
        raise DataError(_wrong_length(path, f"{count} labels", len(content) > count), "get the file again")
    labels = np.frombuffer(content, np.uint8).astype(np.int64)
    if labels.size and labels.max() >= num_classes:
        at = int(labels.argmax())
        raise DataError(f"{path}: label {at} is {labels[at]}, expected 0 to {num_classes - 1}", "get the file again")
    return labels


def _read_pixels(part: _Images) -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Each image of the file, uint8 [H, W]."""
    pixels = part.height * part.width
    expected = f"{part.num} images of {part.width}x{part.height} pixels"
    with _opened(part.path) as file:
        _read_header(file, part.path, 3)
        for start in range(0, part.num, _BLOCK):
            num = min(_BLOCK, part.num - start)
            block = file.read(num * pixels)
            if len(block) != num * pixels:
                raise DataError(_wrong_length(part.path, expected, False), "get the file again")
            yield from np.frombuffer(block, np.uint8).reshape(num, part.height, part.width)
        if file.read(1):
            raise DataError(_wrong_length(part.path, expected, True), "get the file again")


def _wrong_length(path: Path, expected: str, longer: bool) -> str:
    return f"{path}: holds {'more' if longer else 'fewer'} bytes than the {expected} of its header"
