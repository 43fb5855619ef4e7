"""What the documentation says is so: its commands parse, its configs load, its links, files and targets are there."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from pages import NAMES, PAGES, ROOT, code_of, split, words_for_gantool

from gantool.cli import app
from gantool.config.document import parse_document
from gantool.config.evaluation import EvalConfig, eval_problems
from gantool.config.loader import load_run_config
from gantool.config.site import SiteConfig, load_site
from gantool.errors import GantoolError
from gantool.sweep import plan

VERBS = [command.name for command in app.registered_commands]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


class Command(NamedTuple):
    """A command of gantool in a page, and the line below it; None in a sentence."""

    page: str
    words: tuple[str, ...]
    below: str | None

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


class Wrong(Exception):
    """gantool would not take a command."""


def commands() -> list[Command]:
    found = []
    for page, name in zip(PAGES, NAMES, strict=True):
        for line, below in code_of(page.read_text()):
            found += [Command(name, words, below) for words in filter(None, map(words_for_gantool, split(line)))]
    return list(dict.fromkeys(found))


def check(words: Sequence[str]) -> None:
    """Wrong, unless gantool would take these words: the real parser, and the real loader where the config is there."""
    tree: Any = typer.main.get_command(app)
    tree.callback = None
    for command in tree.commands.values():
        command.callback = lambda **given: given
    if list(words) == ["--install-completion"]:  # it would be done
        assert any("--install-completion" in option.opts for option in tree.params)
        return
    try:
        given = tree.main(list(words), prog_name="gantool", standalone_mode=False)
        if not isinstance(given, dict):
            return  # --version, --help
        verb = next(word for word in words if word in tree.commands)
        _check_choices(tree.commands[verb], given)
        path = given.get("config")
        if path is not None and path.is_file():
            load = {"train": load_run_config, "bench": load_run_config, "sweep": plan}.get(verb, load_any)
            load(path, given["assignments"] or [])
    except GantoolError as error:
        raise Wrong(error.message) from error
    except Exception as error:  # of typer or of click, which newer versions of typer contain
        raise Wrong(f"{type(error).__name__}: {error}") from error


def _check_choices(command: Any, given: dict[str, Any]) -> None:
    for option in command.params:
        value = given.get(option.name)
        if option.name in ("form", "device", "compare") and value and value not in re.findall(r"\w+", option.help):
            raise ValueError(f"{option.name}: {value}")
    if "extractor" in given:
        keys = ("extractor", "protocol", "precision", "num")
        settings: dict[str, Any] = {key: given[key] for key in keys if given[key] is not None}
        if given["metrics"]:
            settings["metrics"] = given["metrics"].split(",")
        if problems := eval_problems(EvalConfig.model_validate(settings), has_classes=True):
            raise ValueError(str(problems))


def load_any(path: Path, sets: Sequence[str] = ()) -> None:
    """The run or sweep at `path` through the loader that the verbs use."""
    tree = parse_document(path.read_text(), str(path)).tree
    (plan if {"base", "vary"} & set(tree) else load_run_config)(path, sets)


def yaml_blocks(page: Path) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the configs of the repository, and those of the pages under the names in their first
    lines."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for block in (block for page in PAGES for block in yaml_blocks(page)):
        if name := re.match(r"# (\w+\.yaml)\n", block):
            assert not (tmp_path / name[1]).exists(), f"two pages have a {name[1]}"
            (tmp_path / name[1]).write_text(block)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", commands(), ids=str)
def test_every_command_parses(command: Command, place: Path) -> None:
    if (command.below or "").startswith("error: "):
        with pytest.raises(Wrong) as wrong:
            check(command.words)
        assert f"error: {wrong.value}".splitlines()[0] == command.below
    elif command.below is None and len(command.words) == 1:  # a verb in a sentence stands without what it works on
        assert command.words[0] in VERBS
    else:
        check(command.words)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("gantool trian x.yaml", "No such command"),
        ("gantool sweep x.yaml --dryrun", "No such option"),
        ("gantool status", "MissingParameter"),
        ("gantool status a b", "extra argument"),
        ("gantool train configs/quickstart.yaml", "this is a sweep"),
        ("gantool train configs/bench.yaml --set generator.widht=3", "unknown key"),
        ("gantool train x.yaml --nproc 0", "BadParameter"),
        ("gantool report x --format pdf", "form: pdf"),
        ("gantool bench x.yaml --device gpu", "device: gpu"),
        ("gantool eval x --metrics fid,fdd", "metrics"),
        ("gantool eval x --extractor vgg", "extractor"),
        ("gantool eval x --extractor classifier --protocol clean", "protocol of the Inception network"),
        ("gantool prepare a.yaml && .venv/bin/gantool eval --ckpt", "requires an argument"),
        ("OMP=1; python -m gantool cancel", "MissingParameter"),
        ("apptainer run --nv gantool.sif tarin x.yaml", "No such command"),
        ("apptainer exec --nv gantool.sif gantool train --sett a=b", "No such option"),
        ("torchrun --nproc-per-node 4 --no-python gantool train x.yaml --resume", "No such option"),
    ],
)
def test_a_wrong_command_is_found(line: str, found: str, place: Path) -> None:
    ((command, below),) = code_of(f"text\n\n    $ {line}     # why\n\ntext")
    *_, words = map(words_for_gantool, split(command))
    assert words and below == ""
    with pytest.raises(Wrong, match=re.escape(found)):
        check(words)


@pytest.mark.parametrize(
    "line", ["docker build --tag gantool .", "apptainer exec gantool.sif cat x", "pip install gantool"]
)
def test_other_commands_are_left_alone(line: str) -> None:
    assert [words_for_gantool(words) for words in split(line)] == [None]


def faults(text: str, folder: Path) -> list[str]:
    """What a page in `folder` names and is not there: links, files, make targets, options of the benchmarks' scripts
    and arguments of the image."""
    links = re.findall(r"\]\(([^)\s#]+)", text)
    found = [link for link in links if "://" not in link and not (folder / link).exists()]
    for line, _ in code_of(text):
        found += [name for name in re.findall(r"^make ([a-z-]+)(?!=)\b", line) if name not in TARGETS]
        files = re.findall(r"(?<![\w/.~-])(?:configs|slurm|containers|tests)/[\w./*-]*\w", line)
        found += [file for file in files if not list(ROOT.glob(file))]
        if script := re.match(r"(?:python )?(tests/benchmarks/\w+\.py)(.*)", line):
            source = (ROOT / script[1]).read_text()
            found += [name for name in re.findall(r"--[a-z-]+", script[2]) if f'"{name}"' not in source]
        if line.startswith(("apptainer build", "docker build")):
            source = (ROOT / "containers" / ("gantool.def" if line[0] == "a" else "Dockerfile")).read_text()
            found += [name for name in re.findall(r"--build-arg (\w+)", line) if name not in source]
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_configs_of_a_page_load_and_what_it_names_is_there(page: Path, place: Path) -> None:
    assert not faults(page.read_text(), page.parent)
    for block in yaml_blocks(page):
        path = place / "block.yaml"
        path.write_text(block)
        keys = parse_document(block, str(path)).tree
        if set(keys) <= set(SiteConfig.model_fields):
            image = place / keys.get("container", "gantool.sif")
            image.parent.mkdir(exist_ok=True)
            image.touch()
            load_site(path)
        else:
            load_any(path)


def test_what_is_not_there_is_found() -> None:
    text = "[a](nowhere.md) [b](README.md) [c](https://example.org)\n\n    make tset\n    make test\n"
    text += "\n    sbatch slurm/one_gpu.sbatch configs/bnech.yaml && apptainer build --build-arg BSE=x a.sif b.def\n"
    text += "\n`python tests/benchmarks/scaling.py --nothing` `make lnit`, configs/nothing.yaml\n"
    assert faults(text, ROOT) == ["nowhere.md", "tset", "configs/bnech.yaml", "--nothing", "lnit"]
    assert faults("```\napptainer build --build-arg BSE=x a.sif b.def\n```\n", ROOT) == ["BSE"]


@pytest.mark.parametrize("folder", ["configs", "slurm", "containers"])
def test_every_file_of_a_folder_is_described(folder: str) -> None:
    named = re.findall(r"(?:`|\]\()([^`\s()]+)[`)]", (ROOT / folder / "README.md").read_text())
    names = {path.name for path in ROOT.glob(f"{folder}/*")} - {"README.md"}
    assert not {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in named)}


def test_commands_in_the_comments_of_configs_are_right(place: Path) -> None:
    for path in ROOT.glob("configs/*.yaml"):
        comments = " ".join(re.findall(r"^#(.*)", path.read_text(), re.MULTILINE))
        for sets in re.findall(r"(?:--set [\w.]+=\w+\s*)+", comments):
            load_any(path, re.findall(r"--set (\S+)", sets))
        for line in re.findall(r"^#   (gantool .*)", path.read_text(), re.MULTILINE):
            for words in map(words_for_gantool, split(line)):
                check(words or ())
