"""A stand-in for the official Python image, so that the real definition builds where no image registry is reached:
Debian with its Python, packed as `docker save` would. How this machine reaches a package index (pip's settings, a
bundle of certificates) goes into it, as it would go into a site's own base image; the definition knows nothing of it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

from gantool.metrics.weights import sha256

SUITE = "bookworm"  # its Python is that of the lock for the CPU; trixie's is that of the locks for CUDA
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
WHEELS = "/mnt"  # where the build binds a folder of wheels; every image has this folder
KEPT = ("index-url", "extra-index-url", "trusted-host", "proxy")


def pip_settings() -> dict[str, str]:
    """What pip is told on this machine, by files and by variables; the latter win, as in pip."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found: dict[str, str] = {}
    for line in sorted(done.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        found[key.split(".")[-1]] = shlex.split(value)[0]
    return found


def wheels_folder() -> Path | None:
    """The folder among pip's find-links, if there is one."""
    places = pip_settings().get("find-links", "").split()
    return next((Path(place) for place in places if Path(place).is_dir()), None)


def make(out: Path, suite: str = SUITE) -> None:
    """Write the stand-in to `out`, a docker-archive."""
    mirror = _output("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian")
    folder = out.parent / "base"
    folder.mkdir()
    (folder / "pip.conf").write_text(_pip_conf())
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
    command += ["--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*"]
    command += [f"--customize-hook=copy-in {folder / 'pip.conf'} /etc"]
    bundle = _certificates()
    if bundle is not None:
        command += [f"--customize-hook=upload {bundle} {CERTIFICATES}"]
    layer = folder / "layer.tar"
    subprocess.run(
        [*command, suite, str(layer), mirror.split()[0]], check=True, env=os.environ | {"TMPDIR": str(folder)}
    )
    _pack(layer, out)
    layer.unlink()


def _pip_conf() -> str:
    lines = ["[global]", f"cert = {CERTIFICATES}", f"find-links = {WHEELS}"]
    for key, value in pip_settings().items():
        remote = [word for word in value.split() if not word.startswith(("file:", "/"))]
        if key in KEPT and remote:
            lines.append(f"{key} = {' '.join(remote)}")
    return "\n".join(lines) + "\n"


def _certificates() -> str | None:
    names = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    places = [*(os.environ.get(name) for name in names), pip_settings().get("cert"), CERTIFICATES]
    return next((place for place in places if place and Path(place).is_file()), None)


def _pack(layer: Path, out: Path) -> None:
    """One layer as docker-archive: the layer, its config, and a manifest that names both."""
    digest = "sha256:" + sha256(layer)
    root = {"type": "layers", "diff_ids": [digest]}
    paths = {"Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
    documents = {
        "config.json": {"architecture": "amd64", "os": "linux", "rootfs": root, "config": paths},
        "manifest.json": [{"Config": "config.json", "RepoTags": ["stand-in:latest"], "Layers": ["layer.tar"]}],
    }
    with tarfile.open(out, "w") as archive:
        for name, document in documents.items():
            path = layer.with_name(name)
            path.write_text(json.dumps(document))
            archive.add(path, name)
        archive.add(layer, "layer.tar")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
