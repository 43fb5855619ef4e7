"""What gantool knows about its container and the NVIDIA driver; the real image is tested in tests/container."""

from __future__ import annotations

import json
import os
import pwd
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import Gantool

from gantool import container, driver, runtime
from gantool.config.site import SiteConfig, load_site
from gantool.errors import UsageError
from gantool.metrics.inception_weights import find_weights

MOUNTS = """\
206 177 0:41 / / rw,nodev - overlay overlay ro
230 206 254:0 /tmp /tmp rw,nosuid master:1 - ext4 /dev/vda rw
231 206 254:0 / /my\\040data rw - lustre server rw
232 206 254:0 / /twice rw - ext4 /dev/vda rw
233 206 0:40 / /twice rw - tmpfs tmpfs rw
"""


def pretend_inside(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/gantool.sif")
    monkeypatch.setattr(sys, "prefix", str(folder))


def test_the_image_is_known_by_its_file_and_by_what_the_build_wrote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_inside(monkeypatch, tmp_path)
    assert container.image() == {"file": "/images/gantool.sif"}
    (tmp_path / "image.json").write_text("[]")
    assert container.image() == {"file": "/images/gantool.sif"}
    (tmp_path / "image.json").write_text(json.dumps({"digest": "sha256:12", "revision": "abc"}))
    assert container.image() == {"digest": "sha256:12", "revision": "abc", "file": "/images/gantool.sif"}
    monkeypatch.setattr(container, "engine", lambda: None)
    assert container.image() is None


def test_a_run_and_its_score_name_the_image(gantool: Gantool, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/gantool.sif")
    expected = container.image()  # with a digest where these tests run in an image themselves
    assert expected is not None and expected["file"] == "/images/gantool.sif"
    words = ("--set", "steps=2", "--set", "eval={num: 20, metrics: [is]}")
    done = gantool("train", tiny, *words)
    run = Path(done.stdout.strip())
    assert json.loads((run / "run.json").read_text())["image"] == expected
    (score,) = (run / "scores").glob("*.json")
    assert json.loads(score.read_text())["versions"]["image"] == expected.get("digest", "unknown")


def test_an_image_of_gantool_is_known_in_any_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(container, "_MARKS", {str(tmp_path / "mark"): container.PODMAN})
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):  # these tests may run in an image themselves
        monkeypatch.delenv(name, raising=False)
    assert container.engine() is None and not container.inside()
    written = {"digest": "sha256:12", "revision": "abc"}
    (tmp_path / "image.json").write_text(json.dumps(written))
    assert container.engine() is container.OTHER and container.image() == written
    (tmp_path / "mark").write_text("")
    assert container.engine() is container.PODMAN


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/opt/runs", "inside the container"),
        ("/tmp", None),
        ("/tmp/not/yet/there", None),
        ("/my data/runs", None),
        ("/twice/runs", "in memory (tmpfs)"),
    ],
)
def test_what_a_container_would_lose(
    path: str, words: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_inside(monkeypatch, tmp_path)
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(container, "MOUNTS", tmp_path / "mountinfo")
    monkeypatch.setattr(container, "_existing", lambda path: path)
    monkeypatch.setattr(container, "writable", lambda path: True)
    found = container.loss(Path(path))
    assert (found is None) == (words is None) and (words or "") in (found or "")
    if path == "/opt/runs":
        assert "unless that is a persistent overlay" in (found or "") and "--bind" in (found or "")
        monkeypatch.setattr(container, "engine", lambda: container.DOCKER)
        found = container.loss(Path(path))
        assert "overlay" not in (found or "") and "--volume" in (found or "")
    monkeypatch.setattr(container, "engine", lambda: None)
    assert container.loss(Path(path)) is None


def test_defaults_give_way_to_the_user_and_are_for_homes_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "environ", {"CUDA_CACHE_PATH": "/mine", "TMPDIR": str(tmp_path)})
    monkeypatch.setattr(container, "cache_folder_works", lambda: True)
    monkeypatch.setattr(container, "inside", lambda: False)
    container.set_defaults()
    assert os.environ == {"CUDA_CACHE_PATH": "/mine", "TMPDIR": str(tmp_path)}
    monkeypatch.setattr(container, "cache_folder_works", lambda: False)
    container.set_defaults()
    assert os.environ["CUDA_CACHE_PATH"] == "/mine"
    assert os.environ["MPLCONFIGDIR"].endswith(f"gantool-{os.getuid()}/matplotlib")


def test_files_that_were_bound_over_the_image_are_not_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "lib/gantool"
    package.mkdir(parents=True)
    (tmp_path / "image.json").write_text("{}")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(container, "MOUNTS", table)
    for bound, own in (("/srv", True), (tmp_path, True), (package, False), (package / "train.py", False)):
        places = ("/", tmp_path, bound)
        table.write_text("".join(f"1 0 8:1 / {place} rw - ext4 /dev/sda rw\n" for place in places))
        assert container.holds(package) is own


def test_caches_that_the_host_placed_where_the_container_has_nothing_are_not_taken(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = str(homeless / f"gantool-{os.getuid()}/matplotlib")
    monkeypatch.setattr(container, "writable", lambda path: path.is_relative_to(homeless))
    monkeypatch.setattr(container, "inside", lambda: False)
    monkeypatch.setenv("MPLCONFIGDIR", "/nowhere/mpl")
    assert placed(monkeypatch) == "/nowhere/mpl"  # outside a container it is the user's affair
    monkeypatch.setattr(container, "inside", lambda: True)
    assert placed(monkeypatch) == ours
    monkeypatch.setenv("MPLCONFIGDIR", str(homeless / "mine"))
    assert placed(monkeypatch) == str(homeless / "mine")
    monkeypatch.setenv("MPLCONFIGDIR", "")
    assert placed(monkeypatch) == ours


def test_a_relative_folder_for_caches_in_a_working_directory_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert not container.writable(Path("mpl"))


def test_what_is_not_there_may_not_have_been_brought_in(
    gantool: Gantool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, gone = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    sample = ("sample", "--ckpt", gone, "--grid", "2x2", "--out", "x.png")
    for words in (("train", gone / "x.yaml"), ("status", gone), sample, ("eval", gone)):
        done = gantool(*words, APPTAINER_CONTAINER="/images/gantool.sif")
        assert done.returncode == 2, done.stderr
        assert "in this container there is only what was brought in: --bind FOLDER" in done.stderr
    done = gantool("train", "x.yaml", APPTAINER_CONTAINER="/images/gantool.sif")
    assert done.returncode == 2 and "x.yaml: there is no such file" in done.stderr
    assert "container" not in done.stderr  # the working directory is there, so the name is wrong
    Path("runs").symlink_to("../scratch/runs")
    done = gantool("train", tiny, "--set", "runtime.runs_dir=runs")
    assert done.returncode == 1 and "hint: runs is a link to ../scratch/runs, which is not there" in done.stderr


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without an entry in passwd and without HOME, in a folder of their own."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", *container.CACHES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def placed(monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Where `set_defaults` puts the first of the caches."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        container.set_defaults()
        return os.environ.get("MPLCONFIGDIR")


def test_the_caches_of_a_user_without_a_home_are_placed(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not container.cache_folder_works() and load_site() == (SiteConfig(), None)
    ours = homeless / f"gantool-{os.getuid()}"
    assert placed(monkeypatch) == str(ours / "matplotlib") and ours.stat().st_mode & 0o777 == 0o700


def test_a_folder_for_caches_that_others_can_write_to_is_not_taken(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = homeless / f"gantool-{os.getuid()}"
    ours.mkdir()
    ours.chmod(0o777)
    assert placed(monkeypatch) is None
    ours.rmdir()
    ours.symlink_to(homeless)
    assert placed(monkeypatch) is None
    ours.unlink()
    ours.write_text("")
    assert placed(monkeypatch) is None
    with monkeypatch.context() as patch:
        ours.unlink()
        patch.setattr(os, "getuid", lambda: 12345)  # made by another user
        (homeless / "gantool-12345").mkdir(mode=0o700)
        assert placed(monkeypatch) is None


def test_without_a_folder_for_temporary_files_the_defaults_stay(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert placed(monkeypatch) is None and container.temporary_folder() is None
    with pytest.raises(UsageError, match="no Inception weights"):
        find_weights()


def test_a_folder_can_be_written_to_where_its_nearest_parent_can(tmp_path: Path) -> None:
    assert container.writable(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    assert not container.writable(tmp_path / "file" / "b")


class FakeDriver:
    """libcuda.so.1 as far as it is asked."""

    def __init__(self, version: int, code: int = 0) -> None:
        self.version, self.code = version, code

    def cuDriverGetVersion(self, pointer: object) -> int:
        pointer._obj.value = self.version  # type: ignore[attr-defined]
        return self.code


def test_the_version_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for fake, expected in ((FakeDriver(12080), (12, 8)), (FakeDriver(13020), (13, 2)), (FakeDriver(0, 3), None)):
        monkeypatch.setattr(driver.ctypes, "CDLL", lambda name, fake=fake: fake)
        assert driver.cuda_of_driver() == expected


@pytest.mark.parametrize(
    ("cuda", "device", "built_for", "text", "fatal"),
    [
        (None, False, "12.8", None, None),  # no driver
        (None, False, None, None, None),
        ((12, 4), True, "12.8", None, None),  # minor versions fit each other
        ((13, 0), True, "12.8", None, None),
        ((12, 8), True, "13.0", "too old: it is good for CUDA 12.8, torch was built for 13.0", True),
        ((12, 8), True, None, "built for the CPU", False),
        (None, True, "12.8", "not in the container", False),
    ],
)
def test_obstacles(
    cuda: tuple[int, int] | None,
    device: bool,
    built_for: str | None,
    text: str | None,
    fatal: bool | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(driver, "cuda_of_driver", lambda: cuda)
    monkeypatch.setattr(driver, "SIGNS", (tmp_path / "nvidiactl", tmp_path if device else tmp_path / "version"))
    monkeypatch.setenv("APPTAINER_CONTAINER", "x.sif")
    found = driver.obstacle(built_for)
    assert (found.fatal if found else None) == fatal and (text or "") in (found.text if found else "")
    if text == "not in the container":
        assert found is not None and "--nv" in found.hint
        for engine, words in ((container.DOCKER, "--gpus all"), (container.PODMAN, "--device nvidia.com/gpu=all")):
            monkeypatch.setattr(container, "engine", lambda engine=engine: engine)
            again = driver.obstacle(built_for)
            assert again is not None and words in again.hint


def test_a_driver_that_is_too_old_is_an_error_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "cuda_of_driver", lambda: (11, 8))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for wanted in ("auto", "cuda"):
        with pytest.raises(UsageError, match="driver is too old") as error:
            runtime.choose_device(wanted)
        assert "--device cpu" in (error.value.hint or "")
    assert runtime.choose_device("cpu").type == "cpu"


def test_a_driver_out_of_reach_is_a_warning_unless_cuda_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("APPTAINER_CONTAINER", "x.sif")
    monkeypatch.setattr(driver, "cuda_of_driver", lambda: None)
    monkeypatch.setattr(driver, "SIGNS", (tmp_path,))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = runtime.choose_device("auto")
    assert device.type == "cpu" and "run it with --nv" in (runtime.device_caution(device, "auto") or "")
    assert runtime.device_caution(device, "cpu") is None
    with pytest.raises(UsageError, match="not in the container") as error:
        runtime.choose_device("cuda")
    assert "--nv" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES is ''"),
        ({"CUDA_VISIBLE_DEVICES": "7"}, "CUDA_VISIBLE_DEVICES is '7'"),
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_ID": "3"}, "ask Slurm for GPUs"),
        ({"SLURM_JOB_ID": "3"}, "ask Slurm for GPUs"),
        ({}, "nvidia-smi says"),
    ],
)
def test_a_driver_without_a_gpu_is_a_warning_too(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(driver, "cuda_of_driver", lambda: (12, 8))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = runtime.choose_device("auto")
    caution = runtime.device_caution(device, "auto") or ""
    assert device.type == "cpu" and "no GPU that this process can use, so the CPU is used" in caution
    assert words in caution and ("Slurm" in caution) == ("Slurm" in words)
    with pytest.raises(UsageError, match="no GPU that this process can use"):
        runtime.choose_device("cuda")
    monkeypatch.setattr(driver, "cuda_of_driver", lambda: None)
    monkeypatch.setattr(driver, "SIGNS", ())
    assert runtime.device_caution(device, "auto") is None
