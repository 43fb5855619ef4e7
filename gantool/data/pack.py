"""A packed dataset: one uint8 array file [N, H, W, C], its labels, and a small json that says they are whole.

    <name>-<size>x<size>x<channels>-<digest of the data config>.npy    .labels.npy    .json

All three are replaced atomically, the json last, so whatever interrupts packing leaves nothing that is taken for whole.
Images are streamed into the file, so memory does not depend on their number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image

from gantool import files
from gantool.config.schema import DataConfig, digest_of
from gantool.data.download import download, prepare_command
from gantool.data.images import Labels, Payload, Pixels, Source, UnreadableImage, splits_of, to_square
from gantool.data.shapes import open_shapes
from gantool.data.sources import open_source
from gantool.errors import DataError
from gantool.progress import Progress, Silent

_log = logging.getLogger(__name__)

_FORMAT = 1
_STALE_SECONDS = 3600.0
_NUM_TOLD = 10  # of the images that were left out, how many are named in the words


@dataclass(frozen=True)
class PackedDataset:
    """A dataset on disk, memory-mapped."""

    path: Path
    images: Pixels  # uint8 memmap [N, H, W, C]
    labels: Labels  # int64 [N], -1 where there is none
    classes: tuple[str, ...]  # () when there are no labels
    splits: dict[str, tuple[int, int]]  # {"train": (0, 50000), "test": (50000, 60000)}; always has "train"
    digest: str  # sha256 (hex) over shape, images and labels
    title: str  # what stands beside numbers: "cifar10", or "cifar10 (JPEG)" when not from official files

    def split(self, name: str) -> tuple[Pixels, Labels]:
        """Images and labels of one split, as views; DataError when there is no such split."""
        if name not in self.splits:
            hint = "pack a source that has it, e.g. a folder beside train/"
            raise DataError(f"{self.title} has no split '{name}', only {', '.join(self.splits)}", hint)
        start, end = self.splits[name]
        return self.images[start:end], self.labels[start:end]


def packed_path(data: DataConfig, data_dir: Path) -> Path:
    """The array file of `data`; the same for settings that are written out and settings that are left to default."""
    size, channels = data.image_size, data.image_channels
    resolved = data.model_dump(mode="json") | {"size": size, "channels": channels}
    return data_dir / f"{data.name}-{size}x{size}x{channels}-{digest_of(resolved)[:8]}.npy"


def open_packed(data: DataConfig, data_dir: Path) -> PackedDataset:
    """The packed dataset of `data`, memory-mapped; sizes are checked, the digest is not (see `verify`).

    DataError when it is missing or not whole; its hint is the command that packs it.
    """
    path = packed_path(data, data_dir)
    source = "FOLDER_OR_ARCHIVE" if data.known is None or data.name == "celeba" else None
    hint = f"pack it first: {prepare_command(data, data_dir, source)}"
    if not _json_path(path).exists():
        raise DataError(f"{path}: dataset '{data.name}' is not packed there", hint)
    try:
        facts = json.loads(_json_path(path).read_bytes())
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        labels = np.load(_labels_path(path), allow_pickle=False)
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']}, expected {_FORMAT}")
        splits = {name: (int(start), int(end)) for name, (start, end) in facts["splits"].items()}
        dataset = PackedDataset(path, images, labels, tuple(facts["classes"]), splits, facts["digest"], facts["title"])
        _check_sizes(dataset, tuple(facts["shape"]), data)
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: the packed dataset is damaged ({error})", hint.replace("first", "again")) from error
    _log.info("opened %s: %d images %s, digest %s", path, len(images), list(images.shape[1:]), dataset.digest[:12])
    return dataset


def verify(dataset: PackedDataset, progress: Progress | None = None) -> bool:
    """Whether the file still has the digest it was packed with; reads all of it, without holding it."""
    try:
        return _digest(dataset.path, dataset.images.shape, dataset.labels, progress) == dataset.digest
    except OSError:
        return False


def check_digest(dataset: PackedDataset, progress: Progress | None = None) -> None:
    """DataError when the file is no longer what was packed (see `verify`)."""
    if not verify(dataset, progress):
        text = f"{dataset.path}: damaged: its digest is not {dataset.digest[:12]}, with which it was packed"
        raise DataError(text, "delete it and prepare the data again")


def ensure_packed(data: DataConfig, data_dir: Path, progress: Progress) -> PackedDataset:
    """`open_packed`, but `shapes`, which needs no files, is packed on the spot when it is missing or damaged."""
    if data.name == "shapes":
        with contextlib.suppress(DataError):
            return open_packed(data, data_dir)
        return pack(data, data_dir, None, progress)
    return open_packed(data, data_dir)


def pack(data: DataConfig, data_dir: Path, source: Path | None, progress: Progress) -> PackedDataset:
    """Pack `data` from its original files at `source` (None: the official download) and open it.

    DataError names the file that is wrong. An unreadable image stops it or, with `on_bad_image: skip`, is left out.
    """
    if data.name == "shapes":
        original = open_shapes(data.image_size)
    else:
        source = source or download(data, data_dir, progress)
        original = open_source(data, source, progress)
    path = packed_path(data, data_dir)
    _remove_leftovers(path)
    size, channels = data.image_size, data.image_channels
    with (
        files.atomic_file(_json_path(path)) as json_file,  # left last, so renamed last
        files.atomic_file(_labels_path(path)) as labels_file,
        files.atomic_file(path) as images_file,
    ):
        kept, bad = _write_images(images_file, original, data, progress)
        labels, splits = original.labels[kept], _splits_kept(original, kept, bad)
        np.save(labels_file, labels)
        shape = (len(labels), size, size, channels)
        digest = _digest(Path(images_file.name), shape, labels, progress)
        facts = {
            "format": _FORMAT,
            "title": _title(original.title, data, splits),
            "shape": shape,
            "classes": original.classes,
            "splits": splits,
            "digest": digest,
            "source": str(source) if source else None,
            "left_out": bad,
        }
        json_file.write(json.dumps(facts, indent=1).encode())
        _forget_other(_json_path(path), digest)
    _tell_left_out(bad, progress)
    return open_packed(data, data_dir)


def _json_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _labels_path(path: Path) -> Path:
    return path.with_suffix(".labels.npy")


def _forget_other(json_path: Path, digest: str) -> None:
    """Until all three files have their names, an old json must not vouch for new images (the same ones are fine)."""
    if not json_path.exists():
        return  # one that appears from now on is of another process that packs the same images
    old = files.read_json(json_path)
    if not isinstance(old, dict) or old.get("digest") != digest:
        json_path.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Temporary files of packings that were killed; one that changed lately belongs to a living process."""
    for leftover in path.parent.glob(f".{path.stem}.*.tmp"):
        with contextlib.suppress(OSError):
            if leftover.stat().st_mtime < time.time() - _STALE_SECONDS:
                leftover.unlink()


def _check_sizes(dataset: PackedDataset, shape: tuple[int, ...], data: DataConfig) -> None:
    expected = (shape[0], data.image_size, data.image_size, data.image_channels)
    images, labels = dataset.images, dataset.labels
    if not images.shape == shape == expected or images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, expected uint8 {list(expected)}")
    if labels.shape != shape[:1] or labels.dtype != np.int64:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, expected int64 [{shape[0]}]")
    if not (labels >= -1).all() or not (labels < max(1, len(dataset.classes))).all():
        raise ValueError(f"there are labels outside of the {len(dataset.classes)} classes")
    if "train" not in dataset.splits or any(not 0 <= a < b <= shape[0] for a, b in dataset.splits.values()):
        raise ValueError(f"its splits are {dataset.splits}")


def _write_images(
    file: IO[bytes], source: Source, data: DataConfig, progress: Progress
) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Write the array file; comes back with which images are in it, and a message for each that is not."""
    size, channels, total = data.image_size, data.image_channels, len(source.labels)
    record = size * size * channels
    start = _write_header(file, (total, size, size, channels))
    kept = np.zeros(total, np.bool_)
    bad: list[str] = []
    at = 0
    with contextlib.closing(_squares(source.read(), data)) as squares:
        for done, (index, square) in enumerate(squares, start=1):
            if isinstance(square, UnreadableImage):
                if data.on_bad_image == "error":
                    raise DataError(square.message, "repair or remove it, or leave it out by data.on_bad_image: skip")
                bad.append(square.message)
            else:
                if index != at:  # archives come in their own order; each seek would flush
                    file.seek(start + index * record)
                file.write(square.tobytes())
                at, kept[index] = index + 1, True
            if done % 256 == 0 or done == total:
                progress.step(f"packing {data.name}", done, total)
    if not kept.all():
        _close_gaps(file, start, record, kept)
        _write_header(file, (int(kept.sum()), size, size, channels))
    file.flush()
    return kept, sorted(bad)


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> int:
    """Write the .npy header at the start; its length, the same for any number of images, comes back."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def _close_gaps(file: IO[bytes], start: int, record: int, kept: npt.NDArray[np.bool_]) -> None:
    """Move the images up over those that were left out, and shorten the file."""
    file.flush()
    positions = np.flatnonzero(kept)
    with Path(file.name).open("rb") as reading:
        for new, old in enumerate(positions):
            if new != old:
                reading.seek(start + int(old) * record)
                image = reading.read(record)
                file.seek(start + new * record)
                file.write(image)
    file.truncate(start + len(positions) * record)


def _squares(
    items: Iterable[tuple[int, str, Payload]], data: DataConfig
) -> Generator[tuple[int, Pixels | UnreadableImage], None, None]:
    """Decode and fit in a few threads (PIL lets go of the interpreter), in the order of `items`, few at a time."""

    def convert(index: int, name: str, payload: Payload) -> tuple[int, Pixels | UnreadableImage]:
        try:
            return index, to_square(payload, data, name)
        except UnreadableImage as error:
            return index, error

    num_threads = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    waiting: deque[Future[tuple[int, Pixels | UnreadableImage]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # beyond twice its limit it is an error
        warnings.simplefilter("ignore", UserWarning)  # PIL's doubts about metadata do not concern the pixels
        try:
            for item in items:
                waiting.append(pool.submit(convert, *item))
                if len(waiting) >= 4 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _splits_kept(source: Source, kept: npt.NDArray[np.bool_], bad: list[str]) -> dict[str, tuple[int, int]]:
    counts = {name: int(kept[start:end].sum()) for name, (start, end) in source.splits.items()}
    for name, count in counts.items():
        if not count:
            raise DataError(f"{source.title}: no image of the {name} split can be read, e.g. {bad[0]}")
    return splits_of(counts)


def _title(title: str, data: DataConfig, splits: dict[str, tuple[int, int]]) -> str:
    """A known dataset with other numbers of images than published must not pass for it."""
    counts = {name: end - start for name, (start, end) in splits.items()}
    published = {"train": data.known.num_train, "test": data.known.num_test} if data.known else {}
    if all(counts.get(name, count) == count for name, count in published.items()):
        return title
    return f"{title} ({' + '.join(f'{count} {name}' for name, count in counts.items())} images)"


def _tell_left_out(bad: list[str], progress: Progress) -> None:
    if bad:
        more = f"\n  and {len(bad) - _NUM_TOLD} more" if len(bad) > _NUM_TOLD else ""
        progress.say(f"{len(bad)} unreadable images left out:\n  " + "\n  ".join(bad[:_NUM_TOLD]) + more)


def _digest(path: Path, shape: tuple[int, ...], labels: Labels, progress: Progress | None = None) -> str:
    """sha256 over shape, images and labels of an array file; OSError when it cannot be read."""
    progress = progress or Silent()
    total = max(1, -(-math.prod(map(int, shape)) // 2**20))
    digest = hashlib.sha256(repr(tuple(int(n) for n in shape)).encode())
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        done = 0
        while block := file.read(2**20):
            digest.update(block)
            done += 1
            progress.step("checking the data (MB)", min(done, total - 1), total)
    progress.step("checking the data (MB)", total, total)
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
