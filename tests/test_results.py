"""Tables of scores: spread over seeds, pairing, protocols that must not be mixed, texts."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gantool import files
from gantool.config.grid import Report
from gantool.config.schema import EvalConfig, RunConfig
from gantool.manifest import SweepPlan, Trial
from gantool.progress import Silent
from gantool.result_tables import (
    caption,
    difference_text,
    flat,
    number_text,
    spread_text,
    sweep_json,
    sweep_latex,
    sweep_markdown,
    table,
    to_csv,
    to_json_lines,
    to_markdown,
    with_interval,
    with_spread,
)
from gantool.results import Row, Spread, collect, grouped
from gantool.runs import RunDirectory, eval_digest

P, Q = {"num": 10_000, "reference": "abc"}, {"num": 50_000, "reference": "abc"}


def row(augment: str, seed: int, fid: float | None, protocol: object = P, **other: object) -> Row:
    values = {} if fid is None else {"fid": fid, "is": fid / 10}
    state = "done" if values else "failed"
    title = "CIFAR-10" if values else ""
    return Row({"augment": augment}, seed, f"runs/{augment}-{seed}", state, 100, values, {}, title, protocol, **other)  # type: ignore[arg-type]


FID = Report("fid", "min", {})


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_spread_agrees_with_numpy(numbers: list[float]) -> None:
    spread = Spread.of(numbers)
    assert spread is not None and spread.sd is not None and spread.n == len(numbers)
    assert spread.mean == pytest.approx(np.mean(numbers), abs=1e-6)
    assert spread.sd == pytest.approx(np.std(numbers, ddof=1), rel=1e-9, abs=1e-6)


def test_seeds_of_one_config_that_all_failed_are_an_empty_table() -> None:
    failed = Row({}, 0, "runs/a-0", "failed", 0, {}, {}, "", P)
    assert table(grouped([failed], FID), FID) == (["runs"], [])


def test_spread_of_one_and_of_none() -> None:
    assert Spread.of([3.0]) == Spread(3.0, None, 1)
    assert Spread.of([]) is None


def test_groups_are_sorted_and_the_best_is_marked() -> None:
    rows = [row("none", s, 50.0 + s) for s in range(3)] + [row("basic", s, 40.0 + 2 * s) for s in range(3)]
    basic, none = grouped(rows, FID)
    assert (basic.labels, none.labels) == ({"augment": "basic"}, {"augment": "none"})
    assert basic.spreads["fid"] == Spread(42.0, 2.0, 3) and none.spreads["fid"] == Spread(51.0, 1.0, 3)
    assert basic.best and not none.best
    upside_down = grouped(rows, Report("is", "max", {}))
    assert [group.labels["augment"] for group in upside_down] == ["none", "basic"] and upside_down[0].best


def test_missing_runs_are_counted_and_come_last_when_nothing_is_there() -> None:
    rows = [
        row("none", 0, None),
        row("none", 1, None),
        row("basic", 0, 40.0),
        row("basic", 1, None),
        row("basic", 2, 42.0),
    ]
    basic, none = grouped(rows, FID)
    assert (basic.num_missing, none.num_missing) == (1, 2) and not none.best and none.spreads == {}
    headers, cells = table([basic, none], FID)
    assert headers == ["augment", "fid", "is"]
    assert cells == [
        ["basic", "41.00 ± 1.41 (2 of 3) *", "4.100 ± 0.141 (2 of 3)"],
        ["none", "- (0 of 2)", "- (0 of 2)"],
    ]


def test_differences_are_paired_by_seed() -> None:
    ours, theirs = {0: 40.0, 1: 47.0, 2: 44.0, 3: 1.0}, {0: 50.0, 1: 58.0, 2: 53.0}
    rows = [row("basic", s, v) for s, v in ours.items()] + [row("none", s, v) for s, v in theirs.items()]
    groups = {group.labels["augment"]: group for group in grouped(rows, Report("fid", "min", {"augment": "none"}))}
    by_hand = [ours[s] - theirs[s] for s in theirs]
    difference = groups["basic"].differences["fid"]
    assert groups["none"].differences == {}
    assert groups["basic"].differences["is"].mean == pytest.approx(statistics.mean(by_hand) / 10)
    assert difference == Spread(statistics.mean(by_hand), statistics.stdev(by_hand), 3)
    headers, cells = table(list(groups.values()), Report("fid", "min", {"augment": "none"}))
    assert dict(zip(headers, cells[0], strict=True))["difference"] == "-10.00 [-12.48, -7.52] (3)"
    # 4.3027 is the 97.5 % quantile of Student's t with 2 degrees of freedom, as in every table.
    assert difference is not None and difference.interval == pytest.approx(
        (-10 - 4.3027 / 3**0.5, -10 + 4.3027 / 3**0.5), abs=1e-4
    )


def test_baseline_is_looked_for_at_the_same_other_labels() -> None:
    def on(data: str, augment: str, fid: float) -> Row:
        labels = {"data": data, "augment": augment}
        return Row(labels, 0, f"{data}-{augment}", "done", 1, {"fid": fid}, {}, data, {"reference": data})

    rows = [on("a", "none", 10.0), on("a", "basic", 8.0), on("b", "none", 100.0), on("b", "basic", 93.0)]
    groups = grouped(rows, Report("fid", "min", {"augment": "none"}))
    found = {(g.labels["data"], g.labels["augment"]): {k: v.mean for k, v in g.differences.items()} for g in groups}
    nothing: dict[str, float] = {}
    assert found == {
        ("a", "none"): nothing,
        ("a", "basic"): {"fid": -2.0},
        ("b", "none"): nothing,
        ("b", "basic"): {"fid": -7.0},
    }
    assert [g.best for g in groups] == [True, False, True, False]  # the best of each dataset, not of both
    assert [g.labels["data"] for g in groups] == ["a", "a", "b", "b"]
    assert not any(g.mixed for g in groups)


def test_different_protocols_are_neither_averaged_nor_compared() -> None:
    rows = [row("none", 0, 50.0, P), row("none", 1, 30.0, Q), row("basic", 0, 40.0, Q), row("basic", 1, None)]
    report = Report("fid", "min", {"augment": "none"})
    groups = grouped(rows, report)
    found = [(g.labels["augment"], g.protocol, g.spreads["fid"], g.best, g.mixed) for g in groups]
    assert found == [
        ("none", P, Spread(50.0, None, 1), True, True),
        ("none", Q, Spread(30.0, None, 1), True, True),
        ("basic", Q, Spread(40.0, None, 1), False, False),
    ]
    assert groups[2].differences == {}  # seed 0 of the baseline was scored by the other protocol
    headers, cells = table(groups, report)
    assert headers[:2] == ["augment", "protocol"] and len({line[1] for line in cells}) == 2


def test_real_images_are_the_yardstick() -> None:
    rows = [Row({}, 0, "r", "done", 1, {"fid": 40.0}, {"fid": 3.25}, "CIFAR-10", P)]
    headers, cells = table(grouped(rows, FID), FID)
    assert headers == ["fid", "real fid"] and cells == [["40.00 (1) *", "3.250"]]


def test_numbers_have_four_digits() -> None:
    values = [0.0, 45.2345, 123.456, 12345.6, 0.00123456, -3.2, 1e-12]
    assert [number_text(v) for v in values] == ["0.00", "45.23", "123.5", "12346", "0.001235", "-3.200", "1.000e-12"]
    assert spread_text(Spread(45.234, 1.2, 3)) == "45.23 ± 1.20 (3)"
    assert difference_text(Spread(1.5, None, 1)) == "+1.500 (1)" and difference_text(None) == "-"
    assert spread_text(None) == "-"
    assert number_text(3.0214e30) == "3.021e+30" and spread_text(Spread(3e30, 1e29, 2)) == "3.000e+30 ± 1.000e+29 (2)"
    assert difference_text(Spread(-3e30, None, 1)) == "-3.000e+30 (1)"
    assert number_text(-0.0) == "0.00"
    assert (with_spread(4.0251, 0.52), with_spread(9e-4, 4.6e-3)) == ("4.025 ± 0.520", "0.000900 ± 0.004600")
    assert with_interval(10.12, 9.871, 11.2) == "10.12 [9.87, 11.20]"


def test_csv_and_markdown_read_back() -> None:
    rows = [row("none", 0, 50.25), row('ba|"sic,', 1, None)]
    first, second = csv.DictReader(io.StringIO(to_csv(flat(rows))))
    assert (first["augment"], first["seed"], float(first["fid"]), first["state"]) == ("none", "0", 50.25, "done")
    assert (second["augment"], second["fid"], second["protocol"]) == ('ba|"sic,', "", "")
    lines = to_markdown(flat(rows)).splitlines()
    assert len(lines) == 4 and len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert len(to_markdown(flat([row("two\nlines", 0, 50.25)])).splitlines()) == 3
    labels = flat([Row({"seed": "x", "fid_of": "y"}, 3, "r", "done")])[0]
    assert (labels["axis_seed"], labels["seed"]) == ("x", 3)  # an axis of that name hides nothing


def plan_of(rows: Sequence[Row], report: Report) -> SweepPlan:
    return SweepPlan("ablation", Path("sweeps/ablation"), (), report)


def test_json_has_everything_and_markdown_says_what_a_reader_must_know() -> None:
    rows = [row("none", 0, 50.0, warnings=("only 10 images",)), row("basic", 0, 40.0), row("basic", 1, None)]
    report = Report("fid", "min", {"augment": "none"})
    value = json.loads(sweep_json(plan_of(rows, report), rows))
    assert [r["values"].get("fid") for r in value["rows"]] == [50.0, 40.0, None]
    assert value["groups"][0]["differences"]["fid"] == {"mean": -10.0, "sd": None, "n": 1}
    lines = [json.loads(line) for line in to_json_lines(rows).splitlines()]
    assert lines == value["rows"]
    text = sweep_markdown(plan_of(rows, report), rows)
    for words in (
        "40.00 (1 of 2) \\*",
        "`runs/basic-1`: failed",
        "against augment none, paired by seed",
        "only 10 images",
    ):
        assert words in text
    assert "- `10000`" in text and rows[0].protocol_digest in text


def test_the_image_stands_below_the_table_and_mixtures_are_a_warning(tmp_path: Path) -> None:
    def trial(seed: int, image: object, torch: str, scored_in: str | None) -> Trial:
        config = RunConfig(seed=seed, eval=EvalConfig(num=10))
        run = RunDirectory(tmp_path / str(seed))
        versions = {"gantool": "0.1.0", "torch": torch, "python": "3.13"}
        files.write_json(run.path / "run.json", {"versions": versions, "image": image})
        scored = {**versions, **({"image": scored_in} if scored_in else {})}
        score = {"values": {"fid": 4.5}, "real": None, "data_title": "t", "protocol": P, "versions": scored}
        files.write_json(run.path / "result.json", {"step": 9, "scores": [score], "eval": eval_digest(config)})
        return Trial(run, {}, seed, config)

    one, same = (trial(seed, {"digest": "sha256:1", "file": "x"}, "2.10", "sha256:1") for seed in (0, 1))
    rows = collect([one, same], Silent())
    for text in (sweep_markdown(plan_of(rows, FID), rows), caption(plan_of(rows, FID), rows)):
        assert "image sha256:1" in text and "warning" not in text
    assert json.loads(sweep_json(plan_of(rows, FID), rows))["rows"][0]["trained_by"]["image"] == "sha256:1"
    other, bare = trial(2, {"digest": "sha256:1"}, "2.10", "sha256:2"), trial(3, None, "2.9", None)
    for mixed, words in (
        ([one, other], "several images: sha256:1, sha256:2"),
        ([one, bare], "several images: sha256:1, none"),
        ([one, bare], "several versions of torch: 2.10, 2.9"),
    ):
        rows = collect(mixed, Silent())
        for text in (sweep_markdown(plan_of(rows, FID), rows), caption(plan_of(rows, FID), rows)):
            assert f"warning: trained and scored by {words}" in text and "gantool:" not in text
    rows = collect([bare], Silent())
    assert "image" not in caption(plan_of(rows, FID), rows)


def test_collect_takes_scores_of_finished_runs_only(tmp_path: Path) -> None:
    def trial(seed: int, num: int, asked: int, scores: object) -> Trial:
        config = RunConfig(seed=seed, eval=EvalConfig(num=asked))
        run = RunDirectory(tmp_path / str(seed))
        scored_by = config.model_copy(update={"eval": EvalConfig(num=num)})
        files.write_json(run.path / "result.json", {"step": 9, "scores": scores, "eval": eval_digest(scored_by)})
        return Trial(run, {"a": "b"}, seed, config)

    score = {
        "values": {"fid": 4.5, "is": 2, "note": "x", "flag": True}, "real": None, "data_title": "t", "protocol": P,
        "warnings": ["w"],
    }  # fmt: skip
    trials = [trial(0, 10, 10, [score, {**score, "protocol": Q}]), trial(1, 10, 20, [score]), trial(2, 10, 10, [])]
    trials.append(Trial(RunDirectory(tmp_path / "nothing"), {"a": "b"}, 3, RunConfig()))
    rows = collect(trials, Silent())
    assert [(r.seed, r.state, r.step, r.values, r.protocol) for r in rows] == [
        (0, "done", 9, {"fid": 4.5, "is": 2.0}, P),
        (0, "done", 9, {"fid": 4.5, "is": 2.0}, Q),
        (1, "unscored", None, {}, None),  # its scores answer another question
        (2, "done", 9, {}, None),
        (3, "planned", None, {}, None),
    ]
    assert rows[0].warnings == ("w",) and rows[0].real == {} and rows[0].data_title == "t"


def test_the_latex_table_is_the_table_with_the_best_in_bold_and_its_notes_as_comments() -> None:
    rows = [row("50%_a & b *", s, 50.0 + s) for s in range(2)] + [row("basic", s, 40.0 + s) for s in range(2)]
    report = Report("fid", "min", {"augment": "50%_a & b *"})
    text = sweep_latex(plan_of(rows, report), rows)
    table_lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert table_lines == [
        "\\begin{tabular}{lrrr}",
        "\\toprule",
        "augment & fid & is & difference \\\\",
        "\\midrule",
        "basic & \\textbf{40.50 $\\pm$ 0.71 (2)} & 4.050 $\\pm$ 0.071 (2) & $-$10.00 [$-$10.00, $-$10.00] (2) \\\\",
        "50\\%\\_a \\& b * & 50.50 $\\pm$ 0.71 (2) & 5.050 $\\pm$ 0.071 (2) & -- \\\\",
        "\\bottomrule",
        "\\end{tabular}",
    ]
    assert f"% protocol {rows[0].protocol_digest} (CIFAR-10)" in text and "% mean ± sample standard deviation" in text
    assert "LuaLaTeX" not in text
    rows = [row("\U0001f600", 0, 1.0), row("é", 0, 2.0)]
    assert sweep_latex(plan_of(rows, report), rows).startswith("% For XeLaTeX or LuaLaTeX")
