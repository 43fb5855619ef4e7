"""The image, built from the last commit by an ordinary user whose environment is empty, and that user to run it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import base_image
import pytest
from users import Image, Person

REPOSITORY = Path(__file__).parents[2]
USER = os.environ.get("GANTOOL_TEST_USER", "gantool-test")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
MEMORY = Path("/dev/shm")  # a build there takes half the time
TINY = """\
name: tiny
data: {name: shapes, size: 8}
generator: {latent_dim: 8, width: 4, max_width: 8}
discriminator: {width: 4, max_width: 8}
batch: 8
steps: 40
runtime: {threads: 1, log_every: 5, sample_every: 1000, snapshot_every: 20, checkpoint_every: 10, grid: 2x2}
"""


def _reason_to_skip() -> str | None:
    for program in ("apptainer", "mmdebstrap", "git"):
        if shutil.which(program) is None:
            return f"no {program} here (as root on Debian, tests/container/get-apptainer installs what is needed)"
    if os.geteuid() == 0 and USER not in {entry.pw_name for entry in pwd.getpwall()}:
        return f"root needs an ordinary user to test with: tests/container/get-apptainer makes {USER}"
    return None


def _made(parent: str, user: pwd.struct_passwd) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="gantool-image-", dir=parent))
    os.chown(folder, user.pw_uid, user.pw_gid)
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def person() -> Iterator[Person]:
    """An ordinary user, with folders that are removed at the end."""
    if reason := _reason_to_skip():
        pytest.skip(reason)
    user = pwd.getpwnam(USER) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    memory = str(MEMORY) if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 6e9 else tempfile.gettempdir()
    folder, scratch = _made(tempfile.gettempdir(), user), _made(memory, user)
    yield Person(folder, user, scratch)
    for place in (folder, scratch):
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="session")
def image(person: Person) -> Image:
    """The image for the CPU, from the real definition and lock and a stand-in for the base image."""
    scratch = person.scratch
    base_image.make(scratch / "base.tar")
    source = scratch / "source"
    source.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, check=True)
    path = scratch / "gantool.sif"
    command = ["apptainer", "build", "--notest", "--mksquashfs-args=-comp zstd -Xcompression-level 1"]
    values = {"BOOTSTRAP": "docker-archive", "BASE": scratch / "base.tar", "REVISION": "of-the-test"}
    values["REQUIREMENTS"] = "containers/requirements-cpu.lock"
    wheels = base_image.wheels_folder()
    if wheels is not None:
        command.append(f"--bind={wheels}:{base_image.WHEELS}")
    if wheels is None or not any(wheels.glob("torch-*+cpu-*")):
        values["INDEX"] = TORCH_INDEX
    for name, value in values.items():
        command += ["--build-arg", f"{name}={value}"]
    here = Person(source, person.user, scratch)
    done = here.run(*command, path, "containers/gantool.def", APPTAINER_TMPDIR=str(scratch))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (scratch / "base.tar").unlink()
    person.write("tiny.yaml", TINY)
    return Image(path, person)
