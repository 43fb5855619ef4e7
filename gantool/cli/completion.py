"""What the shell offers for values when TAB is pressed: keys of configs, names, configs and run directories.

Each press starts a process, so nothing is imported before it is asked for, and torch never.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

_VARIABLE = "_GANTOOL_COMPLETE"  # set by the shell's script to the name of the shell
_MOST = 500
Completion = Callable[[str], list[str]]


def among(*names: str) -> Completion:
    """Completion of an option that takes one of these."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def metrics(incomplete: str) -> list[str]:
    """Metrics, separated by commas."""
    from gantool.config.evaluation import MetricName

    before, comma, last = incomplete.rpartition(",")
    chosen = before.split(",")
    return [before + comma + name for name in get_args(MetricName) if name.startswith(last) and name not in chosen]


def protocols(incomplete: str) -> list[str]:
    """Protocols of the extractor `inception`."""
    from gantool.config.evaluation import ProtocolName

    return among(*get_args(ProtocolName))(incomplete)


def datasets(incomplete: str) -> list[str]:
    """Names of published datasets."""
    from gantool.config.schema import KNOWN_DATASETS

    return among(*KNOWN_DATASETS)(incomplete)


def configs(incomplete: str) -> list[str]:
    """Configs, also those in folders that fit."""
    return [path for path in _near(incomplete) if path.endswith((".yaml", ".yml")) and Path(path).is_file()]


def runs(incomplete: str) -> list[str]:
    """Run directories, also those in folders that fit."""
    return [path for path in _near(incomplete) if Path(path, "config.yaml").is_file()]


def configs_and_runs(incomplete: str) -> list[str]:
    """What can be trained."""
    return configs(incomplete) + runs(incomplete)


def sweeps_and_runs(incomplete: str) -> list[str]:
    """What has a status: folders of sweeps and run directories."""
    return [path for path in _near(incomplete) if Path(path, "sweep.json").is_file()] + runs(incomplete)


def _near(incomplete: str) -> list[str]:
    start = glob.escape(incomplete)
    found = glob.glob(start + "*") + glob.glob(start + "*/*")  # noqa: PTH207 (as it was typed)
    return sorted(found)[:_MOST]


def assignments(incomplete: str) -> list[str]:
    """`KEY=VALUE` of a run config, a level of keys at a time; the values are those that a key can have, or its default.

    Where there is one way to go on it is gone on with, since the shell ends a word with a space then.
    """
    values = _values()
    key, equals, _ = incomplete.partition("=")
    if equals:
        found = [f"{key}={value}" for value in values.get(key, [])]
        return [text for text in found if text.startswith(incomplete)]
    while True:
        matching = [name for name in values if name.startswith(incomplete)]
        if len(matching) == 1:
            return [f"{matching[0]}={value}" for value in values[matching[0]] or [""]]
        ends = [(name, name.find(".", len(incomplete))) for name in matching]
        steps = list(dict.fromkeys(f"{name}=" if dot < 0 else name[: dot + 1] for name, dot in ends))
        if len(steps) != 1 or not steps[0].endswith("."):
            return steps
        incomplete = steps[0]


def _values() -> dict[str, list[str]]:
    """All keys of run configs, of all kinds, with the values to offer."""
    from gantool.config.schema import RunConfig

    found: dict[str, list[str]] = {}
    for key, value in _fields(RunConfig, ""):
        offered = found.setdefault(key, [])
        offered += [value] if value is not None and value not in offered else []
    return found


def _fields(model: Any, prefix: str) -> Iterator[tuple[str, str | None]]:
    from pydantic import BaseModel

    for name, field in model.model_fields.items():
        inner = False
        for leaf in _leaves(field.annotation):
            if isinstance(leaf, type) and issubclass(leaf, BaseModel):
                inner = True
                yield from _fields(leaf, f"{prefix}{name}.")
            elif get_origin(leaf) is Literal:
                yield from ((prefix + name, str(value)) for value in get_args(leaf))
            elif leaf is bool:
                yield from ((prefix + name, value) for value in ("true", "false"))
        shown = isinstance(field.default, int | float | str) and not isinstance(field.default, bool)
        if not inner or shown:
            yield prefix + name, str(field.default) if shown else None


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types and literals that a type is made of."""
    if get_origin(annotation) is Literal or not get_args(annotation):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _leaves(part)


def answered_bash() -> bool:
    """Whether bash asked for the value in `--set KEY=VALUE`, and it was printed. To bash that is four words, of which
    the last is completed, so the rest of the program would not know the key."""
    number = os.environ.get("COMP_CWORD", "")
    if os.environ.get(_VARIABLE) != "complete_bash" or not number.isdigit():
        return False
    words = os.environ.get("COMP_WORDS", "").split("\n")
    told = words[: int(number) + 1] if words[int(number) :] != ["="] else [*words, ""]
    if len(told) < 4 or told[-4] not in ("--set", "-s") or told[-2] != "=":
        return False
    key = told[-3]
    print("\n".join(text.removeprefix(f"{key}=") for text in assignments(f"{key}={told[-1]}")))
    return True
