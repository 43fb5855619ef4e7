"""A file of the user's own as a module: run only when it is the file that its digest stands for."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import ModuleType

from gantool.config.custom import CustomFile, digest_of_source
from gantool.errors import UsageError


def load(settings: CustomFile) -> ModuleType:
    """The file as a fresh module; UsageError when it is not the one that the digest stands for, or fails."""
    try:
        source = Path(settings.file).read_bytes()
    except OSError as error:
        text = f"{settings.file}: cannot be read: {error.strerror}"
        raise UsageError(text, "the path is relative to the folder where gantool is started") from None
    found = digest_of_source(source)
    if found != settings.digest:
        text = f"{settings.file}: found the digest {found}, expected {settings.digest}: changed since the run was made"
        raise UsageError(text, "put the old file back, or start another run from a config without `digest`")
    module = ModuleType(f"gantool_custom_{found}")
    module.__file__ = settings.file
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        # Not importlib, which may run the bytecode of an older file: the source that has the digest is what runs.
        exec(compile(source, settings.file, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise failure(settings.file, settings.file, error) from error
    return module


def failure(where: str, file: str, error: BaseException) -> UsageError:
    """What went wrong in the code of `file`, with the line it was in."""
    path = str(Path(file).resolve())
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if str(Path(frame.filename).resolve()) == path]
    line = f" (line {lines[-1]})" if lines else ""
    return UsageError(f"{where}: {type(error).__name__}: {error}{line}", "--debug shows the traceback")
