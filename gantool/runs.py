"""The run directory: which files it has, what they mean, and the state of a run as a function of them. No torch.

config.yaml  run.json      complete config; versions, data digest, host
status.json                what the run is doing, replaced as it goes
journal.jsonl  log.txt     numbers by step; words
checkpoints/ snapshots/ samples/ curves.png scores/
stopped  cancelled         marks: left early (why) and wants to go on; must not go on
starts.jsonl job.json      each start: job, host, step, how many runs share the device; the submission to Slurm that
                           the run is part of
result.json                the run is done
lock                       held (flock) by the process that trains
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from gantool import container, files
from gantool.config.document import dump_yaml, read_document
from gantool.config.loader import validate
from gantool.config.schema import RunConfig, digest_of
from gantool.errors import GantoolError, UsageError, named_like

State = Literal[
    "planned", "running", "stopped", "lost", "unscored", "done", "failed", "diverged", "cancelled",
    "queued", "held", "requeued",
]  # fmt: skip
"""The last three are known to a cluster only: see `submissions`."""
SHARED_BY = "GANTOOL_SHARED_BY"
"""The variable that tells a run how many runs share its device."""
_MAX_STARTS = 3  # of one job at the same step


class Look(NamedTuple):
    """What the files of a run say, each read once."""

    state: State
    status: dict[str, Any]
    """status.json."""
    result: dict[str, Any] | None
    """result.json, if that was looked at."""


class RunBusy(GantoolError):
    """Another process holds the run directory."""


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk. Every write is atomic; every read tolerates a file that is not there."""

    path: Path

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """The directory of `config`, made and given its config.yaml if it was not there.

        An existing directory keeps its files; training it updates the settings that cannot change the numbers.
        """
        run = cls(Path(config.runtime.runs_dir) / config.run_id)
        if not (run.path / "config.yaml").exists():
            run.write_config(config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The existing run directory at `path`; UsageError when it is none."""
        if not (path / "config.yaml").is_file():
            raise UsageError(
                f"{path}: not a run directory (it has no config.yaml)", "give a folder made by gantool train"
            )
        return cls(path)

    def config(self) -> RunConfig:
        """The config the run was made with."""
        return validate(RunConfig, read_document(self.path / "config.yaml"))

    def folder(self, name: str) -> Path:
        """A subfolder, made if it is not there."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def snapshots(self) -> list[Path]:
        """Snapshot files, oldest first."""
        return sorted((self.path / "snapshots").glob("step-*.safetensors"))

    def status(self) -> dict[str, Any]:
        """status.json: state, step, total, images_per_second, message, pid, host, job, time; {} when there is none."""
        found = files.read_json(self.path / "status.json")
        if isinstance(found, dict) and isinstance(found.get("time", 0.0), int | float):
            return found
        return {}

    def write_status(self, state: str, step: int, total: int, rate: float = 0.0, message: str = "") -> None:
        """Replace status.json."""
        value = {
            "state": state,
            "step": step,
            "total": total,
            "images_per_second": round(rate, 3),
            "message": message,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "job": job_id(),
            "time": round(time.time(), 3),
        }
        files.write_json(self.path / "status.json", value)

    def result(self) -> dict[str, Any] | None:
        """result.json; None while the run is not done."""
        found = files.read_json(self.path / "result.json")
        return found if isinstance(found, dict) else None

    def mark(self, name: Literal["stopped", "cancelled"], text: str = "") -> None:
        """Set a mark."""
        files.write_text(self.path / name, text)

    def unmark(self, name: Literal["stopped", "cancelled"]) -> None:
        """Take a mark away."""
        (self.path / name).unlink(missing_ok=True)

    def marked(self, name: Literal["stopped", "cancelled"]) -> bool:
        """Whether a mark is set."""
        return (self.path / name).exists()

    def said_by(self, name: Literal["stopped", "cancelled"]) -> str:
        """What a mark says, why the run was stopped or cancelled; empty without the mark."""
        try:
            return (self.path / name).read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def note_start(self, step: int) -> None:
        """Add a line to starts.jsonl; GantoolError when one job starts at the same step for the third time, since a job
        that is requeued without ever saving a later step would go on so for ever."""
        starts, job = Journal(self.path / "starts.jsonl"), job_id()
        before = starts.rows()[-_MAX_STARTS + 1 :] if job else []
        facts = {"step": step, "job": job, "host": socket.gethostname(), "time": round(time.time(), 3)}
        shared_by = os.environ.get(SHARED_BY, "")
        starts.append(facts | ({"shared_by": int(shared_by)} if shared_by.isdigit() else {}))
        if sum(row.get("job") == job and row["step"] == step for row in before) == _MAX_STARTS - 1:
            text = f"{self.path}: stalled: job {job} started {_MAX_STARTS} times at step {step}"
            hint = "give it more time (slurm.time), or checkpoint more often (runtime.checkpoint_every)"
            raise GantoolError(text, hint)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; RunBusy when another one does. The kernel lets go when the process dies."""
        with self._lock_file() as file:
            for attempt in range(20):  # `locked()` of another process may hold it for a moment
                if _try_lock(file, fcntl.LOCK_EX):
                    break
                if attempt == 19:
                    status = self.status()
                    owner = f"process {status.get('pid', '?')} on {status.get('host', '?')}"
                    hint = "wait for it, or stop it; `gantool status` shows what it does"
                    raise RunBusy(f"{self.path}: another process is training this run ({owner})", hint)
                time.sleep(0.05)
            yield

    def locked(self) -> bool:
        """Whether a living process on a machine that shares the filesystem's locks is training this run."""
        try:
            with (self.path / "lock").open("rb") as file:
                return not _try_lock(file, fcntl.LOCK_SH)
        except OSError:  # never locked, or not ours to look at
            return False

    def state(self, config: RunConfig | str | None = None) -> State:
        """What the run is, from its files alone. `unscored`: trained, but without the scores that `config` (or the
        `eval_digest` of one) asks for.

        `lost`: it was running and its process is gone without a word (killed, crashed node).
        """
        return self.look(config).state

    def look(self, config: RunConfig | str | None = None) -> Look:
        """`state`, and the files that it is read from."""
        locked = self.locked()
        status = self.status()  # after the look at the lock: its last words were written while it held it
        if locked:
            return Look("running", status, None)
        if self.marked("cancelled"):
            return Look("cancelled", status, None)
        result = self.result()
        if result is not None:
            return Look(_state_of_result(result, config or self.config()), status, result)
        state = status.get("state")
        if state in ("failed", "diverged"):
            return Look("failed" if state == "failed" else "diverged", status, None)
        if self.marked("stopped"):
            return Look("stopped", status, None)
        return Look("lost" if state == "running" else "planned", status, None)

    def state_of_result(self, config: RunConfig) -> Literal["planned", "unscored", "done"]:
        """`planned` without result.json, `unscored` when it lacks the scores that `config` asks for."""
        result = self.result()
        return "planned" if result is None else _state_of_result(result, config)

    def write_config(self, config: RunConfig, durable: bool = True) -> None:
        """Write config.yaml, if it is not the same already."""
        text, path = dump_yaml(config.model_dump(mode="json")), self.path / "config.yaml"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            files.write_text(path, text, durable)

    @contextlib.contextmanager
    def _lock_file(self) -> Iterator[IO[bytes]]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("ab")
        except OSError as error:
            raise GantoolError(
                f"{self.path}: cannot be written: {error.strerror}", "check the folder's owner"
            ) from error
        with file:
            yield file


def find_snapshot(path: Path) -> Path:
    """The snapshot file that `path` means: itself, or the last of a run directory; UsageError if there is none."""
    if path.is_file():
        return path
    if not path.exists():
        hint = container.if_absent(path, named_like(path) or "give a snapshot file or a run directory")
        raise UsageError(f"{path}: there is no such file or folder", hint)
    found = RunDirectory(path).snapshots() or sorted(path.glob("step-*.safetensors"))
    if not found:
        hint = "training writes the first one at runtime.snapshot_every, or at its end"
        if next(path.glob("*/config.yaml"), None):
            hint = f"it is a folder of runs: give one of them, or to eval all of them: '{path}/*'"
        raise UsageError(f"{path}: holds no snapshot (snapshots/step-*.safetensors)", hint)
    return found[-1]


def job_id() -> str:
    """The Slurm job this process is part of: `57`, an array task as `57_3`; empty outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def eval_digest(config: RunConfig) -> str:
    """Digest of the `eval:` section: which scores a finished run must have."""
    return digest_of(config.eval.identity() if config.eval else None)


def _state_of_result(result: dict[str, Any], config: RunConfig | str) -> Literal["unscored", "done"]:
    asked = config if isinstance(config, str) else eval_digest(config)
    return "done" if result.get("eval") == asked else "unscored"


def _try_lock(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        # The filesystem has no locks: the run goes on unguarded, as on any tool without them.
    return True


class Journal:
    """journal.jsonl: one JSON object a line, each with its `step`. Append-only but for `rewind`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Add one row and flush it to the disk."""
        with self.path.open("ab") as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a torn last line (the process was killed while writing) is left out."""
        rows = []
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else []:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
        return rows

    def rewind(self, step: int) -> None:
        """Forget the rows after `step`: training goes on from there and will write them again, the same."""
        kept = [row for row in self.rows() if row["step"] <= step]
        with files.atomic_file(self.path) as file:
            file.write(b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in kept))
