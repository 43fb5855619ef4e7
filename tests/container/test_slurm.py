"""The image as the jobs of a sweep use it, on a real Slurm: a run that is preempted there ends with the bits of one
that the image trained undisturbed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm.cluster import Cluster, free_port, why_not
from slurm.desk import FAST, SLOW, Desk, assert_same_weights, output, starts
from users import Image

from gantool import files

DROPPED = {"APPTAINER_DROP_CAPS": "CAP_SYS_RESOURCE"}  # root may lack it, and Apptainer then refuses to give it to jobs


@pytest.fixture
def desk(image: Image, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk in front of a cluster of two nodes, whose site.yaml names the image."""
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="desk-", dir=image.person.scratch))
    folder.chmod(0o755)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "GANTOOL_"))]:
        monkeypatch.delenv(name)
    cluster = Cluster(folder / "cluster", num_nodes=2, accounting=False, port=free_port(5))
    cluster.up()
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    site = {"container": str(image.path), "env": DROPPED, "sbatch": {"nodelist": "node1"}, "signal_seconds": 30}
    yield Desk(folder, cluster, folder, site)
    cluster.down()


def test_a_sweep_through_the_image_is_preempted_and_resumed(desk: Desk, image: Image, tmp_path: Path) -> None:
    desk.write(vary={"augment": ["none", "basic"]}, slurm={"mem": "2G"})
    desk.pace(SLOW)
    desk.gantool("sweep", "sweep.yaml")
    first, second = desk.runs()
    for run in (first, second):
        desk.wait_for_step(run, 5)
    words = ("--partition=high", "--nodelist=node1", "--mem=5G", "--time=5", "--output=/dev/null", "--wrap=sleep 300")
    high = desk.slurm("sbatch", "--parsable", f"--chdir={desk.folder}", *words).strip()
    desk.wait("the other job to run", lambda: desk.slurm("squeue", "-h", "-j", high, "-o", "%T").strip() == "RUNNING")
    desk.wait("a run that is back in the queue", lambda: "requeued" in [one.state for one in desk.status()])
    desk.pace(FAST)
    desk.slurm("scancel", high)
    desk.wait_for_end()
    (preempted,) = (run for run in (first, second) if len(starts(run)) == 2)  # there is room for the other one
    assert "stopped by SIGUSR2 at step" in output(preempted) and starts(preempted)[1]["step"] > 5
    digest = files.read_json(first.path / "run.json")["image"]["digest"]
    assert digest and files.read_json(second.path / "run.json")["image"]["digest"] == digest
    command = ("env", *(f"{key}={value}" for key, value in DROPPED.items()), "apptainer", "run")
    inside = (*command, "--bind", f"{desk.folder},{tmp_path}", str(image.path))
    changed = ("--set", f"runtime.runs_dir={tmp_path}")
    again = desk.slurm(*inside, "train", "--init", f"{preempted.path}/config.yaml", *changed).strip()
    desk.slurm(*inside, "train", again)
    assert_same_weights(Path(again), preempted.path)


def test_a_template_through_the_image(desk: Desk, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    templates = Path(__file__).parents[2] / "slurm"
    monkeypatch.setenv("GANTOOL_JOB", str(templates / "job.sh"))
    monkeypatch.setenv("GANTOOL_CONTAINER", f"apptainer exec --bind {desk.folder} {image.path}")
    for name, value in DROPPED.items():
        monkeypatch.setenv(name, value)
    desk.write()
    desk.pace(FAST)
    files.write_json(desk.folder / "one.yaml", files.read_json(desk.folder / "sweep.yaml")["base"])
    options = (f"--chdir={desk.folder}", "--nodelist=node1", "--cpus-per-task=1", "--mem=800M", "--time=10")
    desk.slurm("sbatch", *options, str(templates / "one_gpu.sbatch"), "one.yaml")
    desk.wait("the end of the run", lambda: list(desk.folder.glob("**/result.json")))
    (result,) = desk.folder.glob("**/result.json")
    assert files.read_json(result.parent / "run.json")["image"]["file"] == str(image.path)
