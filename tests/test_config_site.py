"""site.yaml: what it may say, where it is looked for, and that a mistake gives file, line, key and fix; and the same
for the `slurm` section of sweep files."""

from __future__ import annotations

from pathlib import Path

import pytest

from gantool.config.site import SiteConfig, load_site
from gantool.config.sweep_file import SlurmConfig, minutes_of
from gantool.errors import ConfigError, UsageError
from gantool.sweep import plan

FULL = """\
account: abc
partition: gpu,gpu-long
mem: 32G
setup: |
  module purge
  module load cuda
sbatch: {mail-type: FAIL, nice: 10, exclusive: true, requeue: false}
srun: [--mpi=none]
env: {NCCL_DEBUG: WARN, OMP_NUM_THREADS: 4, RATIO: 1.5}
container_options: [--bind, /scratch]
"""
WRONG = {
    # the file; line, key and words of its problem; words of the fix
    "misspelt": ("mem: 8G\nacount: x\n", 2, "acount", "unknown key", "did you mean 'account'?"),
    "two words": ("account: a b\n", 1, "account", "expected one word", "leave out spaces"),
    "number for a word": ("mem: 8G\npartition: 3\n", 2, "partition", "found 3, expected a text", "in quotes: '3'"),
    "list for a word": ("account: [a]\n", 1, "account", "found ['a'], expected a text", ""),
    "no is a text": ("gres: no\n", 1, "gres", "found the text 'no', expected true or false", "true or false"),
    "no CPU": ("cpus: 0\n", 1, "cpus", "found 0, expected more than 0", ""),
    "memory without a unit": ("mem: 32\n", 1, "mem", "found 32, expected a text like 32G", "K, M, G or T"),
    "memory with another unit": ("mem: 32GB\n", 1, "mem", "found '32GB'", "K, M, G or T"),
    "option with dashes": ("sbatch: {--nice: 3}\n", 1, "sbatch.--nice", "the long name", "mail-type"),
    "option of ours": ("sbatch:\n  nice: 3\n  array: 0-3\n", 3, "sbatch.array", "set by gantool itself", "remove it"),
    "list for an option": ("sbatch: {nice: [3]}\n", 1, "sbatch.nice", "expected a text or a number", "write"),
    "text for a list": ("srun: --mpi=none -v\n", 1, "srun", "expected a list", "write [--mpi=none, -v]"),
    "two words in one": (
        "container_options: [--bind /x y]\n", 1, "container_options", "one word in each", "two: [--bind, /x y]"
    ),
    "bad variable": ("env: {A-B: 1}\n", 1, "env.A-B", "expected the name of a variable", "letters, digits and _"),
    "switch for a variable": ("env: {A: true}\n", 1, "env.A", "found true, expected a text", "write '1'"),
    "no such image": ("container: nope.sif\n", 0, "container", "there is no image", "containers/README.md"),
    "too late": ("signal_seconds: 5\n", 1, "signal_seconds", "expected at least 30", ""),
    "no whole number": ("signal_seconds: 2m\n", 1, "signal_seconds", "the text '2m'", "write a number"),
}  # fmt: skip
SLURM_WRONG = {
    "misspelt": ("tim: 4h", "slurm.tim", "unknown key", "did you mean 'time'?"),
    "of the site": ("account: x", "slurm.account", "unknown key", "keys here: time, gpus"),
    "time of Slurm": ("time: '4:00:00'", "slurm.time", "expected a time like 4h, 90m or '2d 12h'", "whole minutes"),
    "no time": ("time: 0h", "slurm.time", "expected a time like", "whole minutes"),
    "bare number": ("time: 240", "slurm.time", "found 240, expected a time", "whole minutes"),
    "fraction": ("gpus: 0.5", "slurm.gpus", "expected a whole number", ""),
    "memory": ("mem: 32 GB", "slurm.mem", "found the text '32 GB'", ""),
    "packed nodes": ("pack: 3, nodes: 2", "slurm", "several runs share one GPU of one node", "leave out nodes"),
    "packed GPUs": ("pack: 3, gpus: 2", "slurm", "several runs share one GPU", "leave out nodes"),
    "nothing at once": ("at_once: 0", "slurm.at_once", "found 0, expected more than 0", ""),
}


def test_everything_is_read(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(FULL)
    site, path = load_site(tmp_path / "site.yaml")
    assert path == tmp_path / "site.yaml" and (site.account, site.partition, site.mem) == ("abc", "gpu,gpu-long", "32G")
    assert site.setup == ("module purge", "module load cuda") and site.srun == ("--mpi=none",)
    assert site.sbatch == {"mail-type": "FAIL", "nice": "10", "exclusive": True, "requeue": False}
    assert site.env == {"NCCL_DEBUG": "WARN", "OMP_NUM_THREADS": "4", "RATIO": "1.5"}


@pytest.mark.parametrize(("text", "line", "key", "problem", "fix"), WRONG.values(), ids=WRONG)
def test_a_mistake_says_where_and_what(tmp_path: Path, text: str, line: int, key: str, problem: str, fix: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises((ConfigError, UsageError)) as caught:
        load_site(path)
    said = caught.value.message
    assert said.startswith(f"{path}:{line}: {key}" if line else f"{path}: {key}") and problem in said, said
    assert "\n" not in said and fix in (caught.value.hint or ""), (said, caught.value.hint)


@pytest.mark.parametrize(("text", "key", "problem", "fix"), SLURM_WRONG.values(), ids=SLURM_WRONG)
def test_a_mistake_in_the_slurm_section(tmp_path: Path, text: str, key: str, problem: str, fix: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(f"base: {{steps: 3}}\nslurm: {{{text}}}\n")
    with pytest.raises(ConfigError) as caught:
        plan(path, on_slurm=True)
    said = caught.value.message
    assert said.startswith(f"{path}:2: {key}: ") and problem in said, said
    assert fix in (caught.value.hint or ""), caught.value.hint


@pytest.mark.parametrize(("time", "minutes"), [("4h", 240), ("90m", 90), ("2d 12h", 3600), ("1d2h3m", 1563)])
def test_times(time: str, minutes: int) -> None:
    assert minutes_of(time) == minutes and SlurmConfig(time=time).time == time


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    for folder in (here, home / "gantool"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    assert load_site() == (SiteConfig(), None)
    for name, path in (("in_home", home / "gantool/site.yaml"), ("here", Path("site.yaml"))):
        path.write_text(f"account: {name}\n")
        assert load_site()[0].account == name and load_site()[1] == path
    (tmp_path / "mine.yaml").write_text("account: variable\n")
    monkeypatch.setenv("GANTOOL_SITE", str(tmp_path / "mine.yaml"))
    assert load_site()[0].account == "variable"
    assert load_site(Path("site.yaml"))[0].account == "here"
    monkeypatch.setenv("GANTOOL_SITE", "nowhere.yaml")
    with pytest.raises(UsageError, match=r"\$GANTOOL_SITE: there is no file nowhere.yaml"):
        load_site()
    with pytest.raises(UsageError, match=r"--site: there is no file other.yaml"):
        load_site(Path("other.yaml"))


def test_the_image_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a b.sif").touch()
    (tmp_path / "site.yaml").write_text("container: images/a b.sif\n")
    monkeypatch.chdir("/")
    assert load_site(tmp_path / "site.yaml")[0].container == str(tmp_path / "images/a b.sif")
