"""The container this process runs in, if any: which image it is, what is lost when it ends, which caches are unusable.

Apptainer lets variables of an image win over the user's, defaults like "${VAR:-x}" included. So defaults that a user
may change are set here, by the program. Only caches need any: gantool chooses its number of threads itself
(runtime.py), and NCCL's own choices are right unless a site says otherwise.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
_OVERLAYS = ("overlay", "fuse.fuse-overlayfs")
_MEMORY = ("tmpfs", "ramfs")
# Written to by libraries that gantool uses, each where the user's home is if not told otherwise.
CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "CUDA_CACHE_PATH": "cuda",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
}


def inside() -> bool:
    """Whether this process runs in a container of Apptainer, Singularity, Docker or Podman."""
    return _apptainer_file() is not None or any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))


def image() -> dict[str, str] | None:
    """Which image this is: `digest` of its contents and `revision` (as containers/install.sh wrote them), `file`; those
    that are known. None outside a container, and when nothing is known."""
    if not inside():
        return None
    found = {}
    try:
        written = json.loads(Path(sys.prefix, "image.json").read_bytes())
        found = {key: str(written[key]) for key in ("digest", "revision")}
    except (OSError, ValueError, KeyError, TypeError):  # an image that was made in another way
        pass
    file = _apptainer_file()
    return found | ({"file": file} if file else {}) or None


def _apptainer_file() -> str | None:
    return os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")


def set_defaults() -> None:
    """Where the home cannot be written to, give the caches that a user has not placed a folder for temporary files.

    To be called before torch is loaded.
    """
    missing = [name for name in CACHES if name not in os.environ]
    if not missing or cache_folder_works():
        return
    folder = Path(tempfile.gettempdir(), f"gantool-{os.getuid()}")
    for name in missing:
        os.environ[name] = str(folder / CACHES[name])


def cache_folder_works() -> bool:
    """Whether the user's home and folder of caches are there and can be written to."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 (Path.home fails for users without one)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return writable(home) and writable(cache)


def writable(path: Path) -> bool:
    """Whether files can be made at `path`, or in the folder that would hold it."""
    existing = _existing(path)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def loss(path: Path) -> str | None:
    """In words, why what is written to `path` in this container would be lost; None if it would not be, or cannot be
    written at all."""
    if not inside() or not writable(path):  # an error will tell of the latter
        return None
    kind = _filesystem(_existing(path))
    if kind in _OVERLAYS:
        return f"{path} is inside the container, and gone when it ends: give a folder that is bound (--bind)"
    if kind in _MEMORY:
        return f"{path} is in memory ({kind}), and gone with the container or the job: give a folder on a disk (--bind)"
    return None


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _filesystem(path: Path) -> str:
    """The type of the filesystem that holds `path`, '' where the kernel does not tell."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return ""
    path = path.resolve()
    found, best = "", -1
    for line in lines:  # id parent device root MOUNTPOINT options ... - TYPE source options
        mount, _, rest = line.partition(" - ")
        point = Path(mount.split(" ")[4].replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= best:  # of two in one place the later covers the other
            found, best = rest.split(" ")[0], len(point.parts)
    return found
