"""What the pages say to other programs than gantool: their own help knows the subcommands and options.

What is not installed here is skipped with that reason; `make test-docs` runs this file alone, where all programs are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
from pages import NAMES, PAGES, code_of, shell_lines, split

BIN = Path(sys.executable).parent
PATH = os.environ["PATH"]  # where Slurm is too, which tests otherwise do not see
PIP, VENV = (sys.executable, "-m", "pip"), (sys.executable, "-m", "venv")
HELP: dict[str, tuple[str, ...]] = {
    "apptainer build": ("apptainer", "build", "--help"),
    "apptainer exec": ("apptainer", "exec", "--help"),
    "apptainer key newpair": ("apptainer", "key", "newpair", "--help"),
    "apptainer run": ("apptainer", "run", "--help"),
    "apptainer sif add": ("apptainer", "sif", "add", "--help"),
    "apptainer sign": ("apptainer", "sign", "--help"),
    "apptainer test": ("apptainer", "test", "--help"),
    "apptainer verify": ("apptainer", "verify", "--help"),
    "cp": ("cp", "--help"),
    "cyclonedx-py requirements": (f"{BIN}/cyclonedx-py", "requirements", "--help"),
    "docker build": ("docker", "build", "--help"),
    "docker run": ("docker", "run", "--help"),
    "docker save": ("docker", "save", "--help"),
    "git describe": ("git", "describe", "-h"),
    "mkdir": ("mkdir", "--help"),
    "mksquashfs": ("mksquashfs", "-version"),
    "pip install": (*PIP, "install", "--help"),
    "podman run": ("podman", "run", "--help"),
    "python -m venv": (*VENV, "--help"),
    "sbatch": ("sbatch", "--help"),
    "scancel": ("scancel", "--help"),
    "scontrol release": ("scontrol", "--help"),
    "scontrol requeue": ("scontrol", "--help"),
    "scontrol update": ("scontrol", "--help"),
    "tail": ("tail", "--help"),
    "tensorboard": (f"{BIN}/tensorboard", "--helpfull"),
    "torchrun": (f"{BIN}/torchrun", "--help"),
    "wandb sync": (f"{BIN}/wandb", "sync", "--help"),
    "wget": ("wget", "--help"),
}
"""Each program of the pages with its subcommand, and the command that shows the options that pages use."""
ELSEWHERE = {".", "export", "make", "python tests/"}  # the shell's own; test_docs looks for targets and scripts
OF_AN_IMAGE = {"gantool", "gantool.sif"}  # what stands behind these is for gantool, and test_docs looks at it


def commands_of(text: str) -> list[tuple[str, ...]]:
    """The commands of a page for other programs than gantool: all in blocks of code, and in sentences those that begin
    with a program of the table. Programs lose their folders, and `python3` its 3."""
    blocks, inline = [*shell_lines(text)], [line for line, below in code_of(text) if below is None]
    known = {key.split()[0] for key in HELP}
    found = []
    for line in (*blocks, *inline):
        for words in split(re.sub(r"^\w+=\$\((.*?)\)", r"\1", line)):  # REVISION=$(git describe)
            while words and re.match(r"\w+=", words[0]):
                words = words[1:]
            if not words or Path(words[0]).name in OF_AN_IMAGE or words == ["installed.txt"]:
                continue
            program = "." if words[0] == "." else Path(words[0]).name.replace("python3", "python")
            if line in blocks or (program in known and len(words) > 1):
                found.append((program, *words[1:]))
    return list(dict.fromkeys(found))


COMMANDS = [(name, words) for page, name in zip(PAGES, NAMES, strict=True) for words in commands_of(page.read_text())]


@cache
def help_of(key: str) -> str:
    """The options of a program, as it tells them."""
    program, *words = HELP[key]
    found = shutil.which(program, path=PATH)
    if found is None:
        pytest.skip(f"{key.split()[0]} is not installed here")
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as conf:  # Slurm's programs do not even help without one
        conf.write("ClusterName=none\nSlurmctldHost=localhost\nNodeName=localhost\nPartitionName=all Nodes=ALL\n")
        conf.flush()
        env = os.environ | {"SLURM_CONF": conf.name, "COLUMNS": "200"}
        done = subprocess.run([found, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)
    return done.stdout + done.stderr


def faults(words: tuple[str, ...]) -> list[str]:
    """What of a command its program does not know: the command itself, or options."""
    line = " ".join(words)
    if any(line == start or line.startswith(start if start.endswith("/") else f"{start} ") for start in ELSEWHERE):
        return []
    key = next((key for key in HELP if f"{line} ".startswith(f"{key} ")), None)
    if key is None:
        return [line]
    own = list(words[len(key.split()) :])
    if key.split()[0] in ("apptainer", "docker", "podman", "torchrun"):
        own = own[: next((i for i, word in enumerate(own) if word in OF_AN_IMAGE), len(own))]
    options = [word.split("=")[0] for word in own if re.match(r"--?[A-Za-z]", word)]
    return [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", help_of(key))]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_a_program_knows_what_a_page_asks_of_it(page: str, words: tuple[str, ...]) -> None:
    assert faults(words) == []


@pytest.mark.parametrize("key", HELP)
def test_a_program_has_this_subcommand_and_a_page_uses_it(key: str) -> None:
    assert any(f"{' '.join(words)} ".startswith(f"{key} ") for _, words in COMMANDS)
    assert re.search(rf"\b{key.split()[-1]}\b", help_of(key))
    assert not re.search(r"unknown (sub)?command|no such command|invalid choice|not a git command", help_of(key), re.I)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("git descrive --always", ["git descrive --always"]),
        ("git describe --alway", ["--alway"]),
        ("~/gantool/bin/pip install --no-dep .", ["--no-dep"]),
        ("python3 -m vennv .venv", ["python -m vennv .venv"]),
        ("A=1 mkdir --verbos x", ["--verbos"]),
        ("frobnicate --all", ["frobnicate --all"]),
        ("export A=1", []),
    ],
)
def test_what_a_program_does_not_know_is_found(line: str, expected: list[str]) -> None:
    (words,) = commands_of(f"text\n\n    {line}\n\ntext\n")
    assert faults(words) == expected


def test_options_of_gantool_are_not_those_of_what_starts_it() -> None:
    (words,) = commands_of("text\n\n    torchrun --nproc-per-node 4 --no-python gantool --nothing\n\ntext\n")
    assert faults(words) == []
    assert faults(("torchrun", "--nothing", "gantool")) == ["--nothing"]
