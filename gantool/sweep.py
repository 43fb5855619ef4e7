"""The verb `sweep`: plan the runs of a sweep file, start what is missing, gather the scores.

Starting is reconciling: the states of the run directories say what is missing, so the same command continues, retries
and extends, and never runs a trial twice. It does not know how a trial is trained, only its command line, its
directory and its exit code. No torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gantool.config.grid import read_grid
from gantool.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, InterruptedRun
from gantool.launch import program
from gantool.local import LocalRunner, Outcome, Slots, choose_slots, last_output
from gantool.manifest import SweepPlan, Trial, check_owner, write_manifest
from gantool.progress import Progress, Silent, counted
from gantool.result_tables import number_text, write_results
from gantool.results import Row, collect, scores_of
from gantool.runs import RunDirectory, State
from gantool.submissions import Jobs, ask

_TO_START: frozenset[State] = frozenset({"planned", "stopped", "lost", "unscored"})
_FAILED: frozenset[State] = frozenset({"failed", "diverged"})
_ALIVE: frozenset[State] = frozenset({"running", "queued", "held", "requeued"})


@dataclass(frozen=True)
class SweepOutcome:
    """What became of every trial, in the order of the plan, and the scores there are."""

    plan: SweepPlan
    outcomes: tuple[Outcome, ...]
    rows: tuple[Row, ...]
    files: tuple[Path, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The trials that failed or diverged, now or earlier."""
        return tuple(outcome for outcome in self.outcomes if outcome.state in _FAILED)

    @property
    def exit_code(self) -> int:
        """1: some failed; 75: some are still run by another process, so run the command again; else 0."""
        if self.failed:
            return EXIT_FAILED
        return EXIT_INTERRUPTED if any(outcome.state in _ALIVE for outcome in self.outcomes) else EXIT_DONE


def plan(
    path: Path,
    assignments: Sequence[str] = (),
    folder: Path = Path("sweeps"),
    on_slurm: bool = False,
    progress: Progress | None = None,
) -> SweepPlan:
    """The runs of the sweep file at `path`, all of them checked; writes nothing. `folder` holds all sweeps.

    ConfigError lists all problems; UsageError when the folder belongs to another sweep file. `assignments` (`a.b=c`)
    change the base of every run, or what they ask of Slurm.
    """
    grid = read_grid(path, assignments, on_slurm, progress or Silent())
    trials = tuple(
        Trial(
            RunDirectory(Path(point.config.runtime.runs_dir) / point.config.run_id),
            point.labels,
            point.config.seed,
            point.config,
        )
        for point in grid.points
    )
    plan = SweepPlan(grid.name, folder / grid.name, trials, grid.report, path, grid.slots, grid.slurm, grid.notes)
    plan = replace(plan, assignments=tuple(assignments))
    check_owner(plan)
    return plan


def describe(plan: SweepPlan, progress: Progress) -> dict[State, list[Trial]]:
    """The trials by state, the states in the order in which they first occur; writes nothing."""
    found: dict[State, list[Trial]] = {}
    for trial, state in zip(plan.trials, _states(plan, progress).values(), strict=True):
        found.setdefault(state, []).append(trial)
    return found


def silence(plan: SweepPlan) -> str:
    """Why it is unknown what becomes of runs that were submitted to Slurm and are not done; empty when it is known."""
    open_ = [trial.run for trial in plan.trials if trial.run.result() is None]
    found = Jobs(open_).silence
    return found.message if found else ""


def _states(plan: SweepPlan, progress: Progress) -> dict[Path, State]:
    return ask(plan.trials, progress).states(plan.trials, progress)


def missing(plan: SweepPlan, progress: Progress, retry_failed: bool = False) -> list[Trial]:
    """The trials that `run` would start."""
    wanted = _TO_START | _FAILED if retry_failed else _TO_START
    return [trial for state, trials in describe(plan, progress).items() for trial in trials if state in wanted]


def run(
    plan: SweepPlan,
    progress: Progress,
    *,
    slots: int | None = None,
    retry_failed: bool = False,
    command: Sequence[str] = (*program(), "train"),
) -> SweepOutcome:
    """Start what is missing on this machine, wait for it, write the results to the sweep's folder.

    A trial that fails does not stop the others; one that failed earlier is started only with `retry_failed`.
    `command` gets the run directory as its last word. Raises InterruptedRun after a stop signal, with all saved.
    """
    write_manifest(plan)
    for note in plan.notes:
        progress.say(note)
    wanted = _TO_START | _FAILED if retry_failed else _TO_START
    found = _states(plan, progress)
    todo = [trial for trial in plan.trials if found[trial.run.path] in wanted]
    left_alone = [
        _earlier(trial, found[trial.run.path]) for trial in plan.trials if found[trial.run.path] not in wanted
    ]
    chosen = choose_slots(todo, slots or plan.slots, len(plan.trials))
    progress.say(_summary(plan, todo, left_alone, chosen))
    teller = _Teller(plan, progress, len(left_alone))
    for outcome in left_alone:
        if outcome.state in _FAILED:
            teller.tell(outcome, "earlier; to start it again: --retry-failed")
    runner = LocalRunner(chosen, command, wanted.__contains__, teller.start, teller.end, teller.step)
    num_signals = runner.run(todo)
    rows, written = gather(plan, progress)
    if any(outcome.state == "stopped" for outcome in runner.outcomes) or len(runner.outcomes) < len(todo):
        raise _interrupted(plan, runner.outcomes, num_signals)
    by_path = {outcome.trial.run.path: _latest(outcome) for outcome in [*left_alone, *runner.outcomes]}
    return SweepOutcome(plan, tuple(by_path[trial.run.path] for trial in plan.trials), tuple(rows), tuple(written))


def told_apart(plan: SweepPlan) -> SweepPlan:
    """A folder of runs that belong to no sweep, with the config of each as its label: only its seeds are averaged."""
    if plan.file is not None:
        return plan
    names = [re.sub(r"-s\d+$", "", trial.run.path.resolve().name) for trial in plan.trials]
    trials = tuple(replace(trial, labels={"config": name}) for trial, name in zip(plan.trials, names, strict=True))
    return replace(plan, trials=trials)


def merged(plans: Sequence[SweepPlan]) -> SweepPlan:
    """Several sweeps as one, each under a label of its own, so that runs of different sweeps are never averaged. Run
    directories that are given one by one have no label, or one in common: those of one config are its seeds. Trainings
    of one config and seed in different folders are told apart by their folders; none counts twice."""
    axis = "in sweep" if any("sweep" in trial.labels for plan in plans for trial in plan.trials) else "sweep"
    plans = list({plan.folder.resolve(): plan for plan in plans}.values())
    names = [plan.name for plan in plans]
    known = {trial.run.path.resolve() for plan in plans if not _is_run(plan) for trial in plan.trials}
    plans = [plan for plan in plans if not (_is_run(plan) and plan.folder.resolve() in known)]
    alone = [plan.folder.resolve() for plan in plans if _is_run(plan)]
    trials, notes = [], []
    for plan in plans:
        name = plan.name if names.count(plan.name) == 1 else str(plan.folder)
        label = {} if all(map(_is_run, plans)) else {axis: "(single runs)" if _is_run(plan) else name}
        if _is_run(plan) and [path.name for path in alone].count(plan.folder.resolve().name) > 1:
            label |= {"in": str(plan.folder.parent)}
        trials += [replace(trial, labels={**label, **trial.labels}) for trial in plan.trials]
        if plan.report != plans[0].report and plan.file is not None:
            notes.append(f"{name}: its own settings of `report` do not count here, those of {names[0]} do")
    first = plans[0]
    name = ", ".join(dict.fromkeys(names))
    return replace(first, name=name, trials=tuple(trials), notes=tuple(notes), file=None, parts=tuple(plans))


def _is_run(plan: SweepPlan) -> bool:
    return [trial.run.path.resolve() for trial in plan.trials] == [plan.folder.resolve()]


def gather(plan: SweepPlan, progress: Progress) -> tuple[list[Row], list[Path]]:
    """The scores there are, and the files they are written to, in the sweep's folder."""
    rows = collect(plan.trials, progress)
    return rows, write_results(plan, rows, progress)


def _latest(outcome: Outcome) -> Outcome:
    """What another process ran may have ended in the meantime."""
    done = outcome.state in _ALIVE and outcome.trial.state() == "done"
    return Outcome(outcome.trial, "done") if done else outcome


def _earlier(trial: Trial, state: State) -> Outcome:
    if state not in _FAILED:
        return Outcome(trial, state)
    return Outcome(trial, state, str(trial.run.status().get("message", "")), last_output(trial.run))


def _summary(plan: SweepPlan, todo: list[Trial], left_alone: list[Outcome], slots: Slots) -> str:
    states = [outcome.state for outcome in left_alone]
    parts = [f"{len(todo)} to run", *(f"{states.count(state)} {state}" for state in dict.fromkeys(states))]
    where = f"{len(slots.gpus)} GPU{'s' if len(slots.gpus) > 1 else ''}" if slots.gpus else "CPU"
    how = f"; {slots.count} at once on {where}, {counted(slots.threads, 'thread')} each" if todo else ""
    return f"sweep {plan.name}: {counted(len(plan.trials), 'run')}: {', '.join(parts)}{how}"


def _interrupted(plan: SweepPlan, outcomes: Sequence[Outcome], num_signals: int) -> InterruptedRun:
    num_stopped = sum(outcome.state == "stopped" for outcome in outcomes)
    how = "killed" if num_signals > 1 else "stopped and saved"
    num_open = sum(trial.state() != "done" for trial in plan.trials)
    text = f"sweep {plan.name}: {num_stopped} running trials were {how}; {num_open} of {len(plan.trials)} are not done"
    return InterruptedRun(text, "run the same command to continue")


class _Teller:
    """Says a line at each start and end, and keeps the bar of trials."""

    def __init__(self, plan: SweepPlan, progress: Progress, num_ended: int) -> None:
        self.progress, self.metric = progress, plan.report.metric
        self.num_ended, self.total = num_ended, len(plan.trials)
        self.left = math.nan

    def start(self, trial: Trial, gpu: str | None) -> None:
        self.progress.say(f"{'start':<9}{trial.title}" + (f"  GPU {gpu}" if gpu is not None else ""))

    def end(self, outcome: Outcome) -> None:
        self.num_ended += 1
        self.tell(outcome, f"{self.num_ended}/{self.total}")
        self.progress.step("trials", self.num_ended, self.total, "", self.left)

    def tell(self, outcome: Outcome, place: str) -> None:
        parts = [f"{outcome.state:<9}{place}", outcome.trial.title, *self._score(outcome)]
        parts += [outcome.cause] if outcome.cause else []
        parts += [time_text(outcome.seconds)] if outcome.seconds else []
        self.progress.say("  ".join(parts))
        for line in outcome.output:
            self.progress.say(f"    {line}")

    def step(self, num_running: int, seconds_left: float | None) -> None:
        self.left = math.nan if seconds_left is None else seconds_left
        self.progress.step("trials", self.num_ended, self.total, f"{num_running} running", self.left)

    def _score(self, outcome: Outcome) -> list[str]:
        scores = scores_of(outcome.trial) if outcome.state == "done" else {}
        return [f"{self.metric} {number_text(scores[self.metric])}"] if self.metric in scores else []


def time_text(seconds: float) -> str:
    """`38 s`, `12 min`, `3 h 05 min`, `2 d 04 h`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"
