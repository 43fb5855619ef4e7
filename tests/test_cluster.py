"""Slurm's commands as `cluster` asks them, the batch script it makes, and what it does when they do not answer."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm

from gantool import cluster
from gantool.cluster import Batch, Job, SlurmSilent
from gantool.config.site import SiteConfig
from gantool.config.sweep_file import SlurmConfig
from gantool.errors import GantoolError


def batch(folder: Path, slurm: dict[str, Any] | None = None, site: dict[str, Any] | None = None, **more: Any) -> Batch:
    made = {"name": "gantool-x-1", "folder": folder, "command": "bash job.sh @runs.tsv", "num": 3, "on_gpu": True}
    settings = {"slurm": SlurmConfig(**(slurm or {})), "site": SiteConfig(**(site or {}))}
    return Batch(**{**made, **settings, **more})


def options(made: Batch) -> dict[str, str]:
    """The #SBATCH lines of the batch script."""
    lines = [
        line.removeprefix("#SBATCH --") for line in cluster.script(made).splitlines() if line.startswith("#SBATCH")
    ]
    pairs = [line.partition("=") for line in lines]
    assert len({key for key, _, _ in pairs}) == len(pairs), "an option twice"
    return {key: "".join(shlex.split(value)) for key, _, value in pairs}


def test_batch_script_of_one_gpu(tmp_path: Path, slurm: FakeSlurm) -> None:
    found = options(batch(tmp_path, {"time": "1d 2h"}))
    assert found == {
        "array": "0-2", "gpus-per-node": "1", "job-name": "gantool-x-1", "nodes": "1", "ntasks-per-node": "1",
        "open-mode": "append", "output": str(tmp_path / "%x-%a.txt"), "requeue": "", "signal": "USR2@120",
        "time": "1560",
    }  # fmt: skip
    text = cluster.script(batch(tmp_path))
    assert text.startswith("#!/bin/bash\n") and "srun" not in text
    assert "\nbash job.sh @runs.tsv -- " in text  # what submitit adds is passed over


@pytest.mark.parametrize(
    ("slurm_section", "site", "expected"),
    [
        ({"gpus": 4}, {}, {"gpus-per-node": "4", "ntasks-per-node": "4", "gres": None}),
        ({"gpus": 4}, {"gres": True}, {"gres": "gpu:4", "gpus-per-node": None}),
        ({"gpus": 2}, {"gpu_type": "a100"}, {"gpus-per-node": "a100:2"}),
        ({"gpus": 2}, {"gpu_type": "a100", "gres": True}, {"gres": "gpu:a100:2"}),
        ({"nodes": 2, "gpus": 4, "cpus": 8}, {"cpus": 2}, {"nodes": "2", "ntasks-per-node": "4", "cpus-per-task": "8"}),
        ({"gpus": 2, "tasks": 1}, {"cpus": 2}, {"gpus-per-node": "2", "ntasks-per-node": "1", "cpus-per-task": "2"}),
        ({"pack": 3, "mem": "8G"}, {"mem": "4G"}, {"ntasks-per-node": "3", "gpus-per-node": "1", "mem": "8G"}),
        ({"at_once": 2}, {"mem": "4G"}, {"array": "0-2%2", "mem": "4G"}),
        ({"gpus": 0}, {}, {"gpus-per-node": None, "ntasks-per-node": "1"}),
        ({}, {"account": "a", "partition": "p,q", "qos": "n", "constraint": "a100|h100", "reservation": "r"},
         {"account": "a", "partition": "p,q", "qos": "n", "constraint": "a100|h100", "reservation": "r"}),
        ({}, {"sbatch": {"mail-type": "FAIL", "exclusive": True, "nice": 10, "requeue": False}},
         {"mail-type": "FAIL", "exclusive": "", "nice": "10", "requeue": None}),
        ({}, {"signal_seconds": 300}, {"signal": "USR2@300"}),
    ],
)  # fmt: skip
def test_batch_script_asks_for(
    tmp_path: Path, slurm: FakeSlurm, slurm_section: dict[str, Any], site: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = options(batch(tmp_path, slurm_section, site))
    assert {key: found.get(key) for key in expected} == expected


def test_batch_script_without_gpu_with_exclude_and_dependency(tmp_path: Path, slurm: FakeSlurm) -> None:
    found = options(
        batch(tmp_path, {}, {"exclude": "node9"}, on_gpu=False, exclude=("node1",), dependency="afterany:7")
    )
    assert "gpus-per-node" not in found and found["exclude"] == "node9,node1" and found["dependency"] == "afterany:7"


def test_setup_and_environment_come_before_the_command(tmp_path: Path, slurm: FakeSlurm) -> None:
    site = {"setup": ["module load cuda", "ulimit -c 0"]}
    text = cluster.script(batch(tmp_path, {}, site, environment={"A": "'two words'", "B": "1"}))
    lines = ["module load cuda", "ulimit -c 0", "export A='two words'", "export B=1", "bash job.sh @runs.tsv -- "]
    places = [text.index(f"\n{line}") for line in lines]
    assert places == sorted(places)


def test_the_batch_script_is_bash(tmp_path: Path, slurm: FakeSlurm) -> None:
    folder = tmp_path / "two words"
    text = cluster.script(batch(folder, {"gpus": 2}, {"setup": ["true"]}, environment={"A": "'x y'"}))
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert options(batch(folder))["output"] == str(folder / "%x-%a.txt")


def test_submit_gives_the_id_and_the_jobs_inherit_no_job(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "8", "SRUN_CPUS_PER_TASK": "3", "RANK": "1", "WORLD_SIZE": "8"}
    inherited |= {
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "2000",
        "SQUEUE_FORMAT": "%i",
        "SUBMITIT_X": "1",
    }
    for key, value in {**inherited, "SLURM_CONF": "/etc/slurm.conf", "MINE": "1"}.items():
        monkeypatch.setenv(key, value)
    before = dict(os.environ)
    assert cluster.submit(batch(tmp_path)) == "10"
    cluster.queue(["gantool-x-1"])
    for call in slurm.calls():
        assert not inherited.keys() & call.env.keys(), call.name
        assert call.env["SLURM_CONF"] == "/etc/slurm.conf" and call.env["MINE"] == "1"
    assert dict(os.environ) == before
    assert sorted(slurm.jobs()) == ["10_0", "10_1", "10_2"]


def test_sbatch_that_refuses_is_one_clear_message(tmp_path: Path, slurm: FakeSlurm) -> None:
    slurm.answer("sbatch", error="sbatch: error: Batch job submission failed: Invalid account or account/partition")
    with pytest.raises(SlurmSilent) as caught:
        cluster.submit(batch(tmp_path))
    assert caught.value.message.startswith("sbatch refused the jobs: ") and "\n" not in caught.value.message
    assert caught.value.message.endswith("Invalid account or account/partition") and "site.yaml" in str(
        caught.value.hint
    )
    assert "Traceback" not in caught.value.message and caught.value.message.count("Invalid account") == 1


def test_test_only_says_what_sbatch_says(tmp_path: Path, slurm: FakeSlurm) -> None:
    assert cluster.check(batch(tmp_path)).startswith("Job 99 to start at")
    slurm.answer(
        "sbatch", error="sbatch: error: Batch job submission failed: Requested node configuration is not available"
    )
    assert "not available" in cluster.check(batch(tmp_path)) and not slurm.jobs()


def test_queue_reads_every_state(slurm: FakeSlurm) -> None:
    row = {"name": "gantool-x-1", "state": "RUNNING", "nodes": "node1", "end": "2026-11-28T13:00:00", "reason": "None"}
    ended = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 60))
    long_ago = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 600))
    slurm.configure(
        jobs={
            "10_0": row,
            "10_1": {**row, "state": "PENDING", "reason": "Resources", "nodes": "", "end": "N/A"},
            "10_2": {**row, "state": "PENDING", "reason": "launch failed requeued held", "nodes": "", "end": "N/A"},
            "10_3": {**row, "state": "NODE_FAIL", "end": ended},
            "10_4": {**row, "state": "NODE_FAIL", "end": long_ago},
            "10_5": {**row, "state": "PREEMPTED", "end": ended},
            "10_6": {**row, "state": "COMPLETED", "end": ended},
            "10_7": {**row, "state": "TIMEOUT", "end": ended},
            "10_8": {**row, "state": "PENDING", "reason": "Reason|with a bar", "end": "N/A"},
            "10_9": {**row, "name": "somebody-else"},
            "10_10": {**row, "state": "COMPLETING"},
        }
    )
    found = {job.id: job for job in cluster.queue(["gantool-x-1"])["gantool-x-1"]}
    assert sorted(found) == sorted(f"10_{number}" for number in (*range(9), 10))
    assert {id_ for id_, job in found.items() if job.alive} == {f"10_{number}" for number in (0, 1, 2, 3, 5, 8, 10)}
    assert {id_ for id_, job in found.items() if job.pending} == {f"10_{number}" for number in (1, 2, 3, 5, 8)}
    assert [id_ for id_, job in found.items() if job.held] == ["10_2"]
    assert found["10_0"].ended is None and found["10_0"].nodes == "node1"  # %e of what runs is the end of its time
    assert found["10_8"].reason == "Reason|with a bar"


def test_queue_asks_once_for_all_names_and_not_for_none(slurm: FakeSlurm) -> None:
    names = [f"gantool-x-{number}" for number in range(40)]
    assert cluster.queue(names) == {name: [] for name in names} and slurm.num_calls() == {"squeue": 1}
    assert cluster.queue([]) == {} and slurm.num_calls() == {}


@pytest.mark.parametrize(
    ("state", "reason", "held"),
    [
        ("PENDING", "JobHeldUser", True), ("PENDING", "JobHeldAdmin", True), ("REQUEUE_HOLD", "None", True),
        ("PENDING", "Priority", False), ("PENDING", "BeginTime", False), ("RUNNING", "None", False),
    ],
)  # fmt: skip
def test_held_jobs(state: str, reason: str, held: bool) -> None:
    assert Job("1", "x", state, reason).held is held


def test_limits(slurm: FakeSlurm) -> None:
    assert cluster.limits(SiteConfig()) == (1000, 1440, "main")
    assert cluster.limits(SiteConfig(partition="main,high", max_array=50)) == (50, 1440, "main,high")
    assert cluster.limits(SiteConfig(partition="high")).max_minutes == 120
    assert cluster.limits(SiteConfig(partition="open")).max_minutes is None
    assert cluster.limits(SiteConfig(max_array=5000)).max_array == 1000
    with pytest.raises(GantoolError, match="no partition 'hihg'; it has main, high, open") as caught:
        cluster.limits(SiteConfig(partition="hihg"))
    assert "site.yaml" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("infinite", None), ("30:00", 30), ("1:00:00", 60), ("1-02:30:00", 1590), ("n/a", None), ("2-00:00:00", 2880)],
)
def test_time_limits(slurm: FakeSlurm, limit: str, minutes: int | None) -> None:
    slurm.configure(partitions=f"main*|{limit}")
    assert cluster.limits(SiteConfig()).max_minutes == minutes


def test_accounting_reads_all_attempts(slurm: FakeSlurm) -> None:
    rows = [["10_0", "gantool-x-1", "NODE_FAIL", "node2"], ["10_0", "gantool-x-1", "CANCELLED by 1000", "node1"]]
    slurm.configure(attempts=[*rows, ["11", "else", "FAILED", "node1"]])
    found = cluster.accounting(["gantool-x-1"])
    assert found is not None
    assert [(one.id, one.state, one.nodes) for one in found] == [
        ("10_0", "NODE_FAIL", "node2"),
        ("10_0", "CANCELLED", "node1"),
    ]
    slurm.answer("sacct", error="Slurm accounting storage is disabled")
    assert cluster.accounting(["gantool-x-1"]) is None


@pytest.mark.parametrize("ask", [lambda: cluster.queue(["a"]), lambda: cluster.limits(SiteConfig())])
def test_a_slurm_that_is_down_is_one_line(slurm: FakeSlurm, ask: Any) -> None:
    words = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    for name in ("squeue", "scontrol"):
        slurm.answer(name, error=words)
    with pytest.raises(SlurmSilent, match="Unable to contact slurm controller") as caught:
        ask()
    assert "--local" in str(caught.value.hint)


def test_a_slurm_that_hangs(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE_SECONDS", 0.5)
    slurm.answer("squeue", seconds=30)
    with pytest.raises(SlurmSilent, match="squeue did not answer within"):
        cluster.queue(["a"])


def test_no_slurm_here(tmp_path: Path) -> None:
    assert not cluster.available() and cluster.accounting(["a"]) is None
    with pytest.raises(SlurmSilent, match="squeue is not on this machine"):
        cluster.queue(["a"])


def test_many_ids_are_cancelled_in_few_calls(slurm: FakeSlurm) -> None:
    ids = [f"10_{number}" for number in range(1200)]
    cluster.cancel(ids)
    assert [len(call.words) for call in slurm.calls("scancel")] == [500, 500, 200]
    cluster.cancel([])
    assert len(slurm.calls()) == 3
