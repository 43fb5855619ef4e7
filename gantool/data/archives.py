"""The image files in a folder, a zip or a tar (.gz, .xz, .bz2): their names, and their bytes as a stream.

Members of an archive are read, never extracted, so no name can point out of it. A tar is read from front to back
(twice: names, then bytes), because a compressed one cannot be entered in the middle.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gantool.data.images import MAX_FILE_BYTES, Payload, UnreadableImage
from gantool.errors import DataError
from gantool.progress import Progress, Silent

_FILES_TOLD = 1000  # of a folder, at a time
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")


def image_names(path: Path, progress: Progress) -> list[str]:
    """The image files at `path` as relative names with slashes, sorted by folder and then by name (plain string order,
    on every machine the same); hidden files and other kinds of files are left out. `progress` hears how much of an
    archive has been read; of a folder, how many files were found so far, for nobody knows how many there are."""
    if path.is_dir():
        names = set[str]()
        for found in _names_in_folder(path):
            names.add(found)
            if len(names) % _FILES_TOLD == 0:
                progress.step(f"files in {path.name}", len(names), None)
        progress.step(f"files in {path.name}", len(names), len(names))
    elif zipfile.is_zipfile(path):
        with _reading_zip(path) as zipped:
            names = {name for info in zipped.infolist() if (name := image_name(info.filename, path))}
    elif is_tar(path):
        with reading_tar(path, progress) as archive:
            names = {name for member in tar_members(archive) if (name := _checked_member_name(member, path))}
    else:
        raise DataError(
            f"{path}: neither a folder nor a zip or tar archive",
            "give a folder or an archive of images; an archive whose download broke off must be fetched again",
        )
    return sorted(names, key=lambda name: name.rpartition("/")[::2])


def read_images(path: Path, index_of: dict[str, int]) -> Iterator[tuple[int, str, Payload]]:
    """(index, name for messages, payload) of the images of `index_of`, in the order that reads `path` fastest."""
    if path.is_dir():
        yield from ((number, str(path / name), path / name) for name, number in index_of.items())
    elif zipfile.is_zipfile(path):
        with _reading_zip(path) as zipped:
            for info in zipped.infolist():
                index = index_of.get(image_name(info.filename, path) or "")
                if index is not None:
                    yield index, f"{path}: {info.filename}", read_zip_member(zipped, info, path)
    else:
        with reading_tar(path) as archive:
            for member in tar_members(archive):
                index = index_of.get(_checked_member_name(member, path) or "")
                if index is not None:
                    where = f"{path}: {member.name}"
                    file = archive.extractfile(member) if member.size <= MAX_FILE_BYTES else None
                    yield index, where, file.read() if file else _too_large(where, member.size)


def is_tar(path: Path) -> bool:
    """Whether `path` begins like a tar archive, compressed or not."""
    try:
        return path.is_file() and tarfile.is_tarfile(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return False


class _Member(tarfile.TarInfo):
    """A member whose header is whole: tarfile itself takes a damaged or missing one for the end of the archive, and the
    images behind it would be lost without a word."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Any:
        """The next member; ReadError where there is none and the end mark is missing too."""
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            at = tarfile_.offset
            raise tarfile.ReadError(f"{error} at byte {at} of the archive as it is unpacked") from error


class _ToldFile(io.FileIO):
    """A file to read, front to back; `progress` hears how many MB of it have been read, and at the end of the block
    that it has ended."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path)
        self._what, self._total, self._told = f"open {path.name} (MB)", max(1, path.stat().st_size >> 20), -1
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes from where it stands."""
        content = super().read(size)
        if (done := min(self.tell() >> 20, self._total - 1)) > self._told:
            self._told = done
            self._progress.step(self._what, done, self._total)
        return content or b""

    def __exit__(self, *error: object) -> None:
        super().__exit__(None, None, None)
        self._progress.step(self._what, self._total, self._total)


@contextlib.contextmanager
def reading_tar(path: Path, progress: Progress | None = None) -> Iterator[tarfile.TarFile]:
    """The opened archive; what goes wrong while reading it is a DataError."""
    try:
        with _ToldFile(path, progress or Silent()) as file, tarfile.open(fileobj=file, tarinfo=_Member) as archive:
            yield archive
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: damaged archive ({error})", "get the file again") from error


def tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members from front to back; tarfile itself would keep them all, some 300 MB for 200,000 images."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        yield member


def _checked_member_name(member: tarfile.TarInfo, path: Path) -> str | None:
    name = image_name(member.name, path)
    if name and (member.islnk() or member.issym()):
        hint = "make the archive again with tar --dereference --hard-dereference"
        raise DataError(f"{path}: {member.name}: a link instead of an image", hint)
    return name if member.isfile() else None


def image_name(member: str, path: Path) -> str | None:
    """The member's name without leading slashes and dots; None when it is no image or hidden."""
    parts = [part for part in member.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError(f"{path}: {member}: the name of this member points out of the archive", "make it again")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    if member.endswith("/") or hidden or not member.lower().endswith(SUFFIXES):
        return None
    return "/".join(parts)


def _names_in_folder(folder: Path) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error

    seen: set[tuple[int, int]] = set()
    for root, subfolders, files in os.walk(folder, onerror=stop, followlinks=True):
        found = os.stat(root)  # noqa: PTH116 - links are followed, so a loop of them must be noticed
        if (found.st_dev, found.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = os.path.relpath(root, folder)
        prefix = "" if relative == "." else relative + "/"
        yield from (prefix + name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith("."))


@contextlib.contextmanager
def _reading_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: damaged archive ({error})", "get the file again") from error


def read_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Payload:
    """The bytes of a member, or what keeps them from being read."""
    where = f"{path}: {info.filename}"
    if info.file_size > MAX_FILE_BYTES:
        return _too_large(where, info.file_size)
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError) as error:
        return UnreadableImage(f"{where}: cannot be read ({error})")  # damaged, encrypted, or an unknown compression


def _too_large(where: str, size: int) -> UnreadableImage:
    return UnreadableImage(f"{where}: {size} bytes, more than the {MAX_FILE_BYTES} of a plausible image")
