"""Results that are computed once and kept as files beside the data: one process computes, the others wait and read.

A file that is damaged is computed again. Where the folder is read-only the result is used without being kept; where the
filesystem has no locks, two processes may compute the same thing, and the first file stays.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from gantool.errors import GantoolError
from gantool.files import wait_for_lock
from gantool.progress import Progress

_log = logging.getLogger(__name__)

T = TypeVar("T")


def once(
    path: Path,
    read: Callable[[Path], T | None],
    make: Callable[[], T],
    write: Callable[[Path, T], None],
    what: str,
    progress: Progress,
    highest: Callable[[int], int] = int,
    is_main: bool = True,
) -> T:
    """What `read(path)` finds; when that is None (no file, or a damaged one), what `make` computes and `write` keeps.

    what: the thing in words. `write` must be atomic. Several ranks that call it together also give `highest` (the
    highest of a number over the ranks) and who is the main one, which holds the lock and writes; all of them `make`.
    """

    def on_all() -> T | None:
        found = read(path)
        return found if not highest(int(found is None)) else None

    found = on_all()
    if found is not None:
        _log.info("%s: from %s", what, path)
        return found
    _log.info("%s: computed, for %s", what, path)
    with _turn(path, what, progress) if is_main else contextlib.nullcontext():
        highest(0)  # the others wait here for the lock
        found = on_all()
        if found is not None:
            return found
        if is_main and path.exists():
            progress.say(f"{path} does not hold all that is needed now: computing {what}")
        made = make()
        if is_main and read(path) is None:
            try:
                write(path, made)
            except GantoolError as error:
                progress.say(f"{what} is not kept: {error.message}")
        return made


@contextlib.contextmanager
def _turn(path: Path, what: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of `path` across processes; the kernel lets go when a process dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("ab")
    except OSError:  # a read-only folder: nothing to guard, nothing will be written
        yield
        return
    with lock:
        wait_for_lock(lock, lambda: progress.say(f"waiting for another process that computes {what}"))
        yield
