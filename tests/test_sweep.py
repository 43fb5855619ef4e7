"""The sweep verb against real processes: kills, signals, races, restarts.

The trial is a small program that honours the contract of `gantool train RUN_DIR` (lock, status, result, signals, exit
code) without training; what it does besides is told by `behaviour.json` beside the sweep file.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gantool import files, local
from gantool.errors import ConfigError, InterruptedRun, UsageError
from gantool.manifest import load_trials
from gantool.progress import Silent
from gantool.results import Spread, grouped
from gantool.runs import RunDirectory, eval_digest
from gantool.status import trial_states
from gantool.sweep import SweepOutcome, describe, plan, run, time_text

FAKE_TRIAL = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from gantool.files import read_json, write_json
from gantool.runs import RunDirectory, RunBusy, eval_digest

if sys.argv[1] == "--hold":  # another process that trains this run
    with RunDirectory(Path(sys.argv[2])).lock():
        print("held", flush=True)
        time.sleep(60)
run = RunDirectory.open(Path(sys.argv[1]))
config = run.config()
rules = (read_json(Path("behaviour.json")) or {})
rule = {**rules.get("all", {}), **rules.get(f"{config.augment.kind}-{config.seed}", {})}
stop = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda received, frame: stop.append(received))

def log(word):
    with open("log.txt", "a") as file:
        file.write(f"{word} {run.path.name} {os.getpid()}\\n")

def leave(code, state, step, message=""):
    run.write_status(state, step, total, message=message)
    log(state)
    sys.stdout.flush()
    os._exit(code)

if rule.get("lose_race"):
    holder = subprocess.Popen([sys.executable, sys.argv[0], "--hold", sys.argv[1]], stdout=subprocess.PIPE)
    holder.stdout.readline()
    Path("holder.txt").write_text(str(holder.pid))
try:
    with run.lock():
        if run.result() is not None and run.result()["eval"] == eval_digest(config):
            sys.exit(0)
        total = config.steps
        saved = read_json(run.path / "saved.json") or {"step": 0, "starts": 0}
        starts, step = saved["starts"] + 1, saved["step"]
        def save():
            write_json(run.path / "saved.json", {"step": step, "starts": starts})
        save()
        run.unmark("stopped")
        run.write_status("running", step, total, 100.0)
        log("begin")
        print(f"threads {os.environ['OMP_NUM_THREADS']} gpu {os.environ.get('CUDA_VISIBLE_DEVICES')}", end=" ")
        print(f"shared by {os.environ['GANTOOL_SHARED_BY']}")
        while step < total:
            if rule.get("fail_at") == step and not Path("mended").exists():
                print("Traceback of a kind\\nRuntimeError: wrong shape", flush=True)
                leave(1, "failed", step, "wrong shape")
            if rule.get("diverge_at") == step:
                leave(1, "diverged", step, "loss_d became NaN")
            if rule.get("die_at") == step:
                os.kill(os.getpid(), signal.SIGKILL)
            if stop or step == rule.get("preempt_after", 10**9) * starts or rule.get("stuck_at") == step:
                save()
                run.mark("stopped", rule.get("why", ""))
                leave(75, "stopped", step, f"signals {[int(number) for number in stop]}")
            time.sleep(rule.get("seconds", 0.0))
            with open(run.path / "steps.txt", "a") as file:
                file.write(f"{step}\\n")
            step += 1
            run.write_status("running", step, total, 100.0)
        save()
        protocol = {"num": config.eval.num, "data": config.data.name}
        base = {"none": 50.0, "basic": 40.0, "advanced": 45.0}[config.augment.kind]
        score = {"values": {"fid": base + config.seed, "is": 2.0}, "real": {"fid": 3.0}, "data_title": config.data.name,
                 "protocol": protocol, "warnings": []}
        result = {"step": step, "seconds": 0.1, "scores": [score], "eval": eval_digest(config)}
        write_json(run.path / "result.json", result)
        leave(0, "done", step)
except RunBusy as error:
    print("error:", error, flush=True)
    log("busy")
    sys.exit(1)
"""

DRIVER = """
import sys
from pathlib import Path
from gantool.errors import GantoolError, InterruptedRun
from gantool.sweep import plan, run

class Words:
    def say(self, text): print(text, flush=True)
    def step(self, what, done, total, detail="", left=None): pass

try:
    outcome = run(plan(Path("grid.yaml")), Words(), command=(sys.executable, "fake.py"))
except (GantoolError, InterruptedRun) as error:
    print("ERROR", error.message, "|", error.hint, flush=True)
    sys.exit(error.exit_code)
sys.exit(outcome.exit_code)
"""

GRID = """
base: {steps: 6, eval: {num: 10}, runtime: {device: cpu}}
vary:
  augment: [none, basic]
seeds: 2
slots: 2
report: {against: {augment: none}}
"""


class Words(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[int, int | None]] = []
        self.others: list[tuple[str, int, int | None]] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def step(self, what: str, done: int, total: int | None, detail: str = "", left: float | None = None) -> None:
        assert what in (
            "look for jobs",
            "states",
            "trials",
            "scores",
            "results",
        )  # one after the other, each to its end
        if what == "trials":
            self.steps.append((done, total))
        else:
            self.others.append((what, done, total))


class Place:
    """A working directory with a sweep file and the fake trial."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "grid.yaml").write_text(GRID)
        (path / "fake.py").write_text(FAKE_TRIAL)
        (path / "driver.py").write_text(DRIVER)

    def behave(self, **rules: dict[str, Any]) -> None:
        (self.path / "behaviour.json").write_text(
            json.dumps({key.replace("_", "-"): rule for key, rule in rules.items()})
        )

    def sweep(self, words: Words | None = None, **options: Any) -> SweepOutcome:
        return run(plan(Path("grid.yaml")), words or Words(), command=(sys.executable, "fake.py"), **options)

    def drive(self) -> subprocess.Popen[str]:
        command = [sys.executable, "driver.py"]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.path, start_new_session=True
        )

    def finish(self) -> None:
        """What a whole sweep would leave, without any process."""
        for trial in plan(Path("grid.yaml")).trials:
            RunDirectory.create(trial.config)
            score = {"values": {"fid": 50.0 + trial.seed}, "protocol": {"num": 10}, "data_title": "shapes"}
            result = {"step": 6, "seconds": 0.1, "scores": [score], "eval": eval_digest(trial.config)}
            files.write_json(trial.run.path / "result.json", result)
        assert self.sweep().exit_code == 0 and not self.log("begin")

    def log(self, word: str) -> list[str]:
        path = self.path / "log.txt"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [run for said, run, _ in lines if said == word]

    def pids(self) -> list[int]:
        return [
            int(line.split()[2])
            for line in (self.path / "log.txt").read_text().splitlines()
            if line.startswith("begin")
        ]

    def states(self) -> list[str]:
        return [trial.state() for trial in plan(Path("grid.yaml")).trials]

    def each_step_once(self) -> bool:
        every = [trial.run.path / "steps.txt" for trial in plan(Path("grid.yaml")).trials]
        return all([int(n) for n in path.read_text().split()] == list(range(6)) for path in every)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = Place(tmp_path)
    yield found
    if (tmp_path / "log.txt").exists():
        for pid in found.pids():  # only what this test started and left running
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and b"fake.py" in command.read_bytes():
                os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Until `condition` holds; the generous limit only keeps a broken test from hanging."""
    for _ in range(1200):
        if condition():
            return
        assert process is None or process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def test_whole_sweep_then_nothing_left_to_do(place: Place) -> None:
    words = Words()
    outcome = place.sweep(words)
    assert outcome.exit_code == 0 and [o.state for o in outcome.outcomes] == ["done"] * 4
    assert place.each_step_once()
    assert words.steps[-1] == (4, 4) and [done for done, _ in words.steps] == sorted(done for done, _ in words.steps)
    asked = [("look for jobs", 0, None), ("look for jobs", 1, 1)]
    assert words.others[:7] == asked + [("states", n, 4) for n in range(5)]
    assert words.others[7:] == asked + [("scores", n, 4) for n in range(5)] + [("results", n, 4) for n in range(5)]
    ends = [line for line in words.lines if line.startswith("done")]
    assert len(ends) == 4 and any("basic seed 1  fid 41.00" in line for line in ends)
    assert [line.split()[1] for line in ends] == ["1/4", "2/4", "3/4", "4/4"]

    again = Words()
    assert place.sweep(again).exit_code == 0
    assert len(place.log("begin")) == 4  # no trial was started a second time
    assert "0 to run, 4 done" in again.lines[0]


def test_results_are_written_and_agree_with_hand_computed_numbers(place: Place) -> None:
    place.sweep()
    folder = Path("sweeps/grid")
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(row["augment"], row["seed"], float(row["fid"])) for row in rows] == [
        ("none", "0", 50.0), ("none", "1", 51.0), ("basic", "0", 40.0), ("basic", "1", 41.0)
    ]  # fmt: skip
    outcome = place.sweep()
    first, second = grouped(outcome.rows, outcome.plan.report)
    assert first.labels == {"augment": "basic"} and first.best and not second.best
    assert first.spreads["fid"] == Spread(40.5, pytest.approx(0.5**0.5), 2)
    assert first.differences["fid"] == Spread(-10.0, 0.0, 2) and second.differences == {}
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["values"]["fid"] for line in lines] == [50.0, 51.0, 40.0, 41.0]
    assert "basic & \\textbf{40.50 $\\pm$ 0.71 (2)}" in (folder / "results.tex").read_text()
    text = (folder / "results.md").read_text()
    assert "| basic | 40.50 ± 0.71 (2) \\* |" in text and "paired by seed" in text


def test_one_failure_does_not_stop_the_others_and_is_not_repeated(place: Place) -> None:
    place.behave(none_0={"fail_at": 3}, none_1={"diverge_at": 2})
    words = Words()
    outcome = place.sweep(words)
    assert [o.state for o in outcome.outcomes] == ["failed", "diverged", "done", "done"]
    assert outcome.exit_code == 1 and len(outcome.failed) == 2
    assert outcome.failed[0].cause == "wrong shape" and outcome.failed[0].output[-1] == "RuntimeError: wrong shape"
    assert outcome.failed[1].cause == "loss_d became NaN"
    assert any("wrong shape" in line and line.startswith("failed") for line in words.lines)

    again = Words()
    outcome = place.sweep(again)
    assert outcome.exit_code == 1 and len(place.log("begin")) == 4
    assert outcome.failed[0].cause == "wrong shape" and "RuntimeError: wrong shape" in outcome.failed[0].output
    assert any("--retry-failed" in line for line in again.lines)

    (place.path / "mended").touch()
    place.behave()
    outcome = place.sweep(retry_failed=True)
    assert outcome.exit_code == 0 and len(place.log("begin")) == 6


def test_program_that_cannot_start_is_a_failure_with_its_output(place: Place) -> None:
    (place.path / "fake.py").write_text("import no_such_module")
    outcome = place.sweep()
    assert outcome.exit_code == 1
    assert {o.cause for o in outcome.outcomes} == {"exit code 1"}
    assert "no_such_module" in outcome.failed[0].output[-1]
    assert place.states() == ["planned"] * 4  # nothing happened to them: the next sweep tries again
    missing = run(plan(Path("grid.yaml")), Words(), command=("./no-such-program",))
    assert "cannot be started" in missing.failed[0].cause


def test_trial_killed_by_the_system_is_lost_and_continues_next_time(place: Place) -> None:
    place.behave(basic_1={"die_at": 4})
    outcome = place.sweep()
    assert [o.state for o in outcome.outcomes] == ["done", "done", "done", "failed"]
    assert "SIGKILL" in outcome.failed[0].cause and place.states()[3] == "lost"
    place.behave()
    assert place.sweep().exit_code == 0


def test_preempted_trial_is_started_again_while_it_gets_on(place: Place) -> None:
    place.behave(none_0={"preempt_after": 2}, basic_0={"stuck_at": 3})
    outcome = place.sweep()
    assert [o.state for o in outcome.outcomes] == ["done", "done", "failed", "done"]
    starts = Counter(place.log("begin"))
    names = [trial.run.path.name for trial in outcome.plan.trials]
    assert starts[names[0]] == 3  # 0-2, 2-4, 4-6
    assert starts[names[2]] == 3 and "without progress" in outcome.failed[0].cause  # grew once, then twice not
    assert [int(n) for n in (outcome.plan.trials[0].run.path / "steps.txt").read_text().split()] == list(range(6))


def test_at_the_end_of_its_time_nothing_is_started_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.behave(all={"preempt_after": 3, "why": "the time limit"})
    with pytest.raises(InterruptedRun):
        place.sweep()
    assert sorted(Counter(place.log("begin")).values()) == [1] * 4 and place.states() == ["stopped"] * 4
    monkeypatch.setenv("GANTOOL_DEADLINE", str(time.time() + 5))
    with pytest.raises(InterruptedRun):
        place.sweep()
    assert len(place.log("begin")) == 4
    monkeypatch.delenv("GANTOOL_DEADLINE")
    assert place.sweep().exit_code == 0 and place.each_step_once()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop_signal_saves_all_and_the_same_command_continues(place: Place, number: signal.Signals) -> None:
    place.behave(all={"seconds": 0.4})
    driver = place.drive()
    wait_for(lambda: len(place.log("begin")) == 2, driver)
    os.killpg(driver.pid, number)  # as a terminal does: to the whole group
    words, _ = driver.communicate(timeout=60)
    assert driver.returncode == 75, words
    stopped = [trial.run.status() for trial in plan(Path("grid.yaml")).trials if trial.state() == "stopped"]
    assert [status["message"] for status in stopped] == ["signals [15]"] * 2  # once, and through the sweep alone
    assert "run the same command to continue" in words and "2 running trials were stopped and saved" in words
    assert sorted(place.states()) == ["planned", "planned", "stopped", "stopped"]
    assert (place.path / "sweeps/grid/results.md").exists()
    place.behave()
    assert place.sweep().exit_code == 0
    assert place.each_step_once()  # through the signal: no step lost, none done twice


def test_second_ctrl_c_kills(place: Place) -> None:
    place.behave(all={"seconds": 30})
    driver = place.drive()
    wait_for(lambda: len(place.log("begin")) == 2, driver)
    driver.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert driver.poll() is None  # the trials sleep in a step and have not seen the signal
    driver.send_signal(signal.SIGINT)
    words, _ = driver.communicate(timeout=60)
    assert driver.returncode == 75 and "were killed" in words
    assert sorted(place.states()) == ["lost", "lost", "planned", "planned"]


def test_trials_outlive_a_killed_sweep_and_the_next_one_sees_them(place: Place) -> None:
    place.behave(all={"seconds": 0.5})
    driver = place.drive()
    wait_for(lambda: len(place.log("begin")) == 2, driver)
    running = place.pids()
    driver.kill()
    driver.communicate(timeout=60)
    assert all(Path(f"/proc/{pid}").exists() for pid in running)
    assert sorted(place.states()) == ["planned", "planned", "running", "running"]
    place.behave()
    words = Words()
    outcome = place.sweep(words)  # does the other two meanwhile
    assert "2 to run, 2 running" in words.lines[0]
    assert {o.state for o in outcome.outcomes} <= {"done", "running"}
    wait_for(lambda: place.states() == ["done"] * 4)
    assert Counter(place.log("begin")).most_common(1)[0][1] == 1 and place.each_step_once()
    assert place.sweep().exit_code == 0


def test_two_sweeps_at_once_share_the_work(place: Place) -> None:
    place.behave(all={"seconds": 0.1})
    drivers = [place.drive(), place.drive()]
    words = [driver.communicate(timeout=120)[0] for driver in drivers]
    assert all(driver.returncode in (0, 75) for driver in drivers), words
    assert not any("failed" in text for text in words), words
    wait_for(lambda: place.states() == ["done"] * 4)
    assert place.each_step_once() and max(Counter(place.log("begin")).values()) == 1


def test_trial_that_another_process_took_first_is_running_there(place: Place) -> None:
    (place.path / "grid.yaml").write_text(GRID.replace("seeds: 2", "seeds: 1"))
    place.behave(none_0={"lose_race": True})
    outcome = place.sweep()
    assert [o.state for o in outcome.outcomes] == ["running", "done"]
    assert outcome.exit_code == 75 and not outcome.failed and len(place.log("busy")) == 1
    os.kill(int((place.path / "holder.txt").read_text()), signal.SIGKILL)
    place.behave()
    wait_for(lambda: place.states() == ["planned", "done"])
    assert place.sweep().exit_code == 0


def test_cancelled_is_left_alone_and_other_scores_are_made_anew(place: Place) -> None:
    place.finish()
    trials = plan(Path("grid.yaml")).trials
    trials[0].run.mark("cancelled")
    (place.path / "grid.yaml").write_text(GRID.replace("num: 10", "num: 20"))
    assert place.states() == ["cancelled", "unscored", "unscored", "unscored"]
    outcome = place.sweep()
    assert [o.state for o in outcome.outcomes] == ["cancelled", "done", "done", "done"] and outcome.exit_code == 0
    assert len(place.log("begin")) == 3
    scored = RunDirectory.open(trials[1].run.path).config().eval
    assert scored is not None and scored.num == 20


def test_extended_grid_runs_only_what_is_new(place: Place) -> None:
    place.finish()
    (place.path / "grid.yaml").write_text(GRID.replace("seeds: 2", "seeds: 3"))
    words = Words()
    assert place.sweep(words).exit_code == 0
    assert "2 to run, 4 done" in words.lines[0] and len(place.log("begin")) == 2


def test_describe_writes_nothing_and_needs_no_torch(place: Place) -> None:
    before = sorted(place.path.rglob("*"))
    found = describe(plan(Path("grid.yaml")), Silent())
    assert {state: len(trials) for state, trials in found.items()} == {"planned": 4}
    assert sorted(place.path.rglob("*")) == before
    code = (
        "import sys; from pathlib import Path; from gantool.sweep import describe, plan; import gantool.status\n"
        "from gantool.progress import Silent\n"
        "describe(plan(Path('grid.yaml')), Silent()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=place.path).returncode == 0


def test_nothing_starts_when_one_trial_of_many_is_wrong(place: Place) -> None:
    (place.path / "grid.yaml").write_text(GRID.replace("[none, basic]", "[none, basci]"))
    with pytest.raises(ConfigError) as error:
        place.sweep()
    assert "grid.yaml:4: augment" in error.value.message and "basic" in (error.value.hint or "")
    assert not (place.path / "runs").exists() and not (place.path / "sweeps").exists()


def test_manifest_belongs_to_one_sweep_file_and_can_be_moved(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.finish()
    (place.path / "other.yaml").write_text("name: grid\n" + GRID)
    with pytest.raises(UsageError, match="belongs to another sweep file") as error:
        run(plan(Path("other.yaml")), Silent())
    assert "name: grid-2" in (error.value.hint or "")
    place.path.joinpath("moved").mkdir()
    for name in ("sweeps", "runs"):
        (place.path / name).rename(place.path / "moved" / name)
    monkeypatch.chdir("/")
    states = trial_states(place.path / "moved/sweeps/grid", Silent())[0]
    assert [status.state for status in states] == ["done"] * 4
    assert [trial.labels for trial in load_trials(place.path / "moved/sweeps/grid").trials][2] == {"augment": "basic"}


def test_each_slot_has_its_threads_and_gpu(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.path / "grid.yaml").write_text(GRID.replace("device: cpu", "device: auto"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    place.behave(all={"seconds": 0.05})
    outcome = place.sweep()
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    said = {local.last_output(o.trial.run)[-1] for o in outcome.outcomes}
    assert said == {f"threads {threads} gpu {gpu} shared by 1" for gpu in ("4", "GPU-abc")}
    for (count, gpus), shared in (((3, ("0",)), [3, 3, 3]), ((3, ("0", "1")), [2, 1, 2]), ((2, ()), [2, 2])):
        slots = local.Slots(count, gpus, threads=1)
        assert [slots.shared_by(slot) for slot in range(count)] == shared


@pytest.mark.parametrize(
    ("listed", "expected"), [("", ()), ("-1", ()), ("NoDevFiles", ()), ("3", ("3",)), ("0, 2", ("0", "2"))]
)
def test_visible_gpus_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, listed: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert local.visible_gpus() == expected


def test_visible_gpus_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    whole = "GPU 0: NVIDIA A100 (UUID: GPU-1)\\nGPU 1: NVIDIA A100 (UUID: GPU-2)"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for text, expected in ((whole, ("0", "1")), (whole + "\\n  MIG 1g.5gb Device 0: (UUID: MIG-77)", ("MIG-77",))):
        program.write_text(f'#!/bin/sh\nprintf "{text}\\n"\n')
        program.chmod(0o755)
        assert local.visible_gpus() == expected


def test_slots(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = plan(Path("grid.yaml")).trials
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert local.choose_slots(trials, None) == local.Slots(4, (), 4)
    assert local.choose_slots(trials[:3], None) == local.Slots(3, (), 5)
    assert local.choose_slots(trials, 2) == local.Slots(2, (), 8)
    assert local.choose_slots(trials[:1], None, len(trials)) == local.Slots(1, (), 4)  # what is left of a sweep
    assert local.choose_slots([], None).count == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert local.choose_slots(trials, None).gpus == ()  # device: cpu needs none
    (place.path / "grid.yaml").write_text(GRID.replace("device: cpu", "device: auto"))
    trials = plan(Path("grid.yaml")).trials
    assert local.choose_slots(trials, None) == local.Slots(2, ("0", "1"), 8)
    shared = local.choose_slots(trials, 4)
    assert [shared.gpu(slot) for slot in range(4)] == ["0", "1", "0", "1"]


def test_output_of_the_last_start_only(tmp_path: Path) -> None:
    (tmp_path / local.OUTPUT_FILE).write_text("# started a\nold\n# started b\none\n\n10%\r20%\rtwo\n")
    assert local.last_output(RunDirectory(tmp_path)) == ("one", "10%", "20%", "two")
    assert local.last_output(RunDirectory(tmp_path), 1) == ("two",)
    assert local.last_output(RunDirectory(tmp_path / "nothing")) == ()


def test_times_are_readable() -> None:
    seconds = (0, 38.2, 99, 750, 11_100, 200_000)
    assert [time_text(s) for s in seconds] == ["0 s", "38 s", "99 s", "12 min", "3 h 05 min", "2 d 07 h"]


def test_manifest_of_another_version_says_what_to_do(place: Place) -> None:
    place.finish()
    files.write_json(place.path / "sweeps/grid/sweep.json", {"format": 99})
    with pytest.raises(Exception, match="not readable by this version"):
        load_trials(Path("sweeps/grid"))
    assert place.sweep().exit_code == 0  # written anew
