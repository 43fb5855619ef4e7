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
