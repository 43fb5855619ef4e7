"""CIFAR-10 and CIFAR-100 as published (Krizhevsky, 2009): the python or the binary version, as tar.gz or extracted.

A python batch is a pickle, which can run any code when it is loaded. It is loaded only when its MD5 is that of the
official file (the list that torchvision.datasets.CIFAR10/100 checks), and then only numpy arrays may come out of it.
CIFAR-100 gets its 100 fine labels.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np

from gantool.data.archives import is_tar, reading_tar, tar_members
from gantool.data.images import Labels, Payload, Pixels, Source, splits_of
from gantool.errors import DataError
from gantool.progress import Progress, told

OFFICIAL_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
_PIXELS = 3 * 32 * 32


class _Version(NamedTuple):
    folder: str
    train: tuple[str, ...]
    test: str
    names: str  # the file of the class names
    label_key: bytes  # python: key of the labels; binary: unused
    names_key: bytes
    label_bytes: int  # binary: bytes before the pixels of each record, of which the last is the label; python: 0


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_BINARIES = tuple(f"{batch}.bin" for batch in _BATCHES)
_FINE = "fine_label_names"
VERSIONS = {
    "cifar10": (
        _Version("cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", b"labels", b"label_names", 0),
        _Version("cifar-10-batches-bin", _BINARIES, "test_batch.bin", "batches.meta.txt", b"", b"", 1),
    ),
    "cifar100": (
        _Version("cifar-100-python", ("train",), "test", "meta", b"fine_labels", _FINE.encode(), 0),
        _Version("cifar-100-binary", ("train.bin",), "test.bin", f"{_FINE}.txt", b"", b"", 2),
    ),
}

_AGAIN = "get the official archive again"


class _Files(NamedTuple):
    """The official files by their names, wherever they lie."""

    where: Path
    open: Callable[[str], IO[bytes]]  # OSError or KeyError when it is not there


def open_cifar(name: str, source: Path, progress: Progress) -> Source | None:
    """The official batches of dataset `name` in a folder or tar; None when `source` holds none of them."""
    versions = VERSIONS[name]
    if source.is_dir():
        for version in versions:
            for folder in (source / version.folder, source):
                if (folder / version.train[0]).is_file():
                    return _open_version(name, version, _Files(folder, partial(_open_in_folder, folder)), progress)
        endings = (("-batches-py", "-python"), ("-batches-bin", "-binary"))
        names = [next((v.folder.replace(*e) for e in endings if e[0] in v.folder), v.folder) for v in versions]
        archives = (source / f"{archive}.tar.gz" for archive in names)
        found = next((path for path in archives if path.is_file()), None)
        return open_cifar(name, found, progress) if found else None
    if not is_tar(source):
        return None
    wanted = {file for version in versions for file in (*version.train, version.test, version.names)}
    with reading_tar(source, progress) as archive:
        members: dict[str, tarfile.TarInfo] = {}
        for member in tar_members(archive):
            if member.isfile() and Path(member.name).name in wanted:
                members[Path(member.name).name] = member
    with reading_tar(source) as archive:
        for version in versions:
            if version.train[0] in members:
                return _open_version(name, version, _Files(source, partial(_open_in_tar, archive, members)), progress)
    return None


def _open_version(name: str, version: _Version, files: _Files, progress: Progress) -> Source:
    names = (*version.train, version.test)
    classes = _read_names(version, files)
    batches = [_read_batch(version, file, files, len(classes)) for file in told(names, "read batches", progress)]
    labels = np.concatenate([batch_labels for _, batch_labels in batches])
    num_test = len(batches[-1][1])

    def read() -> Iterator[tuple[int, str, Payload]]:
        index = 0
        for images, _ in batches:  # all of them are held: 184 MB for either dataset
            for image in images:
                yield index, f"{name}[{index}]", image.transpose(1, 2, 0)
                index += 1

    return Source(name, classes, labels, splits_of({"train": len(labels) - num_test, "test": num_test}), read)


def _read_batch(version: _Version, file: str, files: _Files, num_classes: int) -> tuple[Pixels, Labels]:
    """Images uint8 [n, 3, 32, 32] and labels int64 [n] of one file."""
    where = files.where / file
    pixels: Pixels
    labels: Labels
    if version.label_bytes:
        content = _read_bytes(files, file)
        record = version.label_bytes + _PIXELS
        if not content or len(content) % record:
            raise DataError(f"{where}: {len(content)} bytes, expected a multiple of {record}", _AGAIN)
        table = np.frombuffer(content, np.uint8).reshape(-1, record)
        pixels, labels = table[:, version.label_bytes :], table[:, version.label_bytes - 1].astype(np.int64)
    else:
        batch = _load_official_pickle(files, file)
        pixels, labels = batch[b"data"], np.array(batch[version.label_key], np.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
            text = f"{len(labels)} labels for {pixels.dtype} images {list(pixels.shape)}"
            raise DataError(f"{where}: {text}, expected uint8 [{len(labels)}, {_PIXELS}]", _AGAIN)
    if labels.min() < 0 or labels.max() >= num_classes:
        found = f"labels from {labels.min()} to {labels.max()}"
        raise DataError(f"{where}: {found}, expected 0 to {num_classes - 1}", _AGAIN)
    return pixels.reshape(-1, 3, 32, 32), labels


def _read_names(version: _Version, files: _Files) -> tuple[str, ...]:
    if not version.label_bytes:
        return tuple(name.decode() for name in _load_official_pickle(files, version.names)[version.names_key])
    return tuple(_read_bytes(files, version.names).decode("ascii", "replace").split())


def _load_official_pickle(files: _Files, file: str) -> dict[bytes, Any]:
    """The dictionary in a python batch; DataError, and nothing is loaded, when it is not the official file."""
    content_md5 = hashlib.md5(usedforsecurity=False)
    try:
        with files.open(file) as stream:
            while block := stream.read(2**20):
                content_md5.update(block)
            if content_md5.hexdigest() != OFFICIAL_MD5[file]:
                text = f"MD5 is {content_md5.hexdigest()}, expected {OFFICIAL_MD5[file]}"
                raise DataError(f"{files.where / file}: not the official file, so it is not loaded: {text}", _AGAIN)
            stream.seek(0)
            batch: dict[bytes, Any] = _ArraysOnly(stream, encoding="bytes").load()
            return batch
    except (OSError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(f"{files.where / file}: cannot be read ({error})", _AGAIN) from error


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that makes numpy arrays and plain values and nothing else."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self._allowed[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it holds {module_name}.{global_name}, expected only arrays") from None


def _read_bytes(files: _Files, file: str) -> bytes:
    try:
        with files.open(file) as stream:
            return stream.read()
    except (OSError, KeyError) as error:
        raise DataError(f"{files.where / file}: cannot be read ({error})", _AGAIN) from error


def _open_in_folder(folder: Path, file: str) -> IO[bytes]:
    return (folder / file).open("rb")


def _open_in_tar(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], file: str) -> IO[bytes]:
    if file not in members:
        raise FileNotFoundError("no such file in the archive")
    stream = archive.extractfile(members[file])
    assert stream is not None  # only regular files are among the members
    return stream
