"""The strict loader: every wrong config gives file, line, key and fix; merging, identity and round trips."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gantool.config.base import duration_in_steps, parse_duration
from gantool.config.document import dump_yaml, parse_assignment, parse_document, read_document
from gantool.config.loader import load_run_config
from gantool.config.schema import RunConfig
from gantool.errors import ConfigError, UsageError


def load(folder: Path, text: str, *assignments: str, num_ranks: int = 1) -> RunConfig:
    (folder / "run.yaml").write_text(text)
    return load_run_config(folder / "run.yaml", assignments, num_ranks)


WRONG = {
    # the file; line, key and words of its problem; words of the fix
    "misspelt key": ("steps: 10\ngenerator:\n  widht: 32\n", 3, "generator.widht", "unknown key", "mean 'width'?"),
    "a level too high": ("runs_dir: x\n", 1, "runs_dir", "unknown key", "did you mean 'runtime.runs_dir'?"),
    "too high, of several": ("width: 8\n", 1, "width", "key", "'generator.width' or 'discriminator.width'?"),
    "too high, for the kind by its name": ("penalty: r1\ninterval: 3\n", 2, "interval", "key", "'penalty.interval'?"),
    "too deep": ("runtime:\n  batch: 8\n", 2, "runtime.batch", "unknown key", "did you mean 'batch'?"),
    "misspelt at the top": ("bacth: 8\n", 1, "bacth", "unknown key", "did you mean 'batch'?"),
    "misspelt in a kind": (
        "augment:\n  kind: basic\n  shfit: 3\n", 3, "augment.shfit", "unknown key", "did you mean 'shift'?"
    ),
    "key of another kind": (
        "augment:\n  kind: basic\n  cutout: 0.5\n", 3, "augment.cutout", "unknown key", "keys here: kind, flip, shift"
    ),
    "no such key anywhere": ("zzz: 1\n", 1, "zzz", "unknown key", "keys here: name, seed, data"),
    "text for a number": ("steps: 10\nbatch: many\n", 2, "batch", "the text 'many', expected a whole number", "write"),
    "quoted number": ('batch: "64"\n', 1, "batch", "found the text '64', expected a whole number", "remove the quotes"),
    "fraction for a whole number": ("batch: 64.0\n", 1, "batch", "found 64.0, expected a whole number", "write 64"),
    "number for a switch": ("generator:\n  residual: 1\n", 2, "generator.residual", "expected true or false", ""),
    "no is a text": (
        "generator:\n  residual: no\n", 2, "generator.residual", "found the text 'no', expected true or false",
        "write true or false",
    ),
    "on is a text": ("ema:\n  warmup: on\n", 2, "ema.warmup", "the text 'on'", "write true or false"),
    "null for a number": ("batch:\n", 1, "batch", "found nothing, expected a whole number", ""),
    "mapping for a number": ("batch: {a: 1}\n", 1, "batch", "found a mapping, expected a whole number", ""),
    "number for a mapping": ("data: 3\n", 1, "data", "found 3, expected a mapping", ""),
    "list for a kind": ("augment: [basic]\n", 1, "augment", "found ['basic'], expected a kind or a mapping", ""),
    "duplicate key": ("batch: 8\nsteps: 3\nbatch: 16\n", 3, "batch", "written twice (first at", "keep one of the two"),
    "duplicate key deeper": ("data:\n  size: 32\n  size: 64\n", 3, "data.size", "written twice", "keep one of the two"),
    "tab": ("data:\n\tname: mnist\n", 2, "", "a tab is used for indentation", "two spaces"),
    "bad indentation": ("data:\n  name: mnist\n size: 8\n", 3, "", "not valid YAML", "indentation"),
    "open quote": ('name: "abc\n', 2, "", "not valid YAML", "quotes"),
    "empty": ("", 0, "", "the file is empty", "write at least one key"),
    "only a comment": ("# nothing\n", 0, "", "the file is empty", "write at least one key"),
    "a list": ("- 1\n- 2\n", 1, "", "found no mapping", "write 'key: value' lines"),
    "a custom tag": ("batch: !!python/object:os.system 3\n", 1, "batch", "with the tag", "remove the tag"),
    "unknown extends": ("steps: 3\nextends: bsae.yaml\n", 2, "extends", "there is no file", "mean 'base.yaml'?"),
    "extends nothing alike": ("extends: qqqq.yaml\n", 1, "extends", "there is no file", "relative"),
    "extends a number": ("extends: 3\n", 1, "extends", "expected the path of one config", ""),
    "extends itself": ("extends: run.yaml\n", 1, "extends", "in a circle: run.yaml -> run.yaml", "remove one"),
    "negative batch": ("steps: 3\nbatch: -64\n", 2, "batch", "found -64, expected at least 2", ""),
    "zero length": ("steps: 0\n", 1, "steps", "expected a positive duration", ""),
    "quoted length": ("steps: '5000'\n", 1, "steps", "found '5000', expected a positive", "remove the quotes"),
    "unknown unit": ("steps: 3 hours\n", 1, "steps", "expected a positive duration like 5000, '20 epochs'", ""),
    "unknown kind": ("loss: hing\n", 1, "loss", "found the text 'hing', expected a kind out of", "mean 'hinge'?"),
    "unknown kind in a mapping": ("penalty:\n  kind: gpp\n", 1, "penalty", "the text 'gpp'", "did you mean 'gp'?"),
    "unknown choice": (
        "generator:\n  norm: bacth\n", 2, "generator.norm", "found the text 'bacth', expected one of", "mean 'batch'?"
    ),
    "batch norm with a penalty": (
        "penalty: gp\ndiscriminator:\n  norm: batch\n", 3, "discriminator.norm", "does not go with a gradient penalty",
        "instance or none",
    ),
    "batch norm by default": (
        "steps: 3\npenalty:\n  kind: gp\n", 2, "discriminator.norm", "does not go with a gradient penalty", "or none"
    ),
    "unknown dataset": ("data:\n  name: faces\n", 2, "data.name", "data.size must be given", "known datasets: shapes"),
    "size not divisible": ("data:\n  size: 30\n", 2, "data.size", "expected a multiple of 4", "4x4"),
    "unfit name": ("name: ../x\n", 1, "name", "expected a text like", ""),
    "decay of one": ("ema:\n  decay: 1.0\n", 2, "ema.decay", "found 1.0, expected less than 1", ""),
    "bad item of a list": ("eval:\n  metrics: [fid, iss]\n", 2, "eval.metrics[1]", "the text 'iss'", "mean 'is'?"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_config_says_file_line_key_and_fix(tmp_path: Path, name: str) -> None:
    text, line, key, words, fix = WRONG[name]
    (tmp_path / "base.yaml").write_text("steps: 10\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    (problem,) = caught.value.problems
    assert problem[0] == f"{tmp_path}/run.yaml" + (f":{line}" if line else "")
    assert problem[1] == key
    assert words in problem[2]
    assert fix in (problem[3] or "")
    assert caught.value.exit_code == 2 and isinstance(caught.value, UsageError)
    assert "pydantic" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_two_problems_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "batch: -1\ngenerator:\n  widht: 3\n")
    assert [(where.rsplit(":", 1)[1], key) for where, key, _, _ in caught.value.problems] == [
        ("1", "batch"), ("3", "generator.widht")
    ]  # fmt: skip
    assert str(caught.value).count("\n") == 1 and "did you mean 'width'?" in (caught.value.hint or "")


def test_circle_of_three_files_is_shown(tmp_path: Path) -> None:
    for name, parent in (("run", "b"), ("b", "c"), ("c", "run")):
        (tmp_path / f"{name}.yaml").write_text(f"steps: 3\nextends: {parent}.yaml\n")
    with pytest.raises(ConfigError, match=r"in a circle: run.yaml -> b.yaml -> c.yaml -> run.yaml") as caught:
        load_run_config(tmp_path / "run.yaml")
    assert caught.value.problems[0][0] == f"{tmp_path}/c.yaml:2"


def test_problem_in_the_parent_is_located_there(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("steps: 3\nbatch: -2\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "extends: base.yaml\nsteps: 4\n")
    assert caught.value.problems[0][:2] == (f"{tmp_path}/base.yaml:2", "batch")


def test_batch_must_be_shared_equally_by_the_ranks(tmp_path: Path) -> None:
    assert load(tmp_path, "batch: 64\n", num_ranks=4).batch == 64
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "steps: 3\nbatch: 64\n", num_ranks=6)
    ((where, key, message, hint),) = caught.value.problems
    assert (where, key) == (f"{tmp_path}/run.yaml:2", "batch") and "which 6 processes cannot share" in message
    assert "60 or 66" in (hint or "")


def test_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "mnist.yaml").write_text("steps: 3\n")
    with pytest.raises(UsageError, match="there is no such file") as caught:
        load_run_config(tmp_path / "minst.yaml")
    assert "mnist.yaml" in (caught.value.hint or "") and caught.value.exit_code == 2
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read as text"):
        load_run_config(tmp_path / "binary.yaml")
    with pytest.raises(UsageError, match="cannot be read as text"):
        load_run_config(tmp_path)


@pytest.mark.parametrize(
    ("assignment", "key", "words", "fix"),
    [
        ("generator.widht=32", "generator.widht", "unknown key", "did you mean 'width'?"),
        ("batch=-3", "batch", "expected at least 2", ""),
        ("batch=x", "batch", "the text 'x'", "write a number"),
        ("batch", "", "expected key=value", "--set generator.width=32"),
        ("=3", "", "expected key=value", "--set generator.width=32"),
        ("a..b=3", "", "expected key=value", "--set generator.width=32"),
        ("batch=[1", "batch", "not a YAML value", "quote it"),
    ],
)
def test_wrong_assignment_names_itself(tmp_path: Path, assignment: str, key: str, words: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "steps: 3\n", "seed=1", assignment)
    ((where, found, message, hint),) = caught.value.problems
    assert where == f"--set {assignment}" and found == key and words in message and fix in (hint or "")


def test_assignments_win_over_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    config = load(
        tmp_path, "batch: 8\ngenerator: {width: 4, norm: none}\n", "batch=16", "batch=32", "generator.width=8"
    )
    assert (config.batch, config.generator.width, config.generator.norm) == (32, 8, "none")
    assert load(tmp_path, "eval: {num: 10}\n", "eval=null").eval is None
    assert load(tmp_path, "eval: {num: 10}\n", "eval=").eval is None


def test_numbers_and_texts_of_strict_yaml() -> None:
    text = "{a: 1e-4, b: 1E5, c: -.5, d: 010, e: 1:30, f: no, g: on, h: 2020-01-01, i: ~, j: true, k: .inf, l: 0x10,"
    text += " m: 1_000}"
    tree = parse_document(text, "x").tree
    assert tree == {
        "a": 1e-4, "b": 1e5, "c": -0.5, "d": 10, "e": "1:30", "f": "no", "g": "on", "h": "2020-01-01", "i": None,
        "j": True, "k": math.inf, "l": "0x10", "m": "1_000",
    }  # fmt: skip
    assert isinstance(tree["a"], float) and isinstance(tree["d"], int)


def test_learning_rate_in_scientific_notation(tmp_path: Path) -> None:
    config = load(tmp_path, "optimizer:\n  generator:\n    lr: 1e-4\n", "optimizer.discriminator.lr=4e-4")
    assert (config.optimizer.generator.lr, config.optimizer.discriminator.lr) == (1e-4, 4e-4)


def test_extends_merges_the_same_kind_and_replaces_another(tmp_path: Path) -> None:
    base = (
        "augment: {kind: basic, shift: 5, flip: 0.0}\npenalty: {kind: gp, weight: 3.0}\ndiscriminator: {norm: none}\n"
    )
    (tmp_path / "base.yaml").write_text(base)
    same = load(tmp_path, "extends: base.yaml\naugment: {kind: basic, shift: 1}\npenalty: {weight: 4.0}\n")
    assert (same.augment.shift, same.augment.flip, same.penalty.weight) == (1, 0.0, 4.0)  # type: ignore[union-attr]
    other = load(tmp_path, "extends: base.yaml\naugment: {kind: advanced, cutout: 0.5}\npenalty: r1\n")
    assert other.augment.model_dump() == {**type(other.augment)().model_dump(), "cutout": 0.5}
    assert other.penalty.model_dump() == {"kind": "r1", "weight": 10.0, "interval": 1}
    assert other.discriminator.norm == "none"  # not mentioned: the parent's


def test_extends_over_three_files_the_nearest_wins(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.yaml").write_text("steps: 1\nbatch: 2\nn_dis: 3\n")
    (tmp_path / "deep" / "b.yaml").write_text("extends: ../a.yaml\nbatch: 20\nn_dis: 30\n")
    config = load(tmp_path, "extends: deep/b.yaml\nn_dis: 300\n")
    assert (config.steps, config.batch, config.n_dis) == (1, 20, 300)


def test_a_kind_by_its_name_below_a_mapping_without_one(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("augment: basic\n")
    config = load(tmp_path, "extends: base.yaml\naugment: {shift: 4}\n")
    assert config.augment.model_dump() == {"kind": "basic", "flip": 0.5, "shift": 4}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@example({"a": "\x85", "\u2028": "x\ny", "b": "no", "c": "1e-4", "d": "# no comment", "e": " ", "f": ""})
@given(st.dictionaries(st.text(), PLAIN, min_size=1, max_size=4))
def test_dumped_yaml_reads_back_the_same(tree: dict[str, Any]) -> None:
    text = dump_yaml(tree)
    found = parse_document(text, "x").tree
    assert found == tree
    assert json.dumps(found) == json.dumps(tree)  # types too: 1 is not 1.0, nor true


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), PLAIN, min_size=1))
def test_other_yaml_readers_agree_on_what_is_dumped(tree: dict[str, Any]) -> None:
    assert json.dumps(yaml.safe_load(dump_yaml(tree))) == json.dumps(tree)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(2, 4096),
    lr=st.floats(1e-12, 10.0),
    decay=st.floats(0, 1, exclude_max=True),
    steps=st.integers(1, 10**9) | st.sampled_from(["3 epochs", "0.5 kimg", "1 epoch"]),
    augment=st.sampled_from(["none", "basic", "advanced"]),
    folder=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1),
)
def test_saved_config_is_the_same_run(
    tmp_path_factory: pytest.TempPathFactory,
    batch: int, lr: float, decay: float, steps: Any, augment: str, folder: str,
) -> None:  # fmt: skip
    tree = {
        "batch": batch, "steps": steps, "augment": augment, "ema": {"decay": decay},
        "optimizer": {"generator": {"lr": lr}}, "eval": {"metrics": ["is"]}, "runtime": {"data_dir": folder},
    }  # fmt: skip
    config = RunConfig.model_validate(tree)
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    path.write_text(dump_yaml(config.model_dump(mode="json")), encoding="utf-8")
    again = load_run_config(path)
    assert again == config and again.run_id == config.run_id


UNCHANGED = [
    "seed=7",
    "name=other",
    "runtime.threads=3",
    "runtime.runs_dir=/scratch",
    "eval={num: 50}",
    "steps=10000 steps",
]
CHANGED = [
    "batch=32", "n_dis=2", "steps=20000", "steps=10 epochs", "data.name=mnist", "data.size=64", "data.fit=pad",
    "loss=hinge",
    "penalty=lecam",
    "generator_batch=32", "augment=basic", "precision=bfloat16", "reuse_fakes=true",
    "generator.width=32", "generator.residual=true", "discriminator.spectral_norm=true",
    "ema.decay=0.99", "ema.warmup=false", "optimizer.generator.lr=1e-4", "optimizer.discriminator.beta1=0.0",
]  # fmt: skip


@pytest.mark.parametrize("assignment", UNCHANGED)
def test_fingerprint_does_not_change_by_what_cannot_change_the_numbers(tmp_path: Path, assignment: str) -> None:
    plain, changed = load(tmp_path, "n_dis: 1\n"), load(tmp_path, "n_dis: 1\n", assignment)
    assert changed.fingerprint == plain.fingerprint
    assert (changed.run_id == plain.run_id) == (not assignment.startswith(("seed", "name")))


def test_fingerprint_changes_by_anything_else(tmp_path: Path) -> None:
    found = [load(tmp_path, "n_dis: 1\n", *([text] if text else [])).fingerprint for text in ["", *CHANGED]]
    assert len(set(found)) == len(found)
    tops = {text.split("=")[0].split(".")[0] for text in CHANGED}
    assert tops == set(RunConfig.model_fields) - {"name", "seed", "eval", "runtime"}  # nothing is forgotten here


def test_fingerprint_does_not_depend_on_the_process_or_the_order_of_keys(tmp_path: Path) -> None:
    here = load(tmp_path, "batch: 8\naugment: {kind: basic, shift: 3}\nloss: hinge\n").run_id
    load(tmp_path, "loss: {kind: hinge}\naugment: {shift: 3, kind: basic}\nbatch: 8\n")  # the file the others read
    code = (
        "from pathlib import Path; from gantool.config import load_run_config as l; print(l(Path('run.yaml')).run_id)"
    )
    for seed in ("0", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == here


def test_wrong_config_is_said_without_loading_torch(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("steps: 3\ngenerator: {widht: 8}\n")
    code = (
        "import sys; from pathlib import Path; from gantool.config import load_run_config\n"
        "from gantool.errors import ConfigError\n"
        "try: load_run_config(Path('run.yaml'))\n"
        "except ConfigError as error: print(error, error.exit_code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "run.yaml:2: generator.widht: unknown key 2 False\n" and done.stderr == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [(5000, 5000), ("5000 steps", 5000), ("1 step", 1), ("20 epochs", 20 * 50_000 / 128), ("1kimg", 8)],
)
def test_durations_in_steps(text: int | str, expected: float) -> None:
    # 64 images x 2 discriminator updates a step, 50,000 images an epoch
    assert duration_in_steps(text, 128, 50_000) == math.ceil(expected)


def test_duration_never_is_no_step_at_all() -> None:
    assert duration_in_steps("0.001 kimg", 128, 50_000) == 1


@pytest.mark.parametrize(
    "text", [0, -3, "", "epochs", "1.5 steps", "1.5", "-1 epochs", "3 weeks", "0 kimg", None, True, 2.5]
)
def test_wrong_durations(text: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_duration(text)


def test_durations_are_kept_in_one_form(tmp_path: Path) -> None:
    forms = ["5000", "5000 steps", "5000.0 steps"]
    assert {load(tmp_path, f"steps: {form}\n").steps for form in forms} == {5000}
    assert len({load(tmp_path, f"steps: {form}\n").fingerprint for form in ["1 epoch", "1.0 epochs", "1epoch"]}) == 1


def test_schema_describes_every_property() -> None:
    schema = RunConfig.model_json_schema()
    for name, model in {"RunConfig": schema, **schema["$defs"]}.items():
        for key, prop in model["properties"].items():
            assert key == "kind" or prop.get("description"), f"{name}.{key}"


def test_document_remembers_where_everything_stands(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a:\n  b:\n    - 1\n    - {c: 2}\n")
    document = read_document(tmp_path / "a.yaml")
    line = {path: int(where.rsplit(":", 1)[1]) for path, where in document.where.items()}
    assert line == {("a",): 1, ("a", "b"): 2, ("a", "b", "0"): 3, ("a", "b", "1"): 4, ("a", "b", "1", "c"): 4}
    assert (
        document.locate(("a", "b", "9", "x")) == document.where[("a", "b")] and document.locate(("z",)) == document.name
    )
    assert parse_assignment("a.b=1").locate(("a", "b")) == "--set a.b=1"
