"""Arrays of images in .npz and .npy files: hashed, checked, read part by part, and never unpickled.

A .npz is a zip of .npy files. np.savez stores them as they are, so pixels can be read where they lie in it; what
np.savez_compressed deflated is unpacked into memory (n * H * W * C bytes). Nothing is mapped: some clusters count
mapped pages as memory of the job, and a file that shrinks would end the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gantool.data.images import Labels, Pixels
from gantool.errors import DataError
from gantool.progress import Progress

_MOST_CLASSES = 100_000
_BLOCK_BYTES = 2**24
_UINT8_HINT = "save uint8 [n, H, W, C], 0..255; from [-1, 1] by (x * 127.5 + 128).clip(0, 255).astype(np.uint8)"


class PixelArray(NamedTuple):
    """An array of images from a file."""

    shape: tuple[int, int, int, int]  # [n, H, W, C], C 1 or 3
    digest: str  # SHA-256 (hex) over shape and pixels
    part: Callable[
        [int, int], Pixels
    ]  # (start, stop) -> uint8 [stop - start, H, W, C]; DataError when the file changed
    labels: Labels | None = None  # int64 [n], -1 where there is none


def read_npz(path: Path, progress: Progress) -> PixelArray:
    """`images` and `labels`, or `arr_0` and `arr_1`, of a .npz; DataError when there are none or they are damaged."""
    with _damage_is_an_error(path), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        key, labels_key = ("images", "labels") if "images" in members else ("arr_0", "arr_1")
        if key not in members:
            names = ", ".join(sorted(members)[:8]) or "nothing"
            text = f"{path}: found {names} in it, expected an array 'images' or 'arr_0'"
            raise DataError(text, "give the images; statistics of them (mu, sigma) are not enough")
        info = members[key]
        offset = _data_offset(file, info) if info.compress_type == zipfile.ZIP_STORED else None
        with archive.open(info) as stream:
            found = _read_pixels(f"{path}: {key}", stream, info.file_size, path, offset, progress)
        if labels_key not in members:
            return found
        with archive.open(members[labels_key]) as stream:
            return found._replace(labels=_read_labels(f"{path}: {labels_key}", stream, found.shape[0]))


def read_npy(path: Path, progress: Progress) -> PixelArray:
    """The images of a .npy; DataError when it holds something else or is damaged."""
    with _damage_is_an_error(path), path.open("rb") as file:
        return _read_pixels(str(path), file, path.stat().st_size, path, 0, progress)


def check_num(where: str, num: int) -> None:
    """DataError when `num` images are too few for any statistics."""
    if num < 2:
        text = f"{where}: found {num} image{'s' * (num != 1)}, expected 2 or more"
        raise DataError(text, "scores are comparable from thousands of images on")


@contextlib.contextmanager
def _damage_is_an_error(path: Path) -> Iterator[None]:
    """What zip readers and disks raise, as DataError (RuntimeError: encrypted, or an unknown compression)."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError) as error:
        text = f"{path}: damaged, or not a {path.suffix} file ({getattr(error, 'strerror', None) or error})"
        raise DataError(text, "make or fetch the file again") from error


def _data_offset(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin; its local header has lengths of its own."""
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30:
        raise zipfile.BadZipFile("a local header is missing")
    name_length, extra_length = struct.unpack("<26xHH", header)
    return info.header_offset + 30 + int(name_length) + int(extra_length)


def _read_pixels(
    where: str, stream: IO[bytes], size: int, path: Path, offset: int | None, progress: Progress
) -> PixelArray:
    """The .npy in `stream` (of `size` bytes, which lie in `path` from `offset`; None: compressed) as uint8
    [n, H, W, C]. Bytes after the pixels are read too: at its end the checksum of a zip's member is checked."""
    shape = _array_shape(where, stream)
    start, total = stream.tell(), math.prod(shape)
    if size - start < total:
        raise DataError(f"{where}: ends after {size - start} of its {total} bytes", "make or fetch the file again")
    try:
        kept = np.empty(total if offset is None else 0, np.uint8)
    except MemoryError as error:
        text = f"{where}: compressed, and {total} bytes are more than fit into memory"
        raise DataError(text, "save it by np.savez, which is read part by part") from error
    digest, at = hashlib.sha256(repr(shape).encode()), 0
    while at < total:
        block = stream.read(min(_BLOCK_BYTES, total - at))
        if not block:
            raise EOFError(f"{at} of {total} bytes")
        digest.update(block)
        if offset is None:
            kept[at : at + len(block)] = np.frombuffer(block, np.uint8)
        at += len(block)
        progress.step(f"reading {path.name}", at * shape[0] // total, shape[0])
    while stream.read(_BLOCK_BYTES):
        pass
    if offset is None:
        pixels = kept.reshape(shape)
        return PixelArray(shape, digest.hexdigest(), lambda first, last: pixels[first:last].copy())
    return PixelArray(shape, digest.hexdigest(), partial(_part_of_file, path, offset + start, shape))


def _part_of_file(path: Path, offset: int, shape: tuple[int, int, int, int], first: int, last: int) -> Pixels:
    record = math.prod(shape[1:])
    with _damage_is_an_error(path):
        found = np.fromfile(path, np.uint8, (last - first) * record, offset=offset + first * record)
        if len(found) != (last - first) * record:
            raise EOFError("it has become shorter")
    return found.reshape(last - first, *shape[1:])


def _array_shape(where: str, stream: IO[bytes]) -> tuple[int, int, int, int]:
    """[n, H, W, C] from the header of a .npy; DataError when it holds anything but images in uint8."""
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[version](stream)
    except (ValueError, KeyError, EOFError) as error:
        raise DataError(f"{where}: no array in numpy's format ({error})", "make or fetch the file again") from error
    text = f"{where}: found {dtype} {list(shape)}, expected uint8 [n, H, W, 3], [n, H, W, 1] or [n, H, W]"
    if dtype != np.uint8:
        raise DataError(text.replace("object", "Python objects"), _UINT8_HINT)
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise DataError(text, "the channels come last: x.transpose(0, 2, 3, 1)")
    one_image = len(shape) == 3 and shape[2] in (3, 4)
    whole = (*shape, 1) if len(shape) == 3 else shape
    if len(whole) != 4 or whole[3] not in (1, 3) or min(whole[1:]) < 1 or one_image:
        raise DataError(text, _UINT8_HINT)
    if fortran:
        raise DataError(f"{where}: the array is in Fortran order", "save np.ascontiguousarray(x)")
    check_num(where, whole[0])
    return whole


def _read_labels(where: str, stream: IO[bytes], num: int) -> Labels:
    try:
        found: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read()  # to the end, where the checksum is checked
    except ValueError as error:
        raise DataError(f"{where}: {error}", "save the labels as integers [n]") from error
    if found.dtype.kind not in "iu" or found.shape != (num,):
        text = f"{where}: found {found.dtype} {list(found.shape)}, expected integers [{num}], one for each image"
        raise DataError(text, "save the number of the class of each image")
    if num and (found.min() < -1 or found.max() >= _MOST_CLASSES):
        text = f"{where}: found numbers from {found.min()} to {found.max()}, expected classes from 0 (-1: none)"
        raise DataError(text, "number the classes from 0")
    return found.astype(np.int64)
