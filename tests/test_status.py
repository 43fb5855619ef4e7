"""What `status` says of every state a run directory can be in, and that it is quick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gantool import files
from gantool.config.schema import RunConfig
from gantool.errors import UsageError
from gantool.manifest import SweepPlan, write_manifest
from gantool.progress import Silent
from gantool.runs import RunDirectory, eval_digest
from gantool.status import TrialStatus, counts, trial_states
from gantool.sweep import plan

GRID = """
base: {steps: 100, batch: 32, n_dis: 2, eval: {num: 10}}
vary: {augment: [none, basic, advanced]}
seeds: 3
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepPlan:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(GRID)
    found = plan(Path("grid.yaml"))
    write_manifest(found)
    for trial in found.trials[:-1]:  # of the last one there is nothing on disk
        RunDirectory.create(trial.config)
    return found


def finish(run: RunDirectory, config: RunConfig, fid: float = 12.5) -> None:
    score = {"values": {"fid": fid}, "protocol": {}, "data_title": "x"}
    run.write_status("done", 100, 100)
    result = {"step": 100, "seconds": 1.0, "scores": [score], "eval": eval_digest(config)}
    files.write_json(run.path / "result.json", result)


def age(run: RunDirectory, seconds: float) -> None:
    """Make the status that much older."""
    files.write_json(run.path / "status.json", {**run.status(), "time": time.time() - seconds})


def states(made: SweepPlan) -> list[TrialStatus]:
    return trial_states(made.folder, Silent())[0]


def test_every_state_is_told_apart(made: SweepPlan) -> None:
    runs = [trial.run for trial in made.trials]
    config = made.trials[1].config
    runs[0].write_status("running", 40, 100, 500.0)
    finish(runs[1], config)
    finish(runs[2], config.model_copy(update={"eval": None}))
    runs[3].write_status("failed", 7, 100, message="out of memory")
    runs[4].write_status("diverged", 9, 100, message="loss_d became NaN")
    runs[5].write_status("stopped", 50, 100, 300.0, "stopped by SIGTERM")
    runs[5].mark("stopped")
    runs[6].write_status("running", 60, 100, 300.0)
    (runs[6].path / "output.txt").write_text("# started x\nslurmstepd: oom-kill\n")
    age(runs[6], 3600)
    runs[7].mark("cancelled")
    with runs[0].lock():
        age(runs[0], 30)
        found = states(made)
    names = ["running", "done", "unscored", "failed", "diverged", "stopped", "lost", "cancelled", "planned"]
    assert [status.state for status in found] == names
    assert counts(found) == dict.fromkeys(names, 1)
    assert [status.labels["augment"] for status in found][::3] == ["none", "basic", "advanced"]
    assert [status.seed for status in found] == [0, 1, 2] * 3 and found[4].title == "basic seed 1"

    running = found[0]
    assert (running.step, running.total, running.images_per_second) == (40, 100, 500.0)
    assert running.left_seconds == pytest.approx(60 * 32 * 2 / 500.0)  # steps left x images a step / images a second
    assert running.silent_seconds is not None and 30 <= running.silent_seconds < 60
    assert found[1].scores == {"fid": 12.5} and found[1].left_seconds is None and found[2].scores == {}
    assert [status.message for status in found[3:7]] == [
        "out of memory", "loss_d became NaN", "stopped by SIGTERM", "slurmstepd: oom-kill"
    ]  # fmt: skip
    assert found[6].silent_seconds is not None and found[6].silent_seconds >= 3600
    assert found[5].silent_seconds is None and found[5].images_per_second is None
    assert (found[8].step, found[8].total, found[8].message) == (None, None, "")


def test_a_run_that_starts_again_does_not_show_its_old_words(made: SweepPlan) -> None:
    run = made.trials[0].run
    run.write_status("failed", 7, 100, 300.0, "out of memory")
    with run.lock():
        status = states(made)[0]
    assert (status.state, status.message, status.left_seconds) == ("running", "starting", None)


def test_dead_process_lets_go_of_its_run(made: SweepPlan) -> None:
    run = made.trials[0].run
    code = (
        "import sys, time; from pathlib import Path; from gantool.runs import RunDirectory\n"
        "run = RunDirectory(Path(sys.argv[1]))\n"
        "with run.lock():\n    run.write_status('running', 1, 100); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    assert states(made)[0].state == "running"
    process.kill()
    process.wait()
    assert (states(made)[0].state, states(made)[0].message) == ("lost", "its process is gone without a word")


def test_single_run_and_folder_of_runs(made: SweepPlan) -> None:
    trial = made.trials[1]
    finish(trial.run, trial.config)
    (status,) = trial_states(trial.run.path, Silent())[0]
    assert (status.state, status.seed, status.labels) == ("done", 1, {}) and status.scores == {"fid": 12.5}
    found = trial_states(Path("runs"), Silent())[0]
    assert len(found) == 8 and counts(found) == {"planned": 7, "done": 1}
    assert {status.run for status in found} == {trial.run.path for trial in made.trials[:-1]}


def test_a_damaged_run_does_not_hide_the_others(made: SweepPlan) -> None:
    trial = made.trials[0]
    finish(trial.run, trial.config)
    (trial.run.path / "config.yaml").write_text("steps: [")
    (made.trials[1].run.path / "status.json").write_text('{"state": "runn')
    found = {status.run: status for status in trial_states(Path("runs"), Silent())[0]}
    assert len(found) == 8 and "config.yaml" in found[trial.run.path].message
    assert found[made.trials[1].run.path].state == "planned"


def test_other_folders_are_told_with_a_way_out(made: SweepPlan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        trial_states(Path("nothing"), Silent())[0]
    with pytest.raises(UsageError, match="no run in this folder") as caught:
        trial_states(Path("sweeps"), Silent())[0]
    assert "sweeps here: sweeps/grid" in (caught.value.hint or "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no run in this folder"):
        trial_states(tmp_path / "empty", Silent())[0]


def test_a_thousand_trials_read_no_config_file_and_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(GRID.replace("seeds: 3", "seeds: 334"))
    found = plan(Path("grid.yaml"))
    write_manifest(found)
    for trial in found.trials:
        trial.run.path.mkdir(parents=True)
        (trial.run.path / "config.yaml").write_text("not: [even yaml")
        text = {"state": "running", "step": 3, "total": 100, "images_per_second": 1.0, "time": time.time()}
        (trial.run.path / "status.json").write_text(json.dumps(text))
        (trial.run.path / "lock").touch()
        result = {"step": 100, "scores": [{"values": {"fid": 1.0}}], "eval": eval_digest(trial.config)}
        (trial.run.path / "result.json").write_text(json.dumps(result))
    code = (
        "import os, sys, time; from pathlib import Path; from gantool.status import trial_states, counts\n"
        "from gantool.progress import Silent\n"
        "began = time.process_time(); found = counts(trial_states(Path('sweeps/grid'), Silent())[0])\n"
        "print(found, 'torch' in sys.modules, 'yaml' in sys.modules, file=sys.stdout)\n"
        "print(f'{time.process_time() - began:.2f} s of CPU', file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    print(done.stderr)  # seen with pytest -s
    assert done.stdout.startswith("{'done': 1002} False"), done.stderr
