"""slurm/: the shell that runs in jobs is clean, is one text, and is installed with the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHELL = sorted([*ROOT.glob("slurm/*.sh"), *ROOT.glob("slurm/*.sbatch")])
TEMPLATES = [path for path in SHELL if path.suffix == ".sbatch"]


def test_shellcheck() -> None:
    beside = Path(sys.executable).parent
    program = shutil.which("shellcheck", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[dev]'")
    done = subprocess.run([program, *SHELL], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_one_text_for_sweeps_and_templates() -> None:
    assert (ROOT / "gantool/job.sh").read_text() == (ROOT / "slurm/job.sh").read_text()


def test_a_wheel_has_it(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    for name in ("gantool", "slurm", "pyproject.toml", "README.md", "LICENSE"):
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, tmp_path / name)
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("dist/*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("gantool/job.sh") == (ROOT / "slurm/job.sh").read_bytes()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_keep_the_contract(path: Path) -> None:
    text = path.read_text()
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    options = " ".join(line.removeprefix("#SBATCH ") for line in lines)
    for option in ("signal=USR2@", "requeue", "open-mode=append", "time=", "gpus-per-node=", "cpus-per-task="):
        assert f"--{option}" in options, option
    assert "# export GANTOOL_CONTAINER=" in text and text.endswith('exec bash "$job" "$@"\n')
    last = max(number for number, line in enumerate(text.splitlines()) if line.startswith("#SBATCH"))
    assert not any(line and not line.startswith("#") for line in text.splitlines()[:last]), "an option is not read"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_say_when_they_do_not_find_it(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "SLURM_NTASKS": "1"}
    done = subprocess.run(["bash", path, "x"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "export GANTOOL_JOB=" in done.stdout and done.stdout.count("\n") == 1


def test_job_script_outside_a_job_says_so(tmp_path: Path) -> None:
    done = subprocess.run(["bash", ROOT / "slurm/job.sh", "x"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "job.sh is started by sbatch" in done.stderr


def job(folder: Path, *words: str, squeue: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """job.sh as the batch script of job 7, where squeue answers `squeue` and srun tells its environment."""
    programs = {
        "squeue": f"echo '{squeue}'",
        "scontrol": 'echo "$@" >> scontrol.txt; echo node1',
        "srun": 'env > srun.txt; cat mark > run/stopped 2> /dev/null; exit "${SRUN_CODE:-0}"',
    }
    for name, text in programs.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    path_of = f"{folder / 'bin'}:{os.environ['PATH']}"
    job_environment = {"PATH": path_of, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "TMPDIR": str(folder)}
    command = [shutil.which("bash") or "bash", str(ROOT / "slurm/job.sh"), *words]
    env = job_environment | environment
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(("squeue", "deadline"), [("", ""), ("N/A", ""), ("2033-05-18T03:33:20", "2000000000")])
def test_without_an_answer_there_is_no_deadline(tmp_path: Path, squeue: str, deadline: str) -> None:
    (tmp_path / "run").mkdir()
    assert job(tmp_path, "run", squeue=squeue, TZ="UTC").returncode == 0
    assert f"GANTOOL_DEADLINE={deadline}" in (tmp_path / "srun.txt").read_text().splitlines()
    job(tmp_path, "run", squeue=squeue, TZ="UTC", SLURM_JOB_END_TIME="1999999999")  # newer versions tell it
    assert "GANTOOL_DEADLINE=1999999999" in (tmp_path / "srun.txt").read_text().splitlines()


def test_a_task_without_runs_is_a_failure(tmp_path: Path) -> None:
    done = job(tmp_path, "@runs.tsv", "--", "-u", "words of others")
    assert done.returncode == 2 and "@runs.tsv has no line for this task" in done.stdout
    (tmp_path / "runs.tsv").write_text("gone\n")
    done = job(tmp_path, "@runs.tsv")
    assert done.returncode == 2 and "has no gone: is it in a folder that all nodes share?" in done.stderr


@pytest.mark.parametrize(
    ("mark", "cancelled", "requeued"),
    [("SIGUSR2", False, True), ("the time limit", False, True), ("SIGINT", False, False), ("SIGUSR2", True, False)],
)
def test_what_is_requeued(tmp_path: Path, mark: str, cancelled: bool, requeued: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/stopped").write_text("SIGUSR2")  # of an earlier job: it counts no more
    assert job(tmp_path, "run", SRUN_CODE="1").returncode == 1
    assert not (tmp_path / "run/stopped").exists() or not (tmp_path / "run/stopped").read_text()
    (tmp_path / "mark").write_text(mark)
    if cancelled:
        (tmp_path / "mark").unlink()
        (tmp_path / "run/cancelled").touch()
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "0"}
    done = job(tmp_path, "run", SRUN_CODE="75", **array)
    said = (tmp_path / "scontrol.txt").read_text().splitlines()
    assert ("requeue 5_0" in said) is requeued, done.stdout
    assert done.returncode == (0 if requeued or cancelled else 75)


def task(folder: Path, *programs: str, **environment: str) -> dict[str, str]:
    """The environment that job.sh gives to the trainer of a task, where there are these programs of containers. Each
    does nothing but tell its name."""
    (folder / "run").mkdir(exist_ok=True)
    texts = {"gantool": f"env > {folder}/task.txt"} | {name: f'export BY={name}; exec "${{@:3}}"' for name in programs}
    (folder / "programs").mkdir()
    for name, text in texts.items():
        (folder / "programs" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "programs" / name).chmod(0o755)
    for name in ("bash", "sh", "env", "realpath", "id", "mkdir", "date", "hostname"):
        (folder / "programs" / name).symlink_to(shutil.which(name) or "/nowhere")
    path = str(folder / "programs")
    alone = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1", "GANTOOL_SCRATCH": str(folder)}
    done = job(folder, "--task", "", "run", **{"PATH": path, **alone, **environment})
    assert done.returncode == 0, done.stderr + (folder / "run/output.txt").read_text()
    lines = (folder / "task.txt").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, ""),
        ({"APPTAINER_BIND": "/a"}, ",/a"),
        ({"SINGULARITY_BIND": "/s"}, ",/s"),
        ({"APPTAINER_BIND": "/a", "SINGULARITY_BIND": "/s"}, ",/a"),  # as Apptainer takes it
    ],
)
def test_scratch_is_bound_beside_what_the_site_binds(before: dict[str, str], after: str, tmp_path: Path) -> None:
    found = task(tmp_path, **before)
    expected = f"{tmp_path}/gantool-{os.getuid()}-7{after}"
    assert found["APPTAINER_BIND"] == found["SINGULARITY_BIND"] == expected


def test_singularity_is_taken_where_there_is_no_apptainer(tmp_path: Path) -> None:
    assert task(tmp_path, "singularity", GANTOOL_CONTAINER="apptainer exec x.sif")["BY"] == "singularity"


def test_apptainer_is_taken_where_there_are_both(tmp_path: Path) -> None:
    found = task(tmp_path, "apptainer", "singularity", GANTOOL_CONTAINER="apptainer exec x.sif")
    assert found["BY"] == "apptainer"
