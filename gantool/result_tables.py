"""Groups of scores as tables: for eyes, and as CSV, JSON lines, Markdown and LaTeX. No torch."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gantool import files
from gantool.config.grid import Report
from gantool.manifest import SweepPlan
from gantool.progress import Progress
from gantool.results import ENDED_BADLY, SPREADS, Group, Row, Spread, grouped, origins


def table(groups: Sequence[Group], report: Report) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of texts; `mean ± sd (n)`, or `(n of all)` where runs are missing; `*` marks the best."""
    axes = list(dict.fromkeys(axis for group in groups for axis in group.labels))
    metrics = shown_metrics(groups, report)
    titles = list(dict.fromkeys(group.data_title for group in groups if group.data_title))
    mixed = any(group.mixed for group in groups)
    against = any(report.metric in group.differences for group in groups)
    yardstick = [name for name in metrics if any(name in group.real for group in groups)]
    taken = {*metrics, "data", "protocol", "difference", "warnings", *(f"real {name}" for name in metrics)}
    named = [f"axis {axis}" if axis in taken else axis for axis in axes]
    headers = [*named, *(["data"] if len(titles) > 1 else []), *(["protocol"] if mixed else []), *metrics]
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
        cells += [difference_text(group.differences.get(report.metric or ""))] if against else []
        cells += [number_text(group.real[name]) if name in group.real else "-" for name in yardstick]
        rows.append(cells)
    return (headers, rows) if headers else (["runs"], [])  # nothing varies and nothing is scored


def shown_metrics(groups: Sequence[Group], report: Report) -> list[str]:
    """The metrics, the report's first; without the spreads and intervals of single scores: that over seeds counts."""
    names = list(dict.fromkeys(name for group in groups for name in group.spreads))
    names = [name for name in names if not name.endswith(SPREADS)]
    return sorted(names, key=lambda name: name != report.metric)


def spread_text(spread: Spread | None, num_missing: int = 0) -> str:
    """`45.23 ± 1.20 (3)`; `45.23 ± 1.20 (2 of 3)` when one is missing; `-` for nothing at all."""
    if spread is None:
        return f"- (0 of {num_missing})" if num_missing else "-"
    form = _form(spread.mean)
    mean = f"{spread.mean:{form}}"
    count = f"{spread.n} of {spread.n + num_missing}" if num_missing else str(spread.n)
    return f"{mean} ± {spread.sd:{form}} ({count})" if spread.sd is not None else f"{mean} ({count})"


def difference_text(difference: Spread | None) -> str:
    """`-3.20 [-4.00, -2.40] (3)`: mean, its 95 % interval and the number of pairs; `-` without a baseline."""
    if difference is None:
        return "-"
    interval = difference.interval
    form = f"+{_form(max(map(abs, (difference.mean, *(interval or ())))))}"
    between = f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
    return f"{difference.mean:{form}}{between} ({difference.n})"


def number_text(value: float) -> str:
    """Four digits: `45.23`, `0.001234`, `12345`, `3.000e+30`."""
    return f"{value + 0.0:{_form(value)}}"  # no -0.00


def with_spread(value: float, spread: float) -> str:
    """`4.025 ± 0.520`, `0.000898 ± 0.004600`: the larger one with four digits, the other with as many decimals."""
    form = _form(max(abs(value), abs(spread)))
    return f"{value:{form}} ± {spread:{form}}"


def with_interval(value: float, low: float, high: float) -> str:
    """`10.12 [9.87, 11.20]`: the largest with four digits, the others with as many decimals."""
    form = _form(max(map(abs, (value, low, high))))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _form(value: float) -> str:
    if not math.isfinite(value):
        return ""
    if abs(value) >= 1e8 or 0 < abs(value) < 1e-6:
        return ".3e"
    return f".{max(0, 3 - math.floor(math.log10(abs(value)))) if value else 2}f"


def flat(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One plain mapping a row: labels, seed, run, state, step, each metric, each `real_` metric, data, protocol."""
    names = {name for row in rows for name in row.values}
    fixed = {"seed", "run", "state", "step", "data", "protocol", *names, *(f"real_{name}" for name in names)}
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
    """Mappings as a LaTeX tabular with booktabs rules, numbers with a `*` at their end in bold; protocols and warnings
    become comments below it."""
    apart = ("protocol", "warnings")
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in apart]
    numeric = [all(_is_number(row.get(key)) for row in rows) for key in keys]
    lines = [f"\\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}", "\\toprule"]
    lines += [" & ".join(_latex(key) for key in keys) + " \\\\", "\\midrule"]
    for row in rows:
        line = " & ".join(_latex_cell(row.get(key)) for key in keys) + " \\\\"
        lines.append(("{}" if line.startswith(("[", "*")) else "") + line)  # else an argument of the line before
    lines += ["\\bottomrule", "\\end{tabular}"]
    notes = dict.fromkeys(str(row[key]) for row in rows for key in apart if row.get(key))
    return "\n".join([*lines, *(f"% {note}" for note in notes)]) + "\n"


_LAST_LATIN = "\u024f"


def _is_number(value: Any) -> bool:
    return value in (None, "-") or str(value).lstrip("+-")[:1].isdigit()


def _latex_cell(value: Any) -> str:
    if value in (None, "-"):
        return "--"
    text = number_text(value) if isinstance(value, float) else str(value)
    best = re.search(r"\d\) \*$", text) is not None  # a count, as `spread_text` ends; no label
    escaped = re.sub(r"(?<![\w.-])-(?=\d)", "$-$", _latex(text.removesuffix(" *") if best else text))
    return f"\\textbf{{{escaped}}}" if best else escaped


def _latex(text: str) -> str:
    """Text with TeX's special characters escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    text = "".join(c if c.isprintable() else " " for c in text)
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
    if any(group.differences for group in groups):
        baseline = ", ".join(f"{axis} {label}" for axis, label in plan.report.against.items())
        text = (
            f"Difference: {plan.report.metric} against {_markdown(baseline)}, paired by seed, with a 95 % interval "
            "(Student's t)."
        )
        lines.append(text)
    missing = [row for row in rows if not row.values]
    lines += ["", f"Runs without a score: {len(missing)} of {len(rows)}.", ""] if missing else [""]
    for row in missing:
        if row.state != "done":
            lines.append(f"- `{row.run}`: {row.state}{': ' if row.cause else ''}{_markdown(row.cause)}")
        if row.output and row.state in ENDED_BADLY:
            lines += ["", "  ```", *(f"  {line}" for line in row.output), "  ```", ""]
    protocols = {group.protocol_digest: group for group in groups if group.spreads}
    for digest, group in protocols.items():
        lines += ["", f"Protocol {digest} ({group.data_title}):", ""]
        lines += [f"- `{line}`" for line in protocol_lines(group.protocol)]
    lines += ["", *(f"- {line}" for line in found)] if (found := origins(rows)) else []
    lines += [f"- warning: {text}" for text in dict.fromkeys(text for row in rows for text in row.warnings)]
    return "\n".join(lines) + "\n"


def caption(plan: SweepPlan, rows: Sequence[Row]) -> str:
    """What stands below the table on a terminal: how to read it, what is missing, the protocols, the warnings."""
    groups = grouped(rows, plan.report)
    lines = ["mean ± sample standard deviation (number of seeds)"]
    if plan.report.metric and any(group.best for group in groups):
        lines[0] += f"; * the {plan.report.best} of {plan.report.metric} within a protocol"
    if any(group.differences for group in groups):
        baseline = ", ".join(f"{axis} {label}" for axis, label in plan.report.against.items())
        text = f"difference: {plan.report.metric} against {baseline}, paired by seed, with a 95 % interval"
        lines.append(text)
    for row in rows:
        if not row.values:
            lines.append(f"without a score: {row.run} ({row.state}{': ' if row.cause else ''}{row.cause})")
            lines += [f"    {line}" for line in row.output if row.state in ENDED_BADLY]
    protocols = {group.protocol_digest: group for group in groups if group.spreads}
    lines += [
        f"protocol {digest} ({group.data_title}): {protocol_text(group.protocol)}"
        for digest, group in protocols.items()
    ]
    lines += origins(rows)
    lines += [f"warning: {text}" for text in dict.fromkeys(text for row in rows for text in row.warnings)]
    return "\n".join(lines)


def protocol_text(protocol: Any) -> str:
    """A protocol as one line."""
    return "  ".join(protocol_lines(protocol))


def protocol_lines(protocol: Any) -> list[str]:
    """A protocol as a line for each of its metrics."""
    return list(map(str, protocol.values())) if isinstance(protocol, dict) else [str(protocol)]


def _markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows] if headers else []
    return "\n".join("| " + " | ".join(map(_markdown, line)) + " |" for line in lines)


def _markdown(text: str) -> str:
    """Text on one line, with what Markdown, HTML and math in it would take for their own escaped."""
    text = re.sub(r"[\\`*<>$\[\]|~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.splitlines()))
    return re.sub(r"&(?=#?\w+;)", "&amp;", text)


def sweep_latex(plan: SweepPlan, rows: Sequence[Row]) -> str:
    """The table for a paper, the best in bold; how to read it, what is missing and the protocols as comments."""
    groups = grouped(rows, plan.report)
    headers, cells = table(groups, plan.report)
    shown = [dict(zip(headers, line, strict=True)) for line in cells]
    tabular = to_latex(shown)
    engine = "% For XeLaTeX or LuaLaTeX: labels have characters that pdfLaTeX does not know.\n"
    notes = "".join(f"% {line}\n" for line in caption(plan, rows).splitlines())
    return (engine if max(tabular) > _LAST_LATIN else "") + tabular + notes


def to_json_lines(rows: Sequence[Row]) -> str:
    """A line of JSON for each row, with all that is known of it."""
    return "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)


def write_results(plan: SweepPlan, rows: Sequence[Row], progress: Progress) -> list[Path]:
    """results.csv, results.jsonl, results.md and results.tex in the sweep's folder."""
    kinds: dict[str, Callable[[], str]] = {
        "csv": lambda: to_csv(flat(rows)),
        "jsonl": lambda: to_json_lines(rows),
        "md": lambda: sweep_markdown(plan, rows),
        "tex": lambda: sweep_latex(plan, rows),
    }
    paths: list[Path] = []
    for ending, text in kinds.items():
        progress.step("results", len(paths), len(kinds))
        paths.append(plan.folder / f"results.{ending}")
        files.write_text(paths[-1], text())
    progress.step("results", len(paths), len(kinds))
    return paths
