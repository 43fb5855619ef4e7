"""The verb `cancel`: runs that must not go on, on a cluster or here. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gantool import cluster
from gantool.errors import GantoolError, UsageError
from gantool.manifest import SweepPlan, Trial, load_trials
from gantool.progress import Progress, Silent, told, waiting
from gantool.runs import RunDirectory
from gantool.submissions import ask


@dataclass(frozen=True)
class Cancelled:
    """What a call has done."""

    runs: tuple[Trial, ...]
    """Marked now."""
    jobs: tuple[str, ...]
    """Ended by scancel."""
    left: int
    """Runs of the selection that are done, and stay so."""


def cancel(folder: Path, words: Sequence[str] = (), undo: bool = False, progress: Progress | None = None) -> Cancelled:
    """Mark the runs in `folder` that are not done as cancelled, then end those jobs that have no other runs; a process
    that trains such a run sees the mark within seconds, saves, and leaves. `undo` takes the marks away again.

    words: `axis=label`, `seed=1` or `state=failed`, all of which must fit; or the name of a run directory.
    """
    plan, progress = load_trials(folder), progress or Silent()
    jobs = ask(plan.trials, progress)
    states = jobs.states(plan.trials, progress)
    chosen = [trial for trial in _chosen(plan, words, states) if states[trial.run.path] != "done"]
    left = len(_chosen(plan, words, states)) - len(chosen)
    if undo:
        marked = [trial for trial in chosen if states[trial.run.path] == "cancelled"]
        for trial in marked:
            trial.run.unmark("cancelled")
            (trial.run.path / "job.json").unlink(missing_ok=True)  # a job that scancel ended counts no more
        return Cancelled(tuple(marked), (), left)
    fresh = [trial for trial in chosen if not trial.run.marked("cancelled")]
    for trial in told(fresh, "marks", progress):  # before the jobs end, so that none of them is started again
        trial.run.mark("cancelled", "gantool cancel")
    if jobs.silence:
        text = f"{len(chosen)} runs are marked and will not start again, but their jobs were not ended"
        raise GantoolError(f"{text}: {jobs.silence.message}", "repeat it when Slurm answers, on a machine that has it")
    alive = {job.id: trial.run for trial in chosen if (job := jobs.of(trial.run)) and job.alive}
    ids = sorted(id_ for id_, run in alive.items() if all(_over(one) for one in jobs.companions(run)))
    with waiting("scancel", progress):
        cluster.cancel(ids)
    return Cancelled(tuple(fresh), tuple(ids), left)


def _over(run: RunDirectory) -> bool:
    """Whether a run does not need its job any more."""
    return run.marked("cancelled") or run.result() is not None


def _chosen(plan: SweepPlan, words: Sequence[str], states: Mapping[Path, str]) -> list[Trial]:
    trials = list(plan.trials)
    for word in words:
        key, equals, value = word.partition("=")
        known = {"seed", "state", *(axis for trial in plan.trials for axis in trial.labels)}
        if equals and key not in known:
            raise UsageError(f"{word}: there is no axis {key!r} here", f"axes: {', '.join(sorted(known))}")
        before = trials
        if equals:
            trials = [trial for trial in trials if value == _value(trial, key, states)]
        else:
            trials = [trial for trial in trials if trial.run.path.name == Path(os.path.normpath(word)).name]
        if not trials:
            there = sorted({_value(trial, key, states) or "" for trial in before}) if equals else []
            hint = f"{key} is one of: {', '.join(there)}" if there else "give AXIS=LABEL, seed=N, state=STATE or a run"
            raise UsageError(f"{word}: fits no run of {plan.folder}", hint)
    return trials


def _value(trial: Trial, key: str, states: Mapping[Path, str]) -> str | None:
    own = {"seed": str(trial.seed), "state": states[trial.run.path]}
    return trial.labels.get(key) or own.get(key)
