"""curves.png of a run: losses of both players and accuracy of the discriminator against steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gantool import files


def draw_curves(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw journal rows (step, loss_d, loss_g, accuracy_real, accuracy_fake) as a PNG; no rows, no picture."""
    if not rows:
        return
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    steps = [row["step"] for row in rows]
    marker = "." if len(rows) < 5 else ""  # a line of one point cannot be seen
    for key, label, color in (("loss_d", "discriminator", "#0072b2"), ("loss_g", "generator", "#d55e00")):
        top.plot(steps, [row[key] for row in rows], label=label, color=color, linewidth=1.2, marker=marker)
    if any(row["penalty"] for row in rows):
        top.plot(steps, [row["penalty"] for row in rows], label="penalty", color="#999999", linewidth=1, marker=marker)
    for key, label, color in (("accuracy_real", "real", "#009e73"), ("accuracy_fake", "generated", "#cc79a7")):
        bottom.plot(steps, [row[key] for row in rows], label=label, color=color, linewidth=1.2, marker=marker)
    top.set_ylabel("loss")
    bottom.set_ylabel("accuracy of D")
    bottom.set_ylim(-0.03, 1.03)
    bottom.axhline(0.5, color="#bbbbbb", linewidth=0.8, zorder=0)
    bottom.set_xlabel("step (generator updates)")
    top.set_title(title, fontsize=10)
    for axes in (top, bottom):
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    with files.atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
