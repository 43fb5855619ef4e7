"""What the shell is offered when TAB is pressed, asked for as the script of `--install-completion` does; and a bash."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gantool.config.schema import RunConfig, RuntimeConfig
from gantool.runs import RunDirectory

# As the installed program; torch cannot be imported.
PROGRAM = "import sys; sys.modules['torch'] = None; from gantool.cli import main; sys.argv = ['gantool']; main()"


def offered(*words: str) -> list[str]:
    """Completions of the last word."""
    asked = {
        "_GANTOOL_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(("gantool", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=os.environ | asked)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two configs, a run and a sweep."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for name in ("mine.yaml", "notes.txt", "configs/other.yaml"):
        (tmp_path / name).write_text("")
    RunDirectory.create(RunConfig(name="first", runtime=RuntimeConfig(runs_dir="runs")))
    (tmp_path / "sweeps" / "grid").mkdir(parents=True)
    (tmp_path / "sweeps" / "grid" / "sweep.json").write_text("{}")
    return tmp_path


def test_verbs_and_options() -> None:
    assert offered("tr") == ["train"]
    assert "--metrics" in offered("eval", "--m")


def test_configs_and_runs_by_path(folder: Path) -> None:
    (run,) = (str(path.relative_to(folder)) for path in (folder / "runs").iterdir())
    assert offered("train", "") == ["configs/other.yaml", "mine.yaml", run]
    assert offered("train", "configs/o") == ["configs/other.yaml"]
    assert offered("train", f"{folder}/m") == [f"{folder}/mine.yaml"]
    assert offered("status", "") == ["sweeps/grid", run]
    assert offered("sample", "--ckpt", "runs/f") == [run]
    assert offered("eval", "runs/") == [run]


def test_keys_of_the_config_a_level_at_a_time() -> None:
    top = offered("train", "x.yaml", "--set", "")
    assert {"batch=", "generator.", "runtime."} <= set(top) and len(top) < 30
    assert set(offered("train", "x.yaml", "--set", "optimizer.")) == {
        "optimizer.generator.",
        "optimizer.discriminator.",
    }
    assert {"generator.width=", "generator.embedding_dim=", "generator.kind="} <= set(
        offered("train", "x.yaml", "--set", "generator.")
    )
    assert offered("train", "x.yaml", "--set", "runtime.samples") == ["runtime.samples_dir=samples"]
    assert offered("train", "x.yaml", "-s", "data.on") == ["data.on_bad_image=error", "data.on_bad_image=skip"]


def test_values_after_the_sign_of_equality_which_bash_takes_for_a_word() -> None:
    assert offered("train", "x.yaml", "--set", "loss.kind", "=", "w") == ["wasserstein"]
    assert set(offered("train", "x.yaml", "--set", "runtime.rewrites", "=")) == {"true", "false"}
    assert "r3gan" in offered("train", "x.yaml", "--set", "generator.kind", "=", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("eval", "--metrics", "fi"), ["fid"]),
        (("eval", "--metrics", "fid,precision"), ["fid,precision_recall"]),
        (("eval", "--extractor", ""), ["classifier", "inception", "efficientnet-lite0"]),
        (("eval", "--protocol", "py"), ["pytorch-fid"]),
        (("eval", "--format", "l"), ["latex"]),
        (("status", ".", "--format", "l"), []),
        (("train", "--device", "c"), ["cpu", "cuda"]),
        (("prepare", "--dataset", "cifar"), ["cifar10", "cifar100"]),
    ],
)
def test_names(words: tuple[str, ...], expected: list[str]) -> None:
    assert offered(*words) == expected


def test_every_offered_key_is_one() -> None:
    from gantool.cli.completion import _values

    known = set(_values())
    assert {"seed", "data.size", "augment.kind", "ema.decay", "eval.every", "optimizer.generator.lr"} <= known
    leaves = {key for key in known if not any(other.startswith(f"{key}.") for other in known)}
    fields = set(RunConfig.model_fields)
    assert {key.split(".")[0] for key in leaves} == fields


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash(folder: Path) -> None:
    """The script that `--show-completion` prints, sourced by an interactive bash; TAB twice."""
    (folder / "gantool").write_text(f'#!/bin/sh\nexec {sys.executable} -m gantool "$@"\n')
    (folder / "gantool").chmod(0o755)
    asked = {"_GANTOOL_COMPLETE": "source_bash"}
    script = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=os.environ | asked)
    (folder / "completion.sh").write_text(script.stdout)
    assert "complete -o default -F" in script.stdout
    line = "gantool train mi\t--set loss.kind=was\t--set runtime.rew\tfalse"
    assert typed(folder, line) == "train mine.yaml --set loss.kind=wasserstein --set runtime.rewrites=false"


def typed(folder: Path, line: str) -> str:
    """The arguments that an interactive bash hands over when `line` is typed. Keys wait while it completes."""
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], os.environ | {"PATH": path, "TERM": "dumb"})
    os.write(terminal, b". ./completion.sh; PS1=REA''DY\n")
    said = b""
    while b"READY" not in said:
        said += os.read(terminal, 65536)
    # To the start of the line, to its end.
    os.write(terminal, f"{line}\x01echo \x05 > typed.txt\nexit\n".encode())
    while True:
        try:
            if not os.read(terminal, 65536):
                break
        except OSError:
            break
    os.waitpid(process, 0)
    return " ".join((folder / "typed.txt").read_text().split()[1:])
