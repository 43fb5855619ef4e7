"""What a person sees on stderr: progress bars on a terminal, plain lines elsewhere; and tables. Knows rich."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from gantool.progress import Progress

PLAIN_SECONDS = 10.0  # between two plain lines of the same task


class TerminalProgress:
    """Progress on stderr. Use as a context manager, so that the bars are closed before anything else is printed."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._printed: dict[str, float] = {}

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def say(self, text: str) -> None:
        """One line of words."""
        if not self.quiet:
            self.console.print(Text(text))

    def step(self, what: str, done: int, total: int | None, detail: str = "") -> None:
        """Move the bar of `what`, or print a plain line now and then where there is no terminal."""
        if self.quiet:
            return
        if self.console.is_terminal:
            self._move_bar(what, done, total, detail)
        else:
            self._plain_line(what, done, total, detail)

    def _move_bar(self, what: str, done: int, total: int | None, detail: str) -> None:
        if self._bars is None:
            columns = (TextColumn("{task.description:>10}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
            self._bars = Bars(*columns, TextColumn("{task.fields[detail]}"), console=self.console, transient=True)
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, completed=done, detail=detail)
        self._bars.update(self._tasks[what], completed=done, total=total, detail=detail)
        if done == total:
            self._bars.remove_task(self._tasks.pop(what))
            if not self._tasks:
                self._close()

    def _plain_line(self, what: str, done: int, total: int | None, detail: str) -> None:
        now = time.monotonic()
        first = what not in self._started
        if first:
            self._started[what] = self._printed[what] = now
        ended = done == total
        if (ended and now - self._started[what] > 2) or now - self._printed[what] > PLAIN_SECONDS:
            self._printed[what] = now
            share = f"{done}/{total}" if total else str(done)
            self.console.print(Text(f"{what} {share}  {detail}".rstrip()))
        if ended:
            self._started.pop(what, None)

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks = {}


class LoggedProgress:
    """Passes everything on, and appends the words to a file with the time."""

    def __init__(self, inner: Progress, path: Path) -> None:
        self.inner, self.path = inner, path

    def say(self, text: str) -> None:
        """One line of words, also to the file."""
        self.inner.say(text)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def step(self, what: str, done: int, total: int | None, detail: str = "") -> None:
        """Progress goes to the terminal only."""
        self.inner.step(what, done, total, detail)


def clear_screen() -> None:
    """Begin at the top again, where stdout is a terminal."""
    Console().clear()


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """A table on stdout, as wide as the terminal (never cut where stdout is no terminal)."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 400)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", collapse_padding=True)
    for index, header in enumerate(headers):
        numeric = bool(rows) and all(row[index].lstrip("-")[:1].isdigit() or row[index] in ("", "-") for row in rows)
        table.add_column(Text(header), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if headers:
        console.print(table)
    if caption:
        console.print(Text(caption))
