"""Scores while a run trains: when there is time for one, that it ends no training, and that ranks go on together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gantool import checkpoint
from gantool.config.evaluation import EvalConfig
from gantool.errors import GantoolError, InterruptedRun
from gantool.metrics.scores import BEST, kept_score, read_scores, words_of
from gantool.progress import Progress
from gantool.runs import RunDirectory
from gantool.runtime import Runtime, freed_blocks
from gantool.tracking import track_score

_log = logging.getLogger(__name__)

Scorer = Callable[[Path, Callable[[], bool]], dict[str, Any] | None]
"""Called by all ranks with a snapshot and a function that says when to stop (InterruptedRun then): its score as JSON
values on rank 0, None on the others."""


class Latest(NamedTuple):
    """The newest score, as words (`fid 18.08`)."""

    step: int
    words: str


class ScoresInTraining:
    """The scores of `eval.every`, within `eval.budget`."""

    def __init__(
        self,
        run: RunDirectory,
        settings: EvalConfig | None,
        runtime: Runtime,
        progress: Progress,
        score: Scorer,
        stop: Callable[[], bool],
    ) -> None:
        self.run, self.settings, self.runtime, self.progress = run, settings, runtime, progress
        self.score, self.stop = score, stop
        kept = [score for score in read_scores(run.path) if score.step is not None] if runtime.is_main else []
        newest = max(kept, key=lambda score: score.step or 0, default=None)
        self.latest = _latest(newest.step or 0, newest.values) if newest else None
        self._began, self._seconds, self._last_seconds = time.monotonic(), 0.0, 0.0

    def affordable(self, step: int) -> bool:
        """Whether a score now would keep to the budget; the first one of a process does: nobody knows its cost."""
        assert self.settings is not None
        so_far = time.monotonic() - self._began
        enough = not self._last_seconds or (
            self._seconds + self._last_seconds <= self.settings.budget * (so_far + self._last_seconds)
        )
        if self.runtime.highest(int(self.runtime.is_main and not enough)):
            self.progress.say(f"step {step}: not scored, it would take more than eval.budget of the time")
            return False
        return True

    def take(self, step: int, total: int) -> tuple[float, bool]:
        """Score the snapshot of `step`, unless it has been: (the seconds it took, whether it was interrupted).

        What keeps a score from being made is said, and the training goes on.
        """
        assert self.settings is not None
        began, runtime = time.monotonic(), self.runtime
        snapshot = checkpoint.step_file(self.run.path / "snapshots", step)
        digest = str(checkpoint.read_facts(snapshot)["digest"]) if runtime.is_main else ""
        kept = kept_score(self.run.path, digest, self.settings.identity()) if runtime.is_main else None
        if runtime.highest(int(kept is not None)):
            if kept is not None:
                track_score(runtime, kept.values, step)
            return 0.0, False
        if runtime.is_main:
            self.run.write_status("running", step, total, message="scoring")
        found, problem, interrupted = None, "", False
        try:
            with freed_blocks(kept=False, device=runtime.device):
                found = self.score(snapshot, self.stop)
        except InterruptedRun:  # what it has found is kept
            interrupted = True
        except GantoolError as error:
            problem = error.message
        outcome = runtime.highest(2 if interrupted else int(bool(problem)))
        if outcome == 1:
            self.progress.say(f"step {step}: not scored: {problem or 'another rank failed'}")
        if found:
            self.progress.say(f"step {step}: {words_of(found['values'])}")
            self.latest = _latest(step, found["values"])
            track_score(runtime, found["values"], step)
        self._last_seconds = time.monotonic() - began
        _log.info("step %d: scoring took %.1f s", step, self._last_seconds)
        self._seconds += self._last_seconds
        return self._last_seconds, outcome == 2


def _latest(step: int, values: Mapping[str, float]) -> Latest | None:
    """The value by which the best is chosen (see `best_score`), if there is one."""
    name = next((name for name, _ in BEST.values() if name in values), None)
    return Latest(step, f"{name} {values[name]:.4g}") if name else None
