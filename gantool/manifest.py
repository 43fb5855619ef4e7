"""`sweeps/<name>/sweep.json`: which runs a sweep has, so that status and results need neither the sweep file nor YAML.

Written before anything is started. Paths in it are relative to its own folder: it can be read from anywhere, and moved
together with the runs. No torch.
"""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gantool import container, files
from gantool.config.evaluation import EvalConfig
from gantool.config.grid import Labels, Report
from gantool.config.schema import RunConfig, digest_of
from gantool.config.sweep_file import SlurmConfig
from gantool.errors import GantoolError, UsageError, named_like
from gantool.runs import Look, RunDirectory, State

FORMAT = 1
FILE_NAME = "sweep.json"


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: where it is, where it stands in the grid, and its config if that is known already."""

    run: RunDirectory
    labels: Labels
    seed: int
    given: RunConfig | None = field(default=None, repr=False)
    written: dict[str, Any] | None = field(default=None, repr=False)
    """The config as sweep.json has it, not checked yet."""
    asked: str | None = None
    """The eval_digest of `written`."""

    @functools.cached_property
    def config(self) -> RunConfig:
        """The run's config; read from its directory when it was not given (a few milliseconds)."""
        if self.given is None and self.written is not None:
            try:
                return RunConfig.model_validate(self.written)
            except ValidationError as error:
                raise _unreadable(f"the config of {self.run.path.name} in {FILE_NAME}") from error
        return self.given or self.run.config()

    @property
    def title(self) -> str:
        """`basic both seed 1`."""
        return " ".join([*self.labels.values(), f"seed {self.seed}"]) if self.labels else self.run.path.name

    def state(self) -> State:
        """The state of its run directory; `planned` while there is none."""
        return self.look().state

    def look(self) -> Look:
        """The state of its run directory, and the files that say so."""
        return self.run.look(self.given or self.asked)


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep. `folder` holds its manifest and results, `file` is the sweep file."""

    name: str
    folder: Path
    trials: tuple[Trial, ...]
    report: Report = field(default_factory=Report)
    file: Path | None = None
    slots: int | None = None
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    notes: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()
    """What `--set` said."""
    home: Path | None = None
    """Where the sweep was started, from which its paths are told; None: here."""
    parts: tuple[SweepPlan, ...] = ()
    """The sweeps that this one was put together of."""


def check_owner(plan: SweepPlan) -> None:
    """UsageError when the folder of a sweep belongs to another sweep file that still exists."""
    assert plan.file is not None
    folder = plan.folder.resolve()
    known = files.read_json(folder / FILE_NAME)
    other = folder / known["file"] if isinstance(known, dict) and isinstance(known.get("file"), str) else None
    if other is not None and other.is_file() and not (plan.file.is_file() and other.samefile(plan.file)):
        text = f"{plan.folder}: this folder belongs to another sweep file, {Path(os.path.normpath(other))}"
        raise UsageError(text, f"give the sweep another name: write for example 'name: {plan.name}-2' in {plan.file}")


def write_manifest(plan: SweepPlan) -> None:
    """Write sweep.json, atomically; UsageError as `check_owner`."""
    check_owner(plan)
    assert plan.file is not None
    folder = plan.folder.resolve()
    trials = [
        {
            "run": _relative(trial.run.path, folder),
            "labels": trial.labels,
            "seed": trial.seed,
            "config": trial.config.model_dump(mode="json"),
        }
        for trial in plan.trials
    ]
    report = asdict(plan.report)
    value = {
        "format": FORMAT,
        "name": plan.name,
        "file": _relative(plan.file, folder),
        "set": list(plan.assignments),
        "report": report,
    }
    lines = ",\n".join(json.dumps(trial, allow_nan=False) for trial in trials)
    head = json.dumps(value, indent=1, allow_nan=False).removesuffix("\n}")
    files.write_text(folder / FILE_NAME, f'{head},\n "trials": [\n{lines}\n]\n}}\n')


def load_trials(folder: Path) -> SweepPlan:
    """The runs in `folder`: of a sweep (its folder with sweep.json), a single run directory, or a folder of those."""
    if (folder / FILE_NAME).is_file():
        return _read_manifest(folder)
    if (folder / "config.yaml").is_file():
        return SweepPlan(folder.resolve().name, folder, (_bare_trial(folder),))
    if not folder.is_dir():
        hint = named_like(folder) or "give a run directory, or the folder of a sweep or of runs"
        hint = container.if_absent(folder, hint)
        raise UsageError(f"{folder}: there is no such folder", hint)
    runs = sorted(path.parent for path in folder.glob("*/config.yaml"))
    if not runs:
        sweeps = ", ".join(str(path.parent) for path in sorted(folder.glob(f"*/{FILE_NAME}")))
        hint = f"sweeps here: {sweeps}" if sweeps else "give a run directory, or the folder of a sweep or of runs"
        raise UsageError(f"{folder}: no run in this folder", hint)
    return SweepPlan(folder.resolve().name, folder, tuple(_bare_trial(run) for run in runs))


def _read_manifest(folder: Path) -> SweepPlan:
    value = files.read_json(folder / FILE_NAME)
    here = folder.resolve()
    try:
        assert isinstance(value, dict) and value["format"] == FORMAT
        trials = tuple(_read_trial(item, here) for item in value["trials"])
        if trials:
            RunConfig.model_validate(trials[0].written)  # all of them would take seconds
        sets = tuple(map(str, value.get("set", ())))
        report = Report(**value["report"])
        return SweepPlan(
            value["name"], folder, trials, report, here / value["file"], assignments=sets, home=here.parent.parent
        )
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(str(folder / FILE_NAME)) from error


def _unreadable(what: str) -> GantoolError:
    text = f"{what}: not readable by this version of gantool"
    return GantoolError(text, "start the sweep again with its sweep file: that writes it anew")


def _read_trial(item: dict[str, Any], here: Path) -> Trial:
    path = Path(os.path.normpath(here / item["run"]))
    with_working_directory = os.path.relpath(path)
    if not with_working_directory.startswith(".."):
        path = Path(with_working_directory)  # shorter in messages
    asked = _eval_digest(json.dumps(item["config"]["eval"]))
    labels = {str(axis): str(label) for axis, label in item["labels"].items()}
    return Trial(RunDirectory(path), labels, int(item["seed"]), None, item["config"], asked)


@functools.lru_cache
def _eval_digest(text: str) -> str:
    """Of an `eval:` section as JSON, which is the same for most runs of a sweep."""
    value = json.loads(text)
    return digest_of(None if value is None else EvalConfig.model_validate(value).identity())


def _bare_trial(path: Path) -> Trial:
    seed = re.search(r"-s(\d+)$", path.resolve().name)
    return Trial(RunDirectory(path), {}, int(seed[1]) if seed else 0)


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.resolve(), folder)
