"""The pages of the documentation, and the commands in them."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
STARTERS = ("apptainer run", "apptainer exec", "docker run", "podman run", "python -m", "python3 -m")


def code_of(text: str) -> Iterator[tuple[str, str | None]]:
    """Each line of code (indented or fenced, continued lines joined) with the line below it, and all inline code."""
    text = re.sub(r"\\\n\s*", "", text)
    lines, fenced = [*text.splitlines(), ""], False
    for line, below in itertools.pairwise(lines):
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip().removeprefix("$ "), below.strip()
    for code in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
        yield " ".join(code.split()), None


def split(line: str) -> list[list[str]]:
    """The words of each command in a line of shell, without comments and what a wide gap sets apart."""
    lexer = shlex.shlex(re.split(r"\s{2,}(?=[^\s#-])", line)[0], posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    try:
        for word in lexer:
            found = [*found, []] if set(word) <= set(";|&<>") else [*found[:-1], [*found[-1], word]]
    except ValueError:  # a quote without its end: no shell
        return []
    return found


def shell_lines(text: str) -> Iterator[str]:
    """The lines of the blocks of code for a shell or without a language; where some begin with `$ `, these alone."""
    text = re.sub(r"^```(?:bash|sh|console)\n", "```\n", text, flags=re.MULTILINE)
    text = re.sub(r"^```\w+\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\\\n\s*", "", text)
    for block in re.findall(r"^```\n((?:.*\n)*?)^```|((?:^    .*\n|^\n(?=    ))+)", text, re.MULTILINE):
        lines = [line.strip() for part in block for line in part.splitlines() if line.strip()]
        typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        yield from typed or lines


def words_for_gantool(words: Sequence[str]) -> tuple[str, ...] | None:
    """The words after `gantool`, also where torchrun, an image or Python starts it; None for other commands."""
    programs = [i for i, word in enumerate(words) if Path(word).name == "gantool"]
    if words[:2] == ["apptainer", "run"] or words[:1] == ["./gantool.sif"]:
        programs += [i for i, word in enumerate(words) if Path(word).name == "gantool.sif"]
    if " ".join(words[:2]) not in STARTERS and words[:1] != ["torchrun"]:
        programs = [i for i in programs if i == 0]
    return tuple(words[max(programs) + 1 :]) if programs else None
