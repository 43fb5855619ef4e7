"""Slurm faked at the subprocess seam: executables by the names of Slurm's commands that keep their jobs in one file.

What is faked is what `gantool` asks for, in the form of the real answers (Slurm 22.05); jobs never run, a test
says what becomes of them. Every call is written down, so that tests count calls instead of seconds.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "scancel", "srun")

PROGRAM = r"""
import fcntl, json, os, re, sys, time
here = os.path.dirname(os.path.dirname(os.path.abspath(sys.argv[0])))
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
script = open(words[-1]).read() if name == "sbatch" and words and os.path.isfile(words[-1]) else ""
if "--test-only" in words:
    script = sys.stdin.read()
call = json.dumps({"name": name, "words": words, "script": script, "env": dict(os.environ)}) + "\n"
descriptor = os.open(here + "/calls.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(descriptor, call.encode())
lock = open(here + "/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
state = json.load(open(here + "/state.json"))
answer = state["answers"].get(name)
if answer:
    time.sleep(answer["seconds"])
    print(answer["out"])
    print(answer["error"], file=sys.stderr)
    if answer["code"] is not None:
        sys.exit(answer["code"])

def option(key):
    found = re.search(r"^#SBATCH --%s=(?:'([^']*)'|(\S+))" % key, script, re.M)
    return (found[1] or found[2]) if found else None

def after(key):
    return words[words.index(key) + 1]

if name == "sbatch" and script and "--test-only" in words:
    print("sbatch: Job 99 to start at 2026-11-28T12:00:00 using 1 processors on nodes node1", file=sys.stderr)
elif name == "sbatch":
    number = state["next"]
    tasks = re.match(r"0-(\d+)", option("array"))
    job = {"name": option("job-name"), "state": "PENDING", "reason": "Priority", "nodes": "", "end": "N/A"}
    for task in range(int(tasks[1]) + 1):
        state["jobs"]["%d_%d" % (number, task)] = job
    state["next"] = number + int(tasks[1]) + 1
    print("Submitted batch job %d" % number)
elif name == "squeue":
    assert after("-o") == "%j|%i|%T|%N|%e|%r" and "-h" in words and "-r" in words and after("-t") == "all", words
    for id_, job in state["jobs"].items():
        if job["name"] in after("-n").split(","):
            print("|".join([job["name"], id_, job["state"], job["nodes"], job["end"], job["reason"]]))
elif name == "sacct":
    wanted = next(word for word in words if word.startswith("--name=")).removeprefix("--name=").split(",")
    for row in state["attempts"]:
        if row[1] in wanted:
            print("|".join([*row, "2026-11-28T12:00:00"][:5]))
elif name == "scancel":
    for word in words:
        for id_, job in state["jobs"].items():
            if word in (id_, id_.split("_")[0]):
                job["state"], job["end"] = "CANCELLED", time.strftime("%Y-%m-%dT%H:%M:%S")
elif name == "scontrol" and words[:1] == ["release"]:
    for id_ in words[1].split(","):
        state["jobs"][id_]["reason"] = "None"
elif name == "scontrol":
    print("Configuration data as of 2026-11-28T12:00:00\nMaxArraySize            = %d" % state["max_array_size"])
elif name == "sinfo":
    print(state["partitions"])
json.dump(state, open(here + "/state.json", "w"))
"""


@dataclass(frozen=True)
class Call:
    """One call of one of the commands."""

    name: str
    words: list[str]
    script: str
    """The batch script that sbatch was given."""
    env: dict[str, str]

    def option(self, key: str) -> str | None:
        """The value of a `#SBATCH --key=value` line; empty for one without a value."""
        found = re.search(rf"^#SBATCH --{key}(?:=(.*))?$", self.script, re.MULTILINE)
        return (found[1] or "").strip("'") if found else None


class FakeSlurm:
    """The commands in `folder`/bin, and what they know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for name in COMMANDS:
            (self.bin / name).write_text(f"#!{sys.executable} -IS\n{PROGRAM}")
            (self.bin / name).chmod(0o755)
        state = {"next": 10, "jobs": {}, "attempts": [], "answers": {}, "max_array_size": 1001}
        self._write({**state, "partitions": "main*|1-00:00:00\nhigh|2:00:00\nopen|infinite"})

    def calls(self, name: str | None = None) -> list[Call]:
        """All calls so far (of one command)."""
        path = self.folder / "calls.jsonl"
        found = [Call(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in found if name in (None, call.name)]

    def num_calls(self) -> dict[str, int]:
        """Calls of each command so far, and forget them."""
        names = [call.name for call in self.calls()]
        (self.folder / "calls.jsonl").unlink(missing_ok=True)
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def answer(self, name: str, out: str = "", error: str = "", code: int | None = 1, seconds: float = 0.0) -> None:
        """From now on a command says this and ends; with code None it also does its work."""
        self._update("answers", {name: {"out": out, "error": error, "code": code, "seconds": seconds}})

    def mend(self, name: str) -> None:
        """Let a command work again."""
        self._update("answers", {name: None})

    def set(self, id_: str, **facts: str) -> None:
        """Change what is known of an array task: state, reason, nodes, end."""
        self._update("jobs", {id_: {**self.jobs()[id_], **facts}})

    def jobs(self) -> dict[str, dict[str, str]]:
        """What squeue knows: name, state, reason, nodes, end of each array task."""
        return dict(self._read()["jobs"])

    def forget(self) -> None:
        """As squeue does some minutes after the end of jobs."""
        self.configure(jobs={})

    def configure(self, **facts: Any) -> None:
        """Set attempts (rows for sacct, with an end or without), max_array_size, partitions, jobs."""
        self._write({**self._read(), **facts})

    def _update(self, key: str, facts: dict[str, Any]) -> None:
        state = self._read()
        self._write({**state, key: {**state[key], **facts}})

    def _read(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "state.json").read_text()))

    def _write(self, state: dict[str, Any]) -> None:
        (self.folder / "state.json").write_text(json.dumps(state))


def without_slurm(path: str, folder: Path) -> str:
    """The search path `path` with every folder that has Slurm's commands replaced by one of links to all others."""
    return os.pathsep.join(_replaced(path.split(os.pathsep), folder))


def _replaced(folders: list[str], mirror: Path) -> Iterator[str]:
    for number, name in enumerate(folders):
        place = Path(name)
        if not any((place / command).exists() for command in COMMANDS):
            yield name
            continue
        ours = mirror / str(number)
        ours.mkdir()
        for program in place.iterdir():
            if program.name not in COMMANDS:
                (ours / program.name).symlink_to(program)
        yield str(ours)
