"""Reasons to leave: the mark of `gantool cancel`, the time limit, and which comes first."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Gantool, start

from gantool.interrupts import CANCELLED, Interrupts, describe
from gantool.runs import RunDirectory


def test_the_mark_is_seen_soon_but_not_looked_for_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    interrupts = Interrupts()
    interrupts.cancel_mark = tmp_path / "cancelled"
    assert interrupts.pending() == 0
    interrupts.cancel_mark.touch()
    assert interrupts.pending() == 0
    now[0] += 3
    assert interrupts.pending() == CANCELLED and describe(CANCELLED) == "gantool cancel"
    interrupts.cancel_mark.unlink()
    assert interrupts.pending() == CANCELLED


def test_the_deadline_comes_with_its_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setenv("GANTOOL_DEADLINE", "1100")
    interrupts = Interrupts()
    interrupts.margin_seconds = 40
    now[0] = 1060.0
    assert interrupts.pending() == 0
    now[0] = 1060.5
    assert interrupts.pending() == signal.SIGALRM and describe(signal.SIGALRM) == "the time limit"
    monkeypatch.setenv("GANTOOL_DEADLINE", "")
    assert Interrupts().pending() == 0


def test_a_running_training_that_is_cancelled_saves_and_stays_cancelled(
    tiny: Path, gantool: Gantool, tmp_path: Path
) -> None:
    words = ("--set", "steps=1000000", "--set", "runtime.checkpoint_every=500000")
    process = start("train", tiny, *words)
    status: dict[str, Any] = {}
    deadline = time.monotonic() + 120
    while status.get("step", 0) < 5 and time.monotonic() < deadline:
        found = list((tmp_path / "runs").glob("*/status.json"))
        status = RunDirectory(found[0].parent).status() if found else {}
        time.sleep(0.1)
    (run,) = [RunDirectory(path) for path in (tmp_path / "runs").iterdir()]
    done = gantool("cancel", run.path)
    assert done.returncode == 0 and str(run.path) in done.stdout and "1 run cancelled" in done.stderr
    _, words_of_it = process.communicate(timeout=120)
    assert process.returncode == 75 and "stopped by gantool cancel" in words_of_it
    assert run.state() == "cancelled" and not run.marked("stopped")
    assert list((run.path / "checkpoints").iterdir())
    again = gantool("train", run.path)
    assert again.returncode == 1 and "this run was cancelled" in again.stderr
    assert "1 run may go on" in gantool("cancel", run.path, "--undo").stderr
    assert run.state() != "cancelled"


INTERRUPTED_WHILE_LOADING = """
import os, signal, sys
from gantool.__main__ import main

class Interrupt:
    def find_spec(self, name, *_):
        if name == "gantool.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["gantool", "--version"]
main()
"""


@pytest.mark.parametrize(("handler", "code"), [("signal.default_int_handler", -signal.SIGINT), ("signal.SIG_IGN", 0)])
def test_ctrl_c_while_it_is_loaded_leaves_no_traceback(handler: str, code: int) -> None:
    """Ignored, as in a shell's background, it stays ignored."""
    program = f"import signal; signal.signal(signal.SIGINT, {handler})\n{INTERRUPTED_WHILE_LOADING}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
