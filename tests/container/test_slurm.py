"""The image as the jobs of a sweep use it, on a real Slurm: a run that is preempted there ends with the bits of one
that the image trained undisturbed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from pages import ROOT, shell_lines
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
    templates = ROOT / "slurm"
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


SECTION = "## 6. CIFAR-10 on a cluster"
CHANGES = {
    # No image registry, no download of weights or data, no hours: what is otherwise typed as it stands there.
    "apptainer build gantool.sif containers/gantool.def": "ln {image} gantool.sif",
    "wget --directory-prefix weights": "touch weights/pt_inception-2015-12-05-6726825d.pth # {rest}",
    "apptainer run gantool.sif prepare --dataset cifar10": "{line} --source images",
    "gantool sweep cifar_averaging.yaml": "{line} {small}",
    "gantool status sweeps/cifar_averaging --watch": "gantool status sweeps/cifar_averaging",
}
SMALL = {
    "batch": 8,
    "n_dis": 1,
    "steps": 4,
    "generator.width": 8,
    "generator.max_width": 8,
    "discriminator.width": 8,
    "discriminator.max_width": 8,
    "eval": "{extractor: classifier, num: 40}",
    "runtime.grid": "2x2",
}


def test_the_page_from_zero_to_a_table_is_followed_on_the_cluster(desk: Desk, image: Image) -> None:
    """Line by line: the gantool of a login node without torch, the image, site.yaml, the sweep, its report."""
    copy, home = desk.folder / "copy", desk.folder / "home"
    copy.mkdir()
    home.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", copy], input=archive.stdout, check=True)
    for number in range(120):
        split = "test" if number >= 80 else "train"
        path = copy / f"images/{split}/class{number % 10}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((32, 32, 3), 2 * number, np.uint8)).save(path)
    page = (copy / "configs/from-zero-to-a-table.md").read_text()
    section = page[page.index(SECTION) :]
    for block in re.findall(r"^```yaml\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        name = block.split()[1]
        block = block.replace("mem: 32G", "mem: 2G").replace("seeds: 5", "seeds: 2")
        (copy / name).write_text(block + (f"env: {json.dumps(DROPPED)}\n" if name == "site.yaml" else ""))
    small = shlex.join(word for key, value in SMALL.items() for word in ("--set", f"{key}={value}"))
    said, exports, used = "", [], set()
    for line in shell_lines(section):
        start = next((start for start in CHANGES if line.startswith(start)), "")
        used.add(start)
        typed = CHANGES.get(start, "{line}").format(image=image.path, line=line, rest=line, small=small)
        if line.startswith("gantool status"):
            desk.wait("the results of the sweep", (copy / "sweeps/cifar_averaging/results.tex").exists)
        environment = {"HOME": str(home), **DROPPED, **{name: os.environ[name] for name in ("PATH", "SLURM_CONF")}}
        done = subprocess.run(
            ["bash", "-ec", "\n".join([*exports, typed])], cwd=copy, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{typed}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
        exports += [line] if line.startswith("export") else []
    assert used == {"", *CHANGES}
    assert "#SBATCH --account=ab1234" in said and "#SBATCH --partition=gpu" in said and "--time=240" in said
    assert "4 runs in runs: 4 done" in said and "difference: fid against average none" in said
    results = copy / "sweeps/cifar_averaging"
    assert (results / "report.html").exists() and "(2)" in (results / "results.tex").read_text()
    runs = [files.read_json(run) for run in copy.glob("runs/*/run.json")]
    assert len(runs) == 4 and all(run["image"]["revision"] == "of-the-test" for run in runs)
