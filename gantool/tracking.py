"""What trackers are told of a run beside the numbers of its reports: scores, grids, and what they lack after a stop."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from gantool.config.schema import RunConfig
from gantool.metrics.scores import fits, read_scores
from gantool.players import SCALARS
from gantool.progress import Progress, told, waiting
from gantool.runs import Journal, RunDirectory
from gantool.runtime import Runtime


def start_trackers(run: RunDirectory, config: RunConfig, runtime: Runtime, progress: Progress, step: int) -> None:
    """Open the trackers on rank 0 for a run that goes on at `step`, and give them again from the run's files what they
    lack: numbers up to that step, scores and grids before it (those of the step itself are made anew)."""
    if not runtime.is_main:
        return
    trackers = runtime.trackers
    if not config.runtime.trackers:
        return
    with waiting("start the trackers", progress):
        lacking = trackers.start(run.path, config.model_dump(mode="json"), step, progress.say)
    rows = {row["step"]: row for row in Journal(run.path / "journal.jsonl").rows()}
    by_settings = [score for score in read_scores(run.path) if config.eval and fits(score, config.eval.identity())]
    scores = {score.step: score.values for score in by_settings if score.step is not None and score.step < step}
    files_of_grids = (run.path / config.runtime.samples_dir).glob("step-????????.png")
    grids = {at: path for path in files_of_grids if (at := int(path.stem[5:])) < step}
    again = sorted(at for at in {*rows, *scores, *grids} if lacking <= at <= step)
    for at in told(again, "what trackers lack", progress):
        if at in rows:
            trackers.numbers({name: rows[at][name] for name in SCALARS if name in rows[at]}, at, again=True)
        if at in scores:
            track_score(runtime, scores[at], at, again=True)
        if at in grids:
            with contextlib.suppress(OSError):  # a damaged picture is no reason not to train
                track_grid(runtime, Image.open(grids[at]), at, again=True)


def track_score(runtime: Runtime, values: Mapping[str, float], step: int, again: bool = False) -> None:
    """Send the values of a score to the trackers."""
    runtime.trackers.numbers({f"score/{name}": value for name, value in values.items()}, step, again)


def track_grid(runtime: Runtime, picture: Image.Image, step: int, again: bool = False) -> None:
    """Send a sample grid to the trackers."""
    runtime.trackers.picture("samples", np.asarray(picture.convert("RGB")), step, again)
