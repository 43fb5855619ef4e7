"""The run directory: its state as a function of its files, the lock, the journal, atomic writes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gantool import files
from gantool.config.schema import EvalConfig, RunConfig, RuntimeConfig
from gantool.errors import GantoolError
from gantool.runs import Journal, RunBusy, RunDirectory, eval_digest

HOLD = "import sys,time; from pathlib import Path; from gantool.runs import RunDirectory\n"
HOLD += "with RunDirectory(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(runtime=RuntimeConfig(runs_dir=str(tmp_path)))


def test_create_writes_the_whole_config_and_reads_it_back(config: RunConfig) -> None:
    run = RunDirectory.create(config)
    assert run.path.name == f"gan-{config.fingerprint}-s0"
    assert run.config() == config
    assert RunDirectory.create(config) == run


def test_state_follows_the_files(config: RunConfig) -> None:
    run = RunDirectory.create(config)
    assert run.state() == "planned"
    run.write_status("running", 10, 100)
    assert run.state() == "lost"  # it says running, but nobody holds the lock
    with run.lock():
        pass
    run.mark("stopped")
    assert run.state() == "stopped"
    run.write_status("diverged", 10, 100)
    assert run.state() == "diverged"
    files.write_json(run.path / "result.json", {"eval": eval_digest(config)})
    assert run.state() == "done"
    assert run.state(config.model_copy(update={"eval": EvalConfig()})) == "unscored"
    run.mark("cancelled")
    assert run.state() == "cancelled"


def test_lock_is_held_by_one_living_process(config: RunConfig) -> None:
    run = RunDirectory.create(config)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert run.locked() and run.state() == "running"
    with pytest.raises(RunBusy, match="another process is training this run"), run.lock():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not run.locked()
    with run.lock():
        assert run.locked()
    assert not run.locked()


def test_journal_rewinds_and_forgives_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.rows() == []
    for step in (5, 10, 15, 20):
        journal.append({"step": step, "loss": step / 7})
    with journal.path.open("ab") as file:
        file.write(b'{"step": 25, "lo')
    assert [row["step"] for row in journal.rows()] == [5, 10, 15, 20]
    journal.rewind(12)
    assert journal.path.read_text().splitlines() == [json.dumps({"step": s, "loss": s / 7}) for s in (5, 10)]


def test_atomic_file_leaves_the_old_one_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "x"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_too_large_for_the_disk_is_one_clear_error(tmp_path: Path) -> None:
    program = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path; from gantool import files; from gantool.errors import GantoolError\n"
        f"path = Path({str(tmp_path / 'big')!r})\n"
        "try: files.write_text(path, 'x' * 5000)\n"
        "except GantoolError as error: print(error.message)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "big: cannot be written" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GantoolError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "x", "text")


def test_lock_waits_for_a_passing_look(config: RunConfig) -> None:
    run = RunDirectory.create(config)
    looker = subprocess.Popen(
        [sys.executable, "-c", HOLD.replace("time.sleep(60)", "time.sleep(0.3)"), str(run.path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert looker.stdout is not None and looker.stdout.readline() == "held\n"
    began = time.monotonic()
    with run.lock():
        assert time.monotonic() >= began
    looker.wait()


def test_a_job_that_starts_three_times_at_one_step_is_stalled(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(config)
    for step in (0, 0, 0, 0):  # by hand as often as one likes
        run.note_start(step)
    monkeypatch.setenv("SLURM_JOB_ID", "58")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "57")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    for step in (0, 0, 10, 10, 20):  # it gets on
        run.note_start(step)
    run.note_start(20)
    with pytest.raises(GantoolError, match="stalled: job 57_3 started 3 times at step 20"):
        run.note_start(20)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "90")  # submitted anew: it gets its chances again
    run.note_start(20)
    rows = Journal(run.path / "starts.jsonl").rows()
    assert [row["job"] for row in rows] == [""] * 4 + ["57_3"] * 7 + ["90_3"]
    assert not any("shared_by" in row for row in rows)
    monkeypatch.setenv("GANTOOL_SHARED_BY", "3")
    run.note_start(40)
    assert Journal(run.path / "starts.jsonl").rows()[-1]["shared_by"] == 3
    run.write_status("running", 20, 100)
    assert run.status()["job"] == "90_3"
