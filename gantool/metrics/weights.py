"""Weights files that were staged beforehand: where they are looked for, and how they are read. Never downloads.

Torch is loaded only to read one.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gantool.errors import DataError, UsageError

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_FOLDER = Path("/opt/gantool/weights")  # where the container image keeps them


class Wanted(NamedTuple):
    """A weights file to look for."""

    what: str  # 'Inception weights'
    names: tuple[str, ...]  # of the file, the usual one first
    hint: str  # where to get it, and what can be done without it
    elsewhere: tuple[Path, ...] = ()  # files where another tool may have left it


def find(wanted: Wanted, given: Path | None) -> Path:
    """The file: at `given`, else at $GANTOOL_WEIGHTS (each a file or a folder, and nothing else when given), else in
    the container image's folder or the cache of torch.hub, where other tools put it; UsageError when there is none."""
    for origin, place in (("--weights", given), ("$GANTOOL_WEIGHTS", os.environ.get("GANTOOL_WEIGHTS"))):
        if place:
            found = _in_place(expanded(Path(place)), wanted.names)
            if found is None:
                expected = f"expected the weights file, or a folder with {' or '.join(wanted.names)}"
                raise UsageError(f"{origin}: no {wanted.what} at {place}; {expected}", wanted.hint)
            _log.info("weights %s, from %s", found, origin)
            return found
    folders = (IMAGE_FOLDER, hub_folder())
    candidates = [*(_in_place(folder, wanted.names) for folder in folders), *wanted.elsewhere]
    for file in candidates:
        if file is not None and _is_file(file):
            _log.info("weights %s", file)
            return file
    looked = f"looked for {' or '.join(wanted.names)} in {' and in '.join(map(str, folders))}"
    looked += "".join(f", and for {file}" for file in wanted.elsewhere)
    raise UsageError(f"no {wanted.what}: $GANTOOL_WEIGHTS is not set; {looked}", wanted.hint)


def places() -> list[Path]:
    """The folders, or the file, where weights are looked for that no option names."""
    told = os.environ.get("GANTOOL_WEIGHTS")
    return [expanded(Path(told))] if told else [IMAGE_FOLDER, hub_folder()]


def hub_folder() -> Path:
    """Where torch.hub keeps the files it has downloaded."""
    cache = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return expanded(Path(cache, "hub", "checkpoints"))


def expanded(path: Path) -> Path:
    """`path` with a leading ~ replaced by the home; as it is where there is none."""
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, or none that has a home
        return path


def _in_place(place: Path, names: tuple[str, ...]) -> Path | None:
    return next((path for path in (place, *(place / name for name in names)) if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    """As Path.is_file, which fails below a folder that may not be looked into, like the home of somebody else."""
    return os.path.isfile(path)  # noqa: PTH113


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal; DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict (safetensors, or torch's own format, where no code runs), on the CPU; DataError when
    the file is something else."""
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: not a weights file: {error}") from error
    except Exception as error:  # torch.load has no error of its own for a file that is none of its kind
        hint = "a web page saved by mistake looks like this too: compare the size and the SHA-256"
        text = f"{path}: not a weights file: no tensors of a state dict in it ({type(error).__name__})"
        raise DataError(text, hint) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        found = f"a dict with {', '.join(map(repr, list(state)[:3]))}" if isinstance(state, dict) else type(state)
        raise DataError(f"{path}: found {found}, expected the tensors of a state dict by name")
    return state
