"""Which commit of gantool this is, for runs and scores to say."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from gantool import container

_PACKAGE = Path(__file__).parent


@functools.cache
def commit() -> str:
    """The commit of the image (with a `+` when other files were bound over the package), of the working copy of git
    that the package lies in (with a `+` when its files were changed), or of what pip installed from git; empty when
    nobody knows."""
    image = container.image() or {}
    revision = image.get("revision", "").replace("unknown", "")
    if revision and not container.holds(_PACKAGE):
        revision = _of_working_copy() or revision.removesuffix("+") + "+"
    return revision or _of_working_copy() or _of_installed()


def _of_working_copy() -> str:
    if not (_PACKAGE.parent / ".git").exists():  # else it could be the user's own, around a virtual environment
        return ""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    found = []
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", _PACKAGE.name]):
        try:
            done = subprocess.run(
                ["git", *words], cwd=_PACKAGE.parent, env=environment, capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        if done.returncode:
            return ""
        found.append(done.stdout.strip())
    return found[0] + ("+" if found[1] else "")


def _of_installed() -> str:
    try:
        written = json.loads(distribution("gantool").read_text("direct_url.json") or "{}")
        return str(written.get("vcs_info", {}).get("commit_id", ""))
    except (PackageNotFoundError, OSError, ValueError, AttributeError):
        return ""
