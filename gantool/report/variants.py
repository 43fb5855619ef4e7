"""The variants of a sweep as the page shows them: runs that differ by their seed alone, with pictures and curves."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from gantool.config.grid import Labels, label_of
from gantool.progress import Progress, told
from gantool.report import plots
from gantool.report.facts import RunFacts
from gantool.report.pictures import Thumbnail, thumbnail
from gantool.results import Group, Spread

_FRAMES = 8  # grids of one variant, from its first to its last
_SIDE = 320  # pixels of a thumbnail
_MARKUP = 600  # bytes around a picture, at most, beside its link
_MOST_CURVES = 4  # seeds in a figure of curves


@dataclass(frozen=True)
class Frame:
    """One grid of a variant."""

    step: int
    picture: Thumbnail
    link: Markup

    @property
    def size(self) -> int:
        """Bytes that it adds to a page, at most."""
        return len(self.picture.uri) + len(self.link) + _MARKUP


@dataclass
class Variant:
    """The runs that differ by their seed alone, as the page shows them."""

    number: int
    name: str
    group: Group
    runs: list[RunFacts]
    changes: dict[str, str]
    """The keys of the config that not all runs of the page have the same, with this variant's values."""
    runs_shown: list[RunFacts] = field(default_factory=list)
    """The same runs: first those with grids, and of them the one of the seed that most variants have."""
    frames: list[Frame] = field(default_factory=list)
    """Grids of the first of them."""
    nearest: Frame | None = None
    no_room: bool = False
    """Whether pictures were left out that would have made the page too large."""
    curves: str = ""
    class_headers: tuple[str, ...] = ()
    class_rows: tuple[tuple[str, tuple[Spread | None, ...]], ...] = ()
    """Each class, and its scores over the seeds."""
    class_curves: str = ""

    @property
    def shown(self) -> RunFacts | None:
        """The run whose grids are shown."""
        return self.runs_shown[0] if self.runs_shown else None

    @property
    def hours(self) -> float:
        """Device hours of training."""
        return sum(run.train_hours or 0 for run in self.runs)

    @property
    def score_hours(self) -> float:
        """Device hours of scoring."""
        return sum(run.score_hours for run in self.runs)

    @property
    def images_per_second(self) -> float | None:
        """The median of the runs' medians."""
        return median(run.images_per_second for run in self.runs)


def name_of(labels: Labels) -> str:
    """`augment basic, residual no`."""
    return ", ".join(f"{axis} {label}" for axis, label in labels.items()) or "all runs"


def variants_of(groups: Sequence[Group], runs: Sequence[RunFacts]) -> tuple[dict[str, Any], list[Variant]]:
    """The config that all runs share, and the groups with their runs; with several protocols, runs occur twice."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "seed")
    known = [run for run in runs if run.config]
    absent = object()
    common = {
        key: known[0].config[key]
        for key in keys
        if key in known[0].config and all(run.config.get(key, absent) == known[0].config[key] for run in known[1:])
    }
    variants = []
    by_labels: dict[tuple[tuple[str, str], ...], list[RunFacts]] = {}
    for run in runs:
        by_labels.setdefault(tuple(sorted(run.trial.labels.items())), []).append(run)
    for number, group in enumerate(groups):
        own = [run for run in by_labels.get(tuple(sorted(group.labels.items())), ()) if _has(run, group)]
        config = own[0].config if own else {}
        changes = {key: label_of(config[key]) for key in keys if key not in common and key in config}
        name = name_of(group.labels) + (f", protocol {group.protocol_digest}" if group.mixed else "")
        variants.append(Variant(number, name, group, own, changes))
    return common, variants


def _has(run: RunFacts, group: Group) -> bool:
    """Whether a run is one of the group's: scored by its protocol; without a score, where it counts as missing."""
    scored = [row.protocol_digest for row in run.rows if row.values]
    return group.protocol_digest in scored if scored else group.num_missing > 0


def add_details(variants: Sequence[Variant], progress: Progress) -> None:
    """The run that stands for each variant, of one seed for all where it can be; curves; numbers by class."""
    seeds = [run.trial.seed for variant in variants for run in variant.runs if run.grids]
    seed = max(sorted(set(seeds)), key=seeds.count, default=0)
    for variant in told(variants, "draw", progress):
        variant.runs_shown = sorted(variant.runs, key=lambda run: (not run.grids, run.trial.seed != seed))
        curves = [run.curve for run in variant.runs_shown if run.curve.steps][:_MOST_CURVES]
        if curves:
            variant.curves = Markup(plots.curves_figure(curves, f"{variant.name} ({variant.number})"))
        history = variant.runs_shown[0].accuracy_history() if variant.runs_shown else {}
        if len(history) > 1:
            variant.class_curves = Markup(plots.classes_figure(history, f"{variant.name} ({variant.number})"))
        variant.class_headers, variant.class_rows = _class_table(variant.runs)


def add_pictures(variants: Sequence[Variant], folder: Path, room: int, progress: Progress) -> None:
    """Grids and neighbours as thumbnails, which together add at most `room` bytes to a page in `folder`."""
    for number, variant in enumerate(variants):
        budget = room // (len(variants) - number)  # what one leaves is for those after it
        neighbours = next((run.nearest for run in variant.runs_shown if run.nearest), None)
        picture = thumbnail(neighbours, 2 * _SIDE) if neighbours and budget > 0 else None
        used = 0
        if neighbours and picture:
            frame = Frame(0, picture, link(neighbours, folder))
            variant.no_room = frame.size > budget / 2
            if not variant.no_room:
                variant.nearest, used = frame, frame.size
        if variant.shown:
            variant.frames, room_for_all = _frames(variant.shown, folder, budget - used)
            variant.no_room |= not room_for_all
        room -= used + sum(frame.size for frame in variant.frames)
        progress.step("pictures", number + 1, len(variants))


def _frames(run: RunFacts, folder: Path, budget: int) -> tuple[list[Frame], bool]:
    """Grids from the first to the last, at about equal ratios of steps, as many as the budget of bytes allows, up to
    eight; and whether it allowed these."""
    wanted = min(_FRAMES, len(run.grids))
    if budget <= 0:
        return [], wanted == 0
    made: dict[int, Frame | None] = {}

    def frame(step: int) -> Frame | None:
        if step not in made:
            picture = thumbnail(run.grids[step], _SIDE)
            made[step] = Frame(step, picture, link(run.grids[step], folder)) if picture else None
        return made[step]

    for most in range(wanted, 0, -1):
        frames = [found for step in _spread_out(sorted(run.grids), most) if (found := frame(step))]
        if sum(found.size for found in frames) <= budget:
            return frames, most == wanted
    return [], wanted == 0


def _spread_out(steps: list[int], most: int) -> list[int]:
    """At most so many of the steps: the first, the last, and those nearest to equal ratios between."""
    if len(steps) <= most:
        return steps
    if most == 1:
        return steps[-1:]
    first, last = max(1, steps[1]), steps[-1]
    wanted = [first * (last / first) ** (i / max(1, most - 2)) for i in range(most - 1)]
    return sorted({steps[0], last, *(min(steps, key=lambda step: abs(step - at)) for at in wanted)})


def _class_table(
    runs: Sequence[RunFacts],
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[Spread | None, ...]], ...]]:
    """Headers and rows of the scores by class: mean and spread over the seeds."""
    classes = dict.fromkeys(name for run in runs for name in run.per_class)
    keys = dict.fromkeys(key for run in runs for row in run.per_class.values() for key in row)
    rows = []
    for name in classes:
        found = [[r.per_class[name][key] for r in runs if key in r.per_class.get(name, {})] for key in keys]
        rows.append((name, tuple(map(Spread.of, found))))
    return ("class", *keys) if classes else (), tuple(rows)


def median(values: Iterable[float | None]) -> float | None:
    """Of the values that are known and not 0; None when there are none."""
    known = [value for value in values if value]
    return statistics.median(known) if known else None


def link(path: Path, folder: Path) -> Markup:
    """The address of a file for a page in `folder`."""
    return Markup(quote(os.fsencode(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())))
