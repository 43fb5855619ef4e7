"""Code of the user's own: the source that has the digest of the config is what runs, and the run keeps a copy of it."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from gantool import files
from gantool.config.custom import CustomFile, digest_of_source
from gantool.config.schema import RunConfig
from gantool.errors import UsageError

_KEPT: dict[str, bytes] = {}
"""Sources by digest, from the folders of the runs that this process works on."""


def keep(config: RunConfig, folder: Path) -> None:
    """Copy the files of `config`, if any, to `<folder>/<digest>.py`."""
    for part in (config.generator, config.discriminator, config.loss):
        if isinstance(part, CustomFile) and not (folder / f"{part.digest}.py").exists():
            files.write_text(folder / f"{part.digest}.py", _source(part).decode())


def remember(folder: Path) -> None:
    """Let `load` take the copies in `folder`, if there are any."""
    for path in folder.glob("*.py"):
        source = path.read_bytes()
        _KEPT[digest_of_source(source)] = source


def load(settings: CustomFile) -> ModuleType:
    """The code as a fresh module; UsageError when neither a kept copy nor the file has the digest, or when it fails."""
    source = _source(settings)
    module = ModuleType(f"gantool_custom_{settings.digest}")
    module.__file__ = settings.file
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        # Not importlib, which may run the bytecode of an older file: the source that has the digest is what runs.
        with words_to_stderr():
            exec(compile(source, settings.file, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise failure(settings.file, settings.file, error) from error
    return module


def _source(settings: CustomFile) -> bytes:
    if settings.digest in _KEPT:
        return _KEPT[str(settings.digest)]
    try:
        source = Path(settings.file).read_bytes()
    except OSError as error:
        text = f"{settings.file}: cannot be read: {error.strerror}"
        raise UsageError(text, "put the file back, or use the run directory, which keeps a copy") from None
    found = digest_of_source(source)
    if found != settings.digest:
        text = f"{settings.file}: found the digest {found}, expected {settings.digest}: changed since the run was made"
        raise UsageError(text, "put the old file back, or use the run directory, which keeps a copy")
    return source


@contextlib.contextmanager
def words_to_stderr() -> Iterator[None]:
    """What the user's code prints goes to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def failure(where: str, file: str, error: BaseException) -> UsageError:
    """What went wrong in the code of `file`, with the line it was in."""
    path = str(Path(file).resolve())
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if str(Path(frame.filename).resolve()) == path]
    line = f" (line {lines[-1]})" if lines else ""
    return UsageError(f"{where}: {type(error).__name__}: {error}{line}", "--debug shows the traceback")
