"""Trials on this machine: N slots, each with its share of the CPUs and one GPU; signals; restarts.

A trial is a command line, a directory and an exit code. It runs in a session of its own, so that Ctrl-C reaches it
only through the sweep, and it goes on when the sweep is killed: the next sweep finds it by its lock.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gantool.errors import EXIT_INTERRUPTED, GantoolError
from gantool.interrupts import TIME_LIMIT, deadline
from gantool.manifest import Trial
from gantool.runs import SHARED_BY, RunDirectory, State

OUTPUT_FILE = "output.txt"
_POLL_SECONDS = 0.05
_TELL_SECONDS = 0.5
_MARGIN_SECONDS = 30.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: its state, and when it failed the cause and its last lines of output."""

    trial: Trial
    state: State
    cause: str = ""
    output: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Slots:
    """How many trials at once, with which GPUs (empty: none) and how many CPU threads each."""

    count: int
    gpus: tuple[str, ...]
    threads: int

    def gpu(self, slot: int) -> str | None:
        """The GPU of a slot; several slots share one when there are more of them than GPUs."""
        return self.gpus[slot % len(self.gpus)] if self.gpus else None

    def shared_by(self, slot: int) -> int:
        """How many slots share the GPU of a slot, or the machine where there is none."""
        gpus = len(self.gpus) or 1
        return len(range(slot % gpus, self.count, gpus))


def choose_slots(trials: Sequence[Trial], wanted: int | None, of: int | None = None) -> Slots:
    """`wanted` slots; None: one for each GPU, or else one for each CPU (4 at most). Never more than trials. The threads
    are those of a sweep of `of` trials in all, so that one that goes on has the bits of one that was not stopped."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_gpu = any(trial.config.runtime.device in ("auto", "cuda") for trial in trials)
    gpus = visible_gpus() if on_gpu else ()
    most = wanted or len(gpus) or min(cpus, 4)
    threads = max(1, cpus // max(1, min(most, of or len(trials))))
    return Slots(max(1, min(most, len(trials))), gpus, threads)


def visible_gpus() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES may be set to for one GPU each, without torch: `0`, `1`, ... or MIG identifiers."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        return tuple(name for name in names if name and name not in ("-1", "NoDevFiles"))
    if shutil.which("nvidia-smi"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
            if done.returncode == 0:
                parts = re.findall(r"UUID: (MIG-[^)\s]+)", done.stdout)
                return tuple(parts or re.findall(r"^GPU (\d+):", done.stdout, re.MULTILINE))
    return tuple(str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*")))


class _Child:
    """A running trial."""

    def __init__(self, trial: Trial, slot: int, slots: Slots, command: Sequence[str]) -> None:
        self.trial, self.slot = trial, slot
        self.started, self.time = time.monotonic(), time.time()
        self.told = False  # whether it was asked to stop
        line = [*command, str(trial.run.path)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(slots.threads), SHARED_BY: str(slots.shared_by(slot))}
        gpu = slots.gpu(slot)
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
            if "CUDA_VISIBLE_DEVICES" not in os.environ:  # then the numbers are nvidia-smi's
                environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        path = trial.run.path / OUTPUT_FILE
        try:
            with path.open("ab", buffering=0) as output:
                stamp = time.strftime("%Y-%m-%d %H:%M:%S")
                output.write(f"{_HEADER}{stamp} on {socket.gethostname()}: {shlex.join(line)}\n".encode())
                self.process = subprocess.Popen(
                    line,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise GantoolError(
                f"{trial.run.path}: cannot be started: {error.strerror} ({error.filename or path})",
                "mend that, and call the sweep again: what is done stays",
            ) from None

    def stop(self) -> None:
        """Ask it once to save and leave."""
        if not self.told:
            self.told = True
            self.process.terminate()

    def kill(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


_HEADER = "# started "


class LocalRunner:
    """Runs trials over the slots; `tell` hears of each start and end, `progress` of the shares in between."""

    def __init__(
        self,
        slots: Slots,
        command: Sequence[str],
        startable: Callable[[State], bool],
        on_start: Callable[[Trial, str | None], None],
        on_end: Callable[[Outcome], None],
        on_progress: Callable[[int, float | None], None],
    ) -> None:
        self.slots, self.command, self.startable = slots, command, startable
        self.on_start, self.on_end, self.on_progress = on_start, on_end, on_progress
        self.outcomes: list[Outcome] = []
        self._waiting: deque[Trial] = deque()
        self._running: list[_Child] = []
        self._first_share: dict[Path, float] = {}
        self._saved_step: dict[Path, int] = {}
        self._num_stalled: dict[Path, int] = {}
        self._began = time.monotonic()

    def run(self, trials: Iterable[Trial]) -> int:
        """Run `trials` to their end, in order; returns the number of stop signals (0: it was left alone).

        The first signal asks the running trials to save and leave, the second one kills them.
        """
        self._waiting.extend(trials)
        with _stop_signals() as signals:
            try:
                self._loop(signals)
            finally:  # also when something unforeseen goes wrong here: nothing is left running unseen
                for child in self._running:
                    child.stop()
                for child in self._running:
                    child.process.wait()
            return len(signals)

    def _loop(self, signals: list[int]) -> None:
        told = 0.0
        while self._running or (self._waiting and not signals and not self._out_of_time()):
            while self._waiting and not signals and not self._out_of_time() and len(self._running) < self.slots.count:
                self._start(self._waiting.popleft())
            for child in self._running:
                if signals:
                    child.stop()
                if len(signals) > 1:
                    child.kill()
            for child in [child for child in self._running if child.process.poll() is not None]:
                self._running.remove(child)
                self._ended(child)
            if time.monotonic() - told >= _TELL_SECONDS:
                told = time.monotonic()
                self.on_progress(len(self._running), self._seconds_left())
            time.sleep(_POLL_SECONDS)

    def _out_of_time(self) -> bool:
        """Whether a trial that is started now would be told to leave at once."""
        return time.time() > deadline() - _MARGIN_SECONDS

    def _start(self, trial: Trial) -> None:
        state = trial.state()
        if not self.startable(state):  # another sweep was quicker
            self._end(Outcome(trial, state))
            return
        slot = min(set(range(self.slots.count)) - {child.slot for child in self._running})
        try:
            RunDirectory.create(trial.config).write_config(trial.config)
            self._first_share.setdefault(trial.run.path, _share(trial))
            self._saved_step.setdefault(trial.run.path, _step(trial))
            self._running.append(_Child(trial, slot, self.slots, self.command))
        except GantoolError as error:
            self._end(Outcome(trial, "failed", error.message))
            return
        self.on_start(trial, self.slots.gpu(slot))

    def _ended(self, child: _Child) -> None:
        trial, code = child.trial, child.process.returncode
        seconds = time.monotonic() - child.started
        state = trial.state()
        lost_race = state == "running" and code >= 0  # the lock is another process's
        if state in ("done", "cancelled") or lost_race:
            self._end(Outcome(trial, state, seconds=seconds))
        elif (child.told and (code == EXIT_INTERRUPTED or code < 0)) or (
            code == EXIT_INTERRUPTED and trial.run.said_by("stopped") == TIME_LIMIT
        ):
            self._end(Outcome(trial, "stopped", seconds=seconds))
        elif code == EXIT_INTERRUPTED and self._has_grown(trial):
            self._waiting.appendleft(trial)
        else:
            said = trial.run.status()
            diverged = state == "diverged"
            fresh = state in ("failed", "diverged") and said.get("time", 0) >= child.time - 1
            cause = (str(said.get("message", "")) if fresh else "") or _cause(code, _step(trial))
            output = last_output(trial.run)
            self._end(Outcome(trial, "diverged" if diverged else "failed", cause, output, seconds))

    def _end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.on_end(outcome)

    def _has_grown(self, trial: Trial) -> bool:
        """Whether the saved step grew since the last start; one start without is forgiven."""
        path, step = trial.run.path, _step(trial)
        grown = step > self._saved_step[path]
        self._num_stalled[path] = 0 if grown else self._num_stalled.get(path, 0) + 1
        self._saved_step[path] = max(step, self._saved_step[path])
        return self._num_stalled[path] < 2

    def _seconds_left(self) -> float | None:
        """From the shares of trials gone through so far; None before a tenth of a trial, or in a long one a hundredth:
        starting takes a while, which is not yet training."""
        shares = {child.trial.run.path: _share(child.trial) for child in self._running}
        shares |= {outcome.trial.run.path: 1.0 for outcome in self.outcomes}
        gone = sum(share - self._first_share.get(path, share) for path, share in shares.items())
        left = sum(1 - share for share in shares.values())
        left += sum(1 - self._first_share.get(trial.run.path, 0.0) for trial in self._waiting)
        seconds = time.monotonic() - self._began
        return seconds * left / gone if gone > (0.1 if seconds < 60 else 0.01) else None


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The stop signals that came, in a list that grows. What was ignored (nohup) stays ignored."""
    came: list[int] = []
    before = {}
    for number in _STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not in the main thread: whoever has it decides
                before[number] = signal.signal(number, lambda received, frame: came.append(received))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _step(trial: Trial) -> int:
    step = trial.run.status().get("step", 0)
    return step if isinstance(step, int) else 0


def _share(trial: Trial) -> float:
    status = trial.run.status()
    step, total = status.get("step"), status.get("total")
    return min(1.0, step / total) if isinstance(step, int) and isinstance(total, int) and total > 0 else 0.0


def _cause(code: int, step: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    if code == EXIT_INTERRUPTED:
        return f"stopped by itself twice at step {step}, without progress"
    return "left with exit code 0, but without a result" if code == 0 else f"exit code {code}"


def last_output(run: RunDirectory, num_lines: int = 5) -> tuple[str, ...]:
    """The last lines that the last start of a trial wrote; of one that no sweep started, the last of its log."""
    text = _end_of(run.path / OUTPUT_FILE) or _end_of(run.path / "log.txt")
    lines = text[text.rfind(_HEADER) :].splitlines()[1:] if _HEADER in text else text.splitlines()
    return tuple(line.rstrip() for line in lines if line.strip())[-num_lines:]


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            return file.read().decode(errors="replace").replace("\r", "\n")
    except OSError:
        return ""
