"""How the verbs tell what they are doing, without knowing the terminal (which only `cli/` and `terminal.py` do)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

_Item = TypeVar("_Item")


class Part(NamedTuple):
    """One thing to tell beside a bar: in full, and as it is written where there is little room."""

    full: str
    short: str


Detail = str | Sequence[Part]
"""What stands beside a bar; of several parts the last are left out first where the terminal is narrow."""


class Progress(Protocol):
    """Where words and progress go. All of it is for people: it goes to stderr, never to stdout."""

    def say(self, text: str) -> None:
        """One line of words."""

    def step(self, what: str, done: int, total: int | None, detail: Detail = "", left: float | None = None) -> None:
        """`what` has come to `done` of `total` (None: unknown); the first call starts it, done == total ends it. `left`
        are the seconds left where the caller knows better than the pace tells; NaN: nobody knows."""


class Silent:
    """Says nothing; for tests and for ranks other than 0."""

    def say(self, text: str) -> None:
        """Nothing."""

    def step(self, what: str, done: int, total: int | None, detail: Detail = "", left: float | None = None) -> None:
        """Nothing."""


def told(items: Sequence[_Item], what: str, progress: Progress) -> Iterator[_Item]:
    """The items, one after the other; `progress` hears that they begin, and of each when it is done."""
    if items:
        progress.step(what, 0, len(items))
    for number, item in enumerate(items, 1):
        yield item
        progress.step(what, number, len(items))


@contextlib.contextmanager
def waiting(what: str, progress: Progress) -> Iterator[None]:
    """A sign of life while the block waits for somebody who says nothing of how long it takes."""
    progress.step(what, 0, None)
    try:
        yield
    finally:
        progress.step(what, 1, 1)


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def clock(seconds: float) -> str:
    """`0:05`, `12:34`, `1:02:03`, `2d 03:04`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
