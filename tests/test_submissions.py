"""What a run is, as a function of its files, of squeue and of accounting; and submissions that were interrupted."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from gantool import files
from gantool.config.schema import RunConfig, RuntimeConfig
from gantool.errors import GantoolError
from gantool.progress import Silent
from gantool.runs import RunDirectory, State, eval_digest
from gantool.submissions import Jobs, Submission, record, take_back, turn, write_submission


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(RunConfig(runtime=RuntimeConfig(runs_dir=str(tmp_path / "runs"))))


def submitted(run: RunDirectory, folder: Path, job: str | None = "10", age: float = 100.0) -> Submission:
    """`run` as the only task of a submission of `age` seconds ago."""
    made = write_submission(folder, "x", [[run]])
    aged = Submission(made.path, time.time() - age, job)
    files.write_json(made.path, {"time": aged.time, "job": job})
    return aged


@contextlib.contextmanager
def files_that_say(run: RunDirectory, state: State, job: str = "10_0") -> Iterator[None]:
    """Give the directory of `run` the files of a state."""
    if state in ("running", "lost", "failed", "diverged", "stopped"):
        run.write_status("running" if state == "lost" else state, 40, 100, 1.0, "words")
        files.write_json(run.path / "status.json", {**run.status(), "job": job})
    if state in ("done", "unscored"):
        config = run.config()
        asked = eval_digest(config) if state == "done" else "another"
        files.write_json(run.path / "result.json", {"step": 100, "scores": [], "eval": asked})
    if state in ("stopped", "cancelled"):
        run.mark(state)
    with run.lock() if state == "running" else contextlib.nullcontext():
        yield


def ago(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - seconds))


RUNNING, PENDING, HELD = ("RUNNING", "None"), ("PENDING", "Priority"), ("PENDING", "launch failed requeued held")
COMPLETED, FAILED, CANCELLED, TIMEOUT = ("COMPLETED", ""), ("FAILED", ""), ("CANCELLED", ""), ("TIMEOUT", "")
NODE_FAIL, PREEMPTED, COMPLETING = ("NODE_FAIL", ""), ("PREEMPTED", ""), ("COMPLETING", "")
TABLE: list[tuple[State, tuple[str, str] | None, str | None, State, str]] = [
    # the files say; squeue says; accounting says; so the state is, with words
    ("planned", None, None, "planned", ""),
    ("planned", PENDING, None, "queued", "Priority"),
    ("planned", HELD, None, "held", "launch failed"),
    ("planned", RUNNING, None, "running", "starting or ending"),
    ("planned", COMPLETED, None, "planned", ""),
    ("planned", FAILED, None, "failed", "job 10_0 failed; its words are in "),
    ("planned", None, "FAILED", "failed", "job 10_0 failed; its words are in "),
    ("planned", None, "OUT_OF_MEMORY", "failed", "out of memory, says Slurm"),
    ("planned", CANCELLED, None, "cancelled", "scancel"),
    ("planned", None, "CANCELLED by 0", "cancelled", "scancel"),
    ("planned", None, "TIMEOUT", "planned", ""),
    ("running", RUNNING, None, "running", ""),
    ("running", PENDING, None, "running", ""),  # somebody trains it by hand
    ("running", None, "COMPLETED", "running", ""),
    ("stopped", PENDING, None, "requeued", "Priority"),
    ("stopped", HELD, None, "held", "launch failed"),
    ("stopped", RUNNING, None, "running", ""),
    ("stopped", PREEMPTED, None, "requeued", ""),  # Slurm takes a minute to queue it again
    ("stopped", None, None, "stopped", ""),
    ("stopped", None, "PREEMPTED", "stopped", ""),
    ("stopped", None, "FAILED", "stopped", ""),  # it has saved and wants to go on
    ("stopped", CANCELLED, None, "cancelled", "scancel"),
    ("lost", RUNNING, None, "running", ""),  # on a filesystem whose locks do not reach here
    ("lost", COMPLETING, None, "running", ""),
    ("lost", PENDING, None, "requeued", "Priority"),
    ("lost", NODE_FAIL, None, "requeued", ""),
    ("lost", None, "NODE_FAIL", "lost", "job 10_0: NODE_FAIL"),
    ("lost", TIMEOUT, None, "lost", "job 10_0: TIMEOUT"),
    ("lost", None, "OUT_OF_MEMORY", "failed", "out of memory, says Slurm"),
    ("lost", CANCELLED, None, "cancelled", "scancel"),
    ("lost", None, None, "lost", ""),
    ("unscored", PENDING, None, "requeued", "Priority"),
    ("unscored", None, "COMPLETED", "unscored", ""),
    ("done", RUNNING, None, "done", ""),
    ("done", CANCELLED, "CANCELLED", "done", ""),
    ("cancelled", RUNNING, None, "cancelled", ""),
    ("cancelled", PENDING, None, "cancelled", ""),
    ("failed", RUNNING, None, "failed", ""),
    ("failed", PENDING, None, "failed", ""),
    ("failed", COMPLETED, None, "failed", ""),
    ("failed", None, "CANCELLED", "failed", ""),
    ("diverged", None, "FAILED", "diverged", ""),
]


@pytest.mark.parametrize(("files_say", "squeue", "sacct", "state", "words"), TABLE)
def test_state(
    files_say: State,
    squeue: tuple[str, str] | None,
    sacct: str | None,
    state: State,
    words: str,
    run: RunDirectory,
    slurm: FakeSlurm,
    tmp_path: Path,
) -> None:
    name = submitted(run, tmp_path).name
    with files_that_say(run, files_say):
        if squeue:
            end = ago(30) if squeue[0] not in ("RUNNING", "PENDING") else "N/A"
            job = {"name": name, "state": squeue[0], "reason": squeue[1], "nodes": "node1", "end": end}
            slurm.configure(jobs={"10_0": job})
        if sacct:
            slurm.configure(attempts=[["10_0", name, "NODE_FAIL", "node3"], ["10_0", name, sacct, "node1"]])
        assert run.state() == files_say
        found, said = Jobs([run]).state(run, run.state())
        assert found == state and said.startswith(words) and (bool(said) == bool(words)), (found, said)
    calls = slurm.num_calls()
    assert calls["squeue"] == 1 and calls.get("sacct", 0) <= 1


def test_preempted_long_ago_comes_back_no_more(run: RunDirectory, slurm: FakeSlurm, tmp_path: Path) -> None:
    name = submitted(run, tmp_path).name
    job = {"name": name, "state": "PREEMPTED", "reason": "None", "nodes": "node1", "end": ago(600)}
    slurm.configure(jobs={"10_0": job})
    with files_that_say(run, "stopped"):
        assert Jobs([run]).state(run, "stopped") == ("stopped", "")


@pytest.mark.parametrize("files_say", ["planned", "stopped", "lost", "done", "failed"])
def test_files_alone_where_slurm_is_silent(
    files_say: State, run: RunDirectory, slurm: FakeSlurm, tmp_path: Path
) -> None:
    submitted(run, tmp_path)
    slurm.answer("squeue", error="Unable to contact slurm controller")
    with files_that_say(run, files_say):
        jobs = Jobs([run])
        assert jobs.silence is not None and "Unable to contact" in jobs.silence.message
        assert jobs.state(run, files_say) == (files_say, "")
    assert "sacct" not in slurm.num_calls()


def test_a_run_that_was_never_submitted_costs_no_call(run: RunDirectory, slurm: FakeSlurm) -> None:
    assert Jobs([run]).state(run, "planned") == ("planned", "") and not slurm.calls()


def test_a_run_trained_elsewhere_since_is_not_what_its_old_job_was(
    run: RunDirectory, slurm: FakeSlurm, tmp_path: Path
) -> None:
    name = submitted(run, tmp_path).name
    slurm.configure(attempts=[["10_0", name, "CANCELLED", "node1"]])
    with files_that_say(run, "stopped", job=""):  # by hand, on this machine
        assert Jobs([run]).state(run, "stopped") == ("stopped", "")


def test_the_latest_submission_counts(run: RunDirectory, slurm: FakeSlurm, tmp_path: Path) -> None:
    first, second = submitted(run, tmp_path, "10"), submitted(run, tmp_path, "11")
    row = {"state": "CANCELLED", "reason": "None", "nodes": "", "end": ago(5)}
    alive = {"name": second.name, "state": "PENDING", "reason": "Resources", "nodes": "", "end": "N/A"}
    slurm.configure(jobs={"10_0": {**row, "name": first.name}, "11_0": alive})
    assert Jobs([run]).state(run, "planned") == ("queued", "Resources")


def test_tasks_of_an_array_are_told_apart(tmp_path: Path, slurm: FakeSlurm) -> None:
    base = RunConfig(runtime=RuntimeConfig(runs_dir=str(tmp_path / "runs")))
    runs = [RunDirectory.create(base.model_copy(update={"seed": seed})) for seed in range(4)]
    name = write_submission(tmp_path, "x", [runs[:2], runs[2:]]).name  # two tasks of two runs each
    slurm.configure(jobs={f"10_{task}": {"name": name, "state": state, "reason": "Priority", "nodes": "", "end": "N/A"}
                          for task, state in enumerate(("RUNNING", "PENDING"))})  # fmt: skip
    jobs = Jobs(runs)
    assert [jobs.state(run, "planned")[0] for run in runs] == ["running", "running", "queued", "queued"]
    lines = (tmp_path / "jobs" / f"{name}.tsv").read_text().splitlines()
    assert [line.split("\t") for line in lines] == [[str(run.path) for run in pair] for pair in (runs[:2], runs[2:])]


def runs_of_an_array(folder: Path, count: int) -> tuple[list[RunDirectory], str]:
    base = RunConfig(runtime=RuntimeConfig(runs_dir=str(folder / "runs")))
    runs = [RunDirectory.create(base.model_copy(update={"seed": seed})) for seed in range(count)]
    return runs, write_submission(folder, "x", [[run] for run in runs]).name


def test_an_array_that_was_cancelled_before_it_began_is_one_line(tmp_path: Path, slurm: FakeSlurm) -> None:
    runs, name = runs_of_an_array(tmp_path, 3)
    line = {"name": name, "state": "CANCELLED", "reason": "Priority", "nodes": "", "end": ago(10)}
    slurm.configure(jobs={"10": line})
    jobs = Jobs(runs)
    assert {jobs.state(run, "planned") for run in runs} == {("cancelled", "scancel")}
    assert jobs.id_of(jobs.submissions()[0]) == "10" and jobs.alive_arrays() == set()


def test_accounting_has_such_tasks_as_ranges(tmp_path: Path, slurm: FakeSlurm) -> None:
    runs, name = runs_of_an_array(tmp_path, 8)
    rows = [["10_2", name, "COMPLETED", "node1"], ["10_[0-1,4,6-7%2]", name, "CANCELLED by 0", "None assigned"]]
    slurm.configure(attempts=rows)
    for task in (3, 5):
        (tmp_path / "jobs" / f"{name}-{task}.txt").touch()  # these had begun
    jobs = Jobs(runs)
    cancelled = [number for number, run in enumerate(runs) if jobs.state(run, "planned")[0] == "cancelled"]
    assert cancelled == [0, 1, 4, 6, 7]
    slurm.configure(attempts=[["10_[0-7%2]", name, "PENDING", ""]])  # what is pending is known to squeue
    assert {Jobs(runs).state(run, "planned") for run in runs} == {("planned", "")}


def test_of_a_waiting_task_that_was_cancelled_nothing_is_left(tmp_path: Path, slurm: FakeSlurm) -> None:
    runs, name = runs_of_an_array(tmp_path, 4)
    waiting = {"name": name, "state": "PENDING", "reason": "Priority", "nodes": "", "end": "N/A"}
    slurm.configure(jobs={"10_0": waiting, "10_3": waiting})
    (tmp_path / "jobs" / f"{name}-2.txt").touch()  # this one had begun
    jobs = Jobs(runs)
    states = [jobs.state(run, "planned")[0] for run in runs]
    assert states == ["queued", "cancelled", "planned", "queued"]
    slurm.forget()
    assert Jobs(runs).state(runs[1], "planned") == ("planned", "")
    slurm.configure(attempts=[["10_0", name, "COMPLETED", "node1"]])  # accounting knows those that began
    assert Jobs(runs).state(runs[1], "planned") == ("cancelled", "scancel")


def test_an_interrupted_submission_is_known_by_its_name(run: RunDirectory, slurm: FakeSlurm, tmp_path: Path) -> None:
    made = submitted(run, tmp_path, job=None, age=3600)
    job = {"name": made.name, "state": "PENDING", "reason": "Priority", "nodes": "", "end": "N/A"}
    slurm.configure(jobs={"77_0": job})
    jobs = Jobs([run])
    assert jobs.state(run, "planned")[0] == "queued" and jobs.id_of(made) == "77" and jobs.arriving() == []
    record(made, "77")
    assert Jobs([run]).submissions()[0].job == "77"


@pytest.mark.parametrize(("age", "arriving"), [(5.0, True), (120.0, True), (200.0, False)])
def test_only_a_young_submission_may_still_arrive(
    age: float, arriving: bool, run: RunDirectory, slurm: FakeSlurm, tmp_path: Path
) -> None:
    made = submitted(run, tmp_path, job=None, age=age)
    assert bool(Jobs([run]).arriving()) is arriving and Jobs([run]).id_of(made) is None


def test_a_refused_submission_leaves_no_trace(run: RunDirectory, slurm: FakeSlurm, tmp_path: Path) -> None:
    made = write_submission(tmp_path, "x", [[run]])
    assert (run.path / "job.json").exists()
    take_back(made, [[run]])
    assert not (run.path / "job.json").exists() and list((tmp_path / "jobs").iterdir()) == []
    assert Jobs([run]).claim(run) is None


def test_damaged_notes_are_no_claim(run: RunDirectory, slurm: FakeSlurm, tmp_path: Path) -> None:
    made = submitted(run, tmp_path)
    made.path.write_text("{")
    assert Jobs([run]).state(run, "planned") == ("planned", "")
    (run.path / "job.json").write_text("[]")
    assert Jobs([run]).claim(run) is None


def test_paths_that_would_break_the_list(tmp_path: Path) -> None:
    (tmp_path / "a\tb").mkdir()
    with pytest.raises(GantoolError, match="a tab, a line break"):
        write_submission(tmp_path, "x", [[RunDirectory(tmp_path / "a\tb")]])
    with pytest.raises(GantoolError, match="Slurm cannot take"):  # it makes a job's number of %j
        write_submission(tmp_path / "100%j", "x", [[RunDirectory(tmp_path / "a")]])
    assert not (tmp_path / "jobs").exists()


def test_one_process_at_a_time_submits(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from gantool.submissions import turn\n"
        "from gantool.progress import Silent\n"
        "with turn(Path(sys.argv[1]), Silent()):\n    print('held', flush=True); sys.stdin.readline()"
    )
    said: list[str] = []

    class Words(Silent):
        def say(self, text: str) -> None:
            said.append(text)
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with turn(tmp_path, Words()):
        assert process.wait(30) == 0
    assert said == [f"waiting for another gantool that is submitting runs of {tmp_path}"]
