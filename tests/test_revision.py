"""The commit that runs and scores name: of the image, of a working copy, of what pip installed; else nothing."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gantool import revision

GIT = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]


@pytest.fixture
def working_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a repository of its own."""
    if shutil.which("git") is None:
        pytest.skip("no git here")
    package = tmp_path / "gantool"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(revision, "_PACKAGE", package)
    monkeypatch.setattr(revision.container, "image", lambda: None)
    revision.commit.cache_clear()
    return tmp_path


def git(folder: Path, *words: str) -> str:
    return subprocess.run([*GIT, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_working_copy_and_its_changes(working_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(working_copy, "init", "-q")
    git(working_copy, "add", ".")
    git(working_copy, "commit", "-qm", "x")
    head = git(working_copy, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook
    assert len(head) == 40 and revision.commit() == head
    (working_copy / "notes.txt").write_text("not of the package")
    (working_copy / "gantool/a.py").write_text("x = 2\n")
    assert revision.commit() == head  # asked once in a process
    revision.commit.cache_clear()
    changed = revision.commit()
    assert re.fullmatch(head + r"\+ \(files [0-9a-f]{12}\)", changed)
    (working_copy / "gantool/a.py").write_text("x = 3\n")  # as different from that as from the commit
    (working_copy / "gantool/__pycache__").mkdir()
    (working_copy / "gantool/__pycache__/a.pyc").write_text("not of the package's code")
    revision.commit.cache_clear()
    other = revision.commit()
    assert other.startswith(head) and other != changed
    (working_copy / "gantool/a.py").write_text("x = 2\n")
    revision.commit.cache_clear()
    assert revision.commit() == changed


def test_a_repository_around_a_virtual_environment_is_not_ours(
    working_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(working_copy, "init", "-q")
    site = working_copy / ".venv/lib/gantool"
    site.mkdir(parents=True)
    monkeypatch.setattr(revision, "_PACKAGE", site)
    monkeypatch.setattr(revision, "distribution", lambda name: Installed(None))
    assert revision.commit() == f"unknown (files {hashlib.sha256().hexdigest()[:12]})"
    revision.commit.cache_clear()
    monkeypatch.setattr(revision, "distribution", lambda name: Installed({"vcs_info": {"commit_id": "abc"}}))
    assert revision.commit() == "abc"


def test_an_image_says_its_own(working_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision.container, "image", lambda: {"revision": "def", "digest": "sha256:1"})
    monkeypatch.setattr(revision.container, "holds", lambda path: True)
    assert revision.commit() == "def"
    monkeypatch.setattr(revision.container, "holds", lambda path: False)  # other files, bound over those of the image
    revision.commit.cache_clear()
    assert re.fullmatch(r"def\+ \(files [0-9a-f]{12}\)", revision.commit())


class Installed:
    """What pip notes of a package."""

    def __init__(self, origin: Any) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        return json.dumps(self.origin) if self.origin else None
