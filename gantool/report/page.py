"""report.html: one file that shows a sweep, without network or server; and without JavaScript, but for sorting,
filtering, switching the metric, and the slider of training time."""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

import gantool
from gantool import files
from gantool.config.document import dump_yaml
from gantool.config.grid import Report
from gantool.manifest import SweepPlan
from gantool.metrics.scores import direction
from gantool.progress import Progress, counted, told
from gantool.report import plots
from gantool.report.effects import Axes, Cell, interactions, main_effects
from gantool.report.facts import RunFacts, read_run
from gantool.report.variants import Variant, add_details, add_pictures, link, median, name_of, variants_of
from gantool.result_tables import difference_text, number_text, protocol_lines, shown_metrics, spread_text
from gantool.results import NOT_WHAT_THEY_SHOULD_BE, SPREADS, Group, Row, grouped, origins

MOST_SHOWN = 60  # variants with pictures and curves; the others are rows of the tables
MOST_BYTES = 19_500_000  # of the page
MOST_CHARACTERS = 4000  # of a name, a cause, or the last words of a run
_LEAST_CHARACTERS = 60
_LONG_TEXT = 100_000  # characters of what all configs have in common
_PICTURE_BYTES = 12_000_000  # of thumbnails, where there is room for so many
_MOST_LINES = 8  # variants in a figure of scores against steps
_MOST_PAIRS = 9  # panels of interactions
_MOST_FIGURES = 40  # pairs of a metric and a protocol that get figures
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
    common, variants = variants_of(groups, runs)
    shown = variants[:MOST_SHOWN]
    add_details(shown, progress)
    figures, left_out = _figures(groups, variants, metrics, _axes(plan), progress)
    once = list({run.path.resolve(): run for run in runs}.values())  # sweeps may share runs
    states = [run.state for run in once]
    missing = [run for run in once if run.state != "done"]
    words = {
        "plan": plan,
        "title": plan.name,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "version": gantool.__version__,
        "num_runs": counted(len(once), "run"),
        "states": {state: states.count(state) for state in dict.fromkeys(states)},
        "seeds": sorted({run.trial.seed for run in once}),
        "axes": _axes(plan),
        "baseline": ", ".join(f"{axis} {label}" for axis, label in plan.report.against.items()),
        "missing": missing,
        "links": {str(run.path): link(run.path, plan.folder) for run in runs},
        "commands": _commands(plan),
        "notes": plan.notes,
        "scored_in_training": any(run.series for run in runs),
        "warnings": _warnings(rows),
        "metrics": metrics,
        "directions": (directions := _directions(plan.report, metrics)),
        "best": _best(groups, directions),
        "variants": variants,
        "several_data": len({group.data_title for group in groups if group.data_title}) > 1,
        "several_protocols": any(group.mixed for group in groups),
        "protocols": list({group.protocol_digest: group for group in groups if group.spreads}.values()),
        "figures": figures,
        "figures_left_out": left_out,
        "most_pairs": _MOST_PAIRS,
        "most_characters": MOST_CHARACTERS,
        "most_lines": _MOST_LINES,
        "cost": _cost(once, price),
        "price": price,
        "identities": _identities(once),
        "common": dump_yaml(_nested(common)) if common else "",
        "changed_keys": list(dict.fromkeys(key for variant in variants for key in variant.changes)),
        "headline": _headline(plan.report, groups),
    }
    most_runs = max((len(variant.runs) for variant in shown), default=0)
    most = Limits(MOST_CHARACTERS, len(variants), len(shown), most_runs, len(figures), len(missing))
    limits, size = _fitted(words, most, progress)
    if size > MOST_BYTES:
        progress.say(f"report.html is larger than 20 MB ({size / 1e6:.0f} MB), and cannot be made smaller")
    add_pictures(shown[: limits.cards], plan.folder, min(_PICTURE_BYTES, MOST_BYTES - size), progress)
    return _template(progress).render(words, limits=limits)


class Limits(NamedTuple):
    """How many of each kind the page shows, from the first."""

    characters: int
    """Of a text of others."""
    rows: int
    """Variants in a table."""
    cards: int
    """Variants with pictures and curves."""
    runs: int
    """Runs in the table of a variant."""
    figures: int
    """Pairs of a metric and a protocol with figures."""
    missing: int
    """Runs that are not done."""


def _fitted(words: dict[str, Any], limits: Limits, progress: Progress) -> tuple[Limits, int]:
    """As much as a page without pictures has room for, and its size in bytes. Where all is too much: shorter texts, if
    that is enough; else again and again half of what takes most of it. What is left of each kind (the first of each)
    and all else is there in any case."""
    template = _template(progress)
    least = Limits(_LEAST_CHARACTERS, 1, 1, 1, 1, 1)

    def size_of(limits: Limits) -> int:
        return len(template.render(words, limits=limits).encode(errors="backslashreplace"))

    size = size_of(limits)
    if size <= MOST_BYTES:
        return limits, size
    without = []  # the sizes of pages with the least of one kind
    for kind in told(Limits._fields, "shorten", progress):
        number, fewest = getattr(limits, kind), getattr(least, kind)
        without.append(size_of(limits._replace(**{kind: fewest})) if number > fewest else size)
    shares = [(size - one) / max(1, n - few) for one, n, few in zip(without, limits, least, strict=True)]
    short_texts = without[0] <= MOST_BYTES
    while size > MOST_BYTES:
        left = [place for place, (n, few) in enumerate(zip(limits, least, strict=True)) if n > few]
        if not left:
            break
        place = 0 if short_texts else max(left, key=lambda place: shares[place] * limits[place])
        limits = limits._replace(**{Limits._fields[place]: max(least[place], limits[place] // 2)})
        size = size_of(limits)
    return limits, size


def _template(progress: Progress) -> jinja2.Template:
    """page.html, with its style and script in it. No text of others is longer there than `limits.characters`, but the
    config that all runs share."""
    loader = jinja2.PackageLoader("gantool.report", ".")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_cut,
    )
    environment.filters |= {"number": number_text, "spread": spread_text, "difference": difference_text}
    environment.filters |= {"duration": _duration, "protocol": protocol_lines}
    environment.filters |= {
        "told": lambda items, what: told(items, what, progress),
        "numbered": lambda labels, axes: [axes[axis].index(labels[axis]) if axis in labels else -1 for axis in axes],
        "long_text": lambda text: escape(_shortened(text, _LONG_TEXT)),
    }
    for name, file in (("style", "page.css"), ("script", "page.js")):
        environment.globals[name] = Markup(loader.get_source(environment, file)[0])
    return environment.get_template("page.html")


@jinja2.pass_context
def _cut(context: jinja2.runtime.Context, value: Any) -> Any:
    """The value as it stands on the page: a long text only with its beginning. Markup is whole."""
    if isinstance(value, (list, dict)):  # in a file that is not what it should be
        value = str(value)
    if isinstance(value, str) and not isinstance(value, Markup):
        return _shortened(value, context["limits"].characters)
    return value


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _read_runs(plan: SweepPlan, rows: Sequence[Row], progress: Progress) -> list[RunFacts]:
    """The runs with their rows; a run that two sweeps share stands under the labels of each."""
    by_trial: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_trial.setdefault((row.run, str(row.labels)), []).append(row)
    runs = []
    for trial in told(plan.trials, "read", progress):
        own = by_trial[str(trial.run.path), str(trial.labels)]
        try:
            runs.append(read_run(trial, own))
        except (*NOT_WHAT_THEY_SHOULD_BE, OSError):  # its row is there, which was read from other files
            runs.append(RunFacts(trial, tuple(own)))
    return runs


def _commands(plan: SweepPlan) -> list[str]:
    """The command of each sweep, with the way to where it was started."""
    return [_command(one) for one in plan.parts or (plan,) if one.file is not None]


def _command(plan: SweepPlan) -> str:
    assert plan.file is not None
    here = Path.cwd()
    home = (plan.home or here).resolve()
    file = os.path.relpath(plan.file.resolve(), home)
    sets = [word for text in plan.assignments for word in ("--set", text)]
    # Where no run was ever a job, the sweep ran here, as it should again where there is Slurm.
    local = [] if any((trial.run.path / "job.json").exists() for trial in plan.trials) else ["--local"]
    way = f"cd {shlex.quote(str(home))} && " if home != here else ""
    return way + shlex.join(["gantool", "sweep", file, *local, *sets])


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
    effects, pairs = main_effects(cells, axes), interactions(cells, axes, _MOST_PAIRS + 1)
    lines = _lines(own, digest, metric) or _lines(all_, digest, metric)
    if not (effects or pairs or lines):
        return {}
    return {
        "effects": effects,
        "pairs": pairs[:_MOST_PAIRS],
        "effects_svg": Markup(plots.effects_figure(effects, metric, label)) if effects else "",
        "more_pairs": len(pairs) > _MOST_PAIRS,
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
    """The best variant of each protocol by the report's metric, and whether there are others to be better than."""
    metric = report.metric or ""
    count = Counter(group.protocol_digest for group in groups if metric in group.spreads)
    return [
        {"name": name_of(g.labels), "spread": g.spreads[metric], "group": g, "alone": count[g.protocol_digest] == 1}
        for g in groups
        if g.best
    ]


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
                "rate": median(run.images_per_second for run in own),
                "starts": sum(run.num_starts for run in own),
                "price": (train + score) * price if price is not None else None,
            }
        )
    return found


def _identities(runs: Sequence[RunFacts]) -> list[tuple[str, dict[str, int]]]:
    """Versions, commits, images and data, with the number of runs of each."""
    found = []
    for key, title in _IDENTITY.items():
        values = [run.identity[key] for run in runs if key in run.identity]
        if values:
            found.append((title, {value: values.count(value) for value in dict.fromkeys(values)}))
    return found


def _duration(hours: float) -> str:
    """`42 s`, `3.5 min`, `1.25 h`, `312 h`."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.1f} min"
    return f"{hours:.2f} h" if hours < 100 else f"{hours:.0f} h"
