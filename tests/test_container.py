"""What gantool knows about its container and the NVIDIA driver; the real image is tested in tests/container."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import Gantool

from gantool import container, driver, runtime
from gantool.errors import UsageError

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
    monkeypatch.setattr(container, "inside", lambda: False)
    assert container.image() is None


def test_a_run_and_its_score_name_the_image(gantool: Gantool, tiny: Path) -> None:
    words = ("--set", "steps=2", "--set", "eval={num: 20, metrics: [is]}")
    done = gantool("train", tiny, *words, APPTAINER_CONTAINER="/images/gantool.sif")
    run = Path(done.stdout.strip())
    assert json.loads((run / "run.json").read_text())["image"] == {"file": "/images/gantool.sif"}
    (score,) = (run / "scores").glob("*.json")
    assert json.loads(score.read_text())["versions"]["image"] == "unknown"


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
    monkeypatch.setattr(container, "inside", lambda: False)
    assert container.loss(Path(path)) is None


def test_defaults_give_way_to_the_user_and_are_for_homes_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "environ", {"CUDA_CACHE_PATH": "/mine", "TMPDIR": str(tmp_path)})
    monkeypatch.setattr(container, "cache_folder_works", lambda: True)
    container.set_defaults()
    assert os.environ == {"CUDA_CACHE_PATH": "/mine", "TMPDIR": str(tmp_path)}
    monkeypatch.setattr(container, "cache_folder_works", lambda: False)
    container.set_defaults()
    assert os.environ["CUDA_CACHE_PATH"] == "/mine"
    assert os.environ["MPLCONFIGDIR"].endswith(f"gantool-{os.getuid()}/matplotlib")


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
    monkeypatch.setattr(driver, "DEVICE", tmp_path if device else tmp_path / "nvidiactl")
    monkeypatch.setenv("APPTAINER_CONTAINER", "x.sif")
    found = driver.obstacle(built_for)
    assert (found.fatal if found else None) == fatal and (text or "") in (found.text if found else "")
    if text == "not in the container":
        assert found is not None and "--nv" in found.hint


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
    monkeypatch.setattr(driver, "DEVICE", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = runtime.choose_device("auto")
    assert device.type == "cpu" and "run it with --nv" in (runtime.device_caution(device, "auto") or "")
    assert runtime.device_caution(device, "cpu") is None
    with pytest.raises(UsageError, match="not in the container") as error:
        runtime.choose_device("cuda")
    assert "--nv" in (error.value.hint or "")
