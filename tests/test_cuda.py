"""What a CPU can show of training on a GPU, by a CUDA that computes nothing (no_gpu/stand_in.py): that all lies on the
device, that no step waits for it, that updates can be recorded, and that each verb comes to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Gantool
from no_gpu import stand_in
from test_graphs import CASES

HERE = Path(__file__).parent
GPU_TESTS = ("test_cuda_graphs_give_the_same_bits", "test_no_step_waits_for_the_gpu")


@pytest.fixture(scope="session")
def stand_in_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that see a GPU."""
    if obstacle := stand_in.obstacle():
        pytest.skip(f"a CUDA that computes nothing cannot be built: {obstacle}")
    return stand_in.build(tmp_path_factory.mktemp("cuda"))


def python(env: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    """Run a Python with one thread that sees a GPU."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.run([sys.executable, *map(str, words)], env=env, capture_output=True, text=True, timeout=300)


REFUSALS = """
import torch

def refused(work, words):
    try:
        work()
    except RuntimeError as error:
        told = []
        while error is not None:
            told.append(str(error))
            error = error.__context__
        assert any(words in text for text in told), told
    else:
        raise AssertionError(words)

assert torch.cuda.get_device_name() == "no GPU"
place = torch.device("cuda", 0)
on_device, on_host = torch.ones(4, device=place), torch.ones(4)
refused(lambda: on_device + on_host, "same device")
torch.cuda.set_sync_debug_mode("error")
refused(on_device.cpu, "called a synchronizing")
refused(lambda: on_host.to(place), "called a synchronizing")
on_host.pin_memory().to(place, non_blocking=True)
torch.cuda.set_sync_debug_mode("default")

side, other, before = torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.Event()
before.record()

def recorded(work):
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=side):
            work()
    finally:
        torch.cuda.set_stream(torch.cuda.default_stream())

def fork(joined):
    other.wait_stream(side)
    with torch.cuda.stream(other):
        on_device + 1
    if joined:
        side.wait_stream(other)

def swallowed():
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        pass

recorded(lambda: on_device + 1)
recorded(lambda: fork(joined=True))
refused(lambda: recorded(lambda: fork(joined=False)), "cudaError 904")
refused(lambda: recorded(lambda: on_device.sum().item()), "not permitted when stream is capturing")
refused(lambda: recorded(torch.cuda.synchronize), "not permitted when stream is capturing")
refused(lambda: recorded(swallowed), "cudaError 901")
refused(lambda: recorded(before.wait), "cudaError 905")
recorded(lambda: on_device + 1)
print("all refused")
"""


def test_the_stand_in_refuses_what_a_gpu_refuses(stand_in_env: dict[str, str]) -> None:
    done = python(stand_in_env, "-c", REFUSALS)
    assert done.stdout == "all refused\n", done.stderr


NOT_RECORDED = """
import torch
from gantool.graphs import CudaRecorder, Graphs

said = []
graphs = Graphs(CudaRecorder(torch.device("cuda", 0)), said.append)
one = torch.ones(3, device="cuda")
for _ in range(6):
    number, _ = graphs.run("update", lambda: (one.sum() + one.sum().item(), []))
    assert number.is_cuda
print(*said, graphs.wanted, torch.cuda.current_stream() == torch.cuda.default_stream(), sep="\\n")
"""


def test_an_update_that_waits_is_told_by_its_cause_and_computed_as_ever(stand_in_env: dict[str, str]) -> None:
    done = python(stand_in_env, "-c", NOT_RECORDED)
    words = "runtime.cuda_graphs: without from now on, an update cannot be recorded: CUDA error: operation not "
    assert done.stdout == f"{words}permitted when stream is capturing\nFalse\nTrue\n", done.stderr


def test_updates_are_recorded_and_no_step_waits(stand_in_env: dict[str, str]) -> None:
    """The tests for a GPU, whose comparisons of numbers say nothing here."""
    chosen = [f"{HERE / 'test_graphs.py'}::{name}" for name in GPU_TESTS]
    done = python(stand_in_env, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", *chosen)
    assert f"{len(GPU_TESTS) * len(CASES)} passed" in done.stdout, done.stdout
    assert "skipped" not in done.stdout


def test_every_verb_comes_to_its_end(
    gantool: Gantool, tiny: Path, tmp_path: Path, stand_in_env: dict[str, str]
) -> None:
    def run(*words: object) -> str:
        done = gantool(*words, **stand_in_env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    changes = ("runtime.device=cuda", "runtime.cuda_graphs=true", "precision=bfloat16", "eval={num: 50, every: 20}")
    own = f"runtime.data_dir={tmp_path / 'data'}"  # the classifier that is trained here is worth nothing
    sets = [word for change in (*changes, own) for word in ("--set", change)]
    path = Path(run("train", tiny, *sets, "--set", "runtime.final_images=5").strip())
    assert json.loads((path / "run.json").read_text())["device"] == "no GPU"
    assert json.loads((path / "status.json").read_text())["state"] == "done"
    told = (path / "log.txt").read_text()
    assert "step 20: fid" in told and "cuda_graphs" not in told  # which it says where it goes on without
    run("sample", "--ckpt", path, "--num", 7, "--out", tmp_path / "images")
    assert len([*(tmp_path / "images").glob("**/*.png")]) == 7
    rows = json.loads(run("eval", path, "--num", 60, "--metrics", "fid,is,kid,precision_recall", "--format", "json"))
    assert {"fid", "is", "kid", "precision"} <= set(rows[0]["values"])
    found = json.loads(run("bench", tiny, *sets, "--rounds", 1, "--steps", 2, "--compare", "plain", "--format", "json"))
    assert (found["device"], found["precision"]) == ("cuda", "bfloat16")
    assert "but it computes wrong numbers" in gantool("doctor", **stand_in_env).stdout


def test_a_run_without_its_last_files_goes_on(gantool: Gantool, tiny: Path, stand_in_env: dict[str, str]) -> None:
    """On the device, from what was saved there."""
    sets = ("--set", "runtime.device=cuda", "--set", "runtime.cuda_graphs=true")
    path = Path(gantool("train", tiny, *sets, **stand_in_env).stdout.strip())
    (path / "checkpoints" / "step-00000040.safetensors").unlink()
    (path / "snapshots" / "step-00000040.safetensors").unlink()
    (path / "result.json").unlink()
    done = gantool("train", path, **stand_in_env)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 30 of 40" in done.stderr and (path / "result.json").exists()


def test_a_full_gpu_is_an_error_that_says_what_to_do(
    gantool: Gantool, tiny: Path, stand_in_env: dict[str, str]
) -> None:
    little = {"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:0.00001"}
    done = gantool("train", tiny, "--set", "runtime.device=cuda", **stand_in_env, **little)
    assert done.returncode == 1 and "OutOfMemoryError: CUDA out of memory" in done.stderr
    assert "hint: the GPU's memory is used up: a smaller batch" in done.stderr


def test_a_device_that_accelerate_replaces_is_refused(
    gantool: Gantool, tiny: Path, stand_in_env: dict[str, str]
) -> None:
    done = gantool("train", tiny, "--set", "runtime.device=cuda", ACCELERATE_USE_CPU="true", **stand_in_env)
    assert done.returncode == 2 and "found that accelerate uses cpu, expected cuda" in done.stderr
