"""Main effects of the axes of a sweep and their interactions: plain means over a balanced part of the grid.

A level's mean is taken over the cells (combinations of the other axes) in which every level of the axis was scored, so
that no level is favoured by what else it was run with. A cell is the mean of the seeds it has. Intervals: the standard
error from the spread over seeds, pooled over all cells (Montgomery, Design and Analysis of Experiments, factorial
designs with a common error variance), times Student's t; they say how well the mean over these cells is known, not how
the cells differ. What levels have in common by their seeds is in them: differences that are paired by seed tell levels
apart better.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gantool.config.grid import Labels
from gantool.results import t_quantile


@dataclass(frozen=True)
class Cell:
    """A combination of labels and its scores, one for each seed."""

    labels: Labels
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class Level:
    """A label of an axis: the mean of its cells, and half of the 95 % interval (None: one seed each)."""

    label: str
    mean: float
    half: float | None


@dataclass(frozen=True)
class MainEffect:
    """The levels of one axis, in the order of the sweep, each over the same `num_cells` other combinations."""

    axis: str
    levels: tuple[Level, ...]
    num_cells: int


@dataclass(frozen=True)
class Interaction:
    """The means of each label of `lines` at each label of `axis`."""

    axis: str
    lines: str
    levels: dict[str, tuple[Level, ...]]
    """Label of `lines` -> a level for each label of `axis`."""
    num_cells: int


Axes = dict[str, list[str]]
"""The labels of each axis, in the order of the sweep."""


def main_effects(cells: Sequence[Cell], axes: Axes) -> list[MainEffect]:
    """One for each axis with two labels or more that can be compared at equal other labels."""
    cells = _alike(cells)
    found = []
    for axis, labels in _varied(cells, axes).items():
        contexts = _contexts(cells, (axis,), [(label,) for label in labels])
        if contexts:
            levels = tuple(_level(label, [context[label,] for context in contexts], cells) for label in labels)
            found.append(MainEffect(axis, levels, len(contexts)))
    return found


def interactions(cells: Sequence[Cell], axes: Axes, most: int) -> list[Interaction]:
    """One for each pair of axes whose combinations were all scored at equal other labels; the first `most`."""
    cells = _alike(cells)
    found = []
    may_be_whole = _pair_filter(cells)
    for (first, labels), (second, others) in itertools.combinations(_varied(cells, axes).items(), 2):
        if not may_be_whole(first, second, len(labels) * len(others)):
            continue
        contexts = _contexts(cells, (first, second), list(itertools.product(labels, others)))
        if contexts:
            levels = {
                other: tuple(_level(label, [context[label, other] for context in contexts], cells) for label in labels)
                for other in others
            }
            found.append(Interaction(first, second, levels, len(contexts)))
            if len(found) == most:
                break
    return found


def _pair_filter(cells: Sequence[Cell]) -> Callable[[str, str, int], bool]:
    """Whether so many cells may be equal but for two axes; quick, for the thousands of pairs of many axes. A cell is
    the sum of random numbers, one for each label of an axis, so without two of them it stands for the others."""
    draw = random.Random(0)
    number_of = {
        key: draw.getrandbits(60) for key in dict.fromkeys(key for cell in cells for key in cell.labels.items())
    }
    numbers = {
        axis: [number_of[axis, cell.labels[axis]] for cell in cells] for axis in (cells[0].labels if cells else ())
    }
    sums = [sum(column) for column in zip(*numbers.values(), strict=True)]

    def may_be_whole(first: str, second: str, size: int) -> bool:
        columns = zip(sums, numbers[first], numbers[second], strict=True)
        return max(Counter(total - one - other for total, one, other in columns).values(), default=0) >= size

    return may_be_whole


def _varied(cells: Sequence[Cell], axes: Axes) -> Axes:
    """The axes with two or more labels among the cells."""
    there = {axis: [label for label in axes[axis] if any(cell.labels.get(axis) == label for cell in cells)]
             for axis in axes}  # fmt: skip
    return {axis: labels for axis, labels in there.items() if len(labels) > 1}


def _alike(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the most common set of axes: a single run beside the product belongs to none of its effects."""
    kinds = [frozenset(cell.labels) for cell in cells]
    most = max(dict.fromkeys(kinds), key=kinds.count, default=frozenset())
    return [cell for cell, kind in zip(cells, kinds, strict=True) if kind == most]


def _contexts(
    cells: Sequence[Cell], axes: tuple[str, ...], wanted: Sequence[tuple[str, ...]]
) -> list[dict[tuple[str, ...], Cell]]:
    """For each combination of the other axes in which all of `wanted` is there: the cell of each."""
    found: dict[tuple[tuple[str, str], ...], dict[tuple[str, ...], Cell]] = {}
    for cell in cells:
        rest = tuple(sorted((axis, label) for axis, label in cell.labels.items() if axis not in axes))
        found.setdefault(rest, {})[tuple(cell.labels[axis] for axis in axes)] = cell
    return [context for context in found.values() if all(key in context for key in wanted)]


def _level(label: str, chosen: Sequence[Cell], cells: Sequence[Cell]) -> Level:
    mean = sum(cell.mean for cell in chosen) / len(chosen)
    freedom = sum(len(cell.values) - 1 for cell in cells)
    if freedom == 0:
        return Level(label, mean, None)
    pooled = sum((value - cell.mean) ** 2 for cell in cells for value in cell.values) / freedom
    error = math.sqrt(pooled * sum(1 / len(cell.values) for cell in chosen)) / len(chosen)
    return Level(label, mean, t_quantile(freedom) * error)
