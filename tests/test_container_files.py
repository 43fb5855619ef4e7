"""What builds the image, as far as it can be looked at without building: the rest is tested in tests/container."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
CONTAINERS = REPOSITORY / "containers"
DEFINITION = (CONTAINERS / "gantool.def").read_text()
DOCKERFILE = (CONTAINERS / "Dockerfile").read_text()


def section(name: str) -> list[str]:
    """The lines of a section of the definition, without comments."""
    text = DEFINITION.split(f"\n%{name}\n", 1)[1]
    lines = [line.strip() for line in re.split(r"^%", text, maxsplit=1, flags=re.MULTILINE)[0].splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def copied() -> dict[str, str]:
    """What the Dockerfile copies, and where to."""
    found = {}
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            found[source] = target + Path(source).name if target.endswith("/") else target
    return found


def test_the_dockerfile_copies_what_the_definition_does() -> None:
    wanted = dict(line.replace("{{ REQUIREMENTS }}", "${REQUIREMENTS}").split() for line in section("files"))
    wanted["slurm"] = "/opt/src/slurm"  # gantool/job.sh is a link into it, which Apptainer follows
    assert copied() == wanted


def test_the_dockerfile_has_the_steps_and_the_arguments_of_the_definition() -> None:
    (step,) = re.findall(r"^RUN (.*)$", DOCKERFILE, re.MULTILINE)
    assert re.sub(r"\{\{ (\w+) \}\}", r"${\1}", section("post")[0]) == step
    arguments = dict(line.split("=", 1) for line in section("arguments"))
    assert arguments.pop("BOOTSTRAP") == "docker"
    assert dict(line.split("=", 1) for line in re.findall(r"^ARG (.*)$", DOCKERFILE, re.MULTILINE)) == arguments
    assert 'ENTRYPOINT ["gantool"]' in DOCKERFILE and section("runscript") == ['exec gantool "$@"']


def test_what_the_dockerfile_copies_is_not_ignored() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    sources = {source for source in copied() if source != "${REQUIREMENTS}"}
    assert "*" in lines and {Path(source).parts[0] for source in sources} == kept
    assert all((REPOSITORY / name).exists() for name in kept)


def test_singularity_builds_the_definition_too() -> None:
    assert not re.search(r"\$\{?APPTAINER_LABELS(?!:-\$SINGULARITY_LABELS)", DEFINITION)


@pytest.mark.parametrize(
    ("pip", "code"),
    [
        ("echo No broken requirements found.", 0),
        ("echo gantool 0.1.0 requires torchvision, which is not installed.; false", 0),
        ("echo a 1.0 requires b, which is not installed.; false", 1),
        ("echo Traceback >&2; false", 1),
    ],
)
def test_the_build_fails_where_pip_check_does(pip: str, code: int) -> None:
    lines = (CONTAINERS / "install.sh").read_text().split("# torchvision is not in the lock", 1)[1].splitlines()[1:4]
    script = "\n".join(["set -eu", f"pip() {{ {pip}; }}", *lines])
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == code, done.stderr


def test_the_digest_covers_python() -> None:
    (line,) = [line for line in (CONTAINERS / "install.sh").read_text().splitlines() if line.startswith("digest=")]
    assert all(words in line for words in ("/RECORD", "system.txt", "python3 -VV"))


def test_everyone_may_enter_the_folders_of_the_image(tmp_path: Path) -> None:
    (line,) = [line for line in section("test") if line.startswith("unreadable=")]
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "file").write_text("")
    for mode, named in ((0o755, False), (0o754, True), (0o751, True)):
        (tmp_path / "package").chmod(mode)
        script = line.replace("/opt/gantool", str(tmp_path / "package")) + '; echo "$unreadable"'
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        assert bool(done.stdout.strip()) is named, done.stdout
