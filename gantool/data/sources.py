"""Which reader a dataset's name and its original files ask for.

A known dataset is read from its official files where they are, else from a collection of images with one folder for
each of its classes; its title then says so, because decoded JPEG images are not the published pixels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gantool.config.schema import DataConfig
from gantool.data.cifar import VERSIONS, open_cifar
from gantool.data.folders import image_kind, open_celeba, open_images
from gantool.data.idx import FAMILIES, find_idx, open_idx
from gantool.data.images import Source
from gantool.errors import DataError
from gantool.progress import Progress


def open_source(data: DataConfig, path: Path, progress: Progress) -> Source:
    """The original images of dataset `data.name` at `path`; DataError when they are not there or not as published."""
    try:
        if path.stat() and path.is_file():
            path.open("rb").close()
        elif not path.is_dir():
            raise DataError(f"{path}: neither a file nor a folder", "give the folder or archive of the images")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "check the path of --source") from error
    if data.name == "celeba":
        return open_celeba(path, progress)
    if data.name in FAMILIES and (folder := find_idx(data.name, path)):
        return open_idx(data.name, folder)
    if data.name in VERSIONS and (source := open_cifar(data.name, path, progress)):
        return source
    try:
        source = open_images(data.name, path, progress)
    except DataError as error:
        if data.known is None:
            raise
        official = "IDX files" if data.name in FAMILIES else "batches or archive"
        hint = f"for {data.name} give the folder of its official {official}, or images in train/CLASS/ and test/CLASS/"
        raise DataError(error.message, hint) from error
    return source if data.known is None else _as_known(data, source, path, progress)


def _as_known(data: DataConfig, source: Source, path: Path, progress: Progress) -> Source:
    assert data.known is not None
    if len(source.classes) != data.known.num_classes:
        found = f"{len(source.classes)} class folders, expected the {data.known.num_classes} classes of {data.name}"
        raise DataError(f"{path}: found {found}", "give data.name a name of your own to pack other images")
    return replace(source, title=f"{data.name} ({image_kind(path, progress)})")
