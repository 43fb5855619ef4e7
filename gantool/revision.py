"""Which commit of gantool this is, for runs and scores to say."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from gantool import container

_PACKAGE = Path(__file__).parent
_ENDINGS = (".py", ".sh", ".html", ".css", ".js")


@functools.cache
def commit() -> str:
    """The commit of the image (with a `+` when other files were bound over the package), of the working copy of git
    that the package lies in (with a `+` when its files were changed), or of what pip installed from git; `unknown` when
    nobody knows. Where it does not say which code this is, a digest of the package's files stands behind it."""
    image = container.image() or {}
    revision = image.get("revision", "").replace("unknown", "")
    if revision and not container.holds(_PACKAGE):
        revision = _of_working_copy() or revision.removesuffix("+") + "+"
    revision = revision or _of_working_copy() or _of_installed() or "unknown"
    return f"{revision} (files {_digest()})" if revision == "unknown" or revision.endswith("+") else revision


def _digest() -> str:
    """Of all files of the package that are code or go with it, the same wherever it lies: 12 digits of a SHA-256."""
    digest = hashlib.sha256()
    for path in sorted(path for path in _PACKAGE.rglob("*.*") if path.suffix in _ENDINGS and path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


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
