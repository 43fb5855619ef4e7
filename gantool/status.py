"""The verb `status`: what every trial is doing, from the files of the run directories, one squeue where runs were
submitted to Slurm, and accounting if it works. Needs no living process. No torch."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gantool.config.grid import Labels
from gantool.errors import GantoolError
from gantool.local import last_output
from gantool.manifest import SweepPlan, Trial, load_trials
from gantool.progress import Progress, told
from gantool.results import SPREADS, scores_in
from gantool.runs import RunDirectory, State
from gantool.submissions import Jobs, ask


@dataclass(frozen=True)
class TrialStatus:
    """One trial. Numbers are None where they are not known, or say nothing in this state."""

    run: Path
    title: str
    labels: Labels
    seed: int
    state: State
    step: int | None = None
    total: int | None = None
    images_per_second: float | None = None
    """Real images, while it is running."""
    left_seconds: float | None = None
    """Of training, at the present speed; scoring comes after it."""
    silent_seconds: float | None = None
    """Since it last wrote its status, for a trial that is running or lost."""
    message: str = ""
    """What it does, why it waits, or the cause of its failure."""
    host: str = ""
    job: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    """When done: each metric."""


def trial_states(folder: Path, progress: Progress) -> tuple[list[TrialStatus], str]:
    """All trials of a sweep (its folder, with sweep.json), a single run directory, or a folder of run directories; and
    why nothing is known of their jobs, where Slurm does not answer (else empty).

    UsageError when `folder` is none of these.
    """
    plan = load_trials(folder)
    jobs = ask(plan.trials, progress)
    return _states(plan, jobs, progress), jobs.silence.message if jobs.silence else ""


def plan_states(plan: SweepPlan, progress: Progress) -> list[TrialStatus]:
    """The trials of a plan."""
    return _states(plan, ask(plan.trials, progress), progress)


def _states(plan: SweepPlan, jobs: Jobs, progress: Progress) -> list[TrialStatus]:
    now = time.time()
    return [_trial_status(trial, now, jobs) for trial in told(plan.trials, "states", progress)]


def counts(statuses: list[TrialStatus]) -> dict[State, int]:
    """Number of trials in each state, in the order in which the states first occur."""
    found: dict[State, int] = {}
    for status in statuses:
        found[status.state] = found.get(status.state, 0) + 1
    return found


def _trial_status(trial: Trial, now: float, jobs: Jobs) -> TrialStatus:
    path, labels, seed = trial.run.path, trial.labels, trial.seed
    try:
        look = trial.look()
        state, words = jobs.state(trial.run, look.state, look.status)
    except (GantoolError, OSError) as error:  # a damaged or closed run must not hide the others
        message = error.message if isinstance(error, GantoolError) else f"cannot be read: {error.strerror}"
        return TrialStatus(path, trial.title, labels, seed, "failed", message=message)
    said = look.status
    job = jobs.of(trial.run)
    if state == "running" and said.get("state") != "running":  # its first words are still to come
        said = {**said, "message": "starting", "images_per_second": None}
    step, total, rate = said.get("step"), said.get("total"), said.get("images_per_second") or None
    alive = state == "running"
    words = trial.run.said_by("cancelled") if state == "cancelled" and not words else words
    message = words or (str(said.get("message", "")) if state not in ("planned", "cancelled", "queued") else "")
    if state == "lost":
        message = " - ".join(filter(None, [words, next(iter(last_output(trial.run, 1)), "")]))
        message = message or "its process is gone without a word"
    return TrialStatus(
        run=path,
        title=trial.title,
        labels=labels,
        seed=seed,
        state=state,
        step=step,
        total=total,
        images_per_second=rate if alive else None,
        left_seconds=_left(trial, step, total, rate) if alive else None,
        silent_seconds=max(0.0, now - said["time"]) if "time" in said and state in ("running", "lost") else None,
        message=message,
        host=str(said.get("host", "")),
        job=job.id if job and job.alive else str(said.get("job", "")),
        scores=scores_in(look.result) if state == "done" else {},
    )


def _left(trial: Trial, step: int | None, total: int | None, rate: float | None) -> float | None:
    if step is None or total is None or rate is None:
        return None
    return max(0, total - step) * trial.config.batch * trial.config.n_dis / rate


def newest_grids(statuses: list[TrialStatus], most: int = 4) -> list[Path]:
    """The newest sample grid of each run that is running, or of the only run whatever it does; of many the latest."""
    found = []
    for status in statuses:
        if status.state != "running" and len(statuses) > 1:
            continue
        with contextlib.suppress(GantoolError, OSError):
            folder = status.run / RunDirectory(status.run).config().runtime.samples_dir
            found += sorted(folder.glob("step-*.png"))[-1:]
    return sorted(found, key=lambda path: -path.stat().st_mtime)[:most]


def status_rows(statuses: list[TrialStatus]) -> list[dict[str, Any]]:
    """One plain mapping a trial, for tables: run, state, progress, speed, time left, scores, message."""
    names = dict.fromkeys(name for status in statuses for name in status.scores)
    return [
        {
            "run": str(status.run),
            **status.labels,
            "seed": status.seed,
            "state": status.state,
            "step": status.step,
            "of": status.total,
            "images/s": status.images_per_second,
            "left s": None if status.left_seconds is None else round(status.left_seconds),
            "silent s": None if status.silent_seconds is None else round(status.silent_seconds),
            "job": status.job,
            **{name: status.scores.get(name) for name in names},
            "message": status.message,
        }
        for status in statuses
    ]


def short_rows(statuses: list[TrialStatus]) -> tuple[list[dict[str, Any]], str]:
    """`status_rows` for eyes: without the columns that are empty and the spreads of single scores, runs by their name
    alone where all lie in one folder; and that folder (else empty)."""
    rows = [{key: row[key] for key in row if not key.endswith(SPREADS)} for row in status_rows(statuses)]
    folders = {status.run.parent for status in statuses}
    empty = {key for key in (rows[0] if rows else ()) if all(row[key] in (None, "") for row in rows)}
    rows = [{key: value for key, value in row.items() if key not in empty} for row in rows]
    if len(folders) != 1:
        return rows, ""
    return [row | {"run": status.run.name} for row, status in zip(rows, statuses, strict=True)], str(folders.pop())
