"""The sbatch templates, as a person submits them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from gantool import files
from gantool.runs import RunDirectory

from .desk import FAST, SLOW, Desk, output, starts

TEMPLATES = Path(__file__).parents[2] / "slurm"


@pytest.fixture(autouse=True)
def commands(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the templates leave to the person: where job.sh and gantool are."""
    monkeypatch.setenv("GANTOOL_JOB", str(TEMPLATES / "job.sh"))
    monkeypatch.setenv("GANTOOL", f"{sys.executable} -m gantool")


def configs(desk: Desk, num: int = 1, **keys: Any) -> tuple[list[str], list[RunDirectory]]:
    """Configs that differ in their seed, and the run directories that they name."""
    desk.write()  # the loss, too
    base = files.read_json(desk.folder / "sweep.yaml")["base"] | keys
    names = [f"seed{seed}.yaml" for seed in range(num)]
    for seed, name in enumerate(names):
        files.write_json(desk.folder / name, base | {"seed": seed})
    return names, [RunDirectory(desk.folder / desk.gantool("train", "--init", name).strip()) for name in names]


def submit(desk: Desk, template: str, *words: str, **options: str) -> str:
    """The job's id."""
    small = {"cpus-per-task": "1", "mem": "800M", "time": "10", "exclude": "node[4-6]"} | options
    given = [f"--{name}={value}" for name, value in small.items()]
    return desk.slurm("sbatch", "--parsable", *given, str(TEMPLATES / template), *words).strip()


def wait_for_end(desk: Desk, job: str, runs: list[RunDirectory]) -> None:
    """Until the runs are done and Slurm has forgotten the job."""
    gone = lambda: job not in desk.slurm("squeue", "-h", "-o", "%A %F").split()  # noqa: E731
    desk.wait("the end", lambda: all(run.result() for run in runs) and gone())


def test_one_gpu_saves_and_comes_back(desk: Desk) -> None:
    (name,), (run,) = configs(desk)
    desk.pace(SLOW)
    job = submit(desk, "one_gpu.sbatch", name)
    desk.wait_for_step(run, 5)
    assert "gres/gpu=1" in desk.slurm("scontrol", "show", "job", job)
    desk.slurm("scancel", "--signal=USR2", job)
    desk.wait("the next start", lambda: len(starts(run)) == 2)
    desk.pace(FAST)
    wait_for_end(desk, job, [run])
    assert [start["job"] for start in starts(run)] == [job, job] and "stopped by SIGUSR2" in output(run)
    desk.assert_undisturbed(run)
    words = (desk.folder / f"gantool-{job}.txt").read_text()
    assert "stopped: SIGUSR2" in words and re.search(rf"gantool job {job}: \S+: done", words)


def test_an_array_takes_a_line_for_each_task(desk: Desk) -> None:
    _, runs = configs(desk, num=2)
    (desk.folder / "runs.txt").write_text("".join(f"{run.path}\n" for run in runs))
    job = submit(desk, "array.sbatch", "@runs.txt", array="0-1")
    wait_for_end(desk, job, runs)
    for task, run in enumerate(runs):
        assert [start["job"] for start in starts(run)] == [f"{job}_{task}"]
        desk.assert_undisturbed(run)


def test_several_runs_share_a_gpu_if_each_has_a_task(desk: Desk) -> None:
    names, runs = configs(desk, num=2)
    refused = submit(desk, "packed.sbatch", *names)
    job = submit(desk, "packed.sbatch", *names, ntasks="2")
    wait_for_end(desk, job, runs)
    for run in runs:
        assert [start["job"] for start in starts(run)] == [job]
        desk.assert_undisturbed(run)
    assert "2 runs for 3 tasks: submit with --ntasks=2" in (desk.folder / f"gantool-{refused}.txt").read_text()


def test_several_nodes_train_one_run(desk: Desk) -> None:
    (name,), (run,) = configs(desk)
    options = {"nodes": "2", "ntasks-per-node": "2", "gpus-per-node": "2", "mem": "2G"}
    job = submit(desk, "multi_node.sbatch", name, **options)
    wait_for_end(desk, job, [run])
    assert files.read_json(run.path / "run.json")["num_ranks"] == 4
    names = ["output.txt", *(f"output-rank{rank}.txt" for rank in (1, 2, 3))]
    hosts = [re.findall(r"on (\w+): job", (run.path / name).read_text()) for name in names]
    assert [len(host) for host in hosts] == [1, 1, 1, 1] and len({host[0] for host in hosts}) == 2
