"""Errors for the person at the terminal, and the exit codes they lead to.

Everything a user can get wrong raises a `GantoolError`: the message says what was found, what was expected and
where; the hint says what to do. `cli/` prints it without a traceback and leaves with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL in sysexits.h: run the same command again


class GantoolError(Exception):
    """A failure with a message for the user; `hint` (optional) is what to do about it."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GantoolError):
    """The command line or a config is wrong: nothing was started (exit code 2)."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A config file is wrong. Each problem is (where, key, message, hint); `where` is `file:line` or `--set ...`."""

    def __init__(self, problems: list[tuple[str, str, str, str | None]]) -> None:
        assert problems
        self.problems = problems
        lines = [f"{where}: {key + ': ' if key else ''}{text}" for where, key, text, _ in problems]
        hints = list(dict.fromkeys(hint for *_, hint in problems if hint))
        super().__init__("\n".join(lines), "\n".join(hints) or None)


class DataError(GantoolError):
    """A dataset, or one file of it, cannot be read, or is not what it says it is."""


class DivergedError(GantoolError):
    """A loss became NaN or infinite."""


class InterruptedRun(BaseException):
    """A signal or the time limit stopped the run; its state is saved (exit code 75).

    Like KeyboardInterrupt no `Exception`: it may come at any line, and nothing on the way may take it for a failure.
    `reason` is what the run's mark `stopped` says: the name of the signal, or 'the time limit'.
    """

    exit_code = EXIT_INTERRUPTED

    def __init__(self, message: str, hint: str | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.reason = reason


def hint_of_memory(error: Exception) -> str | None:
    """What to do where a GPU's memory is used up; None where it is not that."""
    if type(error).__name__ != "OutOfMemoryError":  # torch's, without loading it
        return None
    return (
        "the GPU's memory is used up: a smaller batch, narrower networks and precision: bfloat16 need less; nvidia-smi "
        "shows what else is on it"
    )


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """The choice that `word` is most likely a slip of, if any."""
    import difflib

    found = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.6)
    return found[0] if found else None


def named_like(path: Path) -> str | None:
    """`did you mean ...?` where a folder or file beside `path` has a name like it, for one that is not there."""
    try:
        near = nearest(path.name, [other.name for other in path.parent.iterdir()])
    except OSError:
        return None
    return f"did you mean {path.parent / near}?" if near else None


def choose(option: str, value: str, choices: Sequence[str]) -> str:
    """`value`; UsageError when it is none of the choices."""
    if value not in choices:
        near = nearest(value, choices)
        hint = f"did you mean {near}?" if near else None
        raise UsageError(f"{option}: found {value!r}, expected one of {', '.join(choices)}", hint)
    return value
