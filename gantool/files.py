"""Files that are whole or not there: temporary file in the same folder, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from gantool import container
from gantool.errors import GantoolError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary file to write to; it takes the name `path` only when the block ends well, else it is removed.

    `durable` also waits for the disk, so that the file survives a crash of the machine; not worth it for many pictures.
    A failure of the disk (full, read-only, quota) becomes a GantoolError that names the file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable and path.name != "status.json":  # neither many pictures, nor each second
            _log.info("wrote %s", path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        raise GantoolError(f"{path}: cannot be written: {error.strerror or error}", _disk_hint(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Replace `path` by `text`, atomically."""
    with atomic_file(path, durable) as file:
        file.write(text.encode(errors="backslashreplace"))  # names of files may hold what is no UTF-8


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Replace `path` by `value` as JSON, atomically. NaN and infinity are an error, not invalid JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", durable)


def read_json(path: Path) -> Any | None:
    """The JSON value in `path`; None when there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def wait_for_lock(file: IO[bytes], tell: Callable[[], None]) -> None:
    """Wait until this process alone holds the lock of an open file; `tell` is called once, when it has to wait.

    Closing the file lets go, as does the end of the process. On a filesystem without locks nothing is waited for.
    """
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return
        if not told:
            told = True
            tell()
        time.sleep(0.2)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network filesystems refuse to sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _disk_hint(path: Path, error: OSError) -> str:
    names = {
        errno.ENOSPC: "the disk is full: free some space",
        errno.EDQUOT: "the quota is used up: free some space",
        errno.EROFS: "this filesystem is read-only: name another folder (in a container, one that is bound: --bind)",
    }
    hint = names.get(error.errno or 0, "check that the folder exists and that you may write to it") + ", then run again"
    return container.if_absent(path, hint) if error.errno in (errno.EEXIST, errno.ENOENT, errno.ENOTDIR) else hint
