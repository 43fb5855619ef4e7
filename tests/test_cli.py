"""The command line: exit codes, what goes to stdout and what to stderr, formats, refusals."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from conftest import Gantool

CONFIGS = Path(__file__).parent.parent / "configs"
VERBS = ["prepare", "train", "sample", "eval", "sweep", "status", "bench", "config-schema", "doctor"]


def test_help_lists_the_verbs_and_version_prints_it(gantool: Gantool) -> None:
    shown = gantool("--help")
    assert shown.returncode == 0 and all(verb in shown.stdout for verb in VERBS)
    assert gantool("--version").stdout == "0.1.0\n"
    for verb in VERBS:
        shown = gantool(verb, "--help")
        assert shown.returncode == 0 and "Usage" in shown.stdout


def test_config_schema_is_one_json_document(gantool: Gantool) -> None:
    for words, key in (((), "batch"), (("--sweep",), "vary")):
        assert key in json.loads(gantool("config-schema", *words).stdout)["properties"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_schemas_accept_the_configs_of_this_repository(path: Path) -> None:
    from gantool.config.document import read_document
    from gantool.config.json_schema import run_schema, sweep_schema

    tree = read_document(path).tree
    jsonschema.validate(tree, sweep_schema() if "base" in tree else run_schema())


def test_the_schema_refuses_a_misspelt_key() -> None:
    from gantool.config.json_schema import run_schema

    jsonschema.validate({"extends": "x.yaml", "loss": "hinge", "augment": {"shift": 3}, "penalty": None}, run_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"generator": {"widht": 3}}, run_schema())


def test_a_wrong_config_is_exit_2_with_file_line_key_and_hint(gantool: Gantool, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("steps: 10\ngenerator:\n  widht: 8\n")
    wrong = gantool("train", path)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert f"error: {path}:3: generator.widht: unknown key" in wrong.stderr
    assert "hint: did you mean 'width'?" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("train", "nowhere.yaml"), "there is no such file"),
        (("train", "."), "not a run directory"),
        (("status", "nowhere"), "there is no such folder"),
        (("eval", "--ckpt", "nowhere"), "there is no such file or folder"),
        (("sample", "--ckpt", "nowhere", "--out", "x.npz"), "there is no such file or folder"),
        (("prepare",), "give either a config or --dataset"),
        (("prepare", "--dataset", "mine", "--source", "x"), "data.size must be given"),
        (("sweep", "nowhere.yaml"), "there is no such file"),
        (("bench", "nowhere.yaml"), "there is no such file"),
        (("status", ".", "--format", "xml"), "expected one of table, json, csv, markdown"),
    ],
)
def test_usage_errors_are_one_message_and_exit_2(
    words: tuple[str, ...], text: str, gantool: Gantool, tmp_path: Path
) -> None:
    os.chdir(tmp_path)
    wrong = gantool(*words)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert text in wrong.stderr.replace("\n", " ") and "Traceback" not in wrong.stderr


def test_train_without_packed_data_says_what_to_run(gantool: Gantool, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(f"data: {{name: mnist}}\nruntime: {{data_dir: {tmp_path}, runs_dir: {tmp_path}/runs}}\n")
    wrong = gantool("train", path)
    assert wrong.returncode != 0 and "gantool prepare" in wrong.stderr and "Traceback" not in wrong.stderr


def test_status_in_every_format(gantool: Gantool, done_run: Path, tmp_path: Path) -> None:
    run = str(done_run)
    folder = tmp_path / "runs"
    table = gantool("status", folder)
    assert Path(run).name in table.stdout and f"1 run in {folder}: 1 done" in table.stdout
    (row,) = json.loads(gantool("status", folder, "--format", "json").stdout)
    assert (row["run"], row["state"], row["step"]) == (run, "done", 40)
    (line,) = csv.DictReader(io.StringIO(gantool("status", folder, "--format", "csv").stdout))
    assert line["run"] == run and line["state"] == "done"
    assert gantool("status", folder, "-f", "markdown").stdout.startswith("| run |")
    assert gantool("--quiet", "status", folder).stderr == ""


def test_a_closed_pipe_is_no_error(done_run: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m gantool status {tmp_path / 'runs'} | head -n 0; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_a_sweep_from_the_command_line_twice(gantool: Gantool, tiny: Path, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    sweep = tmp_path / "s.yaml"
    sweep.write_text("base: tiny.yaml\nvary: {augment: [none, basic]}\nseeds: 1\n")
    words = ("--set", "eval={num: 100}", "--set", "steps=10")
    planned = json.loads(gantool("sweep", sweep, "--local", "--dry-run", "-f", "json", *words).stdout)
    assert [row["state"] for row in planned] == ["planned"] * 2 and not (tmp_path / "runs").exists()
    first = gantool("sweep", sweep, "--local", "-f", "json", *words)
    assert first.returncode == 0, first.stderr
    groups = json.loads(first.stdout)["groups"]
    assert {group["labels"]["augment"] for group in groups} == {"none", "basic"}
    assert all(group["spreads"]["fid"]["n"] == 1 and group["spreads"]["is"]["mean"] >= 1 for group in groups)
    times = {path: path.stat().st_mtime for path in (tmp_path / "runs").glob("*/result.json")}
    again = gantool("sweep", sweep, "--local", *words)
    assert again.returncode == 0 and "0 to run, 2 done" in again.stderr
    assert "fid" in again.stdout
    assert times == {path: path.stat().st_mtime for path in (tmp_path / "runs").glob("*/result.json")}
    more = gantool("sweep", sweep, "--local", *words, "--set", "eval={num: 120}")
    assert more.returncode == 0 and "2 to run" in more.stderr  # trained already: only the scores are new
    assert {json.loads(path.read_text())["step"] for path in times} == {10}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trian",), "error: gantool: No such command 'trian'"),
        (("train",), "error: gantool train: Missing argument 'config'"),
        (("status", "--verbos", "x"), "error: gantool status: No such option: --verbos"),
        (("--debug", "train", "x", "--set"), "error: gantool train: Option '--set' requires an argument"),
        (("sample", "--num", "x"), "error: gantool sample: Invalid value for '--num' / '-n'"),
    ],
)
def test_a_wrong_command_line_is_one_error_like_any_other(gantool: Gantool, words: tuple[str, ...], said: str) -> None:
    done = gantool(*words)
    first, hint = done.stderr.splitlines()
    assert first.startswith(said) and not first.endswith(".")
    command = said.removeprefix("error: ").partition(":")[0]
    assert hint == f"  hint: {command} --help says what it takes" and (done.returncode, done.stdout) == (2, "")


def test_a_slip_in_a_path_is_answered_with_the_name_that_is_there(gantool: Gantool, done_run: Path) -> None:
    slip = done_run.with_name(done_run.name.replace("tiny", "tyni"))
    for words in (("status", slip), ("sample", "--ckpt", slip, "--out", "x.npz"), ("eval", slip)):
        done = gantool(*words)
        assert done.returncode == 2 and f"hint: did you mean {done_run}?" in done.stderr
    assert "did you mean" not in gantool("status", done_run.parent / "elsewhere").stderr


def test_the_options_of_all_verbs_stand_before_or_after_the_verb(gantool: Gantool) -> None:
    shown = gantool()
    assert shown.returncode == 0 and shown.stdout == gantool("--help").stdout and " sweep " in shown.stdout
    for words in (("-v", "train", "no.yaml"), ("train", "-v", "no.yaml"), ("train", "no.yaml", "--verbose")):
        done = gantool(*words)
        assert done.returncode == 2 and "there is no such file" in done.stderr
    assert "Traceback" in gantool("train", "no.yaml", "--debug").stderr
    both = gantool("train", "-q", "no.yaml", "-v")
    assert "--quiet and --verbose were given together" in both.stderr
    assert "unexpected extra argument(s) (-q)" in gantool("config-schema", "--", "-q").stderr


def test_garbage_is_looked_for_again_once_torch_is_loaded() -> None:
    code = (
        "import gc; from gantool.launch import quick_imports; from gantool.progress import Silent\n"
        "with quick_imports(Silent()):\n    assert not gc.isenabled(); import torch\n"
        "frozen = gc.get_freeze_count(); assert gc.isenabled() and frozen > 100_000\n"
        "with quick_imports(Silent()):\n    assert gc.isenabled()\n"
        "assert gc.get_freeze_count() <= frozen"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_loading_torch_slowly_tells_how_far_it_is(tmp_path: Path) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import importlib\nfor i in range(12):\n    importlib.import_module(f'torch.m{i}')\n"
    )
    for number in range(12):
        (package / f"m{number}.py").write_text("import time\ntime.sleep(0.15)\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from gantool.launch import quick_imports; from gantool.progress import Silent\n"
        "class Told(Silent):\n    def step(self, what, done, total, *rest): print(what, done, total)\n"
        "with quick_imports(Told()):\n    import torch\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = [(int(step), int(total)) for step, total in (line.split()[2:] for line in done.stdout.splitlines())]
    assert len(told) >= 3 and told == sorted(told) and told[-1][0] == told[-1][1] > 20 > told[-2][0] > told[0][0] > 0
    other = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"RANK": "1"})
    assert other.stdout == ""  # each rank loads it, one tells
    (package / "m11.py").write_text("raise ImportError('no such library')")
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stdout and "1100 1100" not in failed.stdout


def test_results_are_not_lost_with_the_reader_of_stderr() -> None:
    code = (
        "import os; reader, writer = os.pipe(); os.dup2(writer, 2); os.close(writer); os.close(reader)\n"
        "from gantool.terminal import TerminalProgress\n"
        "with TerminalProgress() as progress:\n    progress.say('words'); progress.say('more')\n"
        "print('result')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "result\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_no_defect_of_gantool() -> None:
    command = [sys.executable, "-m", "gantool", "config-schema"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "error: the output: No space left on device" in done.stderr, done.stderr
