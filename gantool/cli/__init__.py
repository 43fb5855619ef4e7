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
from gantool.cli.program import app

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
        app(prog_name="gantool")
    finally:
        gc.freeze()  # the interpreter would look through all modules for garbage, three times, on its way out


def _keep_stdout_for_results() -> None:
    """Let `print` alone reach stdout: Gloo and NCCL write to the descriptor itself what they have connected."""
    with contextlib.suppress(OSError, AttributeError):  # closed
        results = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        sys.stdout = open(results, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: PTH123, SIM115
