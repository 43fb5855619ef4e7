"""The container this process runs in, if any: which image it is, what is lost when it ends, which caches are unusable.

Apptainer lets variables of an image win over the user's, defaults like "${VAR:-x}" included. So defaults that a user
may change are set here, by the program. Only caches need any: gantool chooses its number of threads itself
(runtime.py), and NCCL's own choices are right unless a site says otherwise.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

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


class Engine(NamedTuple):
    """What runs a container, as far as advice depends on it."""

    name: str
    gpus: str
    """What to do so that its GPUs are there."""
    folder: str
    """A folder that outlasts it."""
    bind: str
    """The option that brings a folder in."""


APPTAINER = Engine("Apptainer", "run it with --nv", "a folder that is bound (--bind)", "--bind")
DOCKER = Engine("Docker", "run it with --gpus all", "a folder that is mounted (--volume)", "--volume")
PODMAN = Engine("Podman", "run it with --device nvidia.com/gpu=all", DOCKER.folder, "--volume")
OTHER = Engine("another", "run it with its GPUs", "a folder that is mounted from outside", "a mount of")
_MARKS = {"/run/.containerenv": PODMAN, "/.dockerenv": DOCKER}


def engine() -> Engine | None:
    """What runs the container that this process is in; None outside one. Some leave no mark, like enroot and
    Kubernetes: there an image of gantool is known by its own file."""
    if _apptainer_file() is not None:
        return APPTAINER
    marked = next((found for mark, found in _MARKS.items() if Path(mark).exists()), None)
    return marked or (OTHER if _image_file().is_file() else None)


def inside() -> bool:
    """Whether this process runs in a container."""
    return engine() is not None


def image() -> dict[str, str] | None:
    """Which image this is: `digest` of its contents and `revision` (as containers/install.sh wrote them), `file`; those
    that are known. None outside a container, and when nothing is known."""
    if not inside():
        return None
    found = {}
    try:
        written = json.loads(_image_file().read_bytes())
        found = {key: str(written[key]) for key in ("digest", "revision")}
    except (OSError, ValueError, KeyError, TypeError):  # an image that was made in another way
        pass
    file = _apptainer_file()
    return found | ({"file": file} if file else {}) or None


def holds(path: Path) -> bool:
    """Whether the folder `path` is of the image: nothing was bound over it, or over what is in it."""
    mounts, path = _mounts(), path.resolve()
    return _mount_of(path, mounts) == _mount_of(_image_file().resolve(), mounts) and not any(
        point != path and point.is_relative_to(path) for point, _ in mounts
    )


def _image_file() -> Path:
    return Path(sys.prefix, "image.json")


def _apptainer_file() -> str | None:
    return os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")


def set_defaults() -> None:
    """Where the home cannot be written to, give the caches that a user has not placed a folder for temporary files.

    To be called before torch is loaded. Never fails: without such a folder the caches stay where they are.
    """
    for name in CACHES:
        value = os.environ.get(name)
        if value == "" or (value and inside() and not writable(Path(value))):
            del os.environ[name]  # it places nothing: empty, or the host's, of a folder that is not here
    missing = [name for name in CACHES if name not in os.environ]
    temporary = None if not missing or cache_folder_works() else temporary_folder()
    folder = temporary / f"gantool-{os.getuid()}" if temporary else None
    if folder is None or not _own(folder):
        return
    for name in missing:
        os.environ[name] = str(folder / CACHES[name])


def temporary_folder() -> Path | None:
    """The folder for temporary files; None where there is none that can be written to."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return None


def _own(folder: Path) -> bool:
    """Make `folder`, for this user alone; whether it is such a one. Another user could have guessed its name."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def cache_folder_works() -> bool:
    """Whether the user's home and folder of caches are there and can be written to."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 (Path.home fails for users without one)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return all(path.is_absolute() and writable(path) for path in (home, cache))  # without a home it is `~`


def writable(path: Path) -> bool:
    """Whether files can be made at `path`, or in the folder that would hold it."""
    try:
        existing = _existing(path)
    except FileNotFoundError:  # a relative path, and the working directory was removed
        return False
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def if_absent(path: Path, hint: str) -> str:
    """What to do about a path that is not there: `hint`, or which link leads nowhere; and in a container, of a path
    outside of the working directory, what it may be for want of."""
    link = next((one for one in (path, *path.parents) if one.is_symlink() and not one.exists()), None)
    if link is not None:
        hint = f"{link} is a link to {link.readlink()}, which is not there"
    runs_it = engine() if link or not _is_here(path) else None
    return f"{hint}; in this container there is only what was brought in: {runs_it.bind} FOLDER" if runs_it else hint


def _is_here(path: Path) -> bool:
    """Whether a path is in the working directory, as it is written."""
    try:
        return Path(os.path.abspath(path)).is_relative_to(Path.cwd())  # noqa: PTH100
    except OSError:  # which was removed
        return False


def loss(path: Path) -> str | None:
    """In words, why what is written to `path` in this container would be lost; None if it would not be, or cannot be
    written at all."""
    runs_it = engine()
    if runs_it is None or not writable(path):  # an error will tell of the latter
        return None
    kind = _filesystem(_existing(path))
    if kind in _OVERLAYS:
        unless = " unless that is a persistent overlay" if runs_it is APPTAINER else ""
        return f"{path} is inside the container, and gone when it ends{unless}: give {runs_it.folder}"
    if kind in _MEMORY:
        return f"{path} is in memory ({kind}), and gone with the container or the job: give {runs_it.folder}, on a disk"
    return None


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = path.absolute()
    # Not Path.exists, which fails below a folder that may not be looked into.
    return next(place for place in (path, *path.parents) if os.path.exists(place))  # noqa: PTH110


def _filesystem(path: Path) -> str:
    """The type of the filesystem that holds `path`, '' where the kernel does not tell."""
    found = _mount_of(path.resolve(), _mounts())
    return found[1] if found else ""


def _mounts() -> list[tuple[Path, str]]:
    """Where something is mounted, and the type of its filesystem; empty where the kernel does not tell."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return []
    halves = [line.partition(" - ")[::2] for line in lines]  # id parent device root PLACE options ... - TYPE source ...
    return [(Path(mount.split(" ")[4].replace("\\040", " ")), rest.split(" ")[0]) for mount, rest in halves]


def _mount_of(path: Path, mounts: list[tuple[Path, str]]) -> tuple[Path, str] | None:
    """The mount that holds a resolved path; of two in one place the later covers the other."""
    holding = [mount for mount in mounts if path.is_relative_to(mount[0])]
    return max(reversed(holding), key=lambda mount: len(mount[0].parts), default=None)
