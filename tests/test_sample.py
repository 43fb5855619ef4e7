"""Samples: image k depends on seed and k alone, whatever the batch; files are what they say."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Gantool
from PIL import Image

from gantool import checkpoint, models, sample
from gantool.config.schema import RunConfig
from gantool.progress import Silent


@pytest.fixture(params=["batch", "instance", "none"])
def snapshot(request: pytest.FixtureRequest, tmp_path: Path) -> sample.Snapshot:
    """A snapshot alone in a folder, of a generator wide enough for blocked matrix products."""
    config = RunConfig.model_validate(
        {"data": {"name": "shapes", "size": 28}, "generator": {"width": 24, "latent_dim": 50, "norm": request.param}}
    )
    data = {"digest": "d", "title": "shapes", "classes": [], "image_shape": [28, 28, 3]}
    facts = {"kind": "snapshot", "step": 7, "ema": True, "config": config.model_dump(mode="json"), "data": data}
    path = tmp_path / "alone.safetensors"
    checkpoint.save(path, models.build_generator(config).state_dict(), facts)
    return sample.load_snapshot(path, torch.device("cpu"))


def images(snapshot: sample.Snapshot, *ranges: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.cat([part for start, stop in ranges for part in sample.generate(snapshot, start, stop, seed)])


def test_image_k_is_the_same_alone_in_sevens_and_in_blocks(snapshot: sample.Snapshot) -> None:
    whole = images(snapshot, (0, 150))
    assert whole.shape == (150, 28, 28, 3) and whole.dtype == torch.uint8
    assert torch.equal(whole, images(snapshot, *((k, k + 1) for k in range(150))))
    assert torch.equal(whole, images(snapshot, *((k, min(k + 7, 150)) for k in range(0, 150, 7))))
    assert torch.equal(whole[:128], images(snapshot, (0, 64), (64, 128)))
    assert not torch.equal(whole, images(snapshot, (0, 150), seed=1))
    assert len({image.numpy().tobytes() for image in whole}) == 150


def test_npz_zip_and_folder_hold_the_same_images(snapshot: sample.Snapshot, tmp_path: Path) -> None:
    expected = images(snapshot, (0, 70), seed=3).numpy()
    for name in ("x.npz", "x.zip", "folder"):
        sample.sample(snapshot, 70, 3, tmp_path / name, Silent())
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["images"], expected)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.namelist() == [f"img_{k:06d}.png" for k in range(70)]
        for k, name in enumerate(archive.namelist()):
            with archive.open(name) as file:
                assert np.array_equal(np.asarray(Image.open(file)), expected[k])
    files = sorted((tmp_path / "folder").iterdir())
    assert [file.name for file in files] == [f"img_{k:06d}.png" for k in range(70)]
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), expected)


def test_grid_places_images_row_by_row() -> None:
    tiles = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    sheet = np.asarray(sample.make_grid(tiles, 2, 3))
    assert sheet.shape == (2 * 6 + 2, 3 * 6 + 2)
    for index in range(6):
        y, x = (index // 3) * 6 + 2, (index % 3) * 6 + 2
        assert (sheet[y : y + 4, x : x + 4] == index).all()
    assert sheet[0, 0] == 255


def test_command_line_from_a_run_and_from_a_copied_snapshot(gantool: Gantool, done_run: Path, tmp_path: Path) -> None:
    run = done_run
    alone = tmp_path / "elsewhere" / "mine.safetensors"
    alone.parent.mkdir()
    shutil.copy(sorted((run / "snapshots").glob("*"))[-1], alone)
    for ckpt, out in ((run, "a.npz"), (alone, "b.npz")):
        done = gantool("sample", "--ckpt", ckpt, "--num", "9", "--seed", "5", "--out", tmp_path / out)
        assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / out)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    done = gantool("sample", "--ckpt", run, "--grid", "5x4", "--out", tmp_path / "grid.png")
    assert done.returncode == 0
    assert Image.open(tmp_path / "grid.png").size == (4 * 10 + 2, 5 * 10 + 2)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--grid", "5by5", "--out", "g.png"), "expected ROWSxCOLUMNS"),
        (("--grid", "5x5", "--out", "g.jpg"), "expected a .png file"),
        (("--out", "x.tar"), "expected a folder, x.npz or x.zip"),
        (("--classes", "3", "--out", "x.npz"), "not class-conditional"),
    ],
)
def test_wrong_options_are_refused(words: tuple[str, ...], text: str, gantool: Gantool, done_run: Path) -> None:
    refused = gantool("sample", "--ckpt", done_run, *words)
    assert refused.returncode == 2 and text in refused.stderr and "Traceback" not in refused.stderr


def test_what_is_no_snapshot_is_refused(gantool: Gantool, done_run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("not a snapshot")
    checkpoint_file = sorted((done_run / "checkpoints").glob("*"))[-1]
    (tmp_path / "empty").mkdir()
    for path, text in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "text.safetensors", "cannot be read"),
        (tmp_path / "empty", "holds no snapshot"),
        (checkpoint_file, "found a checkpoint, expected a snapshot"),
    ):
        refused = gantool("sample", "--ckpt", path, "--out", tmp_path / "out.npz")
        assert refused.returncode in (1, 2) and text in refused.stderr and "Traceback" not in refused.stderr
        assert not (tmp_path / "out.npz").exists()
