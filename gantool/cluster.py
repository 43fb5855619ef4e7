"""Slurm: what its commands are asked, and how their answers read. The only file that knows submitit.

submitit makes the batch script and calls sbatch; states and results never come from it. Only commands that every user
may run are used, each once for all jobs, since a controller answers a thousand small questions slowly.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gantool.config.site import SiteConfig
from gantool.config.sweep_file import SlurmConfig, minutes_of
from gantool.errors import GantoolError, UsageError

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 120
_ALIVE = {
    *("CONFIGURING", "COMPLETING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "RESV_DEL_HOLD"),
    *("RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED"),
}
_REQUEUED_SOON = {"NODE_FAIL", "PREEMPTED", "BOOT_FAIL"}
_REQUEUE_SECONDS = 180.0
"""How long after the end of a job Slurm may still queue it again: its default of 120 s until a job may start again
(AuthInfo cred_expire), and a minute."""


class SlurmSilent(GantoolError):
    """Slurm does not answer, or does not understand."""


class Refused(SlurmSilent):
    """sbatch said no: there is no job."""


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job, or of one task of an array."""

    id: str  # 57, or 57_3
    name: str
    state: str  # RUNNING, PENDING, ...
    reason: str = ""  # why it is pending
    nodes: str = ""
    ended: float | None = None  # seconds since the epoch, when it has ended

    @property
    def alive(self) -> bool:
        """Whether it is in the queue, or will be again by itself."""
        if self.state in _REQUEUED_SOON:
            return self.ended is not None and time.time() - self.ended < _REQUEUE_SECONDS
        return self.state in _ALIVE

    @property
    def pending(self) -> bool:
        """Whether it waits to be started, for the first time or again."""
        return self.alive and self.state in {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"} | _REQUEUED_SOON

    @property
    def held(self) -> bool:
        """Whether it waits for a person."""
        return self.pending and ("held" in self.reason.lower() or self.state == "REQUEUE_HOLD")


@dataclass(frozen=True)
class Batch:
    """One submission: `num` array tasks of the same shape."""

    name: str
    folder: Path  # for the script and the jobs' own words
    command: str  # a shell command; each task runs it on the first of its nodes
    slurm: SlurmConfig
    site: SiteConfig
    num: int
    on_gpu: bool
    environment: dict[str, str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    dependency: str | None = None


class Limits(NamedTuple):
    """What the cluster allows; None where it does not say."""

    max_array: int
    """Array tasks in one submission."""
    max_minutes: int | None
    """Longest time limit in the partition."""
    partition: str


def available() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def queue(names: Iterable[str]) -> dict[str, list[Job]]:
    """The jobs of these names that Slurm has not forgotten yet (it does some minutes after their end), array tasks one
    by one; SlurmSilent when it does not answer."""
    names = sorted(set(names))
    found: dict[str, list[Job]] = {name: [] for name in names}
    if not names:
        return found
    out = _run("squeue", "-h", "-r", "-t", "all", "-n", ",".join(names), "-o", "%j|%i|%T|%N|%e|%r")
    for line in out.splitlines():
        name, job, state, nodes, end, reason = (part.strip() for part in line.split("|", 5))
        ended = _seconds(end) if state not in _ALIVE else None
        found.setdefault(name, []).append(Job(job, name, state, reason, nodes, ended))
    return found


class Attempt(NamedTuple):
    """One attempt at a job, as accounting has kept it."""

    id: str
    state: str
    nodes: str
    name: str
    ended: float | None = None  # seconds since the epoch


def accounting(names: Iterable[str]) -> list[Attempt] | None:
    """All attempts at the jobs of these names, oldest first; None on a cluster without accounting."""
    names = sorted(set(names))
    if not names or not shutil.which("sacct"):
        return None
    columns = "JobID,JobName%200,State%40,NodeList%200,End"
    command = ("sacct", "-n", "-X", "-D", "-P", "-S", "now-90days", f"--name={','.join(names)}", f"--format={columns}")
    try:
        out = _run(*command)
    except SlurmSilent:
        return None
    rows = [line.split("|") for line in out.splitlines()]
    return [
        Attempt(row[0], row[2].split()[0], row[3], row[1], _seconds(row[4])) for row in rows if len(row) == 5 and row[2]
    ]


def limits(site: SiteConfig) -> Limits:
    """The limits of the site's partition (else the default one); SlurmSilent when Slurm does not answer."""
    config = _run("scontrol", "show", "config")
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    max_array = max(1, int(size[1]) - 1) if size else 1000
    partitions = [line.split("|") for line in _run("sinfo", "-a", "-h", "-o", "%P|%l").splitlines() if "|" in line]
    names = {name.rstrip("*"): limit for name, limit in partitions}
    default = next((name.rstrip("*") for name, _ in partitions if name.endswith("*")), "")
    wanted = site.partition or default
    for name in filter(None, wanted.split(",")):
        if name not in names:
            text = f"the cluster has no partition {name!r}; it has {', '.join(names) or 'none that you may use'}"
            raise UsageError(text, "mend 'partition' in site.yaml")
    minutes = [_minutes(names[name]) for name in wanted.split(",") if name in names]
    known = [number for number in minutes if number is not None]
    longest = max(known) if known and len(known) == len(minutes) else None
    return Limits(min(max_array, site.max_array or max_array), longest, wanted)


def script(batch: Batch) -> str:
    """The batch script that `submit` would hand to sbatch."""
    executor = _executor(batch)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))


def submit(batch: Batch) -> str:
    """Hand the batch to sbatch; the id of its array. Refused, with what sbatch said, or SlurmSilent, when the job may
    have arrived all the same."""
    import submitit

    executor = _executor(batch)
    try:
        with _replaced_environment():
            return str(executor.submit(os.getpid).job_id)  # the function is never called: the command ignores it
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        said = [line for line in str(error).splitlines() if "error" in line.lower()] or str(error).splitlines()
        hint = "look at the script with: gantool sweep ... --dry-run; account, partition and the like are in site.yaml"
        text = " ".join(said[-3:]).strip()
        if re.search(r"timed out|unable to contact|communication|connect|Zero Bytes", text, re.IGNORECASE):
            raise SlurmSilent(f"sbatch got no answer: {text}", "call gantool sweep again: it finds the jobs") from None
        raise Refused(f"sbatch refused the jobs: {text}", hint) from None


def check(batch: Batch) -> str:
    """What `sbatch --test-only` says of the batch: when it would start, or why never. Submits nothing."""
    try:
        done = subprocess.run(
            ["sbatch", "--test-only"], input=script(batch), capture_output=True, text=True, timeout=_PATIENCE_SECONDS,
            check=False, env=_plain_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"did not answer within {_PATIENCE_SECONDS} s"
    return (done.stderr or done.stdout).strip().removeprefix("sbatch: ")


def cancel(ids: Sequence[str], name: str | None = None) -> None:
    """End these jobs, or array tasks; only those of that `name`, if one is given."""
    only = [f"--name={name}"] if name else []
    for start in range(0, len(ids), 500):
        _run("scancel", *only, *ids[start : start + 500])


def release(ids: Sequence[str]) -> None:
    """Let held jobs go on."""
    for start in range(0, len(ids), 500):
        _run("scontrol", "release", ",".join(ids[start : start + 500]))


def _executor(batch: Batch) -> Any:
    import submitit

    slurm, site = batch.slurm, batch.site
    gpus = (1 if slurm.gpus is None else slurm.gpus) if batch.on_gpu or slurm.gpus else 0
    tasks = slurm.pack if slurm.pack > 1 else slurm.tasks or max(1, gpus)
    kind = f"{site.gpu_type}:" if site.gpu_type else ""
    gres = {"gres": f"gpu:{kind}{gpus}"} if site.gres else {"gpus-per-node": f"{kind}{gpus}"}
    extra: dict[str, Any] = {
        "requeue": True,
        "array": f"0-{batch.num - 1}" + (f"%{slurm.at_once}" if slurm.at_once else ""),
        "output": str(batch.folder / "%x-%a.txt"),
        **({"reservation": site.reservation} if site.reservation else {}),
        **(gres if gpus else {}),
        **site.sbatch,
    }
    extra = {key: value for key, value in extra.items() if value is not False}
    # submitit appends words of its own to the command, which ends at `--`.
    executor = submitit.SlurmExecutor(folder=batch.folder / "submitit", python=f"{batch.command} --")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        executor.update_parameters(
            job_name=batch.name,
            time=minutes_of(slurm.time) if slurm.time else None,
            nodes=slurm.nodes,
            ntasks_per_node=tasks,
            cpus_per_task=slurm.cpus or site.cpus,
            mem=slurm.mem or site.mem,
            account=site.account,
            partition=site.partition,
            qos=site.qos,
            constraint=site.constraint,
            exclude=",".join(filter(None, [site.exclude, *batch.exclude])) or None,
            dependency=batch.dependency,
            signal_delay_s=site.signal_seconds,
            wckey=None,
            use_srun=False,
            stderr_to_stdout=True,
            setup=[*site.setup, *(f"export {key}={value}" for key, value in batch.environment.items())],
            additional_parameters=extra,
        )
    return executor


def _run(*command: str) -> str:
    """The output of one of Slurm's commands; SlurmSilent when it fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False, env=_plain_environment()
        )
    except FileNotFoundError:
        raise SlurmSilent(f"Slurm's command {command[0]} is not on this machine", "go to a login node") from None
    except subprocess.TimeoutExpired:
        raise SlurmSilent(f"{command[0]} did not answer within {_PATIENCE_SECONDS} s", "try again later") from None
    _log.info("ran %s: exit code %d", shlex.join(command), done.returncode)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        words = said[0].removeprefix(f"{command[0]}: ")
        raise SlurmSilent(f"{command[0]}: {words}", "is the cluster up? try sinfo; --local runs the sweep here")
    return done.stdout


def _plain_environment() -> dict[str, str]:
    """Without what changes the form of answers (SQUEUE_FORMAT, SLURM_TIME_FORMAT), and without the variables of a job
    or of ranks in which gantool itself may run: the new jobs would inherit them."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_CLUSTERS")
    gone = re.compile(
        r"^(SLURM|SLURMD|SBATCH|SRUN|SQUEUE|SACCT|SINFO|SCONTROL|SUBMITIT)_|^(LOCAL_)?(RANK|WORLD_SIZE)$|^MASTER_(ADDR|PORT)$"
    )
    return {key: value for key, value in os.environ.items() if key in kept or not gone.match(key)}


@contextlib.contextmanager
def _replaced_environment() -> Iterator[None]:
    """`_plain_environment` for what starts processes by itself."""
    before = dict(os.environ)
    for key in before.keys() - _plain_environment().keys():
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(before)


def _seconds(text: str) -> float | None:
    """`2026-11-28T14:00:00` (local time) as seconds since the epoch; None for N/A."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _minutes(limit: str) -> int | None:
    """`1-02:30:00`, `02:30:00`, `30:00` as minutes; None for infinite."""
    found = re.match(r"^(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)$", limit.strip())
    if not found:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes
