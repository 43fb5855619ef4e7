"""The sweep file: what it expands to, and what it says when it is wrong (file, line, key, fix)."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gantool.config.document import dump_yaml
from gantool.config.grid import Grid, Report, label_of, read_grid
from gantool.config.schema import RunConfig
from gantool.config.sweep_file import SweepConfig
from gantool.errors import ConfigError, GantoolError, UsageError

ABLATION = """\
base: base.yaml
vary:
  data.name: [fashion_mnist, cifar10]
  augment: [none, basic, advanced]
  residual:
    none: {generator.residual: false, discriminator.residual: false}
    generator: {generator.residual: true}
    both: {generator: {residual: true}, discriminator.residual: true}
also:
  - {augment: none, generator.width: 32}
except:
  - {augment: advanced, residual: both}
seeds: 3
report: {metric: fid, best: min, against: {augment: none}}
"""


def grid_of(folder: Path, text: str, *assignments: str, base: str = "steps: 10\neval: {}\n") -> Grid:
    (folder / "base.yaml").write_text(base)
    (folder / "grid.yaml").write_text(textwrap.dedent(text))
    return read_grid(folder / "grid.yaml", assignments)


def test_ablation_is_the_product_less_the_exceptions_and_the_single_runs(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, ABLATION)
    axes = (["fashion_mnist", "cifar10"], ["none", "basic", "advanced"], ["none", "generator", "both"])
    expected = [
        ({"data.name": d, "augment": a, "residual": r}, seed)
        for d, a, r in itertools.product(*axes)
        if (a, r) != ("advanced", "both")
        for seed in range(3)
    ]
    expected += [({"augment": "none", "generator.width": "32"}, seed) for seed in range(3)]
    assert [(point.labels, point.config.seed) for point in grid.points] == expected
    for point in grid.points[:-3]:
        config = point.config
        assert config.data.name == point.labels["data.name"] and config.augment.kind == point.labels["augment"]
        residual = (config.generator.residual, config.discriminator.residual)
        assert (
            residual
            == {"none": (False, False), "generator": (True, False), "both": (True, True)}[point.labels["residual"]]
        )
        assert config.steps == 10 and config.name == "grid"
    assert {point.config.generator.width for point in grid.points[-3:]} == {32}
    assert len({point.config.run_id for point in grid.points}) == len(grid.points)
    assert (grid.report.metric, grid.report.best, grid.report.against) == ("fid", "min", {"augment": "none"})


@settings(max_examples=25, deadline=None)
@given(
    axes=st.dictionaries(
        st.sampled_from(["batch", "n_dis", "generator.width", "ema.decay", "optimizer.generator.lr"]),
        st.lists(st.integers(2, 64).map(lambda n: n * 2), min_size=1, max_size=4, unique=True),
        max_size=3,
    ),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True),
)
def test_product_agrees_with_itertools(
    tmp_path_factory: pytest.TempPathFactory, axes: dict[str, list[int]], seeds: list[int]
) -> None:
    scaled: dict[str, list[Any]] = {
        key: [value / 1000 for value in values] if key in ("ema.decay", "optimizer.generator.lr") else values
        for key, values in axes.items()
    }
    folder = tmp_path_factory.mktemp("grid")
    grid = grid_of(folder, dump_yaml({"base": "base.yaml", "vary": scaled, "seeds": seeds}))
    found = [({key: _at(p.config, key) for key in scaled}, p.config.seed) for p in grid.points]
    cells = [dict(zip(scaled, values, strict=True)) for values in itertools.product(*scaled.values())]
    assert found == [(cell, seed) for cell in cells for seed in seeds]


def _at(config: RunConfig, key: str) -> Any:
    tree: Any = config.model_dump(mode="json")
    for part in key.split("."):
        tree = tree[part]
    return tree


def test_base_may_be_inline_and_extend_another_file(tmp_path: Path) -> None:
    text = "base: {extends: base.yaml, generator.width: 16, name: mine}\nvary: {batch: [8]}"
    (point,) = grid_of(tmp_path, text, base="steps: 7\nseed: 5\n").points
    config = point.config
    assert (config.steps, config.generator.width, config.batch, config.name, config.seed) == (7, 16, 8, "mine", 5)


def test_order_is_base_then_assignments_then_axes(tmp_path: Path) -> None:
    text = "base: base.yaml\nvary: {size: {a: {generator.width: 8}, b: {}}}"
    grid = grid_of(tmp_path, text, "steps=20", "discriminator.width=24", base="steps: 10\ngenerator: {width: 4}\n")
    assert [p.config.steps for p in grid.points] == [20, 20]
    assert [p.config.generator.width for p in grid.points] == [8, 4]
    assert [p.config.discriminator.width for p in grid.points] == [24, 24]


def test_only_seeds_is_a_sweep_too_and_seeds_have_three_forms(tmp_path: Path) -> None:
    for text, expected in (("seeds: 3", [0, 1, 2]), ("seeds: [7, 3]", [7, 3]), ("", [4])):
        grid = grid_of(tmp_path, f"base: base.yaml\n{text}", base="seed: 4\n")
        assert [p.config.seed for p in grid.points] == expected and grid.points[0].labels == {}


def test_values_that_are_mappings_get_short_labels(tmp_path: Path) -> None:
    text = "base: base.yaml\nvary: {augment: [none, {kind: basic, shift: 4}], eval_of: {a: {ema.warmup: false}}}"
    grid = grid_of(tmp_path, text)
    assert [p.labels["augment"] for p in grid.points] == ["none", "basic shift=4"]
    assert grid.points[1].config.augment.shift == 4  # type: ignore[union-attr]
    values = [True, None, 0.5, 3, "text", ["a", "b"], {"kind": "gp", "weight": 1.0}, {}]
    assert [label_of(v) for v in values] == ["true", "null", "0.5", "3", "text", "a,b", "gp weight=1.0", "{}"]


def test_same_run_under_two_labels_is_run_once_and_said(tmp_path: Path) -> None:
    text = "base: base.yaml\nvary: {augment: [none, basic]}\n"
    text += "also: [{augment: none}, {augment: basic, generator.width: 64}]"
    grid = grid_of(tmp_path, text)
    assert [p.labels for p in grid.points] == [{"augment": "none"}, {"augment": "basic"}]
    (note,) = grid.notes  # the first single run has the very same labels: nothing to say
    assert "'augment: basic, generator.width: 64' is the same run as 'augment: basic'" in note


def test_report_defaults_follow_the_scores(tmp_path: Path) -> None:
    found = []
    for scores in ("eval: {metrics: [is]}", "eval: {metrics: [fid, is]}", "steps: 3"):
        report = grid_of(tmp_path, "base: base.yaml\nseeds: 1", base=scores + "\n").report
        found.append((report.metric, report.best))
    assert found == [("is", "max"), ("fid", "min"), (None, "min")]


WRONG = {
    # the sweep file; the line, key and words of its (first) problem; words of the hint
    "no such base": ("base: bsae.yaml", 1, "base", "there is no file", "did you mean 'base.yaml'?"),
    "base is a number": ("base: 3", 1, "base", "found 3, expected the path", "base: gan.yaml"),
    "base missing": ("vary: {augment: [none]}", 0, "base", "required", ""),
    "unknown key of a sweep": ("base: base.yaml\nvari: {}", 2, "vari", "unknown key", "did you mean 'vary'?"),
    "a setting of runs": ("base: base.yaml\nsteps: 3", 2, "steps", "unknown key", "a setting of runs"),
    "the seed of runs": ("base: base.yaml\nseed: 3", 2, "seed", "unknown key", "did you mean 'seeds'?"),
    "hint names keys as written": ("base: base.yaml\nexept: []", 2, "exept", "unknown key", "did you mean 'except'?"),
    "misspelt axis": (
        "base: base.yaml\nvary:\n  agument: [none]", 3, "agument", "unknown key", "did you mean 'augment'?"
    ),
    "misspelt key deeper": (
        "base: base.yaml\nvary:\n  generator.widht:\n    - 8\n    - 16",
        3, "generator.widht", "unknown key", "did you mean 'width'?",
    ),
    "misspelt in a bundle": (
        "base: base.yaml\nvary:\n  res:\n    no: {}\n    yes: {generator.resdual: true}",
        5, "generator.resdual", "unknown key", "did you mean 'residual'?",
    ),
    "misspelt in nested bundle": (
        "base: base.yaml\nvary:\n  res:\n    yes:\n      generator:\n        resdual: true",
        6, "generator.resdual", "unknown key", "did you mean 'residual'?",
    ),
    "misspelt in also": ("base: base.yaml\nalso:\n - {bacth: 8}", 3, "bacth", "unknown key", "did you mean 'batch'?"),
    "wrong value": ("base: base.yaml\nvary:\n  batch:\n   - 8\n   - -8", 5, "batch", "found -8, expected at least", ""),
    "wrong value in the base file": ("base: bad.yaml\nvary: {batch: [8, 16]}", "bad.yaml:2", "steps", "positive", ""),
    "empty axis": ("base: base.yaml\nvary:\n  augment: []", 3, "vary.augment", "is empty", "give it a value"),
    "empty bundles": ("base: base.yaml\nvary:\n  augment: {}", 3, "vary.augment", "is empty", "remove the axis"),
    "axis is a scalar": ("base: base.yaml\nvary:\n  augment: basic", 3, "vary.augment", "a list", "[none, basic]"),
    "bundle is a scalar": ("base: base.yaml\nvary:\n  big: {no: 3}", 3, "vary.big", "named bundles", "{no: {}"),
    "value twice": (
        "base: base.yaml\nvary:\n  augment:\n   - none\n   - none", 5, "vary.augment[1]", "stands twice", "keep one"
    ),
    "two axes, one key": (
        "base: base.yaml\nvary:\n  generator.width: [8]\n  size: {a: {generator: {width: 4}}}",
        4, "vary.size", "both set generator.width", "one of them",
    ),
    "axis seed": ("base: base.yaml\nvary:\n  seed: [1, 2]", 3, "vary.seed", "cannot be varied", "seeds: 3"),
    "also seed": ("base: base.yaml\nalso:\n - {seed: 2}", 3, "also[0]", "cannot be varied", "seeds: 3"),
    "axis name": ("base: base.yaml\nvary:\n  name: [a, b]", 3, "vary.name", "cannot be varied", "labels"),
    "axis runtime": (
        "base: base.yaml\nvary:\n  runtime.threads: [1, 2]", 3, "vary.runtime.threads", "same run", "in the base"
    ),
    "axis eval": ("base: base.yaml\nvary:\n  eval.num: [10, 20]", 3, "vary.eval.num", "same run", "in the base"),
    "same run scored twice": (
        "base: base.yaml\nvary:\n  e: {a: {eval.num: 10}, b: {eval.num: 20}}", 0, "", "scored in two ways", "same eval"
    ),
    "seeds 0": ("base: base.yaml\nseeds: 0", 2, "seeds", "found 0, expected a whole number from 1", "3 means 0, 1, 2"),
    "seeds empty": ("base: base.yaml\nseeds: []", 2, "seeds", "expected different whole numbers", "3 means 0, 1, 2"),
    "seeds twice": ("base: base.yaml\nseeds: [1, 1]", 2, "seeds", "expected different whole numbers", "list"),
    "seeds text": ("base: base.yaml\nseeds: three", 2, "seeds", "found 'three'", "3 means 0, 1, 2"),
    "slots 0": ("base: base.yaml\nslots: 0", 2, "slots", "more than 0", ""),
    "except unknown axis": (
        "base: base.yaml\nvary: {augment: [none]}\nexcept:\n - {agument: none}",
        4, "except[0].agument", "no such axis", "did you mean 'augment'?",
    ),
    "except unknown label": (
        "base: base.yaml\nvary: {augment: [none, basic]}\nexcept:\n - {augment: basci}",
        4, "except[0].augment", "no label 'basci'", "did you mean 'basic'?",
    ),
    "except everything": (
        "base: base.yaml\nvary: {augment: [none]}\nexcept: [{augment: none}]", 3, "except", "nothing is left", "less"
    ),
    "except empty": ("base: base.yaml\nvary: {batch: [8]}\nexcept:\n - {}", 4, "except[0]", "everything", "name an"),
    "also unknown bundle": (
        "base: base.yaml\nvary: {size: {big: {batch: 8}}}\nalso:\n - {size: bug}",
        4, "also[0].size", "no label 'bug'", "did you mean 'big'?",
    ),
    "report unknown metric": (
        "base: base.yaml\nreport: {metric: kid}", 2, "report.metric", "no run of the sweep computes", "fid, is"
    ),
    "against unknown axis": (
        "base: base.yaml\nvary: {augment: [none]}\nreport:\n  against: {agument: none}",
        4, "report.against.agument", "no such axis", "did you mean 'augment'?",
    ),
    "against unknown label": (
        "base: base.yaml\nvary: {augment: [none]}\nreport:\n  against: {augment: basic}",
        4, "report.against.augment", "no label 'basic'", "none",
    ),
    "against a combination that is not there": (
        "base: base.yaml\nvary: {batch: [8]}\nalso: [{n_dis: 2}]\nreport:\n  against: {batch: 8, n_dis: 2}",
        5, "report.against", "no run", "name one",
    ),
    "unfit name": ("base: base.yaml\nname: a b", 2, "name", "expected a text like", ""),
    "too many": (
        "base: base.yaml\nseeds: 20000\nvary:\n  batch: [8, 16]", 3, "vary", "40,000 runs, more than 20,000", "split"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_sweep_says_where_what_and_how_to_mend_it(tmp_path: Path, name: str) -> None:
    text, line, key, words, hint = WRONG[name]
    (tmp_path / "bad.yaml").write_text("batch: 8\nsteps: -1\n")
    with pytest.raises(ConfigError) as caught:
        grid_of(tmp_path, text)
    problems = caught.value.problems
    assert len(problems) == 1 and caught.value.exit_code == 2
    where = f"{tmp_path}/{line}" if isinstance(line, str) else f"{tmp_path}/grid.yaml{f':{line}' if line else ''}"
    assert problems[0][:2] == (where, key)
    assert words in problems[0][2]
    assert hint in (problems[0][3] or "")


def test_same_problem_in_many_trials_is_said_once_with_one_of_them(tmp_path: Path) -> None:
    text = """\
        base: base.yaml
        vary:
          n_dis: [1, 2, 3, 4, 5]
          discriminator.norm: [instance, batch]
          penalty: [none, gp, r1]
        seeds: 10
        """
    with pytest.raises(ConfigError) as caught:
        grid_of(tmp_path, text)
    ((where, key, message, hint),) = caught.value.problems
    assert where.endswith("grid.yaml:4") and key == "discriminator.norm"
    assert "(in the run n_dis: 1, discriminator.norm: batch, penalty: gp, and 9 more)" in message
    assert "instance or none" in (hint or "")


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        grid_of(tmp_path, "base: base.yaml\nvary:\n  batch: [8, -1]\n  widht: [3]\n  loss: [bce, hing]\n")
    assert {key for _, key, _, _ in caught.value.problems} == {"batch", "widht", "loss"}
    assert "'hinge'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("augment=none", "the axis 'augment' of the sweep sets this key"),
        ("seed=3", "sets the seeds itself"),
        ("generator.widht=3", "unknown key"),
    ],
)
def test_assignments_in_vain_or_wrong(tmp_path: Path, assignment: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid_of(tmp_path, "base: base.yaml\nvary: {augment: [none, basic]}\nseeds: 2", assignment)
    ((where, key, message, _),) = caught.value.problems
    assert where == f"--set {assignment}" and key == assignment.split("=")[0] and words in message


def test_run_and_sweep_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("steps: 3\n")
    with pytest.raises(UsageError, match="this is a run, not a sweep") as caught:
        read_grid(tmp_path / "run.yaml")
    assert "gantool train" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="this is a sweep, not a run"):
        grid_of(tmp_path, "base: other.yaml" if (tmp_path / "other.yaml").write_text("base: x.yaml\n") else "")
    with pytest.raises(GantoolError, match="no such file"):
        read_grid(tmp_path / "nothing.yaml")


def test_name_is_the_files_and_must_be_fit(tmp_path: Path) -> None:
    (tmp_path / "my sweep.yaml").write_text("base: {}\n")
    with pytest.raises(ConfigError, match="name: found the text 'my sweep'"):
        read_grid(tmp_path / "my sweep.yaml")
    (tmp_path / "my sweep.yaml").write_text("name: fit\nbase: {}\n")
    assert read_grid(tmp_path / "my sweep.yaml").name == "fit"


def test_schema_describes_every_key_and_no_torch_is_loaded(tmp_path: Path) -> None:
    schema = SweepConfig.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        assert all(prop.get("description") for prop in model["properties"].values())
    assert set(schema["properties"]) == {"name", "base", "vary", "also", "except", "seeds", "slots", "slurm", "report"}
    grid_of(tmp_path, ABLATION)
    code = "import sys; from pathlib import Path; from gantool.config.grid import read_grid\n"
    code += "read_grid(Path('grid.yaml')); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("", Report("recall", "max")),
        ("report: {metric: precision}", Report("precision", "max")),
        ("report: {metric: density_coverage}", Report("coverage", "max")),
        ("report: {metric: density_coverage, best: min}", Report("coverage", "min")),
        ("report: {metric: kid_full}", Report("kid_full", "min")),
    ],
)
def test_the_metric_of_a_report_is_a_value_that_runs_have(tmp_path: Path, asked: str, expected: Report) -> None:
    metrics = "eval: {metrics: [precision_recall, density_coverage, kid], extractor: inception}"
    assert grid_of(tmp_path, f"base: base.yaml\n{asked}", base=metrics).report == expected
