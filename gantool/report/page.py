"""report.html: one file that shows a sweep, without network, server or (but for sorting and filtering) JavaScript."""

from __future__ import annotations

import os
import shlex
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

import gantool
from gantool import files
from gantool.config.document import dump_yaml
from gantool.config.grid import Labels, Report, label_of
from gantool.manifest import SweepPlan
from gantool.metrics.scores import direction
from gantool.progress import Progress, counted
from gantool.report import plots
from gantool.report.effects import Axes, Cell, interactions, main_effects
from gantool.report.facts import RunFacts, read_run
from gantool.report.pictures import Thumbnail, thumbnail
from gantool.result_tables import difference_text, number_text, protocol_text, shown_metrics, spread_text
from gantool.results import NOT_WHAT_THEY_SHOULD_BE, SPREADS, Group, Row, Spread, grouped, origins

MOST_SHOWN = 60  # variants with pictures and curves; the others are rows of the tables
_FRAMES = 8  # grids of one variant, from its first to its last
_SIDE = 320  # pixels of a thumbnail
_BYTES = 12_000_000  # of thumbnails
_MOST_LINES = 8  # variants in a figure of scores against steps
_MOST_PAIRS = 9  # panels of interactions
_MOST_FIGURES = 40  # pairs of a metric and a protocol that get figures
_MOST_CURVES = 4  # seeds in a figure of curves
_IDENTITY = {
    "gantool": "gantool",
    "commit": "commit",
    "torch": "torch",
    "python": "Python",
    "image": "image",
    "data": "data",
    "device": "device",
    "processes": "processes x threads",
}


@dataclass(frozen=True)
class Frame:
    """One grid of a variant."""

    step: int
    picture: Thumbnail
    link: str


@dataclass
class Variant:
    """The runs that differ by their seed alone, as the page shows them."""

    number: int
    name: str
    group: Group
    runs: list[RunFacts]
    changes: dict[str, str]
    """The keys of the config that not all runs of the page have the same, with this variant's values."""
    frames: list[Frame]
    shown: RunFacts | None = None
    """The run whose grids these are."""
    nearest: Frame | None = None
    curves: str = ""
    class_headers: tuple[str, ...] = ()
    class_rows: tuple[tuple[str, ...], ...] = ()

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
        return _median(run.images_per_second for run in self.runs)


def write_page(plan: SweepPlan, rows: Sequence[Row], progress: Progress, price: float | None = None) -> Path:
    """Write report.html to the sweep's folder. `rows` are those of `results.collect`; `price` that of a device hour."""
    path = plan.folder / "report.html"
    files.write_text(path, render(plan, rows, progress, price))
    return path


def render(plan: SweepPlan, rows: Sequence[Row], progress: Progress, price: float | None = None) -> str:
    """The page as text."""
    runs = _read_runs(plan, rows, progress)
    groups = grouped(rows, plan.report)
    metrics = shown_metrics(groups, plan.report)
    common, variants = _variants(groups, runs)
    _add_pictures(variants[:MOST_SHOWN], plan.folder, progress)
    figures, left_out = _figures(groups, variants, metrics, _axes(plan), progress)
    once = list({run.path.resolve(): run for run in runs}.values())  # sweeps may share runs
    states = [run.state for run in once]
    return _template().render(
        plan=plan,
        title=plan.name,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=gantool.__version__,
        num_runs=counted(len(once), "run"),
        states={state: states.count(state) for state in dict.fromkeys(states)},
        seeds=sorted({run.trial.seed for run in once}),
        axes=_axes(plan),
        baseline=", ".join(f"{axis} {label}" for axis, label in plan.report.against.items()),
        missing=[run for run in once if run.state != "done"],
        links={str(run.path): _link(run.path, plan.folder) for run in runs},
        commands=_commands(plan),
        notes=plan.notes,
        scored_in_training=any(run.series for run in runs),
        warnings=_warnings(rows),
        metrics=metrics,
        directions=(directions := _directions(plan.report, metrics)),
        best=_best(groups, directions),
        variants=variants,
        most_shown=MOST_SHOWN,
        several_data=len({group.data_title for group in groups if group.data_title}) > 1,
        several_protocols=any(group.mixed for group in groups),
        protocols=list({group.protocol_digest: group for group in groups if group.spreads}.values()),
        figures=figures,
        figures_left_out=left_out,
        most_pairs=_MOST_PAIRS,
        most_lines=_MOST_LINES,
        cost=_cost(once, price),
        price=price,
        identities=_identities(once),
        common=dump_yaml(_nested(common)) if common else "",
        changed_keys=list(dict.fromkeys(key for variant in variants for key in variant.changes)),
        headline=_headline(plan.report, groups),
    )


def _template() -> jinja2.Template:
    """page.html, with its style and script in it."""
    loader = jinja2.PackageLoader("gantool.report", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number_text, "spread": spread_text, "difference": difference_text}
    environment.filters |= {"duration": _duration, "protocol": protocol_text}
    for name, file in (("style", "page.css"), ("script", "page.js")):
        environment.globals[name] = Markup(loader.get_source(environment, file)[0])
    return environment.get_template("page.html")


def _read_runs(plan: SweepPlan, rows: Sequence[Row], progress: Progress) -> list[RunFacts]:
    """The runs with their rows; a run that two sweeps share stands under the labels of each."""
    by_trial: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_trial.setdefault((row.run, str(row.labels)), []).append(row)
    runs = []
    for number, trial in enumerate(plan.trials):
        own = by_trial[str(trial.run.path), str(trial.labels)]
        try:
            runs.append(read_run(trial, own))
        except (*NOT_WHAT_THEY_SHOULD_BE, OSError):  # its row is there, which was read from other files
            runs.append(RunFacts(trial, tuple(own)))
        progress.step("read", number + 1, len(plan.trials))
    return runs


def _commands(plan: SweepPlan) -> list[str]:
    """The command of a sweep, with the way to where it was started; none for several sweeps."""
    if plan.file is None:
        return []
    here = Path.cwd()
    home = (plan.home or here).resolve()
    file = os.path.relpath(plan.file.resolve(), home)
    sets = [word for text in plan.assignments for word in ("--set", text)]
    way = f"cd {shlex.quote(str(home))} && " if home != here else ""
    return [way + shlex.join(["gantool", "sweep", file, *sets])]


def _directions(report: Report, metrics: Sequence[str]) -> dict[str, int]:
    """Whether more (1) or less (-1) of each metric is better, or neither (0); of its own metric the report says."""
    return {name: {"max": 1, "min": -1}[report.best] if name == report.metric else direction(name) for name in metrics}


def _axes(plan: SweepPlan) -> Axes:
    """The labels of each axis, in the order of the sweep."""
    found: dict[str, dict[str, None]] = {}
    for trial in plan.trials:
        for axis, label in trial.labels.items():
            found.setdefault(axis, {})[label] = None
    return {axis: list(labels) for axis, labels in found.items()}


def _name(labels: Labels) -> str:
    return ", ".join(f"{axis} {label}" for axis, label in labels.items()) or "all runs"


def _variants(groups: Sequence[Group], runs: Sequence[RunFacts]) -> tuple[dict[str, Any], list[Variant]]:
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
    for number, group in enumerate(groups):
        own = [run for run in runs if run.trial.labels == group.labels and _has(run, group)]
        config = own[0].config if own else {}
        changes = {key: label_of(config[key]) for key in keys if key not in common and key in config}
        name = _name(group.labels) + (f", protocol {group.protocol_digest}" if group.mixed else "")
        variants.append(Variant(number, name, group, own, changes, []))
    return common, variants


def _has(run: RunFacts, group: Group) -> bool:
    """Whether a run is one of the group's: scored by its protocol; without a score, where it counts as missing."""
    scored = [row.protocol_digest for row in run.rows if row.values]
    return group.protocol_digest in scored if scored else group.num_missing > 0


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings again."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *above, last = key.split(".")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def _add_pictures(variants: Sequence[Variant], folder: Path, progress: Progress) -> None:
    """Grids of one seed, the same for all variants where it can be; curves; neighbours; numbers by class."""
    seeds = [run.trial.seed for variant in variants for run in variant.runs if run.grids]
    seed = max(sorted(set(seeds)), key=seeds.count, default=0)
    budget = _BYTES // max(1, len(variants))
    for number, variant in enumerate(variants):
        ordered = sorted(variant.runs, key=lambda run: (not run.grids, run.trial.seed != seed))
        if ordered:
            variant.shown = ordered[0]
            neighbours = next((run.nearest for run in ordered if run.nearest), None)
            picture = thumbnail(neighbours, 2 * _SIDE) if neighbours else None
            variant.frames = _frames(ordered[0], folder, budget - (len(picture.uri) if picture else 0))
            if neighbours and picture:
                variant.nearest = Frame(0, picture, _link(neighbours, folder))
            curves = [run.curve for run in ordered if run.curve.steps][:_MOST_CURVES]
            if curves:
                variant.curves = Markup(plots.curves_figure(curves, f"{variant.name} ({number})"))
            variant.class_headers, variant.class_rows = _class_table(variant.runs)
        progress.step("draw", number + 1, len(variants))


def _frames(run: RunFacts, folder: Path, budget: int) -> list[Frame]:
    """Grids from the first to the last, at about equal ratios of steps, as many as the budget of bytes allows."""
    steps = sorted(run.grids)
    last = thumbnail(run.grids[steps[-1]], _SIDE) if steps else None
    if last is None:
        return []
    most = max(1, min(_FRAMES, budget // len(last.uri)))
    frames = [Frame(steps[-1], last, _link(run.grids[steps[-1]], folder))]
    for step in reversed(_spread_out(steps, most)[:-1]):
        picture = thumbnail(run.grids[step], _SIDE)
        if picture is not None:
            frames.insert(0, Frame(step, picture, _link(run.grids[step], folder)))
    return frames


def _spread_out(steps: list[int], most: int) -> list[int]:
    """At most so many of the steps: the first, the last, and those nearest to equal ratios between."""
    if len(steps) <= most:
        return steps
    if most == 1:
        return steps[-1:]
    first, last = max(1, steps[1]), steps[-1]
    wanted = [first * (last / first) ** (i / max(1, most - 2)) for i in range(most - 1)]
    return sorted({steps[0], last, *(min(steps, key=lambda step: abs(step - at)) for at in wanted)})


def _class_table(runs: Sequence[RunFacts]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headers and rows of the scores by class: mean and spread over the seeds."""
    classes = dict.fromkeys(name for run in runs for name in run.per_class)
    keys = dict.fromkeys(key for run in runs for row in run.per_class.values() for key in row)
    rows = []
    for name in classes:
        found = [[r.per_class[name][key] for r in runs if key in r.per_class.get(name, {})] for key in keys]
        rows.append((name, *(spread_text(Spread.of(numbers)) for numbers in found)))
    return ("class", *keys) if classes else (), tuple(rows)


def _figures(
    groups: Sequence[Group], variants: Sequence[Variant], metrics: Sequence[str], axes: Axes, progress: Progress
) -> tuple[list[dict[str, Any]], int]:
    """For each metric and protocol: main effects, interactions, scores against steps. And how many are left out."""
    titles = {group.protocol_digest: group.data_title for group in groups if group.spreads}
    there: dict[str, set[str]] = {}  # metrics of each protocol, of final scores and of those in training
    for run in (run for variant in variants for run in variant.runs):
        for row in run.rows:
            there.setdefault(row.protocol_digest, set()).update(row.values)
        for digest, series in run.series.items():
            titles.setdefault(digest, run.titles.get(digest, ""))
            there.setdefault(digest, set()).update(series)
    several = len(set(titles.values())) < len(titles)  # then titles alone do not tell protocols apart
    names = [*metrics, *(name for names in there.values() for name in sorted(names) if not name.endswith(SPREADS))]
    wanted = [(metric, digest) for metric in dict.fromkeys(names) for digest in titles if metric in there[digest]]
    found: list[dict[str, Any]] = []
    left_out = 0
    for number, (metric, digest) in enumerate(wanted):
        label = f"{metric} ({titles[digest]}{f', protocol {digest}' if several else ''})"
        if len(found) == _MOST_FIGURES:
            left_out += 1
        elif figures := _figure_set(variants, digest, metric, label, axes):
            found.append({"metric": metric, "label": label, **figures})
        progress.step("figures", number + 1, len(wanted))
    return found, left_out


def _figure_set(all_: Sequence[Variant], digest: str, metric: str, label: str, axes: Axes) -> dict[str, Any]:
    """The figures of a metric in a protocol; empty when there is nothing to draw."""
    own = [variant for variant in all_ if variant.group.protocol_digest == digest]
    cells = []
    for variant in own:
        rows = [row for run in variant.runs for row in run.rows if row.protocol_digest == digest]
        values = tuple(row.values[metric] for row in rows if metric in row.values)
        if values:
            cells.append(Cell(variant.group.labels, values))
    effects, pairs = main_effects(cells, axes), interactions(cells, axes)
    lines = _lines(own, digest, metric) or _lines(all_, digest, metric)
    if not (effects or pairs or lines):
        return {}
    return {
        "effects": effects,
        "pairs": pairs[:_MOST_PAIRS],
        "effects_svg": Markup(plots.effects_figure(effects, metric, label)) if effects else "",
        "num_pairs": len(pairs),
        "pairs_svg": Markup(plots.interactions_figure(pairs[:_MOST_PAIRS], metric, label)) if pairs else "",
        "num_lines": len(lines),
        "steps_svg": Markup(plots.steps_figure(lines[:_MOST_LINES], metric, label)) if lines else "",
    }


def _lines(variants: Sequence[Variant], digest: str, metric: str) -> list[plots.Line]:
    """Scores by step of the variants that were scored at two steps or more, in the order of the table."""
    lines = []
    for variant in variants:
        seeds = [tuple(run.series.get(digest, {}).get(metric, ())) for run in variant.runs]
        seeds = [points for points in seeds if len(points) > 1]
        if seeds:
            lines.append(plots.Line(variant.name, tuple(seeds)))
    return lines


def _best(groups: Sequence[Group], directions: dict[str, int]) -> dict[str, set[int]]:
    """Metric -> places of the groups with the best mean of it, within each protocol; of one group none is the best."""
    found: dict[str, set[int]] = {}
    for metric, sign in directions.items():
        found[metric] = set()
        for digest in {group.protocol_digest for group in groups}:
            means = {
                place: -sign * group.spreads[metric].mean
                for place, group in enumerate(groups)
                if group.protocol_digest == digest and metric in group.spreads
            }
            if sign and len(means) > 1:
                best = min(means.values())
                found[metric] |= {place for place, mean in means.items() if mean == best}
    return found


def _headline(report: Report, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The best variant of each protocol by the report's metric."""
    return [{"name": _name(g.labels), "spread": g.spreads[report.metric or ""], "group": g} for g in groups if g.best]


def _warnings(rows: Sequence[Row]) -> list[str]:
    mixed = [line.removeprefix("warning: ") for line in origins(rows) if line.startswith("warning: ")]
    return [*mixed, *dict.fromkeys(text for row in rows for text in row.warnings)]


def _cost(runs: Sequence[RunFacts], price: float | None) -> list[dict[str, Any]]:
    """Hours and speed by kind of device."""
    found = []
    for device in dict.fromkeys(run.device for run in runs if run.train_hours is not None):
        own = [run for run in runs if run.device == device and run.train_hours is not None]
        train, score = sum(run.train_hours or 0 for run in own), sum(run.score_hours for run in own)
        found.append(
            {
                "device": device or "unknown",
                "runs": len(own),
                "train": train,
                "score": score,
                "rate": _median(run.images_per_second for run in own),
                "starts": sum(run.num_starts for run in own),
                "price": (train + score) * price if price is not None else None,
            }
        )
    return found


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value]
    return statistics.median(known) if known else None


def _identities(runs: Sequence[RunFacts]) -> list[tuple[str, dict[str, int]]]:
    """Versions, commits, images and data, with the number of runs of each."""
    found = []
    for key, title in _IDENTITY.items():
        values = [run.identity[key] for run in runs if key in run.identity]
        if values:
            found.append((title, {value: values.count(value) for value in dict.fromkeys(values)}))
    return found


def _link(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def _duration(hours: float) -> str:
    """`42 s`, `3.5 min`, `1.25 h`, `312 h`."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.1f} min"
    return f"{hours:.2f} h" if hours < 100 else f"{hours:.0f} h"
