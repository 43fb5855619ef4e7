"""A person's desk on the login node: a folder with a sweep file, the commands of gantool and Slurm, and patience."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from gantool import files
from gantool.manifest import Trial, load_trials
from gantool.progress import Silent
from gantool.runs import RunDirectory
from gantool.status import TrialStatus, trial_states

from .cluster import Cluster

PATIENCE_SECONDS = 600.0
"""Until a test gives up: many times what it takes on a machine with nothing else to do."""
STEPS = 120
LOSS = """\
# A hinge loss that the tests can slow down or break, by files in the folder of the runs.
import sys
import time
from pathlib import Path

run = Path(sys.argv[-1])


def discriminator(real, fake):
    return ((1 - real).relu() + (1 + fake).relu()).mean()


def generator(real, fake):
    slow, broken = run.parent / "slow", run.parent / f"broken{run.name[run.name.rindex('-s'):]}"
    if broken.exists():
        raise RuntimeError("this loss is broken")
    seconds = float(slow.read_text()) if slow.exists() else 0.0
    if seconds > 100:
        (run.parent / "stuck").touch()
    time.sleep(seconds)
    return -fake.mean()
"""
BASE: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "shapes", "size": 8},
    "generator": {"latent_dim": 8, "width": 4, "max_width": 8},
    "discriminator": {"width": 4, "max_width": 8},
    "loss": {"kind": "custom", "file": "loss.py"},
    "batch": 8,
    "steps": STEPS,
    "runtime": {
        "device": "cpu",
        "threads": 1,
        "log_every": 5,
        "sample_every": 1000,
        "snapshot_every": 1000,
        "checkpoint_every": 10,
        "grid": "2x2",
    },
}
GRID = {"augment": ["none", "basic"], "generator.residual": [False, True]}
FAST, SLOW, STUCK = 0.0, 1.0, 10_000.0
"""Seconds of each step, beside the work."""


@dataclass
class Desk:
    """`folder` is the working directory; `shared` has the packed data and the library."""

    folder: Path
    cluster: Cluster
    shared: Path
    site: dict[str, Any] = field(default_factory=dict)

    @property
    def runs_dir(self) -> Path:
        """Of all runs made here."""
        return self.folder / "runs"

    def write(self, name: str = "sweep", slurm: dict[str, Any] | None = None, **keys: Any) -> Path:
        """A sweep file of one run, changed by `keys`: of the sweep (vary, seeds) or of its base."""
        sweep = {key: keys.pop(key) for key in ("vary", "seeds", "report") if key in keys}
        base = {**BASE, **keys, "runtime": {**BASE["runtime"], "data_dir": str(self.shared / "data")}}
        base["runtime"]["runs_dir"] = str(self.runs_dir)
        path = self.folder / f"{name}.yaml"
        (self.folder / "loss.py").write_text(LOSS)
        # JSON is YAML.
        files.write_json(path, {"base": base, **sweep, "slurm": {"time": "10m", "mem": "800M", **(slurm or {})}})
        self.write_site(**self.site)
        return path

    def write_site(self, **keys: Any) -> None:
        """site.yaml."""
        files.write_json(self.folder / "site.yaml", keys)

    def pace(self, seconds: float) -> None:
        """How much longer each step of the runs takes, from now on."""
        self.runs_dir.mkdir(exist_ok=True)
        files.write_text(self.runs_dir / "slow", f"{seconds}")

    def start(self, *words: object, **environment: str) -> subprocess.Popen[str]:
        """`gantool WORDS`."""
        command = [sys.executable, "-m", "gantool", *map(str, words)]
        env = {**os.environ, "COLUMNS": "200", **environment}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, cwd=self.folder)

    def gantool(self, *words: object, code: int = 0, **environment: str) -> str:
        """`gantool WORDS` to its end: all that it said."""
        out, err = (process := self.start(*words, **environment)).communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == code, f"gantool {words}: {process.returncode}\n{out}\n{err}"
        return out + err

    def slurm(self, *words: str) -> str:
        """One of Slurm's commands."""
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def status(self, name: str = "sweep") -> list[TrialStatus]:
        """What `gantool status` knows."""
        states, silence = trial_states(self.folder / "sweeps" / name, Silent())
        assert not silence, silence
        return states

    def trials(self, name: str = "sweep") -> list[Trial]:
        """The runs of the sweep."""
        return list(load_trials(self.folder / "sweeps" / name).trials)

    def runs(self, name: str = "sweep") -> list[RunDirectory]:
        """Their directories."""
        return [trial.run for trial in self.trials(name)]

    def queue(self, name: str = "sweep") -> list[tuple[str, str]]:
        """Id and state of the jobs that Slurm has for the sweep, those that have ended for good left out."""
        rows = self.slurm("squeue", "-h", "-r", "-o", "%j|%i|%T|%Z").splitlines()
        found = [row.split("|") for row in rows if row.endswith(f"|{self.folder}")]
        return [(job, state) for title, job, state, _ in found if title.startswith(f"gantool-{name}-")]

    def tasks(self, name: str = "sweep") -> list[str]:
        """The array tasks among them, one or several for each run."""
        report = self.slurm("squeue", "-h", "-r", "-n", f"gantool-{name}-report", "-o", "%i").split()
        return [job for job, _ in self.queue(name) if job not in report]

    def ended(self, name: str = "sweep") -> bool:
        """Whether Slurm has no job of the sweep any more, the one that writes the results included."""
        return not self.queue(name)

    def wait(self, what: str, condition: Callable[[], object], name: str = "sweep") -> None:
        """Until `condition` holds."""
        end, pause = time.monotonic() + PATIENCE_SECONDS, 0.1
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}\n{self.account(name)}"
            time.sleep(pause)
            pause = min(1.0, 1.2 * pause)

    def wait_for_states(self, *states: str, name: str = "sweep") -> None:
        """Until the runs have these states."""
        self.wait(f"{states}", lambda: tuple(one.state for one in self.status(name)) == states, name)

    def wait_for_step(self, run: RunDirectory, step: int) -> None:
        """Until the run has done more than `step` steps."""
        self.wait(f"step {step} of {run.path}", lambda: journal_step(run) > step)

    def wait_for_end(self, name: str = "sweep") -> None:
        """Until all runs are done and Slurm has forgotten the jobs."""
        self.wait("the end", lambda: all(run.result() for run in self.runs(name)) and self.ended(name), name)

    def account(self, name: str = "sweep") -> str:
        """What there is to know, for a person who looks for the cause."""
        told = [f"{one.run}: {one.state} {one.step} {one.message} {one.job}" for one in self.status(name)]
        told.append(subprocess.run(["squeue", "-a"], capture_output=True, text=True, check=False).stdout)
        told.append(subprocess.run(["sinfo", "-N"], capture_output=True, text=True, check=False).stdout)
        outputs = [*(self.folder / "sweeps" / name / "jobs").glob("*.txt"), *self.runs_dir.glob("*/output*.txt")]
        told += [f"--- {path}\n{path.read_text()[-2000:]}" for path in outputs]
        return "\n".join(told)

    def assert_undisturbed(self, run: RunDirectory) -> None:
        """The run has ended with the bits of the one in the library."""
        assert_same_weights(library(self.shared) / "runs" / run.path.name, run.path)
        steps = [row["step"] for row in journal(run)]
        assert steps == list(range(5, STEPS + 1, 5))
        status = run.status()
        assert (status["state"], status["step"]) == ("done", STEPS)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def library(shared: Path) -> Path:
    """The folder of a sweep over GRID and two seeds that was done on this machine alone, undisturbed; made when it is
    first wanted."""
    folder = shared / "library"
    with locked(shared / "library.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            desk = Desk(folder, Cluster(folder), shared)
            desk.write(vary=GRID, seeds=2, eval={"num": 100})
            desk.gantool("sweep", "--local", "sweep.yaml")
            (folder / "done").touch()
    return folder


def assert_same_weights(one: Path, other: Path, tolerance: float = 0.0) -> None:
    """The last snapshots have the same tensors."""
    a, b = (load_file(sorted((run / "snapshots").glob("*.safetensors"))[-1]) for run in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance, err_msg=name)


def journal(run: RunDirectory) -> list[dict[str, Any]]:
    """The rows of journal.jsonl."""
    path = run.path / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def journal_step(run: RunDirectory) -> int:
    """The last step in it."""
    rows = journal(run)
    return int(rows[-1]["step"]) if rows else 0


def starts(run: RunDirectory) -> list[dict[str, Any]]:
    """The rows of starts.jsonl: one for each time it began to train."""
    path = run.path / "starts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def output(run: RunDirectory) -> str:
    """What the run wrote."""
    path = run.path / "output.txt"
    return path.read_text() if path.exists() else ""
