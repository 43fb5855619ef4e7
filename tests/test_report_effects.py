"""Main effects and interactions: additive laws are found again, a gap favours no level, intervals are right."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gantool.report.effects import Cell, interactions, main_effects

AXES = {"a": ["a0", "a1", "a2"], "b": ["b0", "b1"], "c": ["c0"]}


def grid(law: dict[tuple[str, str], float], noise: tuple[float, ...] = (0.0,)) -> list[Cell]:
    return [
        Cell({"a": a, "b": b, "c": "c0"}, tuple(law[a, b] + e for e in noise))
        for a, b in itertools.product(AXES["a"], AXES["b"])
        if (a, b) in law
    ]


@given(st.lists(st.floats(-100, 100), min_size=5, max_size=5))
def test_an_additive_law_is_found_again_and_its_lines_are_parallel(parts: list[float]) -> None:
    law = {
        (a, b): parts[i] + parts[3 + j]
        for (i, a), (j, b) in itertools.product(enumerate(AXES["a"]), enumerate(AXES["b"]))
    }
    first, second = main_effects(grid(law), AXES)
    assert (first.axis, second.axis) == ("a", "b")  # not c, which has one label
    assert [level.label for level in first.levels] == AXES["a"] and (first.num_cells, second.num_cells) == (2, 3)
    for level, part in zip(first.levels, parts[:3], strict=True):
        assert level.mean == pytest.approx(part + (parts[3] + parts[4]) / 2, abs=1e-9) and level.half is None
    (pair,) = interactions(grid(law), AXES, 9)
    b0, b1 = pair.levels.values()
    gaps = [y.mean - x.mean for x, y in zip(b0, b1, strict=True)]
    assert gaps == pytest.approx([parts[4] - parts[3]] * 3, abs=1e-9)


def test_a_gap_in_the_grid_favours_no_level() -> None:
    law = {
        (a, b): 10.0 * i + 100.0 * j for (i, a), (j, b) in itertools.product(enumerate(AXES["a"]), enumerate(AXES["b"]))
    }
    del law["a2", "b1"]  # plain means would make a2 the best by far
    first, second = main_effects(grid(law), AXES)
    assert [level.mean for level in first.levels] == [0.0, 10.0, 20.0] and first.num_cells == 1
    assert [level.mean for level in second.levels] == [5.0, 105.0] and second.num_cells == 2
    assert interactions(grid(law), AXES, 9) == []


def test_single_runs_beside_the_grid_and_empty_grids() -> None:
    law = dict.fromkeys(itertools.product(AXES["a"], AXES["b"]), 1.0)
    beside = Cell({"other": "x"}, (1e9,))
    assert [effect.axis for effect in main_effects([*grid(law), beside], AXES)] == ["a", "b"]
    assert main_effects([], AXES) == interactions([], AXES, 9) == [] == main_effects([Cell({}, (1.0,))], {})


def test_of_the_pairs_the_first_are_looked_for_and_only_whole_ones() -> None:
    """A product of three axes among 150 that differ from it one at a time: 11,000 pairs, of which three are whole."""
    few = {axis: ["0", "1"] for axis in ("p", "q", "r")}
    axes = {f"x{number}": ["0", "1"] for number in range(75)} | few | {f"y{number}": ["0", "1"] for number in range(75)}
    base = dict.fromkeys(axes, "0")
    product = [base | dict(zip(few, labels, strict=True)) for labels in itertools.product(*few.values())]
    cells = [Cell(labels, (1.0,)) for labels in [*product, *(base | {axis: "1"} for axis in axes if axis not in few)]]
    found = interactions(cells, axes, 9)
    assert [(pair.axis, pair.lines, pair.num_cells) for pair in found] == [("p", "q", 2), ("p", "r", 2), ("q", "r", 2)]
    assert interactions(cells, axes, 2) == found[:2]


def test_the_interval_is_that_of_a_linear_model_with_a_common_variance() -> None:
    """Agreement with ordinary least squares on the cell means model, in matrices."""
    draws = np.random.default_rng(0)
    cells = [
        Cell({"a": a, "b": b, "c": "c0"}, tuple(draws.normal(size=2 + (a == "a1"))))
        for a, b in itertools.product(AXES["a"], AXES["b"])
    ]
    y = np.concatenate([cell.values for cell in cells])
    x = np.concatenate([np.eye(len(cells))[[i] * len(cell.values)] for i, cell in enumerate(cells)])
    beta, residual, *_ = np.linalg.lstsq(x, y, rcond=None)
    freedom = len(y) - len(cells)
    covariance = np.linalg.inv(x.T @ x) * residual[0] / freedom
    effect = main_effects(cells, AXES)[0]
    quantile = {8: 2.306004}[freedom]  # of Student's t, from a table
    for level in effect.levels:
        weights = np.array([(cell.labels["a"] == level.label) / 2 for cell in cells])
        assert level.mean == pytest.approx(weights @ beta)
        assert level.half == pytest.approx(quantile * math.sqrt(weights @ covariance @ weights), rel=1e-6)
