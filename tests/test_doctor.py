"""`gantool doctor`: a line for what works, a line and an advice for what does not."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Gantool
from typer.testing import CliRunner

from gantool import cli, container, doctor, driver
from gantool.doctor import Finding

OLD = driver.Obstacle("the NVIDIA driver is too old", "take another torch", True)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def test_one_screen_and_the_same_as_json(gantool: Gantool) -> None:
    shown, as_json = gantool("doctor"), gantool("doctor", "--format", "json")
    assert shown.returncode == as_json.returncode == 0, shown.stderr
    rows = json.loads(as_json.stdout)
    assert len(shown.stdout.splitlines()) < 40 and all(row["what"] in shown.stdout for row in rows)
    assert all(row["state"] == "ok" or row["advice"] for row in rows)
    wanted = {"gantool", "torch", "NVIDIA driver", "several processes", "InfiniBand", "Slurm", "Inception weights"}
    assert wanted | {"caches", "/dev/shm", "scratch", "working directory"} <= {row["what"] for row in rows}


def test_something_broken_is_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for state, code in (("problem", 1), ("warning", 0)):
        monkeypatch.setattr(doctor, "examine", lambda state=state: [Finding("torch", state, "words", "do this")])
        result = CliRunner().invoke(cli.app, ["doctor"])
        assert result.exit_code == code and "-> do this" in result.stdout


def test_a_driver_that_is_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "obstacle", lambda built_for: OLD)
    found = by_name(doctor.examine())["NVIDIA driver"]
    assert (found.state, found.found, found.advice) == ("problem", OLD.text, OLD.hint)


def test_weights_are_found_where_an_evaluation_would_find_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GANTOOL_WEIGHTS", str(tmp_path))
    assert by_name(doctor.examine())["Inception weights"].state == "warning"
    path = tmp_path / "inception-2015-12-05.pt"
    path.write_text("")
    assert by_name(doctor.examine())["Inception weights"] == Finding("Inception weights", "ok", str(path))


def test_a_torch_that_does_not_load_is_a_problem(gantool: Gantool, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    done = gantool("doctor", PYTHONPATH=f"{tmp_path}:{Path(doctor.__file__).parents[1]}")
    assert done.returncode == 1 and "problem torch" in done.stdout and "libcudart.so.13" in done.stdout


def test_programs_that_fail_or_hang_are_told_apart_from_missing_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "sbatch"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for text, state, words in (
        ("echo slurm 24.11", "ok", "slurm 24.11"),
        ("echo no controller >&2; exit 1", "warning", "no controller"),
    ):
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        found = by_name(doctor.examine())["Slurm"]
        assert found.state == state and words in found.found


def test_infiniband_without_its_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(doctor, "INFINIBAND", tmp_path)

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(doctor.ctypes, "CDLL", missing)
    found = by_name(doctor.examine())["InfiniBand"]
    assert found.state == "warning" and "mlx5_0" in found.found and "libibverbs1" in found.advice


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = SimpleNamespace(total=64 * 2**20, free=2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file" / "scratch"))
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    found = by_name(doctor.examine())
    assert found["/dev/shm"].state == "warning" and "NCCL needs it" in found["/dev/shm"].advice
    assert found["scratch"].state == "warning" and "TMPDIR" in found["scratch"].found
    assert found["working directory"] == Finding("working directory", "ok", f"{tmp_path}, 1 GB free")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (container.DOCKER, "docker run --shm-size"),
        (container.PODMAN, "podman run --shm-size"),
        (container.APPTAINER, "administrators"),
        (container.OTHER, "administrators"),
        (None, "administrators"),
    ],
)
def test_a_small_dev_shm(engine: container.Engine | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "engine", lambda: engine)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(total=64 * 2**20, free=2**30))
    assert words in by_name(doctor._shm())["/dev/shm"].advice


@pytest.mark.parametrize("name", ["TMPDIR", "SLURM_TMPDIR"])
def test_a_scratch_folder_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.setenv(name, str(tmp_path / "gone"))
    found = by_name(doctor.examine())["scratch"]
    assert found.state == "warning" and f"{name} is {tmp_path}/gone" in found.found
    for engine, words in ((None, "make it"), (container.DOCKER, f"--volume {tmp_path}")):
        monkeypatch.setattr(container, "engine", lambda engine=engine: engine)
        assert words in doctor._scratch().advice


def test_without_any_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(container, "temporary_folder", lambda: None)
    found = by_name(doctor.examine())["scratch"]
    assert found.state == "warning" and "TMPDIR" in found.advice


def test_a_working_directory_that_was_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    found = by_name(doctor.examine())["working directory"]
    assert found.state == "warning" and found.found == "it has been removed"


def test_each_cache_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in container.CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(container, "cache_folder_works", lambda: True)
    assert doctor._caches().state == "ok"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "triton"))
    found = doctor._caches()
    assert found.state == "warning" and f"TRITON_CACHE_DIR is {tmp_path}/file/triton" in found.found
    assert "set TRITON_CACHE_DIR" in found.advice
    monkeypatch.setattr(container, "cache_folder_works", lambda: False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = doctor._caches()
    assert found.state == "warning" and "set MPLCONFIGDIR and" in found.advice and "TRITON" not in found.advice


def test_weights_of_torchvision_and_where_others_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GANTOOL_WEIGHTS", str(tmp_path))
    assert by_name(doctor.examine())["torchvision weights"].found.startswith("none")
    for name in ("resnet18-f37072fd.pth", "pt_inception-2015-12-05-6726825d.pth", "mine.pth"):
        (tmp_path / name).write_text("")
    found = by_name(doctor.examine())
    assert found["torchvision weights"].found == f"resnet18-f37072fd.pth in {tmp_path}"
    assert Path(found["EfficientNet weights"].found).is_dir()


@pytest.mark.parametrize(
    ("group", "file", "limit"),
    [
        ("0::/slurm/job_3", "slurm/memory.max", 3 * 2**30),
        ("0::/slurm/job_3", "slurm/job_3/memory.max", 3 * 2**30),
        ("4:cpu:/x\n5:memory:/slurm", "memory/slurm/memory.limit_in_bytes", 3 * 2**30),
        ("0::/elsewhere", "slurm/memory.max", None),
    ],
)
def test_the_limit_of_memory(
    group: str, file: str, limit: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(doctor, "CGROUPS", tmp_path)
    (tmp_path / "cgroup").write_text(group + "\n")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(f"{3 * 2**30}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor._memory_limit() == (limit or math.inf)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**22}[name])
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1024")  # MB
    assert "1.0 of 16 GB of memory for this job" in doctor._machine().found


def test_gpus_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*shape: int, device: str) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 1)
    fake = SimpleNamespace(version=SimpleNamespace(cuda="12.8"), cuda=cuda, ones=ones)
    monkeypatch.setattr(driver, "cuda_of_driver", lambda: (12, 8))
    found = by_name(doctor._gpus(fake))  # type: ignore[arg-type]
    assert found["NVIDIA driver"].found == "good for CUDA 12.8"
    assert found["GPU 0"].state == "problem" and "no kernel image" in found["GPU 0"].found
    cuda.device_count = lambda: 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = by_name(doctor._gpus(fake))  # type: ignore[arg-type]
    assert found["GPUs"].state == "warning" and "CUDA_VISIBLE_DEVICES" in found["GPUs"].advice
