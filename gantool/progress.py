"""How the verbs tell what they are doing, without knowing the terminal (which only `cli/` and `terminal.py` do)."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Where words and progress go. All of it is for people: it goes to stderr, never to stdout."""

    def say(self, text: str) -> None:
        """One line of words."""

    def step(self, what: str, done: int, total: int | None, detail: str = "") -> None:
        """`what` has come to `done` of `total` (None: unknown); the first call starts it, done == total ends it."""


class Silent:
    """Says nothing; for tests and for ranks other than 0."""

    def say(self, text: str) -> None:
        pass

    def step(self, what: str, done: int, total: int | None, detail: str = "") -> None:
        pass


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
