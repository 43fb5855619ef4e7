"""What a person sees on stderr: progress bars on a terminal, plain lines elsewhere; and tables. Knows rich."""

from __future__ import annotations

import io
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console, RenderableType
from rich.progress import Progress as Bars
from rich.progress import ProgressColumn, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from gantool.errors import UsageError
from gantool.pictures import columns_of, half_blocks, kind_of, sequence
from gantool.progress import Detail, Part, Progress, clock

PLAIN_SECONDS = 10.0  # between two plain lines of the same task
_BAR, _SHORT_BAR = 24, 4  # columns of a bar: most, and least where more than the bar is told
_MAX_FOLDED = 300  # rows of a table whose cells are folded to the width of the terminal


class _Stderr(Console):
    """For words beside the results, which must not be lost with whoever read the words."""

    def on_broken_pipe(self) -> None:
        """Say no more; rich's own would close stdout too, and leave."""
        self.quiet = True


class _Stdout(Console):
    """For results."""

    def on_broken_pipe(self) -> None:
        """Whoever reads them has enough; rich's own would end the program as failed."""
        raise BrokenPipeError


class TerminalProgress:
    """Progress on stderr. Use as a context manager, so that the bars are closed before anything else is printed."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = _Stderr(stderr=True, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}  # when a plain task started, and with how much done
        self._printed: dict[str, float] = {}

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def say(self, text: str) -> None:
        """One line of words."""
        if not self.quiet:
            self.console.print(Text(text))

    def step(self, what: str, done: int, total: int | None, detail: Detail = "", left: float | None = None) -> None:
        """Move the bar of `what`, or print a plain line now and then where there is no terminal."""
        if self.quiet:
            return
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._move_bar(what, done, total, detail, left)
        else:
            self._plain_line(what, done, total, detail, left)

    def _move_bar(self, what: str, done: int, total: int | None, detail: Detail, left: float | None) -> None:
        if self._bars is None:
            self._bars = Bars(_Line(self.console), console=self.console, transient=True)
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, completed=done, detail=detail, left=left)
        self._bars.update(self._tasks[what], completed=done, total=total, detail=detail, left=left)
        if done == total:
            self._bars.remove_task(self._tasks.pop(what))
            if not self._tasks:
                self._close()

    def _plain_line(self, what: str, done: int, total: int | None, detail: Detail, left: float | None) -> None:
        now = time.monotonic()
        if what not in self._started:
            self._started[what], self._printed[what] = (now, done), now
        began, before = self._started[what]
        ended = done == total
        if (ended and now - began > 2) or now - self._printed[what] > PLAIN_SECONDS:
            self._printed[what] = now
            told = [f"{what} {_count(done, total)}"]
            if left is None and total and done > before:
                left = (total - done) * (now - began) / (done - before)
            if left is not None and not ended and not math.isnan(left):
                told.append(f"{clock(left)} left")
            self.console.print(Text("  ".join(told + [part.full for part in _parts(detail)])))
        if ended:
            self._started.pop(what, None)

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks = {}


class _Line(ProgressColumn):
    """A task as one line of the width of the terminal: name, bar, count, time left, and what else there is room for."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> RenderableType:
        seconds = task.time_remaining if task.fields["left"] is None else task.fields["left"]
        left = "-:--" if seconds is None or math.isnan(seconds) else clock(seconds)
        total = None if task.total is None else int(task.total)
        count = _count(int(task.completed), total)
        # A line as wide as the terminal would wrap in some.
        bar, rest = fitted(task.description, [count, left], _parts(task.fields["detail"]), self._console.width - 1)
        if not bar:
            return Text(rest, no_wrap=True)
        line = Table.grid(padding=(0, 1))
        progress = ProgressBar(total, task.completed, bar, pulse=total is None, animation_time=task.get_time())
        line.add_row(Text(task.description, no_wrap=True), progress, Text(rest, no_wrap=True))
        return line


def fitted(name: str, fixed: Sequence[str], parts: Sequence[Part], width: int) -> tuple[int, str]:
    """(columns of the bar, what stands after it) of a line that fits `width`; 0 where there is no room for a bar, and
    then the whole line. Parts are shortened before the last of them are left out."""
    shorts = [part.short for part in parts]
    choices = [[part.full for part in parts], *(shorts[:count] for count in range(len(shorts), -1, -1))]
    for chosen in choices:
        rest = (" " if chosen in choices[1:] else "  ").join([" ".join(fixed), *chosen])
        bar = min(_BAR, width - cell_len(name) - cell_len(rest) - 2)
        if bar >= _SHORT_BAR:
            return bar, rest
    rest = " ".join(fixed)
    room = width - cell_len(rest) - 1
    if room < 1:
        return 0, set_cell_size(rest, width).rstrip()
    return 0, f"{name if cell_len(name) <= room else set_cell_size(name, room - 1) + '…'} {rest}"


def _parts(detail: Detail) -> Sequence[Part]:
    if isinstance(detail, str):
        return [Part(detail, detail)] if detail else []
    return detail


def _count(done: int, total: int | None) -> str:
    return str(done) if total is None else f"{done}/{total}"


class LoggedProgress:
    """Passes everything on, and appends the words to a file with the time."""

    def __init__(self, inner: Progress, path: Path) -> None:
        self.inner, self.path = inner, path

    def say(self, text: str) -> None:
        """One line of words, also to the file."""
        self.inner.say(text)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def step(self, what: str, done: int, total: int | None, detail: Detail = "", left: float | None = None) -> None:
        """Progress goes to the terminal only."""
        self.inner.step(what, done, total, detail, left)


class _Notes(logging.Handler):
    """What `--verbose` shows: a line on stderr, with the seconds since the start; above the bars, if there are some."""

    def emit(self, record: logging.LogRecord) -> None:
        # Not through a console of its own: while there are bars, they stand in for sys.stderr.
        sys.stderr.write(f"{record.relativeCreated / 1000:8.2f} s  {record.getMessage()}\n")
        sys.stderr.flush()


def show_notes() -> None:
    """Show what the files of gantool log for `--verbose`; other packages' words stay where they are."""
    logger = logging.getLogger("gantool")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Notes())


def check_pictures() -> None:
    """UsageError where stdout is no terminal that can show a picture."""
    hint = "write a file instead: --grid ROWSxCOLS --out grid.png; of a run they are in its folder samples"
    if not sys.stdout.isatty():
        raise UsageError("--show: found that stdout is no terminal, expected one to draw a picture in", hint)
    console = Console()
    if kind_of(os.environ) is None and (console.no_color or console.color_system is None):
        text = "--show: found a terminal without colours (TERM=dumb or NO_COLOR is set), expected colours or pictures"
        raise UsageError(text, hint)


def show_picture(png: bytes) -> None:
    """Draw a PNG on stdout: as a picture where the terminal draws pictures, else with half blocks."""
    console, kind = Console(highlight=False), kind_of(os.environ)
    picture = Image.open(io.BytesIO(png))
    if kind is not None:
        console.file.write(sequence(kind, png, columns_of(picture.width, console.width)) + "\n")
        return
    for row in half_blocks(picture, console.width):
        line = Text(no_wrap=True)
        for above, below in row:
            line.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below) if below else None))
        console.print(line)


def clear_screen() -> None:
    """Begin at the top again, where stdout is a terminal."""
    Console().clear()


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """A table on stdout; on a terminal, cells are folded where a table of a few hundred lines is wider than that."""
    wide = sys.stdout.isatty()
    console = _Stdout(highlight=False, width=None if wide else 400, soft_wrap=not wide)
    columns = [[header, *(row[index] for row in rows)] for index, header in enumerate(headers)]
    widths = [max(map(cell_len, column)) for column in columns]
    numeric = [
        bool(rows) and all(cell.lstrip("-")[:1].isdigit() or cell in ("", "-") for cell in cells)
        for _, *cells in columns
    ]
    if wide and sum(widths) + len(widths) > console.width and len(rows) <= _MAX_FOLDED:
        console.print(_folded(headers, rows, numeric))
    else:  # much faster than rich, for thousands of rows
        console.print(Text(_line(headers, widths, numeric), style="bold"), soft_wrap=True)
        console.file.write("".join(_line(row, widths, numeric) + "\n" for row in rows))
    if caption:
        console.print(Text(caption), soft_wrap=True)  # lines that somebody copies stay whole


def _folded(headers: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", collapse_padding=True)
    for header, right in zip(headers, numeric, strict=True):
        table.add_column(Text(header), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    parts = []
    for cell, width, right in zip(cells, widths, numeric, strict=True):
        space = " " * (width - cell_len(cell))
        parts.append(space + cell if right else cell + space)
    return " ".join(parts).rstrip()
