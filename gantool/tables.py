"""Tables on stdout in the form the user asked for: for eyes, or csv, json, Markdown and LaTeX for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantool.errors import GantoolError, UsageError
from gantool.files import atomic_file, write_text
from gantool.metrics.scores import Score, class_rows, score_rows
from gantool.result_tables import number_text, to_csv, to_latex, to_markdown, with_interval, with_spread

if TYPE_CHECKING:
    from gantool.doctor import Finding

FORMATS = ("table", "json", "csv", "markdown", "latex")
ENDINGS = {".json": "json", ".csv": "csv", ".md": "markdown", ".tex": "latex"}
_SIDE_BY_SIDE = 3  # scores beside each other; more are a line each
_SPREADS = ("_std", "_error")


def check_out(path: Path) -> None:
    """UsageError, before hours of work, when a table cannot be written to `path`."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"--out: found {path.name!r}, expected a name ending in {', '.join(ENDINGS)}")
    if path.is_dir():
        raise UsageError(f"--out: {path} is a folder", "give the name of a file")
    try:
        with atomic_file(path.with_name(f".{path.name}.test"), durable=False):
            pass
        path.with_name(f".{path.name}.test").unlink()
    except (GantoolError, OSError) as error:
        raise UsageError(f"--out: {path} cannot be written", "give a file in a folder where you may write") from error


def print_rows(rows: list[dict[str, Any]], form: str, full: Any, caption: str = "") -> None:
    """Rows of numbers and texts; `full` is what json prints, `caption` stands below a table for eyes."""
    from gantool.terminal import print_table

    if form != "table":
        print(as_text(rows, form, full), end="")
        return
    headers = [key for key in rows[0] if key not in ("protocol", "warnings")] if rows else []
    print_table(headers, [[_cell(row[key]) for key in headers] for row in rows], caption)


def print_findings(findings: Sequence[Finding]) -> None:
    """What `doctor` found, a line each, with the advice below it."""
    from gantool.terminal import print_table

    rows = []
    for finding in findings:
        rows.append([finding.state, finding.what, finding.found])
        rows += [["", "", f"-> {line}"] for line in finding.advice.splitlines()]
    print_table(["", "", "found"], rows)


def as_text(rows: list[dict[str, Any]], form: str, full: Any) -> str:
    """Rows in a form for programs."""
    if form == "json":
        return json.dumps(full, indent=1) + "\n"
    return {"csv": to_csv, "markdown": to_markdown, "latex": to_latex}[form](rows)


def print_scores(scores: list[Score], form: str, out: Path | None) -> None:
    """The scores, and for a few of them the numbers by class; to the file `out` too, in the form of its ending."""
    from gantool.terminal import print_table

    if form == "table":
        headers, cells = _score_table(scores)
        print_table(headers, cells, "\n".join(["", *_notes(scores)]))
        for score in _with_classes(scores):
            print()
            print_rows(class_rows(score), form, None, _class_caption(score))
    else:
        print(_scores_as_text(scores, form), end="")
    if out is not None:
        write_text(out, _scores_as_text(scores, ENDINGS[out.suffix.lower()]))
        if out.suffix.lower() == ".csv" and _with_classes(scores):
            rows = [{"snapshot": score.snapshot, **row} for score in _with_classes(scores) for row in class_rows(score)]
            write_text(out.with_name(f"{out.stem}-classes.csv"), as_text(rows, "csv", None))


def _scores_as_text(scores: list[Score], form: str) -> str:
    """All numbers for programs (json, csv); the table as it is shown, and those by class, for papers."""
    if form == "json":
        return as_text([], form, [score.to_json() for score in scores])
    if form == "csv":
        return as_text(score_rows(scores), form, None)
    headers, cells = _score_table(scores)
    shown = [dict(zip([headers[0] or "metric", *headers[1:]], row, strict=True)) for row in cells]
    parts = [as_text(shown, form, None)]
    mark = "% " if form == "latex" else "- "
    parts.append("".join(f"{mark}{note}\n" for note in _notes(scores)))
    for score in _with_classes(scores):
        caption = "".join(f"{mark}{line}\n" for line in _class_caption(score).splitlines())
        parts.append(as_text(class_rows(score), form, None) + caption)
    return "\n".join(parts)


def _with_classes(scores: list[Score]) -> list[Score]:
    return [score for score in scores if score.per_class] if len(scores) <= _SIDE_BY_SIDE else []


def _notes(scores: list[Score]) -> list[str]:
    warnings = [f"warning: {text}" for score in scores for text in score.warnings]
    marks = _marks(scores)
    before = [f"{mark}: " for mark in marks] or [""] * len(scores)
    protocols = [
        mark + text
        for mark, score in zip(before, scores, strict=True)
        for text in (*score.protocol.values(), score.accuracy_protocol)
        if text
    ]
    return list(dict.fromkeys([*warnings, *protocols]))


def _marks(scores: Sequence[Score]) -> list[str]:
    """For each score the number of its protocol, where not all have the same; else nothing."""
    kinds = [(*score.protocol.items(), score.accuracy_protocol) for score in scores]
    different = list(dict.fromkeys(kinds))
    return [f"({different.index(kind) + 1})" for kind in kinds] if len(different) > 1 else []


def _score_table(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    """A few scores: a line for each value, beside those of real images. Many: a line for each score."""
    names = list(dict.fromkeys(name for score in scores for name in score.values))
    names = [name for name in names if not name.endswith((*_SPREADS, "_low", "_high"))]
    if "fid_debiased" in names:
        names.remove("fid_debiased")
        names.insert(names.index("fid") + 1, "fid_debiased")
    marks = _marks(scores) or [""] * len(scores)
    titles = [_column(score) for score in scores]
    titles = [score.snapshot if titles.count(title) > 1 else title for score, title in zip(scores, titles, strict=True)]
    columns: list[tuple[str, Mapping[str, float]]] = []
    reals: dict[str, Mapping[str, float]] = {}
    for score, title, mark in zip(scores, titles, marks, strict=True):
        columns.append((f"{title} {mark}".rstrip(), score.values))
        if score.real and score.real not in [real for name, real in reals.items() if name.endswith(mark)]:
            other = f" beside {score.snapshot}" if any(name.endswith(mark) for name in reals) else ""
            reals[f"real test images{other} {mark}".rstrip()] = score.real
    columns += reals.items()
    if len(scores) <= _SIDE_BY_SIDE:
        lines = [[name, *(_value(name, values) for _, values in columns)] for name in names]
        return ["", *(title for title, _ in columns)], lines
    return ["", *names], [[title, *(_value(name, values) for name in names)] for title, values in columns]


def _column(score: Score) -> str:
    if score.step is None:
        return Path(score.snapshot).name
    path = Path(score.snapshot)
    run = path.parent.parent.name if path.parent.name == "snapshots" else path.stem
    return f"{run} step {score.step}"


def _value(name: str, values: Mapping[str, float]) -> str:
    """`1.230 ± 0.040` or `8.100 [7.900, 8.300]`, where a spread or an interval is known."""
    if name not in values:
        return "-"
    for ending in _SPREADS:
        if name + ending in values:
            return with_spread(values[name], values[name + ending])
    if f"{name}_low" in values:
        return with_interval(values[name], values[f"{name}_low"], values[f"{name}_high"])
    return number_text(values[name])


def _class_caption(score: Score) -> str:
    words = [f"by class, {score.snapshot}"]
    if score.accuracy_protocol:
        real = "real test" if "real=test" in score.accuracy_protocol else "real"
        words.append(f"accuracy_real, accuracy_fake: share of the {real} and the generated images that the "
                     "discriminator takes for what they are")  # fmt: skip
    if "classification" in score.protocol:
        words.append("accuracy_classifier: share of the generated images that a classifier of real images recognises")
        words.append("cas: share of the real images that a classifier of generated images recognises")
    return "\n".join(words)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
