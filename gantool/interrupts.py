"""Why a run should leave early: USR2, SIGTERM, Ctrl-C, or the coming end of its time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from gantool.errors import InterruptedRun

_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


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
        self._polled = False
        text = os.environ.get("GANTOOL_DEADLINE", "")
        self._deadline = float(text) if text.replace(".", "", 1).isdigit() else float("inf")

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
        """The signal that came (SIGALRM stands for the time limit), or 0."""
        if not self.signal_number and time.time() > self._deadline - self.margin_seconds:
            self.signal_number = int(signal.SIGALRM)
        return self.signal_number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = bool(self.signal_number)
        self.signal_number = self.signal_number or number  # known to the loop, should something swallow the exception
        if not self._polled:
            raise InterruptedRun(f"stopped by {describe(number)}, outside training", "run the same command again")
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt


def describe(number: int) -> str:
    """'SIGTERM', or 'the time limit'."""
    return "the time limit" if number == signal.SIGALRM else signal.Signals(number).name
