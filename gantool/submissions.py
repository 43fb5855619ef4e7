"""Which Slurm job has which run, and what that makes of the run's state.

A submission is written down before sbatch is called, under a job name that no other job has, and each of its runs gets
a note of it (job.json). So a process that dies between sbatch and the next line loses nothing: the job is known by its
name. States come from the files of the run first, then from squeue, then from accounting; they need no living process.
No torch.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gantool import cluster, files
from gantool.cluster import Attempt, Job, SlurmSilent
from gantool.errors import GantoolError
from gantool.local import last_output
from gantool.manifest import Trial
from gantool.progress import Progress, told, waiting
from gantool.runs import RunDirectory, State

FOLDER = "jobs"
_ARRIVAL_SECONDS = 180.0  # within which an sbatch whose caller was killed may still arrive: it tries for two minutes


@dataclass(frozen=True)
class Submission:
    """One call of sbatch; its tasks have one run each, or several that share a GPU."""

    path: Path
    """Its json; the stem is the name of the job."""
    time: float
    job: str | None
    """The id of the array; None until sbatch has said it."""

    @property
    def name(self) -> str:
        """The name of the job."""
        return self.path.stem

    def output(self, task: int) -> Path:
        """What the batch script of a task said."""
        return self.path.parent / f"{self.name}-{task}.txt"


class Claim(NamedTuple):
    """The latest submission of a run, and which task of it the run is in."""

    submission: Submission
    task: int


def write_submission(folder: Path, sweep: str, tasks: Sequence[Sequence[RunDirectory]]) -> Submission:
    """Write down that `tasks` are about to be submitted, in `folder`/jobs and in each of the runs."""
    name = f"gantool-{sweep}-{secrets.token_hex(4)}"
    path = (folder / FOLDER / f"{name}.json").resolve()
    paths = [[str(run.path.resolve()) for run in task] for task in tasks]
    bad = next((one for task in paths for one in task if "\t" in one or "\n" in one), None)
    bad = bad or (str(path) if re.search(r"[%\\\n\t]", str(path)) else None)
    if bad is not None:
        text = f"{bad!r}: Slurm cannot take a path with a tab, a line break, % or a backslash"
        raise GantoolError(text, "rename the folder")
    files.write_text(path.with_suffix(".tsv"), "".join("\t".join(task) + "\n" for task in paths))
    submission = Submission(path, time.time(), None)
    files.write_json(path, {"time": submission.time, "job": None})
    for number, task in enumerate(tasks):
        for run in task:  # without waiting for the disk, a thousand times: should the machine crash, job.sh sees to it
            files.write_json(run.path / "job.json", {"submission": str(path), "task": number}, durable=False)
    return submission


def record(submission: Submission, job: str) -> None:
    """Write down the id that sbatch gave."""
    files.write_json(submission.path, {"time": submission.time, "job": job})


def take_back(submission: Submission, tasks: Iterable[Iterable[RunDirectory]]) -> None:
    """Forget a submission that sbatch refused."""
    for task in tasks:
        for run in task:
            (run.path / "job.json").unlink(missing_ok=True)
    for ending in (".json", ".tsv"):
        submission.path.with_suffix(ending).unlink(missing_ok=True)


@contextlib.contextmanager
def turn(folder: Path, progress: Progress) -> Iterator[None]:
    """Let one process at a time submit runs of `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ".submit.lock"
        path.touch(exist_ok=True)
        lock = path.open("rb")
    except OSError as error:
        raise GantoolError(f"{folder}: cannot be written: {error.strerror}", "check the folder's owner") from error
    with lock:
        files.wait_for_lock(
            lock, lambda: progress.say(f"waiting for another gantool that is submitting runs of {folder}")
        )
        yield


class Jobs:
    """What Slurm says of the jobs of some runs: one squeue for all, and accounting where squeue has forgotten one."""

    def __init__(self, runs: Iterable[RunDirectory]) -> None:
        read: dict[Path, Submission | None] = {}
        self._claims = {run.path: claim for run in runs if (claim := _claim_of(run, read))}
        self._by_task: dict[tuple[str, int], Job] = {}
        self._whole: dict[str, Job] = {}  # arrays that were cancelled before any of their tasks began are one line
        self._names: set[str] = set()  # of the submissions that Slurm knows
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._asked = False
        self.silence: SlurmSilent | None = None
        """Why nothing is known, when Slurm does not answer."""
        names = {claim.submission.name for claim in self._claims.values()}
        if not names:
            return
        if not cluster.available():
            self.silence = SlurmSilent("runs were submitted to Slurm, whose commands are not on this machine")
            return
        try:
            for jobs in cluster.queue(names).values():
                self._by_task |= {(job.name, task): job for job in jobs for task in _tasks(job.id)}
                self._whole |= {job.name: job for job in jobs if "_" not in job.id}
            self._names = {name for name, _ in self._by_task}
        except SlurmSilent as silence:
            self.silence = silence

    def of(self, run: RunDirectory) -> Job | None:
        """The job of a run, as squeue knows it."""
        claim = self._claims.get(run.path)
        if claim is None:
            return None
        name, task = claim.submission.name, claim.task
        return self._by_task.get((name, task)) or self._whole.get(name)

    def claim(self, run: RunDirectory) -> Claim | None:
        """The latest submission of a run."""
        return self._claims.get(run.path)

    def submissions(self) -> list[Submission]:
        """All submissions of the runs."""
        return list({claim.submission.path: claim.submission for claim in self._claims.values()}.values())

    def id_of(self, submission: Submission) -> str | None:
        """The id of its array: as written down, or as squeue knows it by its name."""
        listed = [*self._by_task.values(), *self._whole.values()]
        known = (job.id for job in listed if job.name == submission.name)
        return submission.job or next((job.split("_")[0] for job in known), None)

    def companions(self, run: RunDirectory) -> list[RunDirectory]:
        """The runs of the task that a run is in, itself among them."""
        claim = self._claims[run.path]
        try:
            lines = claim.submission.path.with_suffix(".tsv").read_text(encoding="utf-8").splitlines()
            return [RunDirectory(Path(path)) for path in lines[claim.task].split("\t")]
        except (OSError, IndexError):
            return [run]

    def alive_arrays(self) -> set[str]:
        """The ids of the arrays that have tasks in the queue."""
        return {job.id.split("_")[0] for job in self._by_task.values() if job.alive}

    def arriving(self) -> list[Submission]:
        """Submissions whose sbatch may still be on its way: nobody has seen their job, and they are very young."""
        young = [one for one in self.submissions() if time.time() - one.time < _ARRIVAL_SECONDS]
        return [one for one in young if self.id_of(one) is None]

    def attempts(self) -> list[Attempt]:
        """All attempts at the jobs, oldest first, as accounting has kept them."""
        found = cluster.accounting(one.name for one in self.submissions()) if self.silence is None else None
        return found or []

    def last_attempt(self, run: RunDirectory) -> Attempt | None:
        """How the last attempt at the job of a run ended, where squeue has forgotten it."""
        claim = self._claims.get(run.path)
        if claim is None or not cluster.available():
            return None
        if not self._asked:
            self._asked = True
            found = [one for one in self.attempts() if "[" not in one.id or one.state == "CANCELLED"]
            self._names |= {one.name for one in found}
            self._attempts = {(one.name, task): one for one in found for task in _tasks(one.id)}
        return self._attempts.get((claim.submission.name, claim.task))

    def accounting_is_behind(self, runs: Iterable[RunDirectory]) -> bool:
        """Whether accounting takes a job of these runs for alive that squeue has forgotten: how it ended, a scancel for
        example, is still to be written there."""
        forgotten = [run for run in runs if run.path in self._claims and self.of(run) is None]
        attempts = [attempt for run in forgotten if (attempt := self.last_attempt(run))]
        return any(Job(one.id, one.name, one.state).alive for one in attempts)

    def states(self, trials: Sequence[Trial], progress: Progress) -> dict[Path, State]:
        """Run directory -> state of each trial."""
        return {trial.run.path: self.state(trial.run, trial.state())[0] for trial in told(trials, "states", progress)}

    def state(self, run: RunDirectory, files_say: State, status: dict[str, Any] | None = None) -> tuple[State, str]:
        """The state of a run whose files say `files_say`, and words on it (a reason, a cause). `status`: its
        status.json, if that is read already."""
        job = self.of(run)
        if files_say in ("done", "cancelled") or run.path not in self._claims:
            return files_say, ""
        if job is None or not job.alive:
            return self._ended(run, files_say, job, run.status() if status is None else status)
        if files_say in ("failed", "diverged"):
            return files_say, ""
        if not job.pending:
            said = run.status() if status is None else status
            known = files_say == "running" or said.get("job") == job.id  # locks of other nodes may be unseen
            return "running", "" if known else "starting or ending"
        if files_say == "running":
            return files_say, ""
        if job.held:
            return "held", job.reason
        reason = "" if job.reason == "None" else job.reason  # in its first seconds
        return "queued" if files_say == "planned" else "requeued", reason

    def _ended(self, run: RunDirectory, files_say: State, job: Job | None, status: dict[str, Any]) -> tuple[State, str]:
        """The job has ended, or Slurm does not know it."""
        if files_say not in ("planned", "stopped", "lost", "unscored") or self.silence:
            return files_say, ""
        claim = self._claims[run.path]
        attempt = None if job else self.last_attempt(run)
        if not job and not attempt:
            return ("cancelled", "scancel") if self._never_started(claim, files_say) else (files_say, "")
        name, state = (job.id, job.state) if job else (attempt.id, attempt.state) if attempt else ("", "")
        if status.get("time", 0) > claim.submission.time and status.get("job") not in (name, None):
            return files_say, ""  # it was trained elsewhere since
        if state == "CANCELLED":
            return "cancelled", "scancel"
        if state in ("FAILED", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL") and files_say in ("planned", "lost"):
            what = "out of memory, says Slurm" if state == "OUT_OF_MEMORY" else f"job {name} failed"
            last = next(iter(last_output(run, 1)), "")
            places = f"{claim.submission.output(claim.task)} and {run.path}/output*.txt"
            return "failed", f"{what}{': ' if last else ''}{last}; its words are in {places}"
        return files_say, f"job {name}: {state}" if files_say == "lost" else ""

    def _never_started(self, claim: Claim, files_say: State) -> bool:
        """Whether its task was cancelled while it waited: of such a task nothing is left, in squeue and in accounting,
        while the array it was in is still known."""
        known = claim.submission.name in self._names and files_say == "planned"
        return known and not claim.submission.output(claim.task).exists()


def ask(trials: Iterable[Trial], progress: Progress) -> Jobs:
    """What Slurm says of the jobs of all trials."""
    with waiting("look for jobs", progress):
        return Jobs(trial.run for trial in trials)


def _claim_of(run: RunDirectory, read: dict[Path, Submission | None]) -> Claim | None:
    """The latest submission of a run, None when it never was submitted; `read` remembers submissions."""
    note = files.read_json(run.path / "job.json")
    if not isinstance(note, dict):
        return None
    path = Path(str(note.get("submission")))
    try:
        if path not in read:
            found = files.read_json(path)
            read[path] = Submission(path, float(found["time"]), found["job"]) if isinstance(found, dict) else None
        submission = read[path]
        return Claim(submission, int(note["task"])) if submission else None
    except (KeyError, TypeError, ValueError):  # a file that somebody changed must not hide all runs
        return None


def _tasks(job: str) -> list[int]:
    """The numbers of the array tasks in an id: `57_3`, or `57_[0,2-9%4]` for several that ended before they began."""
    words = re.sub(r"%.*", "", job.partition("_")[2].strip("[]")).split(",")
    ranges = [word.split("-") for word in words if re.fullmatch(r"\d+(-\d+)?", word)]
    return [number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)]
