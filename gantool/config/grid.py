"""The runs that a sweep file stands for: the product of its axes, single runs beside it, seeds innermost.

Every run is checked before any is started. A problem is said once, however many runs have it, with the line of the
sweep file (or of the base) that wrote it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gantool.config.document import Document, parse_assignment, read_document
from gantool.config.evaluation import HIGHER_IS_BETTER, VALUES
from gantool.config.loader import (
    UNKNOWN_KEY,
    missing_file,
    nested,
    overlay,
    placed,
    read_run_document,
    validate,
    validate_run,
    with_parents,
)
from gantool.config.schema import RunConfig, format_error_key
from gantool.config.sweep_file import MAX_RUNS, ReportConfig, SlurmConfig, SweepConfig
from gantool.errors import ConfigError, UsageError, nearest
from gantool.progress import Progress, Silent, told

Labels = dict[str, str]
"""Where a run stands in the sweep: axis (or single key) -> label."""
_Problem = tuple[str, str, str, str | None]
_Cell = tuple[Labels, list[Document]]


@dataclass(frozen=True)
class Report:
    """`ReportConfig` with its defaults filled in; `metric` is None when no run is scored."""

    metric: str | None = None
    best: Literal["min", "max"] = "min"
    against: Labels = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    labels: Labels
    config: RunConfig


@dataclass(frozen=True)
class Grid:
    """The runs of a sweep file, in its order, each run directory once; `notes` are for the user."""

    name: str
    points: tuple[Point, ...]
    report: Report
    slots: int | None
    slurm: SlurmConfig
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Axis:
    name: str
    is_key: bool  # a config key with values, not a name with bundles
    settings: dict[str, Document]  # label -> what it sets


def read_grid(
    path: Path, assignments: Sequence[str] = (), on_slurm: bool = False, progress: Progress | None = None
) -> Grid:
    """Read the sweep file at `path`; `assignments` (`a.b=c`) change the base, beneath the axes, or the sweep's `slurm`.

    ConfigError lists everything that is wrong with the file or with any of its runs, which have several processes each
    only `on_slurm`.
    """
    source = read_document(path)
    if not {"base", "vary"} & set(source.tree):
        raise UsageError(
            f"{path}: this is a run, not a sweep (it has no 'base')", f"start it with: gantool train {path}"
        )
    asked = [parse_assignment(text) for text in assignments]
    source = overlay(source, *(change for change in asked if "slurm" in change.tree))
    changes = [change for change in asked if "slurm" not in change.tree]
    sweep = validate(SweepConfig, source)
    name = sweep.name or path.stem
    validate(SweepConfig, Document({"name": name, "base": {}}, source.where, source.name))  # the stem may be unfit
    reader = _Reader(sweep, source)
    cells = reader.cells(changes)
    base = overlay(Document({"name": name}, {}, source.name), _read_base(sweep.base, source, path), *changes)
    num_ranks = sweep.slurm.num_ranks() if on_slurm else 1
    configs = _validated(base, cells, num_ranks, reader.key_lines(), progress or Silent())
    points, notes = _unique(sweep.seeds, cells, configs, source)
    return Grid(name, points, _report(sweep.report, points, source), sweep.slots, sweep.slurm, notes)


def label_of(value: Any) -> str:
    """A config value as a label: `basic`, `0.5`, `true`, `basic shift=4` for {kind: basic, shift: 4}."""
    if isinstance(value, dict):
        words = [label_of(value["kind"])] if "kind" in value else []
        return " ".join([*words, *(f"{key}={label_of(v)}" for key, v in value.items() if key != "kind")]) or "{}"
    if isinstance(value, list | tuple):
        return ",".join(map(label_of, value)) or "[]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def fits(labels: Labels, part: Labels) -> bool:
    """Whether `labels` has all that `part` asks for."""
    return part.items() <= labels.items()


def _read_base(base: str | dict[str, Any], source: Document, path: Path) -> Document:
    if isinstance(base, dict):
        return with_parents(nested(base, source, ("base",)), path)
    target = path.parent / base
    if not target.is_file():
        raise ConfigError([(source.locate(("base",)), "base", *missing_file(target))])
    return read_run_document(target)


class _Reader:
    """Reads `vary`, `also` and `except`, and gathers what is wrong with them."""

    def __init__(self, sweep: SweepConfig, source: Document) -> None:
        self.sweep, self.source = sweep, source
        self.problems: list[_Problem] = []
        self.axes = {key: self._axis(key, values) for key, values in sweep.vary.items()}

    def cells(self, changes: Sequence[Document]) -> list[_Cell]:
        """Labels and overrides of each combination; `changes` are the `--set` of the base."""
        self._check_forbidden_keys()
        self._check_owners(changes)
        self._check_size()
        taken_out = [self._except(entry, ("except", str(i))) for i, entry in enumerate(self.sweep.except_)]
        singles = [self._single(entry, ("also", str(i))) for i, entry in enumerate(self.sweep.also)]
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))
        cells = [cell for cell in self._product() if not any(fits(cell[0], labels) for labels in taken_out)]
        if not cells + singles:
            raise ConfigError(
                [(self.source.locate(("except",)), "except", "nothing is left of the sweep", "take out less")]
            )
        return cells + singles

    def key_lines(self) -> dict[str, str]:
        """Where each axis that is a config key was named."""
        return {name: self.source.locate(("vary", name)) for name, axis in self.axes.items() if axis.is_key}

    def _problem(self, at: tuple[str, ...], text: str, hint: str) -> None:
        self.problems.append((self.source.locate(at), _key(at), text, hint))

    def _axis(self, key: str, values: Any) -> _Axis:
        settings: dict[str, Document] = {}
        if isinstance(values, dict):
            for label, overrides in values.items():
                settings[label] = nested(overrides, self.source, ("vary", key, label))
            return _Axis(key, False, settings)
        for index, value in enumerate(values):
            written = ("vary", key, str(index))
            if label_of(value) in settings:
                self._problem(
                    written, f"the value '{label_of(value)}' stands twice in this axis", "keep one of the two"
                )
            settings[label_of(value)] = placed(key, value, self.source, written)
        return _Axis(key, True, settings)

    def _product(self) -> Iterator[_Cell]:
        for combination in itertools.product(*(axis.settings.items() for axis in self.axes.values())):
            labels = {name: label for name, (label, _) in zip(self.axes, combination, strict=True)}
            yield labels, [document for _, document in combination]

    def _except(self, entry: dict[str, Any], at: tuple[str, ...]) -> Labels:
        if not entry:
            self._problem(at, "an empty mapping would take out everything", "name an axis and its label")
        choices = {name: list(axis.settings) for name, axis in self.axes.items()}
        self.problems += unknown_labels(entry, choices, self.source, at)
        return {key: label_of(value) for key, value in entry.items()}

    def _single(self, entry: dict[str, Any], at: tuple[str, ...]) -> _Cell:
        """A run of `also`: what is no label of an axis is a config key with its value."""
        documents = []
        for key, value in entry.items():
            axis = self.axes.get(key)
            if axis and label_of(value) in axis.settings:
                documents.append(axis.settings[label_of(value)])
            elif axis and not axis.is_key:
                self.problems += unknown_labels({key: value}, {key: list(axis.settings)}, self.source, at)
            else:
                documents.append(placed(key, value, self.source, (*at, key)))
        return {key: label_of(value) for key, value in entry.items()}, documents

    def _check_forbidden_keys(self) -> None:
        written = [
            (("vary", axis.name), document) for axis in self.axes.values() for document in axis.settings.values()
        ]
        for i, entry in enumerate(self.sweep.also):
            own = {key: value for key, value in entry.items() if key not in self.axes}
            written.append((("also", str(i)), nested(own, self.source, ("also", str(i)))))
        for at, document in written:
            for key, hint in (
                ("seed", "write 'seeds: 3' in the sweep file"),
                ("name", "the labels tell the runs apart"),
            ):
                if key in document.tree:
                    text = f"'{key}' cannot be varied"
                    self.problems.append((document.locate((key,)), _key(at), text, hint))
        for axis in self.axes.values():
            top = axis.name.split(".")[0]
            if axis.is_key and top in ("eval", "runtime"):
                text = f"'{top}' does not change what is trained, so all runs of this axis would be the same run"
                self._problem(("vary", axis.name), text, "set it in the base")

    def _check_owners(self, changes: Sequence[Document]) -> None:
        """No key is set by two axes, and none by `--set` in vain."""
        owners: dict[str, str] = {}
        for axis in self.axes.values():
            for key in dict.fromkeys(key for document in axis.settings.values() for key in _leaves(document.tree)):
                if owners.setdefault(key, axis.name) != axis.name:
                    text = f"the axes '{owners[key]}' and '{axis.name}' both set {key}"
                    self._problem(("vary", axis.name), text, "leave it to one of them")
        for change in changes:
            key = next(_leaves(change.tree))
            if key == "seed" and self.sweep.seeds is not None:
                text, hint = "the sweep file sets the seeds itself", "change 'seeds:' there"
                self.problems.append((change.name, key, text, hint))
                continue
            owner = next(
                (owners[k] for k in owners if f"{k}.".startswith(f"{key}.") or f"{key}.".startswith(f"{k}.")), None
            )
            if owner is not None:
                text, hint = f"the axis '{owner}' of the sweep sets this key", "change the axis in the sweep file"
                self.problems.append((change.name, key, text, hint))

    def _check_size(self) -> None:
        seeds = self.sweep.seeds
        num_seeds = len(seeds) if isinstance(seeds, tuple) else seeds or 1
        num_runs = math.prod(len(axis.settings) for axis in self.axes.values()) * num_seeds
        if num_runs > MAX_RUNS:
            self._problem(("vary",), f"the product has {num_runs:,} runs, more than {MAX_RUNS:,}", "split the sweep")


def unknown_labels(
    entry: dict[str, Any], choices: dict[str, list[str]], source: Document, at: tuple[str, ...]
) -> list[_Problem]:
    """A problem for each key of `entry` that is no axis, and for each value that is no label of its axis."""
    problems: list[_Problem] = []
    for key, value in entry.items():
        where, name, label = source.locate((*at, key)), _key((*at, key)), label_of(value)
        if key not in choices:
            near = nearest(key, list(choices))
            hint = (f"did you mean '{near}'? " if near else "") + f"axes: {', '.join(choices) or 'none'}"
            problems.append((where, name, "the sweep has no such axis", hint))
        elif label not in choices[key]:
            near = nearest(label, choices[key])
            hint = (f"did you mean '{near}'? " if near else "") + f"labels of this axis: {', '.join(choices[key])}"
            problems.append((where, name, f"the axis has no label '{label}'", hint))
    return problems


def _key(at: tuple[str, ...]) -> str:
    return format_error_key(tuple(int(part) if part.isdigit() else part for part in at))


def _leaves(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key


def _validated(
    base: Document, cells: list[_Cell], num_ranks: int, key_lines: dict[str, str], progress: Progress
) -> list[RunConfig]:
    configs: list[RunConfig] = []
    found: dict[_Problem, list[Labels]] = {}
    for labels, documents in told(cells, "check", progress):
        try:
            configs.append(validate_run(overlay(base, *documents), num_ranks))
        except ConfigError as error:
            for where, key, text, hint in error.problems:
                line = key_lines.get(key, where) if text == UNKNOWN_KEY else where  # the value's line, else
                found.setdefault((line, key, text, hint), []).append(labels)
    if found:
        raise ConfigError([_said_once(problem, labels, len(cells)) for problem, labels in found.items()])
    return configs


def _said_once(problem: _Problem, affected: list[Labels], total: int) -> _Problem:
    where, key, text, hint = problem
    if len(affected) < total and affected[0]:
        more = f", and {len(affected) - 1} more" if len(affected) > 1 else ""
        text += f" (in the run {_words(affected[0])}{more})"
    return where, key, text, hint


def _words(labels: Labels) -> str:
    return ", ".join(f"{axis}: {label}" for axis, label in labels.items()) or "base"


def _unique(
    seeds: int | tuple[int, ...] | None, cells: list[_Cell], configs: list[RunConfig], source: Document
) -> tuple[tuple[Point, ...], tuple[str, ...]]:
    """A point for each cell and seed, those that would share a run directory only once."""
    points: dict[str, Point] = {}
    notes: list[str] = []
    for (labels, _), config in zip(cells, configs, strict=True):
        for seed in (config.seed,) if seeds is None else range(seeds) if isinstance(seeds, int) else seeds:
            point = Point(labels, config.model_copy(update={"seed": seed}))
            first = points.setdefault(point.config.run_id, point)
            if first.config.eval != config.eval:
                text = f"'{_words(first.labels)}' and '{_words(labels)}' are the same run, to be scored in two ways"
                raise ConfigError([(source.name, "", text, "let both have the same eval")])
            if first.labels != labels:
                notes.append(f"'{_words(labels)}' is the same run as '{_words(first.labels)}', which stands for both")
    return tuple(points.values()), tuple(dict.fromkeys(notes))


def _report(report: ReportConfig, points: tuple[Point, ...], source: Document) -> Report:
    metrics = list(dict.fromkeys(m for p in points if p.config.eval for m in p.config.eval.metrics))
    choices: dict[str, list[str]] = {}
    for axis, label in dict.fromkeys(pair for point in points for pair in point.labels.items()):
        choices.setdefault(axis, []).append(label)
    problems = unknown_labels(report.against, choices, source, ("report", "against"))
    values = [value for metric in metrics for value in VALUES[metric]]
    if report.metric is not None and report.metric not in (*metrics, *values):
        text = f"no run of the sweep computes '{report.metric}'"
        hint = f"computed: {', '.join(values)}" if metrics else "add for example eval: {metrics: [fid, is]} to the base"
        problems.append((source.locate(("report", "metric")), "report.metric", text, hint))
    against = {key: label_of(value) for key, value in report.against.items()}
    if not problems and not any(fits(point.labels, against) for point in points):
        where = source.locate(("report", "against"))
        problems.append((where, "report.against", "no run of the sweep has all these labels", "name one that is there"))
    if problems:
        raise ConfigError(problems)
    metric = report.metric or (metrics[0] if metrics else None)
    value = VALUES[metric][0] if metric in VALUES else metric
    return Report(value, report.best or ("max" if value in HIGHER_IS_BETTER else "min"), against)
