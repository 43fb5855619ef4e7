"""From what `gantool train` is given to a training process: which run, how many ranks, what stays when it fails."""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantool import container
from gantool.config.document import parse_assignment
from gantool.config.loader import load_run_config, overlay, read_run_document, validate_run
from gantool.config.schema import RunConfig
from gantool.errors import GantoolError, InterruptedRun, UsageError, hint_of_memory
from gantool.interrupts import Interrupts, describe
from gantool.launch import quick_imports
from gantool.progress import Progress, Silent
from gantool.runs import RunBusy, RunDirectory

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from gantool.data.pack import PackedDataset
    from gantool.runtime import Runtime
    from gantool.terminal import TerminalProgress


def world_size() -> int:
    """WORLD_SIZE, after a check of the variables that torchrun and srun scripts set for several processes."""
    values = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")}
    for name, value in values.items():
        if value and not value.isdigit():
            raise UsageError(
                f"${name}: found {value!r}, expected a whole number", f"unset {name}, or let torchrun set it"
            )
    ranks = int(values["WORLD_SIZE"] or "1")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if ranks > 1 and missing:
        raise UsageError(
            f"$WORLD_SIZE is {ranks}, but not set: {', '.join(missing)}", "unset WORLD_SIZE, or use torchrun"
        )
    return max(1, ranks)


def open_run(path: Path, sets: list[str], num_ranks: int, with_data: bool = False) -> tuple[RunConfig, RunDirectory]:
    """The config and directory that `path` (a config or a run directory) and `--set` mean. `with_data`: DataError where
    the data are not packed, before there is a new directory."""
    if not path.is_dir():
        settings = load_run_config(path, sets, num_ranks)
        if with_data and settings.data.name != "shapes":
            from gantool.data.pack import open_packed

            open_packed(settings.data, Path(settings.runtime.data_dir))
        return settings, RunDirectory.create(settings)
    run = RunDirectory.open(path)
    document = read_run_document(path / "config.yaml")
    settings = validate_run(overlay(document, *map(parse_assignment, sets)), num_ranks)
    if (settings.fingerprint, settings.seed) != (run.config().fingerprint, run.config().seed):
        text = "--set changes the numbers of an existing run, which then were no longer those of its name"
        raise UsageError(f"{path}: {text}", "start a new run from a config; only runtime.* and eval.* may change here")
    return settings, run


@contextlib.contextmanager
def signals_caught(run: RunDirectory, interrupts: Interrupts) -> Iterator[None]:
    """Handle the stop signals within the block; one that ends it leaves the mark `stopped`."""
    try:
        with interrupts.caught():
            yield
    except InterruptedRun as stop:
        failed = run.status().get("state") in ("failed", "diverged")  # on another rank, and then this one was ended
        if not run.marked("cancelled") and not failed:
            number = interrupts.signal_number
            run.mark("stopped", describe(number) if number else stop.reason)
        raise


def train_here(settings: RunConfig, run: RunDirectory, interrupts: Interrupts, terminal: TerminalProgress) -> None:
    """Train `run` in this process, as one rank of WORLD_SIZE; what goes wrong stays with the run, in its log.txt."""
    try:
        _train(settings, run, interrupts, terminal)
    except RunBusy:
        raise
    except GantoolError as error:
        _tell_of_rank(run, error.message)
        raise
    except Exception as error:
        _tell_of_rank(run, f"{type(error).__name__}: {error}")
        # At 2 a.m. nobody looks.
        with (run.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc())
        first = (str(error).strip().splitlines() or [""])[0]
        hint = hint_of_memory(error) or f"the traceback is in {run.path / 'log.txt'}"
        raise GantoolError(f"{run.path}: {type(error).__name__}: {first}", hint) from error


def _tell_of_rank(run: RunDirectory, cause: str) -> None:
    """Write what made a rank other than 0 fail to status.json, unless a cause stands there; rank 0 does it in train."""
    rank, said = os.environ.get("RANK", "0"), run.status()
    if rank != "0" and said.get("state") not in ("failed", "diverged"):
        run.write_status("failed", said.get("step", 0), said.get("total", 0), message=f"rank {rank}: {cause}")


def _train(settings: RunConfig, run: RunDirectory, interrupts: Interrupts, terminal: TerminalProgress) -> None:
    from gantool.data.pack import check_digest, ensure_packed
    from gantool.data.staging import staged
    from gantool.terminal import LoggedProgress

    data = ensure_packed(settings.data, Path(settings.runtime.data_dir), terminal)
    data = staged(data, settings.data, terminal)
    check_digest(data, terminal)
    with quick_imports(terminal):
        from gantool.runtime import Runtime, device_caution
        from gantool.train import train as run_to_end

    runtime = Runtime(settings.runtime)
    progress: Progress = LoggedProgress(terminal, run.path / "log.txt") if runtime.is_main else Silent()
    ranks = f", {runtime.num_ranks} processes" if runtime.num_ranks > 1 else ""
    length = f"{settings.steps} steps" if isinstance(settings.steps, int) else settings.steps
    progress.say(f"{run.path}: {data.title}, {length}, on {runtime.device}{ranks}")
    for text in filter(None, (container.loss(run.path), device_caution(runtime.device, settings.runtime.device))):
        progress.say(f"warning: {text}")

    _log.info("%s", runtime.described(settings.precision))
    _log.info("fingerprint %s of %s", settings.fingerprint, run.path / "config.yaml")
    if settings.eval and run.result() is None:
        from gantool.evaluate import ready
        from gantool.metrics.collection import Work

        ready(settings.eval, data, Path(settings.runtime.data_dir), runtime.device, Work(progress, runtime))

    def score(snapshot: Path, stop: Callable[[], bool]) -> dict[str, Any] | None:
        return _evaluate(snapshot, settings, data, runtime, progress, run.path, stop)

    run_to_end(run, settings, data, runtime, interrupts, progress, score)
    runtime.finish()


def _evaluate(
    path: Path,
    settings: RunConfig,
    data: PackedDataset,
    runtime: Runtime,
    progress: Progress,
    folder: Path,
    stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """Score a snapshot by the `eval` section of `settings`, shared by the ranks; keep the score below `folder`."""
    from gantool import evaluate as evaluation
    from gantool.metrics.collection import Work
    from gantool.sample import load_snapshot

    assert settings.eval is not None
    snapshot = load_snapshot(path, runtime.device)
    work = Work(progress, runtime, folder / "parts", stop)
    found = evaluation.evaluate(snapshot, settings.eval, Path(settings.runtime.data_dir), 0, work, data=data)
    if found is None:
        return None
    evaluation.keep(folder, found)
    return found.score.to_json()
