"""Packed data are copied to a folder of the machine once, and the copy is what the original is."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest

from gantool.config.schema import DataConfig
from gantool.data.pack import ensure_packed, verify
from gantool.data.staging import VARIABLE, staged
from gantool.progress import Silent

SHAPES = DataConfig(name="shapes", size=8)


class Words(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def stage(data_dir: Path) -> str:
    return str(staged(ensure_packed(SHAPES, data_dir, Silent()), SHAPES, Silent()).path)


def test_without_the_variable_nothing_is_copied(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert Path(stage(data_dir)).parent == data_dir


def test_processes_that_come_together_share_one_copy(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "node"))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        paths = pool.map(stage, [data_dir] * 3)
    assert {Path(path).parent for path in paths} == {tmp_path / "node"}
    original, copy = ensure_packed(SHAPES, data_dir, Silent()), ensure_packed(SHAPES, tmp_path / "node", Silent())
    assert verify(copy) and copy.digest == original.digest
    np.testing.assert_array_equal(copy.images, original.images)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "node").iterdir() if path.suffix != ".lock"}
    stage(data_dir)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_torn_copy_is_made_again(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    copy = Path(stage(data_dir))
    copy.write_bytes(copy.read_bytes()[:1000])
    copy.with_suffix(".json").unlink()
    assert verify(ensure_packed(SHAPES, Path(stage(data_dir)).parent, Silent()))


def test_a_folder_that_cannot_hold_it_is_said_and_left(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, words = ensure_packed(SHAPES, data_dir, Silent()), Words()
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "below"))
    assert staged(original, SHAPES, words).path == original.path and "not staged" in words.lines[0]
    monkeypatch.setenv(VARIABLE, str(tmp_path / "full"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    assert staged(original, SHAPES, words).path == original.path and "GB free" in words.lines[1]
