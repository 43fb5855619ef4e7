"""From the scores of finished runs to tables: mean and sample standard deviation over seeds. No torch.

Scores with different protocols (extractor, number of images, reference data) are never averaged or ranked together.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gantool import files
from gantool.config.grid import Labels, Report
from gantool.config.schema import digest_of
from gantool.errors import GantoolError
from gantool.local import last_output
from gantool.manifest import SweepPlan, Trial
from gantool.runs import Look
from gantool.submissions import Jobs


@dataclass(frozen=True)
class Row:
    """One score of one run, or a run without a score (then `values` and `protocol` are empty)."""

    labels: Labels
    seed: int
    run: str
    state: str
    step: int | None = None
    values: dict[str, float] = field(default_factory=dict)
    real: dict[str, float] = field(default_factory=dict)
    data_title: str = ""
    protocol: Any = None
    warnings: tuple[str, ...] = ()
    cause: str = ""
    """Why it failed, or what it waits for."""
    output: tuple[str, ...] = ()
    """The last lines it wrote, when it failed."""
    trained_by: dict[str, str] = field(default_factory=dict)
    """Versions of gantool and torch, and the digest of the image (none: no image), as far as they are known."""
    scored_by: dict[str, str] = field(default_factory=dict)

    @property
    def protocol_digest(self) -> str:
        """Twelve digits that tell protocols apart; empty without a score."""
        return digest_of(self.protocol) if self.values else ""


@dataclass(frozen=True)
class Spread:
    """Mean of `n` numbers and their sample standard deviation (n - 1 in the denominator; None for n = 1)."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread | None:
        """None for no numbers."""
        if not numbers:
            return None
        return cls(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))


@dataclass(frozen=True)
class Group:
    """The runs that differ by nothing but their seed, scored by one protocol."""

    labels: Labels
    spreads: dict[str, Spread]
    """Spread of each metric over the seeds."""
    num_missing: int
    """Runs without a score."""
    best: bool
    """Whether no group with the same protocol has a better mean of the report's metric."""
    difference: Spread | None
    """Of the report's metric from the baseline's, over the seeds that both have; None without a baseline."""
    real: dict[str, float]
    """What real images score: the yardstick."""
    data_title: str
    protocol: Any
    protocol_digest: str
    mixed: bool
    """Whether runs with these labels were scored by other protocols too."""


def collect(trials: Iterable[Trial]) -> list[Row]:
    """A row for each score of each run that is done, and one for each other run."""
    trials = list(trials)
    jobs = Jobs(trial.run for trial in trials)
    return [row for trial in trials for row in _rows_of(trial, jobs)]


def scores_of(trial: Trial) -> dict[str, float]:
    """All numbers of the scores of a run that is done."""
    return scores_in(trial.run.result())


def scores_in(result: dict[str, Any] | None) -> dict[str, float]:
    """All numbers of the scores in a result.json."""
    scores = (result or {}).get("scores")
    found = [_numbers(score.get("values")) for score in scores] if isinstance(scores, list) else []
    return {name: value for values in found for name, value in values.items()}


def _rows_of(trial: Trial, jobs: Jobs) -> list[Row]:
    try:
        look = trial.look()
        state, words = jobs.state(trial.run, look.state, look.status)
    except GantoolError as error:
        look, state, words = Look("failed", {}, None), "failed", error.message
    result = (look.result if state == "done" else None) or {}
    step, scores = result.get("step"), result.get("scores")
    bare = Row(trial.labels, trial.seed, str(trial.run.path), state, step)
    if state in ("failed", "diverged"):
        said = "" if words else str(look.status.get("message", ""))
        bare = replace(bare, cause=words or said, output=last_output(trial.run))
    rows = []
    facts = files.read_json(trial.run.path / "run.json") if scores else None
    trained_by = _made_by(facts.get("versions"), facts.get("image")) if isinstance(facts, dict) else {}
    for score in scores if isinstance(scores, list) else []:
        values = _numbers(score.get("values"))
        if values:
            title, texts = str(score.get("data_title", "")), tuple(map(str, score.get("warnings") or ()))
            real, protocol = _numbers(score.get("real")), score.get("protocol")
            row = Row(bare.labels, bare.seed, bare.run, state, step, values, real, title, protocol, texts)
            versions = score.get("versions")
            image = versions.get("image") if isinstance(versions, dict) else None
            rows.append(replace(row, trained_by=trained_by, scored_by=_made_by(versions, image)))
    return rows or [bare]


def _made_by(versions: Any, image: Any) -> dict[str, str]:
    """From what a run.json or a score says; `image`: a digest, or a mapping with one."""
    if not isinstance(versions, dict):
        return {}
    digest = image.get("digest", "unknown") if isinstance(image, dict) else image
    return {**{key: str(versions[key]) for key in ("gantool", "torch") if key in versions}, "image": digest or "none"}


def _origins(rows: Sequence[Row]) -> list[str]:
    """In words, the image that made the rows, and a warning where not all were made by the same."""
    lines = []
    for key, what in (("image", "images"), ("gantool", "versions of gantool"), ("torch", "versions of torch")):
        found = dict.fromkeys(made[key] for row in rows for made in (row.trained_by, row.scored_by) if key in made)
        if len(found) > 1:
            lines.append(f"warning: trained and scored by several {what}: {', '.join(found)}")
        elif key == "image" and found.keys() - {"none"}:
            lines.append(f"image {next(iter(found))}")
    return lines


def _numbers(values: Any) -> dict[str, float]:
    items = values.items() if isinstance(values, dict) else ()
    return {
        key: float(v) for key, v in items if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
    }


def grouped(rows: Sequence[Row], report: Report) -> list[Group]:
    """Rows that differ by their seed alone, in one group each; sorted by the report's metric within a protocol.

    Protocols stand in the order of the rows; groups without a score come last.
    """
    buckets = _buckets(rows)
    groups = []
    for (_, digest), members in buckets.items():
        scored = [row for row in members if row.values]
        first = (scored or members)[0]
        names = dict.fromkeys(name for row in scored for name in row.values)
        spreads = {name: Spread.of([row.values[name] for row in scored if name in row.values]) for name in names}
        groups.append(
            Group(
                labels=first.labels,
                spreads={name: spread for name, spread in spreads.items() if spread},
                num_missing=len(members) - len(scored),
                best=False,
                difference=_difference(members, buckets, report),
                real=first.real,
                data_title=first.data_title,
                protocol=first.protocol,
                protocol_digest=digest,
                mixed=sum(labels == _key(first.labels) for labels, _ in buckets) > 1,
            )
        )
    return _ranked(groups, report)


_Bucket = tuple[tuple[tuple[str, str], ...], str]


def _key(labels: Labels) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def _buckets(rows: Sequence[Row]) -> dict[_Bucket, list[Row]]:
    """Rows by labels and protocol; a row without a score goes to the first protocol of its labels."""
    buckets: dict[_Bucket, list[Row]] = {}
    for row in rows:
        if row.values:
            buckets.setdefault((_key(row.labels), row.protocol_digest), []).append(row)
    for row in rows:
        if not row.values:
            same = [bucket for bucket in buckets if bucket[0] == _key(row.labels)]
            buckets.setdefault(same[0] if same else (_key(row.labels), ""), []).append(row)
    return buckets


def _difference(members: list[Row], buckets: dict[_Bucket, list[Row]], report: Report) -> Spread | None:
    """Differences to the baseline, paired by seed: what the seeds have in common cancels out."""
    labels, metric = members[0].labels, report.metric
    baseline = {**labels, **report.against}
    if not report.against or metric is None or baseline == labels:
        return None
    others = buckets.get((_key(baseline), next((row.protocol_digest for row in members if row.values), "")), [])
    theirs = {row.seed: row.values[metric] for row in others if metric in row.values}
    ours = [row for row in members if metric in row.values and row.seed in theirs]
    return Spread.of([row.values[metric] - theirs[row.seed] for row in ours])


def _ranked(groups: list[Group], report: Report) -> list[Group]:
    sign = -1 if report.best == "max" else 1
    protocols = list(dict.fromkeys(group.protocol_digest for group in groups if group.spreads))

    def value(group: Group) -> float:
        spread = group.spreads.get(report.metric or "")
        return sign * spread.mean if spread else math.inf

    best = {digest: min(value(g) for g in groups if g.protocol_digest == digest) for digest in protocols}
    places = {digest: place for place, digest in enumerate(protocols)}
    marked = [
        replace(group, best=math.isfinite(value(group)) and value(group) == best[group.protocol_digest])
        for group in groups
    ]
    return sorted(marked, key=lambda group: (places.get(group.protocol_digest, len(places)), value(group)))


def table(groups: Sequence[Group], report: Report) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of texts; `mean ± sd (n)`, or `(n of all)` where runs are missing; `*` marks the best."""
    axes = list(dict.fromkeys(axis for group in groups for axis in group.labels))
    metrics = list(dict.fromkeys(name for group in groups for name in group.spreads))
    metrics = [name for name in metrics if not name.endswith("_std")]  # the spread over seeds is the one to look at
    if report.metric in metrics:
        metrics = [report.metric, *(name for name in metrics if name != report.metric)]
    titles = list(dict.fromkeys(group.data_title for group in groups if group.data_title))
    mixed = any(group.mixed for group in groups)
    against = any(group.difference for group in groups)
    yardstick = [name for name in metrics if any(name in group.real for group in groups)]
    headers = [*axes, *(["data"] if len(titles) > 1 else []), *(["protocol"] if mixed else []), *metrics]
    headers += ["difference"] if against else []
    headers += [f"real {name}" for name in yardstick]
    rows = []
    for group in groups:
        cells = [group.labels.get(axis, "-") for axis in axes]
        cells += [group.data_title or "-"] if len(titles) > 1 else []
        cells += [group.protocol_digest or "-"] if mixed else []
        for name in metrics:
            star = " *" if group.best and name == report.metric else ""
            cells.append(spread_text(group.spreads.get(name), group.num_missing) + star)
        cells += [spread_text(group.difference, signed=True)] if against else []
        cells += [number_text(group.real[name]) if name in group.real else "-" for name in yardstick]
        rows.append(cells)
    return (headers, rows) if headers else (["runs"], [])  # nothing varies and nothing is scored


def spread_text(spread: Spread | None, num_missing: int = 0, signed: bool = False) -> str:
    """`45.23 ± 1.20 (3)`; `45.23 ± 1.20 (2 of 3)` when one is missing; `-` for nothing at all."""
    if spread is None:
        return f"- (0 of {num_missing})" if num_missing else "-"
    decimals = _decimals(spread.mean)
    mean = f"{spread.mean:{'+' if signed else ''}.{decimals}f}"
    count = f"{spread.n} of {spread.n + num_missing}" if num_missing else str(spread.n)
    return f"{mean} ± {spread.sd:.{decimals}f} ({count})" if spread.sd is not None else f"{mean} ({count})"


def number_text(value: float) -> str:
    """Four digits: `45.23`, `0.001234`, `12345`."""
    return f"{value:.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    return min(8, max(0, 3 - math.floor(math.log10(abs(value))))) if value else 2


def flat(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One plain mapping a row: labels, seed, run, state, step, each metric, each `real_` metric, data, protocol."""
    fixed = ("seed", "run", "state", "step", "data", "protocol")
    return [
        {
            **{f"axis_{axis}" if axis in fixed else axis: label for axis, label in row.labels.items()},
            "seed": row.seed,
            "run": row.run,
            "state": row.state,
            "step": row.step,
            **row.values,
            **{f"real_{name}": value for name, value in row.real.items()},
            **({"data": row.data_title, "protocol": row.protocol_digest} if row.values else {}),
        }
        for row in rows
    ]


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Mappings as CSV: a column for each key of any row, empty where a row has none."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Mappings as a Markdown table: a column for each key of any row, `-` where a row has none."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    values = [[row.get(key) for key in keys] for row in rows]
    cells = [[number_text(v) if isinstance(v, float) else "-" if v is None else str(v) for v in row] for row in values]
    return _markdown_table(keys, cells) + "\n"


def to_latex(rows: Sequence[dict[str, Any]]) -> str:
    """Mappings as a LaTeX tabular with booktabs rules; protocols and warnings become comments below it."""
    apart = ("protocol", "warnings")
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in apart]
    numeric = [all(str(row.get(key, "-")).lstrip("-")[:1].isdigit() or row.get(key) in (None, "-") for row in rows)
               for key in keys]  # fmt: skip
    lines = [f"\\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}", "\\toprule"]
    lines += [" & ".join(_latex(key) for key in keys) + " \\\\", "\\midrule"]
    for row in rows:
        values = [row.get(key) for key in keys]
        cells = [number_text(v) if isinstance(v, float) else "--" if v is None else _latex(str(v)) for v in values]
        lines.append(" & ".join(cells) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    notes = dict.fromkeys(str(row[key]) for row in rows for key in apart if row.get(key))
    return "\n".join([*lines, *(f"% {note}" for note in notes)]) + "\n"


def _latex(text: str) -> str:
    """Text with TeX's special characters escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def sweep_json(plan: SweepPlan, rows: Sequence[Row]) -> str:
    """Everything: the report's settings, the rows, the groups."""
    groups = [asdict(group) for group in grouped(rows, plan.report)]
    value = {"sweep": plan.name, "report": asdict(plan.report), "rows": [asdict(row) for row in rows], "groups": groups}
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def sweep_markdown(plan: SweepPlan, rows: Sequence[Row]) -> str:
    """The table with what a reader must know: what is missing, the baseline, the protocols, the warnings."""
    groups = grouped(rows, plan.report)
    headers, cells = table(groups, plan.report)
    lines = [f"# {plan.name}", "", _markdown_table(headers, cells), ""]
    lines += ["Mean ± sample standard deviation (number of seeds)."]
    if plan.report.metric and any(group.best for group in groups):
        lines.append(f"`*`: the {plan.report.best} of {plan.report.metric} within a protocol.")
    if any(group.difference for group in groups):
        baseline = ", ".join(f"{axis} {label}" for axis, label in plan.report.against.items())
        lines.append(f"Difference: {plan.report.metric} against {baseline}, paired by seed.")
    missing = [row for row in rows if not row.values]
    lines += ["", f"Runs without a score: {len(missing)} of {len(rows)}.", ""] if missing else [""]
    for row in missing:
        if row.state != "done":
            lines.append(f"- `{row.run}`: {row.state}{': ' if row.cause else ''}{row.cause}")
        if row.output:
            lines += ["", "  ```", *(f"  {line}" for line in row.output), "  ```", ""]
    protocols = {group.protocol_digest: group for group in groups if group.spreads}
    for digest, group in protocols.items():
        lines += ["", f"Protocol {digest} ({group.data_title}): `{json.dumps(group.protocol)}`"]
    lines += ["", *(f"- {line}" for line in origins)] if (origins := _origins(rows)) else []
    lines += [f"- warning: {text}" for text in dict.fromkeys(text for row in rows for text in row.warnings)]
    return "\n".join(lines) + "\n"


def caption(plan: SweepPlan, rows: Sequence[Row]) -> str:
    """What stands below the table on a terminal: how to read it, what is missing, the protocols, the warnings."""
    groups = grouped(rows, plan.report)
    lines = ["mean ± sample standard deviation (number of seeds)"]
    if plan.report.metric and any(group.best for group in groups):
        lines[0] += f"; * the {plan.report.best} of {plan.report.metric} within a protocol"
    if any(group.difference for group in groups):
        baseline = ", ".join(f"{axis} {label}" for axis, label in plan.report.against.items())
        lines.append(f"difference: {plan.report.metric} against {baseline}, paired by seed")
    for row in rows:
        if not row.values:
            lines.append(f"without a score: {row.run} ({row.state}{': ' if row.cause else ''}{row.cause})")
            lines += [f"    {line}" for line in row.output]
    protocols = {group.protocol_digest: group for group in groups if group.spreads}
    lines += [
        f"protocol {digest} ({group.data_title}): {_protocol_text(group.protocol)}"
        for digest, group in protocols.items()
    ]
    lines += _origins(rows)
    lines += [f"warning: {text}" for text in dict.fromkeys(text for row in rows for text in row.warnings)]
    return "\n".join(lines)


def _protocol_text(protocol: Any) -> str:
    return "  ".join(map(str, protocol.values())) if isinstance(protocol, dict) else str(protocol)


def _markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows] if headers else []
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_results(plan: SweepPlan, rows: Sequence[Row]) -> list[Path]:
    """results.csv, results.json and results.md in the sweep's folder."""
    texts = {"csv": to_csv(flat(rows)), "json": sweep_json(plan, rows), "md": sweep_markdown(plan, rows)}
    paths = [plan.folder / f"results.{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        files.write_text(path, text)
    return paths
