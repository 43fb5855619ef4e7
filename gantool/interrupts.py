"""Why a run should leave early: USR2, SIGTERM, Ctrl-C, the coming end of its time limit, or `gantool cancel`."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from gantool.errors import InterruptedRun

_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
CANCELLED = int(signal.SIGQUIT)
"""What `pending` says when the run was cancelled; SIGQUIT itself is not caught."""
TIME_LIMIT = "the time limit"
_LOOK_SECONDS = 2.0  # between two looks for the mark


class Interrupts:
    """Catches the stop signals of a process that trains.

    In the training loop (`polled`) the first signal is remembered, and `pending` asks for it between steps; a Ctrl-C
    after it ends the process at once. Outside the loop there is nothing to save: a signal raises InterruptedRun.
    The environment variable GANTOOL_DEADLINE (seconds since the epoch) is the end of the time limit; the run leaves
    `margin_seconds` before it, which the trainer sets from the measured time of a checkpoint.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self.margin_seconds = 10.0
        self.cancel_mark: Path | None = None  # a file whose appearance cancels the run
        self._looked = 0.0
        self._polled = False
        self._deadline = deadline()

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Handle the signals within the block."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def polled(self) -> Iterator[None]:
        """Within the block signals wait for `pending`."""
        self._polled = True
        try:
            yield
        finally:
            self._polled = False

    def pending(self) -> int:
        """The signal that came (SIGALRM stands for the time limit, CANCELLED for `gantool cancel`), or 0."""
        if self.signal_number:
            return self.signal_number
        now = time.time()
        if now > self._deadline - self.margin_seconds:
            self.signal_number = int(signal.SIGALRM)
        elif self.cancel_mark and now - self._looked > _LOOK_SECONDS:
            self._looked = now
            if self.cancel_mark.exists():
                self.signal_number = CANCELLED
        return self.signal_number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = bool(self.signal_number)
        self.signal_number = self.signal_number or number  # known to the loop, should something swallow the exception
        if not self._polled:
            text = f"stopped by {describe(number)}, outside training"
            raise InterruptedRun(text, "run the same command again", describe(number))
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt


def deadline() -> float:
    """GANTOOL_DEADLINE, the end of the time limit in seconds since the epoch; infinite when it is not set."""
    try:
        return float(os.environ.get("GANTOOL_DEADLINE", ""))
    except ValueError:
        return float("inf")


def describe(number: int) -> str:
    """'SIGTERM', 'the time limit' or 'gantool cancel'."""
    words = {int(signal.SIGALRM): TIME_LIMIT, CANCELLED: "gantool cancel"}
    return words.get(number) or signal.Signals(number).name
