"""One cluster for all tests in this folder, also when several processes of pytest share them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .cluster import Cluster, free_port, why_not
from .desk import Desk, locked

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip where there is no Slurm, and in a run of all tests, which these would make much longer."""
    words = [Path(word.split("::")[0]).resolve() for word in config.args]
    asked = any(path == HERE or HERE in path.parents for path in words)
    why = why_not() if asked else "on a real Slurm: make test-slurm runs them"
    if why:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this session have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def _started(folder: Path, num_nodes: int, **settings: Any) -> Cluster:
    """The first process starts it; it goes when the whole session has ended, in whatever way."""
    ready = folder.with_suffix(".ready")
    with locked(folder.parent / "clusters.lock"):  # one at a time, since they look for free ports
        if ready.exists():
            return Cluster.of(folder)
        cluster = Cluster(folder, num_nodes, port=free_port(num_nodes + 3), **settings)
        session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
        command = [sys.executable, str(HERE / "cluster.py"), "down", str(folder), "--after", str(session)]
        with (folder.with_suffix(".end")).open("w") as words:
            end = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True
            )
        end.returncode = 0  # it outlives this process
        cluster.up()
        ready.touch()
        return cluster


@pytest.fixture(scope="session")
def cluster(shared: Path) -> Cluster:
    """A cluster with accounting; node1 to node3 for everyone, node4 to node6 for tests that do them harm.

    Its arrays are small, so that sweeps need several, and it forgets jobs soon after their end.
    """
    return _started(shared / "cluster", 6, settings={"MaxArraySize": "5", "MinJobAge": "10"})


@pytest.fixture(scope="session")
def bare_cluster(shared: Path) -> Cluster:
    """A cluster without GPUs and accounting that tells jobs of preemption by SIGTERM alone; node2 is for that."""
    return _started(shared / "bare", 2, num_gpus=0, accounting=False, settings={"SlurmctldParameters": None})


def _at(cluster: Cluster, shared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for key in [key for key in os.environ if key.startswith(("SLURM_", "SBATCH_", "GANTOOL_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.chdir(folder)
    return Desk(folder, cluster, shared, {"exclude": "node[4-6]", "signal_seconds": 30})


@pytest.fixture
def desk(cluster: Cluster, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk in front of the cluster; its jobs end with the test."""
    desk = _at(cluster, shared, tmp_path, monkeypatch)
    yield desk
    _end_jobs(desk)


@pytest.fixture
def bare_desk(bare_cluster: Cluster, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk in front of the cluster without accounting."""
    desk = _at(bare_cluster, shared, tmp_path, monkeypatch)
    desk.site = {"exclude": "node2", "signal_seconds": 30}
    yield desk
    _end_jobs(desk)


def _end_jobs(desk: Desk) -> None:
    here = desk.slurm("squeue", "-h", "-o", "%A|%Z").splitlines()
    ids = sorted({row.split("|")[0] for row in here if row.endswith(f"|{desk.folder}")})
    if ids:
        desk.slurm("scancel", *ids)
