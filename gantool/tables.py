"""Tables on stdout in the form the user asked for: for eyes, or csv, json, Markdown and LaTeX for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gantool.files import write_text
from gantool.metrics.scores import Score, class_rows, score_rows
from gantool.results import to_csv, to_latex, to_markdown

FORMATS = ("table", "json", "csv", "markdown", "latex")
ENDINGS = {".json": "json", ".csv": "csv", ".md": "markdown", ".tex": "latex"}
_SIDE_BY_SIDE = 3  # scores beside each other; more are a line each
_SPREADS = ("_std", "_error")


def print_rows(rows: list[dict[str, Any]], form: str, full: Any, caption: str = "") -> None:
    """Rows of numbers and texts; `full` is what json prints, `caption` stands below a table for eyes."""
    from gantool.terminal import print_table

    if form != "table":
        print(as_text(rows, form, full), end="")
        return
    headers = [key for key in rows[0] if key not in ("protocol", "warnings")] if rows else []
    print_table(headers, [[_cell(row[key]) for key in headers] for row in rows], caption)


def as_text(rows: list[dict[str, Any]], form: str, full: Any) -> str:
    """Rows in a form for programs."""
    if form == "json":
        return json.dumps(full, indent=1) + "\n"
    return {"csv": to_csv, "markdown": to_markdown, "latex": to_latex}[form](rows)


def print_scores(scores: list[Score], form: str, out: Path | None) -> None:
    """The table of scores, then one for each score with classes; to the file `out` too, in the form of its ending."""
    from gantool.terminal import print_table

    rows, full = score_rows(scores), [score.to_json() for score in scores]
    if form == "table":
        headers, cells = _score_table(scores)
        notes = [*(f"warning: {text}" for score in scores for text in score.warnings)]
        protocols = [text for score in scores for text in (*score.protocol.values(), score.accuracy_protocol) if text]
        print_table(headers, cells, "\n".join(dict.fromkeys(["", *notes, *protocols])))
    else:
        print(as_text(rows, form, full), end="")
    if form in ("table", "markdown"):
        for score in scores:
            if score.per_class:
                print()
                print_rows(class_rows(score), form, None, _class_caption(score))
    if out is not None:
        write_text(out, as_text(rows, ENDINGS[out.suffix.lower()], full))


def _score_table(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    """A few scores: a line for each value, beside those of real images. Many: a line for each score."""
    names = list(dict.fromkeys(name for score in scores for name in score.values))
    names = [name for name in names if not name.endswith((*_SPREADS, "_low", "_high"))]
    columns = [(_column(score), score.values) for score in scores]
    reals = []
    for score in scores:
        if score.real and score.real not in reals:
            reals.append(score.real)
    columns += [("real test images", real) for real in reals]
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
    """'1.23 ± 0.04' or '8.1 [7.9, 8.3]', where a spread or an interval is known."""
    if name not in values:
        return "-"
    for ending in _SPREADS:
        if name + ending in values:
            return f"{values[name]:.4g} ± {values[name + ending]:.2g}"
    if f"{name}_low" in values:
        return f"{values[name]:.4g} [{values[f'{name}_low']:.4g}, {values[f'{name}_high']:.4g}]"
    return f"{values[name]:.4g}"


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
