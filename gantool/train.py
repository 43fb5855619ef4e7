"""`gantool train`: one run from its directory to its end. State is a function of the step, so a run that was stopped,
killed or preempted goes on to the same bits as one that was not.

In the loop maintenance comes first (report, grid, snapshot, checkpoint, leave), then one phase for each player.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gantool
from gantool import checkpoint, custom, files, sample
from gantool.class_accuracy import class_accuracies
from gantool.config.base import duration_in_steps
from gantool.config.schema import RunConfig
from gantool.data.loader import RealImages
from gantool.data.pack import PackedDataset
from gantool.errors import DataError, DivergedError, GantoolError, InterruptedRun
from gantool.graphs import Graphs
from gantool.interrupts import CANCELLED, Interrupts, describe
from gantool.makers import data_facts, makers, other_bits, with_earlier
from gantool.metrics.scores import best_score, words_of
from gantool.players import SCALARS, Players
from gantool.progress import Part, Progress
from gantool.runs import Journal, RunBusy, RunDirectory, eval_digest, find_snapshot
from gantool.runtime import Runtime, freed_blocks
from gantool.state import State
from gantool.tracking import start_trackers, track_grid, track_score
from gantool.train_scores import Scorer, ScoresInTraining

_log = logging.getLogger(__name__)

_ASK_EVERY = 10


def train(
    run: RunDirectory,
    config: RunConfig,
    data: PackedDataset,
    runtime: Runtime,
    interrupts: Interrupts,
    progress: Progress,
    score: Scorer,
) -> None:
    """Train `run` to its end, from its newest checkpoint if there is one; then score it and write result.json.

    A finished run is left as it is. Raises InterruptedRun after a signal (the state is saved), DivergedError when a
    loss is no longer finite, RunBusy when another process trains the run, GantoolError when the data changed.
    """
    with contextlib.ExitStack() as stack:
        refused = None
        if runtime.is_main:
            try:
                stack.enter_context(run.lock())
            except RunBusy as busy:
                refused = busy
        if runtime.highest(int(refused is not None)):
            raise refused or RunBusy(f"{run.path}: another process is training this run")
        # Rank 0 decides for all what is left to do: the files may change while the others look.
        state = run.state_of_result(config) if runtime.is_main else "done"
        if runtime.is_main:
            run.write_config(config)  # `runtime` and `eval` may be new
        stack.callback(runtime.trackers.close)
        left = runtime.highest({"done": 0, "unscored": 1, "planned": 2}[state])
        if left == 2:
            with _cause_in_status(run, runtime, 0, 0), custom.words_to_stderr():
                if runtime.is_main:
                    custom.keep(config, run.path / "code")
                custom.remember(run.path / "code")
                trainer = Trainer(run, config, data, runtime, interrupts, progress, score)
            with custom.words_to_stderr(), freed_blocks(kept=True, device=runtime.device):
                trainer.run_to_end()
        if left:
            last = find_snapshot(run.path)
            total = int(checkpoint.read_facts(last)["step"])
            if left == 1:  # new scores of a run that is trained
                start_trackers(run, config, runtime, progress, total + 1)
            found: list[dict[str, Any] | None] = [None]

            def at_last() -> None:
                found[0] = score(last, lambda: bool(interrupts.pending())) if config.eval else None

            with _cause_in_status(run, runtime, total, total):
                runtime.on_all(at_last)
            for row in filter(None, found):
                track_score(runtime, row["values"], total)
            runtime.on_main(lambda: _finish(run, config, progress, last, total, [row for row in found if row]))


def _finish(
    run: RunDirectory, config: RunConfig, progress: Progress, last: Path, total: int, scores: list[dict[str, Any]]
) -> None:
    seconds = sum(row.get("seconds", 0) for row in Journal(run.path / "journal.jsonl").rows())
    result = {"step": total, "seconds": round(seconds, 3), "snapshot": str(last.relative_to(run.path))}
    best = best_score(run.path)
    if best:
        result["best"] = {"step": best.step, "snapshot": f"snapshots/{Path(best.snapshot).name}", "values": best.values}
    files.write_json(run.path / "result.json", result | {"scores": scores, "eval": eval_digest(config)})
    progress.say(f"done: step {total}")
    for row in scores:
        real = row.get("real") or {}
        progress.say(f"scores: {words_of(row['values'], real)}")
    for text in dict.fromkeys(text for row in scores for text in row.get("warnings") or ()):
        progress.say(f"warning: {text}")
    shutil.rmtree(run.path / "parts", ignore_errors=True)
    if best and best.step != total:
        progress.say(f"the best of all scored snapshots is that of step {best.step}: {words_of(best.values)}")
    run.unmark("stopped")  # a signal may have come while it was scored before
    run.write_status("done", total, total)


@contextlib.contextmanager
def _cause_in_status(run: RunDirectory, runtime: Runtime, step: int | Callable[[], int], total: int) -> Iterator[None]:
    """Write what ends the run early to its status.json."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if runtime.is_main:
            kind = "diverged" if isinstance(error, DivergedError) else "failed"
            cause = error.message if isinstance(error, GantoolError) else f"{type(error).__name__}: {error}"
            run.write_status(kind, step() if callable(step) else step, total, message=cause)
        if isinstance(error, SystemExit):
            raise GantoolError(
                f"{run.path}: the code of a network or loss called sys.exit", "raise an error"
            ) from error
        raise


class Trainer:
    """The loop and its state."""

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        data: PackedDataset,
        runtime: Runtime,
        interrupts: Interrupts,
        progress: Progress,
        score: Scorer,
    ) -> None:
        self.run, self.config, self.data, self.runtime = run, config, data, runtime
        self.interrupts, self.progress = interrupts, progress
        images, labels = data.split("train")
        self.num_images = len(images)
        self.num_classes = len(data.classes)
        _check_classes(config, data)
        self.total = self._steps(config.steps)
        every = config.runtime
        self.every = {
            "log": self._steps(every.log_every),
            "sample": self._steps(every.sample_every),
            "snapshot": self._steps(every.snapshot_every),
            "checkpoint": self._steps(every.checkpoint_every),
        }
        if config.eval and config.eval.every:
            self.every["score"] = self._steps(config.eval.every)
        self.state = State(config, runtime.device, self.num_classes)
        real = RealImages(
            images, config.augment, config.seed, config.batch, runtime.device, runtime.rank, runtime.num_ranks,
            every.resident,
        )  # fmt: skip
        graphs = Graphs.of(config, runtime, progress.say)
        self.players = Players(config, self.state, real, labels, self.num_classes, runtime, self._steps, graphs)
        networks = (("generator", self.state.generator), ("discriminator", self.state.discriminator))
        sizes = ", ".join(f"{name} {sum(p.numel() for p in network.parameters()):,}" for name, network in networks)
        _log.info("parameters: %s; data %s", sizes, "on the device" if real.resident else "read from the file")
        self.journal = Journal(run.path / "journal.jsonl")
        self.rate = 0.0
        self._window_start = self._status_time = time.monotonic()
        self._window_step = self._saved_step = 0
        if runtime.is_main:
            interrupts.cancel_mark = run.path / "cancelled"
        self.scores = ScoresInTraining(run, config.eval, runtime, progress, score, lambda: bool(interrupts.pending()))

    def run_to_end(self) -> None:
        """Resume, then alternate maintenance and the two players until the last step is done and saved."""
        self._resume()
        state, runtime = self.state, self.runtime
        start_trackers(self.run, self.config, runtime, self.progress, state.step)
        with self.interrupts.polled(), _cause_in_status(self.run, runtime, lambda: state.step, self.total):
            runtime.on_main(lambda: self.run.note_start(state.step))
            self.maintain()
            while state.step < self.total:
                self.train_step()
                self.maintain()
            self._write_final_images()
        if runtime.is_main:
            self.run.write_status("running", self.total, self.total, self.rate, "scoring")

    def train_step(self) -> None:
        """Both players' updates, then the average."""
        self.state.pending.append(self.players.step())
        self.state.step += 1
        self.state.update_ema()

    def maintain(self) -> None:
        """What is due at this step: report, sample grid, snapshot, checkpoint; and leaving, when there is a reason."""
        step, final = self.state.step, self.state.step == self.total
        if self.state.pending and (self._due("log") or final):
            self.report()
        if not final:
            self.progress.step("train", step, self.total, self._detail())
        if self._due("sample") or step == 0 or final:
            self.runtime.on_main(self._write_grid)
        # At the end it is scored without haste.
        score = self._due("score") and not final and self.scores.affordable(step)
        if (self._due("snapshot") or score or final) and step > 0:
            self._check_finite({})
            self.runtime.on_main(self._write_snapshot)
        if (self._due("checkpoint") or score or final) and step > self._saved_step:
            self._checkpoint()  # before a score, which takes long and may be what a time limit ends
        if final:  # with all that belongs to the last step
            self.progress.step("train", step, self.total, self._detail())
        interrupted = False
        if score:
            seconds, interrupted = self.scores.take(step, self.total)
            self._window_start += seconds
        # A signal at the last step: leave only if there is something left that takes time.
        over = final and not self.config.eval and not self.config.runtime.final_images
        signal_number = 0 if over else self._agreed_signal(final or interrupted)
        leaving = bool(signal_number)
        if leaving and step > self._saved_step:
            self._checkpoint()
        if leaving:
            self._leave(signal_number)

    def _due(self, what: str) -> bool:
        return what in self.every and self.state.step > 0 and self.state.step % self.every[what] == 0

    def _agreed_signal(self, final: bool) -> int:
        """The signal the ranks leave for, the same on all of them; several ranks ask each other every few steps."""
        alone = self.runtime.num_ranks == 1
        if alone or final or self.state.step % _ASK_EVERY == 0:
            return self.runtime.highest(self.interrupts.pending())
        return 0

    def report(self) -> None:
        """Average the pending numbers into a journal row; DivergedError when one is not finite."""
        mean = torch.stack(self.state.pending).mean(0)
        self.runtime.average([mean])
        values = dict(zip(SCALARS, mean.tolist(), strict=True))
        self._check_finite(values)
        self.state.pending = []
        now, step = time.monotonic(), self.state.step
        seconds = now - self._window_start
        self.rate = (step - self._window_step) * self.config.batch * self.config.n_dis / max(seconds, 1e-9)
        self._window_start, self._window_step = now, step
        self._parts = _parts_of(values, self.rate, self.runtime.peak_megabytes())
        if self.runtime.is_main:
            row = {"step": step, **values, "seconds": round(seconds, 4), "images_per_second": round(self.rate, 2)}
            self.journal.append(row)
            if now - self._status_time > 1:
                self.run.write_status("running", step, self.total, self.rate)
                self._status_time = now
        self.runtime.trackers.numbers(values, step)

    _parts: tuple[Part, ...] = ()

    def _detail(self) -> list[Part]:
        """The numbers of the last report, the latest score, memory: what matters most first."""
        score = self.scores.latest
        told = [Part(f"{score.words} at step {score.step}", score.words)] if score else []
        return [*self._parts[:-1], *told, *self._parts[-1:]]

    def _check_finite(self, values: dict[str, float]) -> None:
        wrong = [name for name, value in values.items() if not np.isfinite(value)]
        if wrong or not self.state.finite():
            what = f"{' and '.join(wrong)} became NaN or infinite" if wrong else "a weight became NaN or infinite"
            kept = self.run.snapshots()
            hint = "lower the learning rates, or change the loss or the norms; " + (
                f"the last good snapshot is {kept[-1]}" if kept else "there is no snapshot before it"
            )
            raise DivergedError(f"{self.run.path}: {what} by step {self.state.step}", hint)

    def _write_grid(self) -> None:
        rows, columns = sample.parse_grid(self.config.runtime.grid)
        labels = sample.row_labels(columns, range(self.num_classes)) if self.config.conditional else None
        parts = self._sample(rows * columns, labels)
        picture = sample.make_grid(torch.cat([p.cpu() for p in parts]).numpy(), rows, columns)
        folder = self.run.folder(self.config.runtime.samples_dir)
        sample.save_grid(folder / f"step-{self.state.step:08d}.png", picture)
        track_grid(self.runtime, picture, self.state.step)
        from gantool.report.curves import draw_curves

        draw_curves(self.journal.rows(), self.run.path / "curves.png", self.run.path.name)

    def _write_final_images(self) -> None:
        """The single images of a finished training, all of them or (after a signal) as many as there was time for."""
        num = self.config.runtime.final_images
        if not num:
            return
        labels = sample.labels_in_turn(range(self.num_classes)) if self.config.conditional else None

        def write() -> None:
            folder = self.run.folder(self.config.runtime.final_dir)
            parts = itertools.takewhile(lambda _: not self.interrupts.pending(), self._sample(num, labels))
            sample.save_images(folder, sample.with_progress(parts, num, self.progress), num)

        self.runtime.on_main(write)
        signal_number = self._agreed_signal(True)
        if signal_number:
            self._leave(signal_number)

    def _sample(self, num: int, labels: sample.Labels | None) -> Iterator[Tensor]:
        latent_dim, seed = self.config.generator.latent_dim, self.config.seed
        return sample.generate_with(self.state.averaged_generator(), latent_dim, 0, num, seed, labels)

    def _write_snapshot(self) -> None:
        facts = {
            "kind": "snapshot",
            "step": self.state.step,
            "ema": self.config.ema.decay > 0,
            "config": self.config.model_dump(mode="json"),
            "data": data_facts(self.data),
            "version": gantool.__version__,
        }
        if self.config.conditional:
            facts["accuracy"] = class_accuracies(self.config, self.state, self.players.loss, self.data, self.progress)
        path = checkpoint.step_file(self.run.folder("snapshots"), self.state.step)
        checkpoint.save(path, self.state.averaged_generator().state_dict(), facts)

    def _checkpoint(self) -> None:
        began = time.monotonic()
        if self.state.pending:
            pending = torch.stack(self.state.pending)
            self.runtime.average([pending])
            self.state.pending = list(pending)
            self._check_finite(dict(zip(SCALARS, pending.mean(0).tolist(), strict=True)))
        self._check_ranks_agree()
        self.runtime.on_main(self._write_checkpoint)
        self._saved_step = self.state.step
        # Several ranks ask each other for a reason to leave only every _ASK_EVERY steps.
        step_seconds = self.config.batch * self.config.n_dis / self.rate if self.rate else 0.0
        waiting = _ASK_EVERY * step_seconds if self.runtime.num_ranks > 1 else step_seconds
        self.interrupts.margin_seconds = max(10.0, 2 * (time.monotonic() - began)) + waiting

    def _check_ranks_agree(self) -> None:
        if self.runtime.num_ranks == 1:
            return
        own, highest = self.state.checksum(), self.runtime.highest
        if highest(own) != -highest(-own):
            text = f"{self.run.path}: the processes have different weights at step {self.state.step}"
            hint = (
                "use GPUs of one kind; a network or loss of your own must not depend on the process or draw at random"
            )
            raise GantoolError(text, f"{hint}. The last checkpoint is from before")

    def _write_checkpoint(self) -> None:
        folder = self.run.folder("checkpoints")
        facts = {
            "kind": "checkpoint",
            "step": self.state.step,
            "fingerprint": self.config.fingerprint,
            "seed": self.config.seed,
            "data": self.data.digest,
        }
        checkpoint.save(checkpoint.step_file(folder, self.state.step), self.state.tensors(), facts)
        checkpoint.keep_newest(folder, 2)

    def _leave(self, signal_number: int) -> None:
        why = describe(signal_number)
        if self.runtime.is_main:
            self.run.write_status("stopped", self.state.step, self.total, self.rate, f"stopped by {why}")
            if signal_number != CANCELLED:
                self.run.mark("stopped", why)
        self.runtime.highest(0)  # no rank leaves before rank 0 has saved
        hint = f"go on with: gantool train {self.run.path}" if signal_number != CANCELLED else None
        text = f"{self.run.path}: stopped by {why} at step {self.state.step}, everything is saved"
        raise InterruptedRun(text, hint, why)

    def _resume(self) -> None:
        """Take the newest whole checkpoint, if any, and bring the files of the run back to its step."""
        found = checkpoint.newest_whole(self.run.path / "checkpoints")
        # All ranks have read their file before rank 0 changes anything.
        self.runtime.highest(0)
        if found:
            tensors, facts, messages = found
            for message in messages:
                self.progress.say(f"passed over: {message}")
            if tensors:
                self._check_same(facts)
                self.state.load(tensors, facts["step"])
                self.progress.say(f"resuming at step {self.state.step} of {self.total}")
        self._saved_step = self._window_step = self.state.step
        self._window_start = time.monotonic()
        if self.runtime.is_main:
            self.journal.rewind(self.state.step)
            # Newer checkpoints are damaged ones, which must not push out the next good ones.
            for path in self.run.path.glob("*/step-????????.*"):
                if path.name[5:13].isdigit() and int(path.name[5:13]) > self.state.step:
                    path.unlink()
            for path in self.run.path.rglob(".*.tmp"):  # left by a process that was killed while it wrote
                path.unlink()
            self.run.unmark("stopped")
            self.run.write_status("running", self.state.step, self.total)
            path, now = self.run.path / "run.json", makers(self.config, self.data, self.runtime)
            known = files.read_json(path)
            if isinstance(known, dict) and self.state.step > 0:
                if caution := other_bits(known, now):
                    self.progress.say(f"warning: {caution}")
                now = with_earlier(known, now)
            files.write_json(path, now)

    def _check_same(self, facts: dict[str, Any]) -> None:
        for what, found, expected in (
            ("config", facts.get("fingerprint"), self.config.fingerprint),
            ("seed", facts.get("seed"), self.config.seed),
            ("data", facts.get("data"), self.data.digest),
        ):
            if found != expected:
                text = f"{self.run.path}: the {what} is not the one the checkpoint was made with"
                hint = f"found {expected}, the checkpoint has {found}; restore it, or train in another runs_dir"
                raise GantoolError(text, hint)

    def _steps(self, duration: int | str) -> int:
        return duration_in_steps(duration, self.config.batch * self.config.n_dis, self.num_images)


def _parts_of(values: dict[str, float], rate: float, megabytes: float) -> tuple[Part, ...]:
    """The numbers of a report for the progress line."""
    d, g = (
        f"{values[name]:.3f}" if abs(values[name]) < 100 else f"{values[name]:.4g}" for name in ("loss_d", "loss_g")
    )
    real, fake = (round(100 * values[name]) for name in ("accuracy_real", "accuracy_fake"))
    return (
        Part(f"D {d}  G {g}", f"D {d} G {g}"),
        Part(f"D right on {real} % real {fake} % fake", f"acc {real}/{fake}%"),
        Part(f"{rate:.0f} images/s", f"{rate:.0f}/s"),
        Part(f"{megabytes / 1024:.1f} GB memory", f"{megabytes / 1024:.1f}G"),
    )


def _check_classes(config: RunConfig, data: PackedDataset) -> None:
    """DataError when class-conditional networks have no classes to learn from."""
    if not config.conditional:
        return
    if len(data.classes) < 2:
        text = f"{data.title}: the networks are class-conditional, but the images have {len(data.classes)} classes"
        raise DataError(text, "pack images in class folders (train/CLASS/...), or take networks without condition")
    unlabelled = int((data.split("train")[1] < 0).sum())
    if unlabelled:
        text = f"{data.title}: {unlabelled} training images have no class, which class-conditional networks need"
        raise DataError(text, "put each image into a class folder")
