"""The locks of the image fit pyproject.toml: nothing that gantool asks for is missing, and all is pinned by digest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings it")

REPOSITORY = Path(__file__).parents[1]
EXTRAS = ("efficientnet", "tensorboard")
PIN = re.compile(r"^([a-z0-9._-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)
FAMILIES = {"cuda12": "cu12", "cuda13": "cu13", "cpu": None}


def text_of(kind: str) -> str:
    return (REPOSITORY / "containers" / f"requirements-{kind}.lock").read_text()


def pins(kind: str) -> dict[str, str]:
    return {name: version for name, version, _ in PIN.findall(text_of(kind))}


def wanted(kind: str) -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    found = [Requirement(line) for line in lines]
    # The build of torchvision for the CPU is on no public index but PyTorch's own; containers/README.md.
    return [item for item in found if not (kind == "cpu" and item.name == "torchvision")]


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_lock_has_all_that_the_project_asks_for(kind: str) -> None:
    found = pins(kind)
    for requirement in wanted(kind):
        version = found.get(canonicalize_name(requirement.name))
        assert version is not None and requirement.specifier.contains(version), (
            f"{kind}: {requirement}, found {version}"
        )


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_line_is_a_pin_with_digests_and_names_no_host(kind: str) -> None:
    text = text_of(kind)
    header, rest = text.split("\n", 2)[:2], text.split("\n", 2)[2]
    assert all(line.startswith("#") for line in header) and PIN.sub("", rest).strip() == ""
    assert "/" not in rest and "--index" not in text and "--find-links" not in text


@pytest.mark.parametrize(("kind", "family"), FAMILIES.items())
def test_torch_is_of_the_family_that_the_name_says(kind: str, family: str | None) -> None:
    found = pins(kind)
    nvidia = {name for name in found if name.startswith("nvidia-")}
    if family is None:
        assert not nvidia and found["torch"].endswith("+cpu")
    else:
        assert f"nvidia-nccl-{family}" in nvidia and f"nvidia-cudnn-{family}" in nvidia


def test_the_build_reads_the_python_of_a_lock_from_its_second_line() -> None:
    script = (REPOSITORY / "containers" / "install.sh").read_text()
    (pattern,) = re.findall(r"2s/\.\*(Python .*?)\.\*/", script)
    for kind in FAMILIES:
        line = text_of(kind).splitlines()[1]
        assert re.search(pattern.replace(r"\(", "(").replace(r"\)", ")"), line), line
