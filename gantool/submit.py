"""The verb `sweep` where there is Slurm: submit what is missing, and return.

Submitting is reconciling: under a lock the states of all runs are read from their files and from one squeue, and what
is neither done nor alive is handed to sbatch in a few job arrays. So the same command resumes, retries and extends, and
never runs a run twice. Torch is loaded for pretrained extractors alone, whose weights are looked at first.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gantool
from gantool import cluster, files
from gantool.cluster import Batch, Limits, Refused, SlurmSilent
from gantool.config.evaluation import EvalConfig
from gantool.config.site import SiteConfig
from gantool.config.sweep_file import SlurmConfig, minutes_of
from gantool.errors import GantoolError, UsageError
from gantool.launch import program, quick_imports
from gantool.manifest import SweepPlan, Trial, load_trials, write_manifest
from gantool.metrics import weights
from gantool.progress import Progress, counted, told, waiting
from gantool.runs import State
from gantool.submissions import FOLDER, Jobs, ask, record, take_back, turn, write_submission

JOB_SCRIPT = Path(gantool.__file__).parent / "job.sh"
_TO_SUBMIT: frozenset[State] = frozenset({"planned", "stopped", "lost", "unscored"})
_FAILED: frozenset[State] = frozenset({"failed", "diverged"})
_ONE_FAILURE_SECONDS = 10.0
_REPORT_MINUTES = 30
_BEHIND_SECONDS = 30.0  # for which accounting is waited for; a job may stay alive there for ever after a crash


@dataclass(frozen=True)
class Submitted:
    """What a call has done."""

    states: dict[Path, State]
    """Of each run, before."""
    arrays: dict[str, int]
    """Id of each new job array -> number of its runs."""
    report: str | None
    """Id of the job that writes the results when all jobs have ended."""
    notes: tuple[str, ...]

    @property
    def num_runs(self) -> int:
        """Runs that were submitted."""
        return sum(self.arrays.values())


def submit(plan: SweepPlan, site: SiteConfig, progress: Progress, retry_failed: bool = False) -> Submitted:
    """Submit the runs of `plan` that are neither done nor alive; failed ones only with `retry_failed`.

    SlurmSilent when Slurm does not answer or refuses; what was submitted until then stays and is known.
    """
    limits = _checked(plan, site, progress)
    dropped = _dropped(plan, progress)
    write_manifest(plan)
    if site.container:
        _make_data_folders(plan)
    with contextlib.ExitStack() as stack:
        for folder in sorted({trial.run.path.parent.resolve() for trial in plan.trials}):
            stack.enter_context(turn(folder, progress))
        jobs = _settled_jobs(plan, progress)
        states, notes = jobs.states(plan.trials, progress), _mended(plan, jobs, progress)
        wanted = _TO_SUBMIT | _FAILED if retry_failed else _TO_SUBMIT
        notes += dropped
        todo = [trial for trial in plan.trials if states[trial.run.path] in wanted]
        excluded = _bad_nodes(jobs) if todo else ()
        if excluded:
            notes.append(f"left out, because runs of this sweep lost these nodes twice: {', '.join(excluded)}")
        arrays: dict[str, int] = {}
        for batch, tasks in _batches(plan, site, limits, todo, excluded):
            id_ = _hand_over(plan, batch, tasks, states, progress)
            arrays[id_] = sum(map(len, tasks))
            progress.say(f"submitted: array {id_} with {counted(arrays[id_], 'run')}")
        report = _submit_report(plan, site, limits, jobs, [*arrays], notes, progress)
    return Submitted(states, arrays, report, tuple(notes))


def preview(plan: SweepPlan, site: SiteConfig, progress: Progress, retry_failed: bool = False) -> tuple[str, str]:
    """The batch script of the first array that `submit` would hand over, and what sbatch says of it; submits nothing.
    Two empty texts when nothing is missing."""
    limits = _checked(plan, site, progress)
    states = ask(plan.trials, progress).states(plan.trials, progress)
    wanted = _TO_SUBMIT | _FAILED if retry_failed else _TO_SUBMIT
    todo = [trial for trial in plan.trials if states[trial.run.path] in wanted]
    for batch, _ in _batches(plan, site, limits, todo, ()):
        named = replace(batch, name=f"gantool-{plan.name}", command=_command(Path("RUNS.tsv"), batch.slurm))
        with waiting("ask sbatch", progress):
            return cluster.script(named), cluster.check(named)
    return "", ""


def _checked(plan: SweepPlan, site: SiteConfig, progress: Progress) -> Limits:
    with waiting("ask Slurm for its limits", progress):
        limits = cluster.limits(site)
    if plan.slurm.time and limits.max_minutes is not None and minutes_of(plan.slurm.time) > limits.max_minutes:
        text = f"slurm.time: found {plan.slurm.time}, but the partition {limits.partition} allows {limits.max_minutes}m"
        hint = "set slurm.time to that or less: a run that needs longer saves, and goes on in the next job"
        raise UsageError(f"{plan.file}: {text}", hint)
    for settings in {trial.config.eval for trial in plan.trials if trial.config.eval}:
        if settings.extractor == "classifier":  # that one is trained when it is first needed
            continue
        if site.container:
            _check_told_weights(settings, site)
        else:
            _check_weights(settings, progress)
    if site.container:
        _container(plan, site, site.container)  # a path that cannot be bound
    return limits


def _check_weights(settings: EvalConfig, progress: Progress) -> None:
    """Open the extractor as a job will: what is missing is said before hours of training."""
    with quick_imports(progress):
        import torch

        from gantool.metrics.extractors import Setting, open_extractor

    given = Path(settings.weights) if settings.weights else None
    open_extractor(settings.extractor, Setting(None, Path(), torch.device("cpu"), 3, given, False, progress))


def _settled_jobs(plan: SweepPlan, progress: Progress) -> Jobs:
    """What Slurm says, once no earlier call can still have an sbatch on its way; ids that it knows are written down."""
    told, began = False, time.time()
    open_ = [trial.run for trial in plan.trials if trial.run.result() is None]
    while True:
        jobs = ask(plan.trials, progress)
        if jobs.silence:
            raise jobs.silence
        if jobs.arriving():
            words = "an earlier call was interrupted while it submitted: waiting whether its jobs arrive"
        elif time.time() - began < _BEHIND_SECONDS and jobs.accounting_is_behind(open_):
            words = "Slurm's accounting does not know yet how a job ended: waiting for it"
        else:
            break
        if not told:
            progress.say(words)
            told = True
        time.sleep(2)
    for submission in jobs.submissions():
        found = jobs.id_of(submission)
        if found and submission.job is None:
            record(submission, found)
            progress.say(f"adopted: array {found}, whose submission was interrupted")
    return jobs


def _mended(plan: SweepPlan, jobs: Jobs, progress: Progress) -> list[str]:
    """What `scancel` ended stays cancelled, and jobs that Slurm holds after a failed launch are released."""
    notes, held, by_person = list[str](), list[str](), list[str]()
    for trial in told(plan.trials, "look after jobs", progress):
        files_say = trial.state()
        state, words = jobs.state(trial.run, files_say)
        job = jobs.of(trial.run)
        if state == "cancelled" and files_say != "cancelled":
            trial.run.mark("cancelled", "scancel")
        elif state == "failed" and files_say in ("planned", "lost"):
            said = trial.run.status()  # Slurm forgets; the run should not
            trial.run.write_status("failed", said.get("step", 0), said.get("total", 0), message=words)
        elif state == "held" and job:
            (held if re.search("launch|requeue", job.reason, re.IGNORECASE) else by_person).append(job.id)
    if held:
        cluster.release(sorted(set(held)))
        notes.append(f"released, held by Slurm after a failed launch: {', '.join(sorted(set(held)))}")
    if by_person:
        ids = ",".join(sorted(set(by_person)))
        notes.append(f"held by a person, and left so: {ids}; to let them go on: scontrol release {ids}")
    return notes


def _dropped(plan: SweepPlan, progress: Progress) -> list[str]:
    """Words on runs that the sweep file no longer asks for, and that still have jobs."""
    kept = {trial.run.path.resolve() for trial in plan.trials}
    try:
        before = [trial for trial in load_trials(plan.folder).trials if trial.run.path.resolve() not in kept]
    except GantoolError:  # the first time
        return []
    jobs = ask(before, progress)
    alive = [trial.run.path for trial in before if (job := jobs.of(trial.run)) and job.alive]
    return [f"no longer in the sweep file, but with a job: {path}; to end it: gantool cancel {path}" for path in alive]


def _bad_nodes(jobs: Jobs) -> tuple[str, ...]:
    """Nodes that failed at two times under jobs of these runs; what several jobs lost at one time is one failure."""
    failures: dict[str, list[float]] = {}
    for one in sorted(jobs.attempts(), key=lambda one: one.ended or 0.0):
        if one.state == "NODE_FAIL" and one.ended and re.fullmatch(r"[\w.-]+", one.nodes):
            times = failures.setdefault(one.nodes, [])
            if not times or one.ended - times[-1] > _ONE_FAILURE_SECONDS:
                times.append(one.ended)
    return tuple(sorted(node for node, times in failures.items() if len(times) > 1))


def _batches(
    plan: SweepPlan, site: SiteConfig, limits: Limits, todo: Sequence[Trial], excluded: tuple[str, ...]
) -> Iterator[tuple[Batch, list[list[Trial]]]]:
    """The arrays to submit, and the runs of each of their tasks."""
    for on_gpu in (True, False):
        trials = [trial for trial in todo if (trial.config.runtime.device in ("auto", "cuda")) is on_gpu]
        tasks = [trials[at : at + plan.slurm.pack] for at in range(0, len(trials), plan.slurm.pack)]
        chunks = [tasks[at : at + limits.max_array] for at in range(0, len(tasks), limits.max_array)]
        slurm = plan.slurm
        if slurm.at_once and len(chunks) > 1:
            slurm = slurm.model_copy(update={"at_once": max(1, slurm.at_once // len(chunks))})
        for chunk in chunks:
            environment = _environment(plan, site)
            batch = Batch("", _jobs_folder(plan), "", slurm, site, len(chunk), on_gpu, environment, excluded)
            yield batch, chunk


def _hand_over(
    plan: SweepPlan, batch: Batch, tasks: list[list[Trial]], states: dict[Path, State], progress: Progress
) -> str:
    before: dict[Path, str] = {}  # what is written over, for the case that sbatch refuses
    trials = [trial for task in tasks for trial in task]
    for trial in told(trials, "configs", progress):
        for path in (trial.run.path / name for name in ("status.json", "job.json")):
            if path.exists():
                before[path] = path.read_text(encoding="utf-8")
        trial.run.write_config(trial.config, durable=False)
        if states[trial.run.path] in _FAILED:
            said = trial.run.status()
            trial.run.write_status("planned", said.get("step", 0), said.get("total", 0), message="to be tried again")
    runs = [[trial.run for trial in task] for task in tasks]
    submission = write_submission(plan.folder, plan.name, runs)
    named = replace(batch, name=submission.name, command=_command(submission.path.with_suffix(".tsv"), batch.slurm))
    try:
        with waiting("sbatch", progress):
            id_ = cluster.submit(named)
    except Refused:
        take_back(submission, runs)
        for path, text in before.items():
            files.write_text(path, text)
        raise
    record(submission, id_)
    return id_


def _submit_report(
    plan: SweepPlan, site: SiteConfig, limits: Limits, jobs: Jobs, new: list[str], notes: list[str], progress: Progress
) -> str | None:
    """A job that writes the results when all jobs of the sweep have ended, in place of an earlier one that waits."""
    note, name = _jobs_folder(plan) / "report.json", f"gantool-{plan.name}-report"
    earlier = files.read_json(note)
    ids = sorted({*new, *jobs.alive_arrays()})
    if not ids or (isinstance(earlier, dict) and earlier.get("after") == ids):
        return None
    if isinstance(earlier, dict):
        with contextlib.suppress(GantoolError):  # it has run, or is forgotten
            cluster.cancel([str(earlier.get("job"))], name)
    command = f"exec bash {shlex.quote(str(JOB_SCRIPT))} --report {shlex.quote(str(plan.folder.resolve()))}"
    minutes = min(_REPORT_MINUTES, limits.max_minutes or _REPORT_MINUTES)
    slurm = SlurmConfig(time=f"{minutes}m", gpus=0, cpus=1)
    # By the gantool that submits, since in an image there is no Slurm to ask for causes.
    plain = site.model_copy(update={"sbatch": {}, "mem": None, "constraint": None, "container": None})
    batch = Batch(
        name, _jobs_folder(plan), command, slurm, plain, 1, False, _environment(plan, plain),
        dependency="afterany:" + ":".join(ids),
    )  # fmt: skip
    try:
        with waiting("sbatch", progress):
            id_ = cluster.submit(batch)
    except SlurmSilent as error:
        notes.append(f"no job will write the results ({error.message}): gantool report {plan.folder} does, at any time")
        return None
    files.write_json(note, {"job": id_, "after": ids})
    return id_


def _jobs_folder(plan: SweepPlan) -> Path:
    return (plan.folder / FOLDER).resolve()


def _command(runs: Path, slurm: SlurmConfig) -> str:
    packed = "--packed " if slurm.pack > 1 else ""
    return f"exec bash {shlex.quote(str(JOB_SCRIPT))} {packed}{shlex.quote(f'@{runs}')}"


def _environment(plan: SweepPlan, site: SiteConfig) -> dict[str, str]:
    """What job.sh is told, quoted for the shell."""
    values = {key: str(value) for key, value in site.env.items()}
    values["GANTOOL"] = "gantool" if site.container else shlex.join(program())
    values |= {  # empty ones too: what the shell that submits has set for templates must not get through
        "GANTOOL_CONTAINER": _container(plan, site, site.container) if site.container else "",
        "GANTOOL_SRUN": shlex.join(site.srun),
        "GANTOOL_INTERFACE": site.interface or "",
        "GANTOOL_HOST_SUFFIX": site.host_suffix,
        "GANTOOL_SCRATCH": site.scratch or "",
        "GANTOOL_STAGE": "1" if site.stage_data else "",
    }
    return {key: shlex.quote(value) for key, value in values.items()}


def _container(plan: SweepPlan, site: SiteConfig, image: str) -> str:
    """The words before the command that put it into the image, with the folders of the sweep bound to their paths.

    Where job.sh finds no apptainer it takes singularity, since both may come with a module only.
    """
    parts = [part for t in plan.trials for part in (t.config.generator, t.config.discriminator, t.config.loss)]
    read = {Path(file).parent for part in parts if (file := getattr(part, "file", None))} | _told_weights(plan, site)
    folders = {plan.folder, *(trial.run.path.parent for trial in plan.trials), *_data_folders(plan)}
    binds: dict[str, str] = {}
    for path in {*folders, *(one for one in read if one.exists())}:
        real = str(path.resolve())
        named = os.path.abspath(path)  # noqa: PTH100 (configs keep the name of a link, which the image does not have)
        for place in (real, named):
            if re.search("[,:]", real + place):
                text = f"{place}: a path with a comma or a colon cannot be bound into the container"
                raise UsageError(text, "rename the folder, or name another one")
            binds[place] = real
    words = [
        word
        for place, real in sorted(binds.items())
        for word in ("--bind", place if place == real else f"{real}:{place}")
    ]
    nv = ["--nv"] if any(trial.config.runtime.device in ("auto", "cuda") for trial in plan.trials) else []
    return shlex.join(["apptainer", "exec", *nv, *words, *site.container_options, image])


def _data_folders(plan: SweepPlan) -> set[Path]:
    return {Path(trial.config.runtime.data_dir) for trial in plan.trials}


def _make_data_folders(plan: SweepPlan) -> None:
    """What is not there cannot be bound."""
    for folder in _data_folders(plan):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"runtime.data_dir: {folder} cannot be made: {error.strerror}"
            raise UsageError(text, "name another folder, and pack the data there: gantool prepare") from None


def _told_weights(plan: SweepPlan, site: SiteConfig) -> set[Path]:
    """Where the configs and the environment of the jobs say that weights are."""
    environment = os.environ | site.env
    told = {environment.get("GANTOOL_WEIGHTS"), environment.get("TORCH_HOME")}
    told |= {trial.config.eval.weights for trial in plan.trials if trial.config.eval}
    return {weights.expanded(Path(place)) for place in told if place}


def _check_told_weights(settings: EvalConfig, site: SiteConfig) -> None:
    """In a container the extractor cannot be opened from here, but a wrong path is seen."""
    name, place = "eval.weights", settings.weights
    if not place:
        name, place = "$GANTOOL_WEIGHTS", (os.environ | site.env).get("GANTOOL_WEIGHTS")
    if not place or settings.extractor == "efficientnet-lite0":
        return
    path = weights.expanded(Path(place))
    options = [word.removeprefix("--bind=") for word in site.container_options]
    bound = [bind.split(":")[1] for option in options for bind in option.split(",") if ":" in bind]
    if not path.exists() and not any(
        path.is_relative_to(inside) for inside in (weights.IMAGE_FOLDER, *map(Path, bound))
    ):
        hint = f"mend the path; in the image itself weights are looked for in {weights.IMAGE_FOLDER}"
        raise UsageError(f"{name}: there is no file or folder {place}, which the jobs are to read weights from", hint)
