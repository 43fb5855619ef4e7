"""The figures of the page: SVG with text as text, which takes the page's own colours in light and dark.

Lines differ by their dashes and markers too, and each colour has a contrast of 3 to 1 with both backgrounds.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from gantool.report.effects import Interaction, Level, MainEffect
from gantool.report.facts import Curve

_INK, _FAINT = "#010203", "#040506"  # replaced by the page's own
_COLORS = ("#2a7fc0", "#cf5a1c", "#14906a", "#b4529b", "#8d7414", "#6f62cf", "#c43d3d", "#5b7d8c")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX*"
_WIDTH = 9.2  # inches, of a whole figure
_FEW = 6  # points of a line that get markers
_MOST_CLASSES = 40  # that get a line each
_HEADROOM = 0.3  # of the height of a panel of interactions, for its legend


@dataclass(frozen=True)
class Line:
    """A line of a figure: (step, value) for each seed that it stands for."""

    name: str
    seeds: tuple[tuple[tuple[int, float], ...], ...]


def effects_figure(effects: Sequence[MainEffect], metric: str, label: str) -> str:
    """A panel for each axis: the mean at each label, with its interval."""
    with _figure(len(effects), 2.6, f"main effects on {label}", 4, alike=True) as (panels, done):
        for panel, effect in zip(panels, effects, strict=True):
            _levels(panel, effect.levels, 0)
            panel.set_title(_short(effect.axis), fontsize=10)
            _labels(panel, [level.label for level in effect.levels])
        panels[0].set_ylabel(metric)
    return done[0]


def interactions_figure(found: Sequence[Interaction], metric: str, label: str) -> str:
    """A panel for each pair of axes: lines that are not parallel interact."""
    with _figure(len(found), 3.1, f"interactions on {label}", 3, alike=True) as (panels, done):
        for panel, one in zip(panels, found, strict=True):
            for index, (label, levels) in enumerate(one.levels.items()):
                _levels(panel, levels, index, label, len(one.levels))
            panel.set_title(f"{_short(one.axis)} by {_short(one.lines)}", fontsize=10)
            _labels(panel, [level.label for level in next(iter(one.levels.values()))])
        panels[0].set_ylabel(metric)
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(low, high + _HEADROOM * (high - low))
        for panel, one in zip(panels, found, strict=True):
            _legend(panel, title=_short(one.lines), columns=min(3, len(one.levels)), place="upper left")
    return done[0]


def steps_figure(lines: Sequence[Line], metric: str, label: str) -> str:
    """A metric against steps: the mean over the seeds of each line, and thin, each seed."""
    with _figure(1, 3.6, f"{label} against steps", 1) as (panels, done):
        (panel,) = panels
        for index, line in enumerate(lines):
            style = _style(index)
            for seed in line.seeds if len(line.seeds) > 1 else ():
                panel.plot(*zip(*seed, strict=True), color=style["color"], linewidth=0.7, alpha=0.45)
            points: dict[int, list[float]] = {}
            for step, value in itertools.chain(*line.seeds):
                points.setdefault(step, []).append(value)
            whole = [(step, sum(v) / len(v)) for step, v in sorted(points.items()) if len(v) == len(line.seeds)]
            if whole:
                marker = _MARKERS[index % len(_MARKERS)] if len(whole) <= _FEW else ""
                x, y = zip(*whole, strict=True)
                panel.plot(x, y, label=_short(line.name, 40), linewidth=1.6, marker=marker, markersize=4, **style)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_xlabel("step (generator updates)")
        panel.set_ylabel(metric)
        _legend(panel, columns=1 if len(lines) < 5 else 2)
    return done[0]


def curves_figure(curves: Sequence[Curve], title: str) -> str:
    """Losses of both players, and how often the discriminator is right; the first curve strong, the others thin."""
    with _figure(2, 2.5, f"losses and accuracy of the discriminator, {title}", 2, quick=True) as (panels, done):
        for panel, keys, label in (
            (panels[0], {"loss_d": "discriminator", "loss_g": "generator", "penalty": "penalty"}, "loss"),
            (panels[1], {"accuracy_real": "real", "accuracy_fake": "generated"}, "accuracy of D"),
        ):
            for index, (key, name) in enumerate(keys.items()):
                if key == "penalty" and not any(any(curve.values.get(key, ())) for curve in curves):
                    continue
                for place, curve in enumerate(curves):
                    if curve.steps:
                        strong = {"linewidth": 1.3, "label": name} if place == 0 else {"linewidth": 0.6, "alpha": 0.4}
                        marker = "." if len(curve.steps) <= _FEW else ""
                        panel.plot(curve.steps, curve.values[key], marker=marker, **_style(index), **strong)
            panel.set_ylabel(label)
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.set_xlabel("step")
            _legend(panel)
        panels[1].set_ylim(-0.03, 1.03)
        panels[1].axhline(0.5, color=_FAINT, linewidth=0.8, zorder=0)
    return done[0]


def classes_figure(history: dict[int, dict[str, dict[str, float]]], title: str) -> str:
    """How often the discriminator is right in each class against steps: on real images, and on generated ones."""
    with _figure(2, 2.5, f"accuracy of the discriminator by class, {title}", 2, quick=True) as (panels, done):
        for panel, key, label in zip(panels, ("accuracy_real", "accuracy_fake"), ("real", "generated"), strict=True):
            names = dict.fromkeys(name for rows in history.values() for name in rows)
            for name in names if len(names) <= _MOST_CLASSES else ():
                points = [(step, rows[name][key]) for step, rows in history.items() if key in rows.get(name, {})]
                if points:
                    panel.plot(*zip(*points, strict=True), color=_COLORS[0], linewidth=0.7, alpha=0.45)
            values = {step: [row[key] for row in rows.values() if key in row] for step, rows in history.items()}
            means = [(step, sum(found) / len(found)) for step, found in values.items() if found]
            if means:
                if len(names) > _MOST_CLASSES:
                    ranges = [(step, min(found), max(found)) for step, found in values.items() if found]
                    panel.fill_between(*zip(*ranges, strict=True), color=_COLORS[0], alpha=0.2, label="all classes")
                panel.plot(*zip(*means, strict=True), color=_COLORS[1], linewidth=1.6, label="mean of the classes")
            panel.set_ylabel(f"accuracy of D, {label}")
            panel.set_ylim(-0.03, 1.03)
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.set_xlabel("step")
            _legend(panel)
    return done[0]


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLORS[index % len(_COLORS)], "linestyle": _DASHES[index % len(_DASHES)]}


def _levels(panel: Any, levels: Sequence[Level], index: int, label: str = "", count: int = 1) -> None:
    shift = 0.08 * (index - (count - 1) / 2)
    x = [place + shift for place in range(len(levels))]
    halves = [level.half or 0 for level in levels]
    style = _style(index)
    panel.errorbar(
        x,
        [level.mean for level in levels],
        yerr=halves if any(halves) else None,
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=5,
        linewidth=1.4,
        elinewidth=1,
        capsize=3,
        label=_short(label),
        **style,
    )
    panel.margins(x=0.15)


def _labels(panel: Any, labels: Sequence[str]) -> None:
    panel.set_xticks(range(len(labels)), [_short(label, 14 if len(labels) > 2 else 20) for label in labels])
    if sum(len(_short(label, 14)) for label in labels) > 28:
        panel.tick_params(axis="x", rotation=25)
        for text in panel.get_xticklabels():
            text.set_horizontalalignment("right")


def _legend(panel: Any, title: str | None = None, columns: int = 1, place: str = "best") -> None:
    if not panel.get_legend_handles_labels()[0]:
        return
    legend = panel.legend(
        loc=place, frameon=False, fontsize=8, title=title, title_fontsize=8, ncols=columns, labelcolor=_INK
    )
    legend.get_title().set_color(_INK)


@contextmanager
def _figure(
    count: int, height: float, description: str, columns: int, quick: bool = False, alike: bool = False
) -> Iterator[tuple[list[Any], list[str]]]:
    """Panels to draw in, and a list that holds the SVG when the block has ended. `quick`: margins are not measured;
    `alike`: all panels have the same vertical axis."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": _identity(description),
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), _INK),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _FAINT),
    }
    done: list[str] = []
    columns = min(columns, count)
    rows = -(-count // columns)
    width = _WIDTH if count > 1 or height > 3.5 else _WIDTH / 2
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # characters that the font lacks: the browser's fonts have them
        figure = Figure(figsize=(width, height * rows), layout=None if quick else "constrained")
        figure.subplots_adjust(left=0.075, right=0.99, bottom=0.2, top=0.96, wspace=0.18)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=alike)
        panels = list(grid.flat)
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(alpha=0.5, linewidth=0.6)
            panel.set_axisbelow(True)
        for panel in panels[count:]:
            panel.remove()
        yield panels[:count], done
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    done.append(_inline(buffer.getvalue(), description))


def _inline(svg: str, description: str) -> str:
    """The svg element alone, with ids of its own, the page's colours, and a name for screen readers."""
    prefix = f"f{_identity(description)}-"
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
    svg = svg.replace(_INK, "currentColor").replace(_FAINT, "var(--line)")
    # As wide as its text is at its natural size, or narrower.
    svg = re.sub(r'(<svg[^>]*?) width="([0-9.]+)pt"', r'\1 style="max-width: \2pt"', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(_short(description, 400), quote=True)}"', 1)


def _identity(description: str) -> str:
    return f"{zlib.crc32(description.encode(errors='backslashreplace')):08x}"


def _short(text: str, most: int = 24) -> str:
    text = text.encode(errors="backslashreplace").decode()  # names of folders may hold what is no UTF-8
    return text if len(text) <= most else text[: most - 1] + "…"
