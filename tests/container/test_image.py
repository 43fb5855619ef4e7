"""The real image, used as on a cluster: unprivileged, read-only, with no GPU here. `make test-container` runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from users import Done, Image, Person

from gantool import __version__, checkpoint, driver

MODELS = "snapshots/step-00000040.safetensors"


def run_of(done: Done) -> Path:
    """The run directory that `gantool train` printed."""
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip())


def facts_of(run: Path) -> dict[str, object]:
    found = json.loads((run / "run.json").read_text())
    assert isinstance(found, dict)
    return found


def assert_same_weights(one: Path, other: Path) -> None:
    (a, _), (b, _) = checkpoint.load(one / MODELS), checkpoint.load(other / MODELS)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def trained(image: Image) -> Path:
    """A run that the image trained in the working directory."""
    return image.person.folder / run_of(image("train", "tiny.yaml"))


def test_its_own_test_passes(image: Image) -> None:
    done = image.person.run("apptainer", "test", image.path)
    assert done.returncode == 0 and __version__ in done.stdout, done.stdout + done.stderr


def test_labels_and_help_say_what_it_is(image: Image) -> None:
    labels = image.person.run("apptainer", "inspect", image.path).stdout
    for line in (f"image.version: {__version__}", "image.revision: of-the-test", "requirements-cpu.lock"):
        assert line in labels
    assert "--nv" in image.person.run("apptainer", "run-help", image.path).stdout


def test_the_list_of_what_is_in_it_has_gantool_too(image: Image) -> None:
    lines = image.execute("cat", "/opt/gantool/installed.txt").stdout.splitlines()
    assert f"gantool=={__version__}" in lines and any(line.startswith("torch==") for line in lines)


def test_it_is_a_program(image: Image) -> None:
    assert image.person.run(image.path, "--version").stdout.strip() == __version__


def test_a_run_in_the_working_directory_knows_its_image(image: Image, trained: Path) -> None:
    assert (trained / "result.json").exists()
    found = facts_of(trained)["image"]
    assert isinstance(found, dict) and found["revision"] == "of-the-test" and found["file"] == str(image.path)
    assert found["digest"].startswith("sha256:") and len(found["digest"]) == 7 + 64


def test_the_weights_are_those_of_the_same_run_outside(image: Image, trained: Path) -> None:
    """Bit for bit: the packages of the image, with this machine's Python."""
    inside = image.execute("python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout.strip()
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if inside != here:
        pytest.skip(f"the image has Python {inside}, this is {here}")
    packages = image.person.scratch / "packages"
    assert image.execute("cp", "-r", f"/opt/gantool/lib/python{inside}/site-packages", packages).returncode == 0
    python = getattr(sys, "_base_executable", sys.executable)
    env = {"PYTHONPATH": str(packages), "PATH": os.environ["PATH"], "PYTHONNOUSERSITE": "1"}
    code = "import torch, gantool; print(torch.__file__, gantool.__file__)"
    shown = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True, cwd="/")
    assert shown.stdout.count(str(packages)) == 2, shown.stdout + shown.stderr
    command = [python, "-m", "gantool", "train", "tiny.yaml", "--set", "runtime.runs_dir=outside"]
    outside = image.person.folder / run_of(
        subprocess.run(command, env=env, capture_output=True, text=True, cwd=image.person.folder)
    )
    shutil.rmtree(packages)
    assert facts_of(outside)["image"] is None
    assert_same_weights(outside, trained)


def test_a_bound_folder_keeps_what_memory_would_lose(image: Image, trained: Path) -> None:
    folder = image.person.folder
    places = ("--set", "runtime.data_dir=/out/data", "--set", "runtime.runs_dir=/out/bound")
    options = ("--containall", "--bind", f"{folder}:/out")
    done = image("train", "/out/tiny.yaml", *places, options=options)
    run = run_of(done)
    assert "in memory" not in done.stderr and run.is_relative_to("/out")
    assert_same_weights(folder / run.relative_to("/out"), trained)
    lost = image("train", "/out/tiny.yaml", *places[:2], "--set", "runtime.runs_dir=/tmp/runs", options=options)
    assert lost.returncode == 0 and "warning: /tmp/runs" in lost.stderr and "is in memory (tmpfs)" in lost.stderr


def test_a_read_only_folder_is_one_clear_line(image: Image, trained: Path) -> None:
    wrong = image("train", "tiny.yaml", "--set", "runtime.runs_dir=/opt/runs")
    lines = [line for line in wrong.stderr.splitlines() if not line.startswith("INFO:")]
    assert wrong.returncode == 1 and len(lines) == 2, wrong.stderr
    assert lines[0].startswith("error: /opt/runs/") and "Read-only file system" in lines[0] and "--bind" in lines[1]


def test_samples_and_scores(image: Image, trained: Path) -> None:
    run = trained.relative_to(image.person.folder)
    assert image("sample", "--ckpt", run, "--num", 16, "--out", "images").returncode == 0
    assert len(list((image.person.folder / "images").glob("*.png"))) == 16
    done = image("eval", run, "--num", 100, "--metrics", "fid", "--format", "json", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    (score,) = json.loads(done.stdout)
    image_of_run = facts_of(trained)["image"]
    assert isinstance(image_of_run, dict) and score["versions"]["image"] == image_of_run["digest"]
    assert score["values"]["fid"] > 0


def test_doctor_with_nv_without_a_gpu_and_with_bound_weights(image: Image) -> None:
    name = "pt_inception-2015-12-05-6726825d.pth"
    image.person.write(f"weights/{name}", "no weights")
    options = ("--nv", "--no-home", "--bind", f"{image.person.folder / 'weights'}:/opt/gantool/weights")
    done = image("doctor", "--format", "json", options=options)
    assert done.returncode == 0, done.stderr
    findings = {row["what"]: row for row in json.loads(done.stdout)}
    assert findings["Inception weights"]["found"] == f"/opt/gantool/weights/{name}"
    assert findings["EfficientNet weights"]["found"].startswith("/opt/gantool/lib/")
    assert "built for the CPU" in findings["torch"]["found"] and "gloo" in findings["several processes"]["found"]
    assert "MPLCONFIGDIR=/tmp/gantool-" in findings["caches"]["found"]


def test_nv_without_a_gpu_trains_without_a_word_of_drivers(image: Image) -> None:
    if any(sign.exists() for sign in driver.SIGNS):
        pytest.skip("this machine has a driver of NVIDIA")
    done = image("train", "tiny.yaml", "--set", "runtime.runs_dir=nv", "--set", "steps=5", options=("--nv",))
    assert run_of(done) and "NVIDIA driver" not in done.stderr


def test_a_forgotten_nv_is_a_warning(image: Image) -> None:
    """With the torch and the signs of a driver that a machine with a GPU has."""
    code = "import torch; from gantool import cli, driver; from pathlib import Path\n"
    code += (
        "torch.version.cuda, driver.SIGNS, driver.cuda_of_driver = '12.8', (Path('/etc'),), lambda: None\ncli.main()"
    )
    words = ("train", "tiny.yaml", "--set", "runtime.runs_dir=forgotten", "--set", "steps=5")
    done = image.execute("python", "-c", code, *words)
    run = image.person.folder / run_of(done)
    assert "but not in the container, so the CPU is used: run it with --nv" in done.stderr
    assert facts_of(run)["device"] == "cpu"


def test_the_hosts_python_stays_out_and_its_settings_come_in(image: Image, person: Person) -> None:
    trap = "raise SystemExit(9)\n"
    person.write("trap/typer.py", trap)
    (minor,) = image.execute("sh", "-c", "ls /opt/gantool/lib").stdout.split()
    home = Path(person.user.pw_dir, ".local", "lib", minor, "site-packages")
    own_home = person.folder / "home" / home.relative_to(person.user.pw_dir)
    person.write(str(own_home.relative_to(person.folder) / "typer.py"), trap)
    options = ("--home", f"{person.folder / 'home'}:{person.user.pw_dir}")
    words = (
        "train",
        "tiny.yaml",
        "--set",
        "runtime.runs_dir=settings",
        "--set",
        "steps=5",
        "--set",
        "runtime.threads=0",
    )
    done = image(*words, options=options, PYTHONPATH=str(person.folder / "trap"), OMP_NUM_THREADS="5")
    assert facts_of(person.folder / run_of(done))["threads"] == 5


def test_exit_codes_pass(image: Image, person: Person) -> None:
    assert image("train", "nowhere.yaml").returncode == 2
    assert image.execute("sh", "-c", "exit 75").returncode == 75


def test_a_signal_saves_the_run_and_the_same_command_ends_it(image: Image, person: Person) -> None:
    words = ("train", "tiny.yaml", "--set", "runtime.runs_dir=signal", "--set", "steps=3000")
    process = person.start("apptainer", "run", image.path, *words)
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in (person.folder / "signal").glob("*/journal.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped by SIGUSR2" in err, err
    (run,) = (person.folder / "signal").iterdir()
    step = json.loads((run / "status.json").read_text())["step"]
    assert (run / "stopped").exists() and list((run / "checkpoints").glob(f"step-{step:08d}.*"))
    again = image(*words)
    assert run_of(again).name == run.name and f"resuming at step {step}" in again.stderr
    assert (run / "result.json").exists() and not (run / "stopped").exists()


def test_two_ranks_in_one_container_and_as_two(image: Image, person: Person) -> None:
    words = ("train", "tiny.yaml", "--set", "steps=10")
    one = image(*words, "--set", "runtime.runs_dir=one", "--nproc", 2)
    assert facts_of(person.folder / run_of(one))["num_ranks"] == 2
    ranks = ("--standalone", "--nproc-per-node", 2, "gantool", *words, "--set", "runtime.runs_dir=torchrun")
    by_torchrun = image(*ranks, options=("--app", "torchrun"))
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 10000)}
    command = ("apptainer", "run", image.path, *words, "--set", "runtime.runs_dir=two")
    processes = [person.start(*command, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(2)]
    for process in processes:
        process.wait(timeout=120)
    for found in (by_torchrun.stdout.strip(), processes[0].communicate()[0].strip()):
        assert facts_of(person.folder / found)["num_ranks"] == 2
