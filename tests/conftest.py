"""Fixtures: small packed data, small configs, and real `gantool` processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, without_slurm

TINY = """\
name: tiny
data: {name: shapes, size: 8}
generator: {latent_dim: 8, width: 4, max_width: 8}
discriminator: {width: 4, max_width: 8}
batch: 8
steps: 40
runtime: {device: cpu, threads: 1, log_every: 5, sample_every: 1000, snapshot_every: 20, checkpoint_every: 10,
          grid: 2x2}
"""

HERE = Path(__file__).parent
WITH_A_CLUSTER = {HERE / "slurm", HERE / "container" / "test_slurm.py"}

Gantool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def path_without_slurm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The search path, as on a machine without Slurm."""
    return without_slurm(os.environ["PATH"], tmp_path_factory.mktemp("bin"))


@pytest.fixture(autouse=True)
def no_real_cluster(request: pytest.FixtureRequest, path_without_slurm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test submits to the cluster of the machine it happens to run on, but those that bring their own."""
    if not WITH_A_CLUSTER & {request.node.path, request.node.path.parent}:
        monkeypatch.setenv("PATH", path_without_slurm)
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "GANTOOL_"))]:
            monkeypatch.delenv(name)


@pytest.fixture
def slurm(no_real_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A pretended Slurm, first on the search path."""
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.bin}{os.pathsep}{os.environ['PATH']}")
    return fake


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `shapes` packed at 8x8."""
    from gantool.config.schema import DataConfig
    from gantool.data.pack import ensure_packed
    from gantool.progress import Silent

    folder = tmp_path_factory.mktemp("data")
    ensure_packed(DataConfig(name="shapes", size=8), folder, Silent())
    return folder


@pytest.fixture
def tiny(tmp_path: Path, data_dir: Path) -> Path:
    """A run config of a few seconds, with its folders below tmp_path."""
    return tiny_config(tmp_path, data_dir)


def tiny_config(folder: Path, data_dir: Path) -> Path:
    """Write TINY to `folder`, with its run directories there."""
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("grid: 2x2}", f"grid: 2x2, data_dir: {data_dir}, runs_dir: {folder / 'runs'}}}"))
    return path


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    out, err = start("train", tiny_config(folder, data_dir)).communicate(timeout=300)
    assert out, err
    return Path(out.strip())


@pytest.fixture
def done_run(tmp_path: Path, _trained: Path) -> Path:
    """The run directory of the `tiny` config when it is done, below tmp_path; a copy for each test."""
    return Path(shutil.copytree(_trained, tmp_path / "runs" / _trained.name))


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """`gantool ARGUMENTS` as a real process with one CPU thread."""
    command = [sys.executable, "-m", "gantool", *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@pytest.fixture
def gantool() -> Gantool:
    """Run `gantool ARGUMENTS` to its end: its exit code, stdout and stderr."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        process = start(*arguments, **environment)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
