"""The command line: parse, call one verb, print its result to stdout, map errors to exit codes.

These files and `tables.py` are the only ones that print. Nothing here loads torch before a verb that needs it is really
going to run, so `--help`, `status`, `sweep --dry-run` and config errors answer at once on a login node.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys

from gantool import container
from gantool.cli import completion, run_verbs, sweep_verbs, tool_verbs
from gantool.cli.program import FLAGS, app, complain
from gantool.errors import EXIT_FAILED, EXIT_USAGE

VERBS = (run_verbs, sweep_verbs, tool_verbs)
"""In the order of `--help`."""


def main() -> None:
    """Entry point of the `gantool` program."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, as under some daemons
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an old locale must not cost a table
    if completion.answered_bash():
        return
    container.set_defaults()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _keep_stdout_for_results()
    if "GANTOOL_LAUNCHER" in os.environ:
        from gantool.launch import follow

        follow(int(os.environ["GANTOOL_LAUNCHER"]))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        from gantool.launch import follow

        follow(os.getppid())  # torchrun dies of signals that it does not know, like USR2, without a word to its ranks
    try:
        code = app(args=_flags_first(sys.argv[1:]), prog_name="gantool", standalone_mode=False)
    except OSError as error:
        complain("error", f"the output: {error.strerror or error}", "write it to another place")
        code = EXIT_FAILED
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's, which typer imports or brings along, by its version
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context else " ".join(["gantool", *_verb(sys.argv[1:])])
        complain("error", f"{path}: {error.format_message().rstrip('.')}", f"{path} --help says what it takes")
        code = EXIT_USAGE
    finally:
        gc.freeze()  # the interpreter would look through all modules for garbage, three times, on its way out
    sys.exit(code)


def _flags_first(words: list[str]) -> list[str]:
    """The words of the command line, the options of all verbs first, where typer expects them; of no words: help."""
    end = words.index("--") if "--" in words else len(words)
    flags = [word for word in words[:end] if word in FLAGS]
    return [*flags, *(word for word in words[:end] if word not in FLAGS), *words[end:]] or ["--help"]


def _verb(words: list[str]) -> list[str]:
    """The verb among the words of the command line, if there is one."""
    verbs = {command.name for command in app.registered_commands}
    return [word for word in words if word in verbs][:1]


def _keep_stdout_for_results() -> None:
    """Let `print` alone reach stdout: Gloo and NCCL write to the descriptor itself what they have connected."""
    with contextlib.suppress(OSError, AttributeError):  # closed
        results = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        sys.stdout = open(results, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: PTH123, SIM115
