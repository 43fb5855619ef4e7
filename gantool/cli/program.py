"""What all verbs share: the program and its options, errors as one message and an exit code, checks of options."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import gantool
from gantool import container
from gantool.cli import completion
from gantool.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    GantoolError,
    InterruptedRun,
    choose,
    hint_of_memory,
)

if TYPE_CHECKING:
    from types import FrameType

    import torch

    from gantool.terminal import TerminalProgress

_log = logging.getLogger(__name__)

app = typer.Typer(
    name="gantool",
    help="Train, sample, score and sweep GANs, on a laptop or a cluster.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FLAGS = ("--quiet", "-q", "--verbose", "-v", "--debug")
"""The options of all verbs, before or after the verb."""

options = {"debug": os.environ.get("GANTOOL_DEBUG", "0") not in ("", "0"), "quiet": False, "verbose": False}

Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Override a key of the config; repeatable.",
        autocompletion=completion.assignments,
    ),
]
_DEVICES = ("auto", "cpu", "cuda", "mps")
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda or mps; default: the config's.", autocompletion=completion.among(*_DEVICES)),
]


def format_option(*forms: str) -> Any:
    """The option --format, with these choices."""
    shown = f"{', '.join(forms[:-1])} or {forms[-1]}."
    return typer.Option("--format", "-f", help=shown, autocompletion=completion.among(*forms))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(gantool.__version__)
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (or GANTOOL_DEBUG=1).")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no words on stderr, errors apart.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Also, on stderr and with the time: files read and written, the device and how it computes, sizes of "
            "the networks, commands of Slurm, time and memory in the end.",
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    options["debug"] |= debug
    options["quiet"], options["verbose"] = quiet, verbose
    if verbose and quiet:
        complain("error", "--quiet and --verbose were given together", "leave one of them out")
        raise typer.Exit(EXIT_USAGE)
    if verbose and os.environ.get("RANK", "0") == "0":
        from gantool.terminal import show_notes

        show_notes()


def register(name: str) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Register a command that returns its exit code (None: 0) and turns errors into one message on stderr."""

    def registered(function: Callable[..., int | None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            code = _run_guarded(lambda: function(*args, **kwargs))
            if os.environ.get("WORLD_SIZE", "1") != "1" and "torch" in sys.modules:
                # A rank of several: the threads of a process group that was not left in order (an error, a signal)
                # would abort the interpreter on its way out and replace the exit code.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            raise typer.Exit(code)

        app.command(name)(guarded)
        return guarded

    return registered


def _run_guarded(call: Callable[[], int | None]) -> int:
    try:
        # All unwind, so that temporary files are removed.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            if signal.getsignal(number) != signal.SIG_IGN:  # as job.sh has it until a run can save
                signal.signal(number, _unwind)
        began = time.monotonic()
        code = call() or EXIT_DONE
        sys.stdout.flush()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
        _log.info("exit code %d after %.1f s, at most %.1f GB of memory", code, time.monotonic() - began, peak)
        return code
    except GantoolError as error:
        _show_traceback()
        complain("error", error.message, error.hint)
        return error.exit_code
    except InterruptedRun as stop:
        if os.environ.get("RANK", "0") == "0":
            complain("interrupted", stop.message, stop.hint)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") == "0":
            complain("interrupted", f"stopped by {str(stop) or 'SIGINT'}", "run the same command again to go on")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `gantool status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except ModuleNotFoundError as error:  # an installation for a login node, without torch for example
        _show_traceback()
        name = (error.name or "").partition(".")[0]
        complain("error", f"the Python package {name} is not installed here", f"pip install {name}, or use the image")
        return EXIT_FAILED
    except PermissionError as error:
        _show_traceback()
        complain("error", f"{error.filename}: you may not read or write this", "ask its owner, or name another folder")
        return EXIT_FAILED
    except Exception as error:
        _show_traceback()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or "the output"
            complain("error", f"{where}: {error.strerror}", "free some space, then run the same command again")
            return EXIT_FAILED
        hint = hint_of_memory(error) or "this is a defect of gantool: run with --debug to see where"
        complain("error", f"{type(error).__name__}: {error}", hint)
        return EXIT_FAILED


class _Interrupt(KeyboardInterrupt):
    """Not KeyboardInterrupt itself: once that has left code that was compiled from a string, as in a dataclass or a
    namedtuple, `python -m` ends by SIGINT whatever exit code it is given."""


def _unwind(number: int, frame: FrameType | None) -> None:
    raise _Interrupt(signal.Signals(number).name)


def _show_traceback() -> None:
    if options["debug"]:
        traceback.print_exc()


def complain(kind: str, message: str, hint: str | None) -> None:
    """Print an `error` or a `warning` with its hint to stderr; no warnings with `--quiet`."""
    if kind == "warning" and options["quiet"]:
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    style = "bold red" if kind == "error" else "bold yellow"
    with contextlib.suppress(OSError, SystemExit):  # nobody hears it: the exit code says it too
        console.print(Text.assemble((f"{kind}: ", style), message))
        for line in (hint or "").splitlines():
            console.print(Text.assemble(("  hint: ", "bold"), line))


def terminal_progress() -> TerminalProgress:
    """Where a verb tells how far it is; of several ranks only rank 0 does."""
    from gantool.terminal import TerminalProgress

    return TerminalProgress(quiet=options["quiet"] or os.environ.get("RANK", "0") != "0")


def warn_of_loss(progress: TerminalProgress, *paths: Path) -> None:
    """Say which of the paths a verb writes to vanish with the container."""
    for text in filter(None, dict.fromkeys(map(container.loss, paths))):
        progress.say(f"warning: {text}")


def find_device(wanted: str, progress: TerminalProgress) -> torch.device:
    """The device for a verb that samples or scores."""
    from gantool.runtime import choose_device, device_caution

    device = choose_device(wanted)
    if caution := device_caution(device, wanted):
        progress.say(f"warning: {caution}")
    return device


def check_device(device: str | None) -> None:
    """UsageError where `--device` names none that there is."""
    if device is not None:
        choose("--device", device, _DEVICES)
