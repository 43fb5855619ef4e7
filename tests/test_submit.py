"""`gantool sweep` where there is Slurm, against a pretended one: each run is submitted once, however often, by however
many, and whatever happens in between."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_slurm import FakeSlurm

from gantool import files, submissions
from gantool import submit as verb
from gantool.cluster import SlurmSilent
from gantool.config.site import SiteConfig
from gantool.errors import UsageError
from gantool.launch import program
from gantool.manifest import SweepPlan
from gantool.progress import Detail, Silent
from gantool.runs import RunDirectory, eval_digest
from gantool.submissions import Jobs
from gantool.submit import Submitted, preview, submit
from gantool.sweep import plan

GRID = "base: {steps: 100, batch: 32}\nvary: {augment: [none, basic, advanced]}\nseeds: 3\n"


@pytest.fixture
def here(tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(GRID)
    return tmp_path


def made(slurm: dict[str, Any] | None = None, text: str = GRID) -> SweepPlan:
    Path("grid.yaml").write_text(text + (f"slurm: {json.dumps(slurm)}\n" if slurm else ""))
    return plan(Path("grid.yaml"), on_slurm=True)


def go(
    slurm: dict[str, Any] | None = None, site: SiteConfig | None = None, retry: bool = False, text: str = GRID
) -> Submitted:
    return submit(made(slurm, text), site or SiteConfig(), Silent(), retry)


def finish(run: RunDirectory) -> None:
    files.write_json(run.path / "result.json", {"step": 100, "scores": [], "eval": eval_digest(run.config())})
    run.write_status("done", 100, 100)


def runs_by_task(fake: FakeSlurm) -> list[list[str]]:
    """The names of the runs of every array task that was submitted, from the lists that job.sh reads."""
    tasks: list[list[str]] = []
    for call in fake.calls("sbatch"):
        words = shlex.split(call.script.split("# command\n")[1].splitlines()[1], comments=False)
        if "--report" not in words:
            lists = [word.removeprefix("@") for word in words if word.startswith("@")]
            lines = Path(lists[0]).read_text().splitlines()
            last = int((call.option("array") or "").removeprefix("0-").partition("%")[0])
            assert last == len(lines) - 1
            tasks += [[Path(path).name for path in line.split("\t")] for line in lines]
    return tasks


class Steps(Silent):
    """Remembers how far each work was said to be."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[int, int | None]]] = {}

    def step(self, what: str, done: int, total: int | None, detail: Detail = "", left: float | None = None) -> None:
        self.seen.setdefault(what, []).append((done, total))


def test_what_takes_long_for_many_runs_tells_how_far_it_is(here: Path, slurm: FakeSlurm) -> None:
    steps = Steps()
    found = plan(Path("grid.yaml"), on_slurm=True, progress=steps)
    submit(found, SiteConfig(), steps)
    number = len(found.trials)
    variants = len({tuple(trial.labels.items()) for trial in found.trials})
    assert steps.seen == {
        **{
            what: [(done, most) for done in range(most + 1)]
            for what, most in (
                ("check", variants), ("states", number), ("look after jobs", number), ("configs", number)
            )
        },
        **{what: [(0, None), (1, 1)] for what in ("ask Slurm for its limits", "look for jobs")},
        "sbatch": [(0, None), (1, 1)] * 2,  # the runs, and the report after them
    }  # fmt: skip
    again = Steps()
    preview(found, SiteConfig(), again)
    assert {what: seen[-1] for what, seen in again.seen.items()} == {
        "ask Slurm for its limits": (1, 1), "look for jobs": (1, 1), "states": (number, number)
    }  # fmt: skip


def test_all_runs_in_one_array_and_a_report_after_them(here: Path, slurm: FakeSlurm) -> None:
    done = go({"time": "4h"})
    assert done.arrays == {"10": 9} and done.report == "19" and set(done.states.values()) == {"planned"}
    array, report = slurm.calls("sbatch")
    assert array.option("time") == "240" and array.option("array") == "0-8"
    assert report.option("dependency") == "afterany:10" and report.option("gpus-per-node") is None
    assert f"--report {here}/sweeps/grid" in report.script
    assert sorted(name for task in runs_by_task(slurm) for name in task) == sorted(
        trial.run.path.name for trial in made().trials
    )
    assert all((trial.run.path / "config.yaml").is_file() for trial in made().trials)
    assert Path("sweeps/grid/sweep.json").is_file()


def test_the_same_command_again_submits_nothing(here: Path, slurm: FakeSlurm) -> None:
    go()
    again = go()
    assert again.arrays == {} and again.report is None and set(again.states.values()) == {"queued"}
    assert slurm.num_calls()["sbatch"] == 2


def test_only_what_is_missing_is_submitted(here: Path, slurm: FakeSlurm) -> None:
    trials = made().trials
    for trial in trials:
        RunDirectory.create(trial.config)
    finish(trials[0].run)
    trials[1].run.write_status("failed", 3, 100, message="wrong shape")
    trials[2].run.write_status("diverged", 3, 100)
    trials[3].run.mark("cancelled")
    trials[4].run.write_status("stopped", 50, 100)
    trials[4].run.mark("stopped")
    trials[5].run.write_status("running", 50, 100)  # and nobody holds its lock
    with trials[6].run.lock():
        done = go()
    assert list(done.states.values()) == [
        "done", "failed", "diverged", "cancelled", "stopped", "lost", "running", "planned", "planned"
    ]  # fmt: skip
    assert runs_by_task(slurm) == [[trials[number].run.path.name] for number in (4, 5, 7, 8)]
    trials[1].run.write_status("failed", 3, 100, message="wrong shape")
    again = go(retry=True)
    assert again.num_runs == 3 and runs_by_task(slurm)[4:] == [[trials[n].run.path.name] for n in (1, 2, 6)]
    assert trials[1].run.status()["state"] == "planned" and trials[3].run.marked("cancelled")


def test_one_more_seed_submits_only_that(here: Path, slurm: FakeSlurm) -> None:
    go()
    done = go(text=GRID.replace("seeds: 3", "seeds: 4"))
    assert done.num_runs == 3 and {task[0][-3:] for task in runs_by_task(slurm)[9:]} == {"-s3"}


def test_a_new_report_job_takes_the_place_of_the_one_that_waits(here: Path, slurm: FakeSlurm) -> None:
    first = go()
    second = go(text=GRID.replace("seeds: 3", "seeds: 4"))
    assert [call.words for call in slurm.calls("scancel")] == [["--name=gantool-grid-report", first.report]]
    arrays = sorted([*first.arrays, *second.arrays])
    assert slurm.calls("sbatch")[-1].option("dependency") == "afterany:" + ":".join(arrays)
    assert files.read_json(Path("sweeps/grid/jobs/report.json")) == {"job": second.report, "after": arrays}
    assert go(text=GRID.replace("seeds: 3", "seeds: 4")).report is None  # it waits for all of them already
    Path("sweeps/grid/jobs/report.json").unlink()  # as if the call before had been killed in between
    assert go(text=GRID.replace("seeds: 3", "seeds: 4")).report


def test_large_sweeps_are_cut_to_the_limit(here: Path, slurm: FakeSlurm) -> None:
    slurm.configure(max_array_size=5)
    done = go({"at_once": 4})
    assert list(done.arrays.values()) == [4, 4, 1]
    assert [call.option("array") for call in slurm.calls("sbatch")][:3] == ["0-3%1", "0-3%1", "0-0%1"]
    assert slurm.calls("sbatch")[-1].option("dependency") == "afterany:" + ":".join(done.arrays)
    assert Counter(map(len, runs_by_task(slurm))) == {1: 9}


def test_packed_runs_share_a_task(here: Path, slurm: FakeSlurm) -> None:
    done = go({"pack": 4})
    assert done.arrays == {"10": 9} and [len(task) for task in runs_by_task(slurm)] == [4, 4, 1]
    assert slurm.calls("sbatch")[0].option("array") == "0-2"
    assert slurm.calls("sbatch")[0].option("ntasks-per-node") == "4"
    assert "job.sh --packed @" in slurm.calls("sbatch")[0].script  # the last task has one run
    assert "\nexec bash " in slurm.calls("sbatch")[0].script  # SIGTERM must not end a shell above it, and orphan it


def test_runs_on_the_cpu_ask_for_no_gpu(here: Path, slurm: FakeSlurm) -> None:
    text = GRID.replace("vary: {", "vary: {device: {gpu: {}, cpu: {runtime.device: cpu, batch: 16}}, ")
    done = go(text=text)
    assert list(done.arrays.values()) == [9, 9]
    assert [call.option("gpus-per-node") for call in slurm.calls("sbatch")] == ["1", None, None]


def test_a_thousand_runs_cost_a_handful_of_calls(here: Path, slurm: FakeSlurm) -> None:
    long = made(text=GRID.replace("seeds: 3", "seeds: 334"))
    assert submit(long, SiteConfig(), Silent()).num_runs == 1002
    assert slurm.num_calls() == {"scontrol": 1, "sinfo": 1, "sbatch": 3}  # two arrays and the report
    assert submit(long, SiteConfig(), Silent()).num_runs == 0
    assert slurm.num_calls() == {"scontrol": 1, "sinfo": 1, "squeue": 1}


def test_two_at_the_same_time_submit_each_run_once(here: Path, slurm: FakeSlurm) -> None:
    code = (
        "from pathlib import Path; from gantool.sweep import plan; from gantool.submit import submit\n"
        "from gantool.config.site import SiteConfig; from gantool.progress import Detail, Silent\n"
        "done = submit(plan(Path('grid.yaml'), on_slurm=True), SiteConfig(), Silent()); print(done.num_runs)"
    )
    slurm.answer("sbatch", code=None, seconds=0.5)  # slow, so that the others come while it works
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert sorted(map(int, said)) == [0, 0, 9]
    assert max(Counter(name for task in runs_by_task(slurm) for name in task).values()) == 1


@pytest.mark.parametrize("arrived", [True, False])
def test_killed_between_sbatch_and_the_record(
    here: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*((verb, "record", killed) if arrived else (verb.cluster, "submit", killed)))
        go()
    (note,) = Path("sweeps/grid/jobs").glob("gantool-*.json")
    assert json.loads(note.read_text())["job"] is None
    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, time=lambda: time.time() + 20 * len(waits))
    monkeypatch.setattr(verb, "time", clock)
    monkeypatch.setattr(submissions, "time", clock)
    done = go()
    if arrived:
        assert done.num_runs == 0 and json.loads(note.read_text())["job"] == "10" and not waits
    else:
        assert done.num_runs == 9 and len(waits) == 9  # until no sbatch can be on its way any more
    assert len(runs_by_task(slurm)) == 9


def test_refused_jobs_leave_no_trace_and_can_be_submitted_again(here: Path, slurm: FakeSlurm) -> None:
    slurm.answer("sbatch", error="sbatch: error: Batch job submission failed: Invalid qos specification")
    with pytest.raises(SlurmSilent, match=r"sbatch refused the jobs: .*Invalid qos specification"):
        go()
    assert not list(Path("runs").glob("*/job.json")) and not list(Path("sweeps/grid/jobs").glob("gantool-*.json"))
    slurm.mend("sbatch")
    assert go().num_runs == 9


def test_a_silent_slurm_submits_nothing(here: Path, slurm: FakeSlurm) -> None:
    go()
    slurm.answer("squeue", error="slurm_load_jobs error: Unable to contact slurm controller")
    slurm.num_calls()
    with pytest.raises(SlurmSilent, match="Unable to contact slurm controller"):
        go()
    assert "sbatch" not in slurm.num_calls()


def test_what_scancel_ended_stays_cancelled(here: Path, slurm: FakeSlurm) -> None:
    go()
    slurm.set("10_2", state="CANCELLED", end=time.strftime("%Y-%m-%dT%H:%M:%S"))
    trial = made().trials[2]
    done = go()
    assert done.num_runs == 0 and done.states[trial.run.path] == "cancelled" and trial.run.marked("cancelled")
    slurm.forget()  # also after Slurm has forgotten it
    assert go().num_runs == 8


def test_jobs_that_slurm_holds_after_a_failed_launch_are_released(here: Path, slurm: FakeSlurm) -> None:
    go()
    slurm.set("10_1", reason="launch failed requeued held")
    slurm.set("10_2", reason="JobHeldUser")
    slurm.set("10_3", reason="JobHeldAdmin")
    done = go()
    assert [call.words for call in slurm.calls("scontrol") if "release" in call.words] == [["release", "10_1"]]
    assert done.notes[0] == "released, held by Slurm after a failed launch: 10_1" and done.num_runs == 0
    assert done.notes[1].startswith("held by a person, and left so: 10_2,10_3")
    assert Counter(done.states.values()) == {"queued": 6, "held": 3}


def test_nodes_that_failed_twice_are_left_out(here: Path, slurm: FakeSlurm) -> None:
    go()
    name = next(iter(slurm.jobs().values()))["name"]
    early, late = "2026-11-28T12:00:00", "2026-11-28T15:00:00"
    rows = [("10_0", "node3", early), ("10_1", "node3", late), ("10_2", "node4", early)]
    rows += [("10_3", "node[1-2]", early), ("10_3", "node[1-2]", late)]
    rows += [("10_4", "node5", early), ("10_5", "node5", "2026-11-28T12:00:01")]  # two tasks, one failure
    rows += [(f"10_{task}", f"node{task}", early) for task in (6, 7, 8)]
    slurm.configure(attempts=[[id_, name, "NODE_FAIL", node, end] for id_, node, end in rows])
    slurm.forget()
    done = go(site=SiteConfig(exclude="node9"))
    assert done.num_runs == 9 and "node3" in done.notes[0]
    assert slurm.calls("sbatch")[2].option("exclude") == "node9,node3"


def test_time_beyond_the_partition_is_refused_before_anything_is_written(here: Path, slurm: FakeSlurm) -> None:
    with pytest.raises(UsageError, match=r"slurm.time: found 3h, but the partition high allows 120m") as caught:
        go({"time": "3h"}, SiteConfig(partition="high"))
    assert "goes on in the next job" in str(caught.value.hint) and not Path("sweeps").exists()


def test_a_dry_run_writes_nothing(here: Path, slurm: FakeSlurm) -> None:
    script, said = preview(made({"time": "4h", "gpus": 2}), SiteConfig(account="abc"), steps := Steps())
    assert "#SBATCH --account=abc" in script and "#SBATCH --array=0-8" in script and said.startswith("Job 99 to start")
    assert steps.seen["ask sbatch"] == [(0, None), (1, 1)]
    assert not Path("runs").exists() and not Path("sweeps").exists() and not slurm.jobs()
    go()
    assert preview(made(), SiteConfig(), Silent()) == ("", "")


def exported(script: str) -> dict[str, str]:
    """The environment that the batch script makes, as bash reads it."""
    lines = [line for line in script.splitlines() if line.startswith(("export GANTOOL", "export A"))]
    names = [line.split("=")[0].removeprefix("export ") for line in lines]
    code = "\n".join([*lines, *(f"printf '%s\\0' \"${name}\"" for name in names)])
    out = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout
    return dict(zip(names, out.split("\0"), strict=False))


def test_what_the_job_script_is_told(here: Path, slurm: FakeSlurm) -> None:
    site = SiteConfig(srun=("--mpi=none", "--comment=two words"), interface="ib0", host_suffix="i", scratch="/a b",
                      stage_data=True, env={"A": "x y", "AB": "$HOME"})  # fmt: skip
    script, _ = preview(made(), site, Silent())
    found = exported(script)
    assert shlex.split(found["GANTOOL"]) == program() and not shlex.split(found["GANTOOL_CONTAINER"])
    assert shlex.split(found["GANTOOL_SRUN"]) == ["--mpi=none", "--comment=two words"]
    assert (found["GANTOOL_INTERFACE"], found["GANTOOL_HOST_SUFFIX"], found["GANTOOL_STAGE"]) == ("ib0", "i", "1")
    assert (found["GANTOOL_SCRATCH"], found["A"], found["AB"]) == ("/a b", "x y", "$HOME")


def binds(script: str) -> set[str]:
    """What the container is told to bind."""
    words = shlex.split(exported(script)["GANTOOL_CONTAINER"])
    return {words[place + 1] for place, word in enumerate(words) if word == "--bind"}


def test_the_container_is_a_prefix_with_the_folders_bound(here: Path, slurm: FakeSlurm) -> None:
    (slurm.bin / "singularity").write_text("#!/bin/sh\n")  # job.sh sees what there is on the node
    (slurm.bin / "singularity").chmod(0o755)
    text = GRID.replace("batch: 32", "batch: 32, runtime: {data_dir: 'my data', runs_dir: 'my runs'}")
    for name in ("my data", "my runs", "my code"):
        Path(name).mkdir()
    Path("my code/net.py").write_text("class Discriminator: pass")
    text = text.replace("runtime:", "discriminator: {kind: custom, file: my code/net.py}, runtime:")
    site = SiteConfig(container="/images/a b.sif", container_options=("--bind", "/scratch"))
    script, _ = preview(made(text=text), site, Silent())
    found = exported(script)
    words = shlex.split(found["GANTOOL_CONTAINER"])
    assert found["GANTOOL"] == "gantool" and words[:3] == ["apptainer", "exec", "--nv"]
    assert words[-3:] == ["--bind", "/scratch", "/images/a b.sif"]
    bound = binds(script)
    assert {str(here / "my data"), str(here / "my runs"), str(here / "my code"), "/scratch"} <= bound


def in_container(site: dict[str, Any] | None = None, **runtime: str) -> set[str]:
    """What is bound for a sweep with these settings."""
    text = GRID.replace("batch: 32", f"batch: 32, runtime: {json.dumps(runtime)}")
    script, _ = preview(made(text=text), SiteConfig(container="/a.sif", **(site or {})), Silent())
    return binds(script)


def test_a_folder_behind_a_link_is_bound_at_both_its_names(here: Path, slurm: FakeSlurm) -> None:
    (here / "lustre/data").mkdir(parents=True)
    (here / "scratch").symlink_to("lustre")
    bound = in_container(data_dir=f"{here}/scratch/data", runs_dir=f"{here}/scratch/runs")
    real = here / "lustre"
    assert {f"{real}/data", f"{real}/data:{here}/scratch/data", f"{real}/runs:{here}/scratch/runs"} <= bound
    assert str(here / "sweeps/grid") in bound


def test_a_folder_for_data_that_is_not_there_is_made_and_bound(here: Path, slurm: FakeSlurm) -> None:
    text = GRID.replace("batch: 32", "batch: 32, runtime: {data_dir: new/data}")
    go(site=SiteConfig(container="/a.sif"), text=text)
    assert Path("new/data").is_dir() and str(here / "new/data") in binds(slurm.calls("sbatch")[0].script)
    Path("file").write_text("")
    with pytest.raises(UsageError, match="data_dir: file/data cannot be made") as caught:
        go(site=SiteConfig(container="/a.sif"), text=text.replace("new/data", "file/data"))
    assert "gantool prepare" in (caught.value.hint or "")


def test_weights_that_the_environment_names_are_bound(
    here: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("weights", "of the site", "torch"):
        Path(name).mkdir()
    monkeypatch.setenv("GANTOOL_WEIGHTS", "weights")
    monkeypatch.setenv("TORCH_HOME", str(here / "torch"))
    assert {str(here / "weights"), str(here / "torch")} <= in_container()
    bound = in_container({"env": {"GANTOOL_WEIGHTS": str(here / "of the site")}})
    assert str(here / "of the site") in bound and str(here / "weights") not in bound


def test_weights_that_are_named_and_not_there_are_refused(
    here: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = "batch: 32, eval: {extractor: inception, protocol: tf1, weights: nowhere/inception.pth}"
    text = GRID.replace("batch: 32", scored)
    site = SiteConfig(container="/a.sif")
    with pytest.raises(UsageError, match=r"eval.weights: there is no file or folder nowhere/inception.pth"):
        go(site=site, text=text)
    assert not Path("sweeps").exists()
    monkeypatch.setenv("GANTOOL_WEIGHTS", "/nowhere")
    text = text.replace(", weights: nowhere/inception.pth", "")
    with pytest.raises(UsageError, match=r"\$GANTOOL_WEIGHTS: there is no file or folder /nowhere"):
        preview(made(text=text), site, Silent())
    preview(
        made(text=text), site.model_copy(update={"container_options": ("--bind", "/data,/mine:/nowhere")}), Silent()
    )
    monkeypatch.setenv("GANTOOL_WEIGHTS", "/opt/gantool/weights")  # in the image
    preview(made(text=text), site, Silent())


@pytest.mark.parametrize("name", ["a,b", "a:b"])
def test_a_path_that_cannot_be_bound_is_refused(name: str, here: Path, slurm: FakeSlurm) -> None:
    text = GRID.replace("batch: 32", f"batch: 32, runtime: {{data_dir: '{name}'}}")
    with pytest.raises(UsageError, match=f"{name}: a path with a comma or a colon cannot be bound") as caught:
        go(site=SiteConfig(container="/a.sif"), text=text)
    assert "rename" in (caught.value.hint or "") and not Path("sweeps").exists()


def test_from_the_command_line(here: Path, slurm: FakeSlurm, data_dir: Path) -> None:
    text = GRID.replace("batch: 32", f"batch: 32, data: {{name: shapes, size: 8}}, runtime: {{data_dir: {data_dir}}}")
    Path("grid.yaml").write_text(text)

    def gantool(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COLUMNS": "200"}
        command = [sys.executable, "-m", "gantool", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    first = gantool("sweep", "grid.yaml")
    assert first.returncode == 0 and first.stdout == "10\n", first.stderr
    assert "9 runs (9 planned before): 9 submitted" in first.stderr and "gantool status sweeps/grid" in first.stderr
    again = gantool("sweep", "grid.yaml")
    assert again.returncode == 0 and again.stdout == "" and "nothing to submit" in again.stderr
    assert "9 runs in runs: 9 queued" in gantool("status", "sweeps/grid").stdout
    slurm.answer("squeue", error="slurm_load_jobs error: Unable to contact slurm controller")
    status = gantool("status", "sweeps/grid")
    assert status.returncode == 0 and "9 planned" in status.stdout and "Unable to contact" in status.stderr
    failed = gantool("sweep", "grid.yaml")
    assert failed.returncode == 1 and failed.stderr.count("error:") == 2 and "Traceback" not in failed.stderr


def test_with_an_image_a_login_node_needs_only_what_the_docs_install(
    here: Path, slurm: FakeSlurm, data_dir: Path
) -> None:
    repository = Path(__file__).parents[1]
    (named,) = re.findall(r"pip install (jinja2 .*)", (repository / "slurm/README.md").read_text())
    needed = (repository / "pyproject.toml").read_text().split("\ndependencies = [")[1].split("]")[0]
    absent = sorted(set(re.findall(r'"([a-z]+)>=', needed)) - set(named.split()))
    assert {"torch", "accelerate", "safetensors"} <= set(absent)
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); from gantool.cli import main; main()"
    text = GRID.replace("batch: 32", f"batch: 32, data: {{name: shapes, size: 8}}, runtime: {{data_dir: {data_dir}}}")
    Path("grid.yaml").write_text(text)
    Path("a.sif").touch()
    Path("site.yaml").write_text("container: a.sif")
    for words in ("sweep grid.yaml --dry-run", "sweep grid.yaml", "status sweeps/grid", "report sweeps/grid",
                  "doctor", "cancel sweeps/grid"):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_jobs_of_the_cluster_and_the_files_agree(here: Path, slurm: FakeSlurm) -> None:
    go()
    trials = made().trials
    finish(trials[0].run)
    slurm.set("10_0", state="COMPLETED", end=time.strftime("%Y-%m-%dT%H:%M:%S"))
    slurm.set("10_1", state="RUNNING", nodes="node1")
    jobs = Jobs([trial.run for trial in trials])
    assert [jobs.state(trial.run, trial.state())[0] for trial in trials] == ["done", "running", *["queued"] * 7]


def test_how_a_job_ended_is_waited_for(here: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """squeue has forgotten the jobs; accounting learns only later that scancel ended one."""
    go()
    name = next(iter(slurm.jobs().values()))["name"]
    rows = [[f"10_{task}", name, "CANCELLED by 0", "node1"] for task in range(1, 9)]
    slurm.configure(attempts=[["10_0", name, "RUNNING", "node1"], *rows])
    slurm.forget()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        slurm.configure(attempts=[["10_0", name, "CANCELLED by 0", "node1"], *rows])

    monkeypatch.setattr(verb, "time", SimpleNamespace(sleep=sleep, time=time.time))
    done = go()
    assert len(waits) == 1 and done.num_runs == 0 and set(done.states.values()) == {"cancelled"}
