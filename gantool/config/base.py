"""What all parts of a config are made of: the strict model, durations, numbers that follow a schedule, kinds."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_DURATION = re.compile(r"^(\d+(?:\.\d+)?) *(step|epoch|kimg)s?$")


def parse_duration(text: int | str) -> tuple[Fraction, str]:
    """`5000`, `"5000 steps"`, `"20 epochs"` or `"800 kimg"` as (amount, unit); ValueError for anything else."""
    if isinstance(text, int) and not isinstance(text, bool):
        text = f"{text} steps"
    found = _DURATION.match(text.strip()) if isinstance(text, str) else None
    if not found or Fraction(found[1]) <= 0:
        raise ValueError(f"found {text!r}, expected a positive duration like 5000, '20 epochs' or '800 kimg'")
    unit = "kimg" if found[2] == "kimg" else found[2] + "s"
    if unit == "steps" and Fraction(found[1]).denominator != 1:
        raise ValueError(f"found {text!r}, expected a whole number of steps")
    return Fraction(found[1]), unit


def duration_in_steps(duration: int | str, images_per_step: int, num_images: int) -> int:
    """Generator updates in `duration`; a step shows the discriminator `images_per_step` of `num_images` real images."""
    amount, unit = parse_duration(duration)
    images = amount * {"steps": images_per_step, "epochs": num_images, "kimg": 1000}[unit]
    return max(1, math.ceil(images / images_per_step))


def refuse(text: str, hint: str) -> PydanticCustomError:
    """The error that a validator raises: what was found and expected, and the fix."""
    return PydanticCustomError("value_error", "{text}", {"text": text, "hint": hint})


def _check_duration(value: Any) -> Any:
    try:
        amount, unit = parse_duration(value)
    except ValueError as error:
        raise PydanticCustomError("duration", "{text}", {"text": str(error)}) from None
    if unit == "steps":
        return int(amount)
    digits = str(int(amount)) if amount.denominator == 1 else str(value).split(unit[0])[0].strip()
    return f"{digits} {unit}"


Duration = Annotated[int | str, BeforeValidator(_check_duration)]
"""Steps (generator updates), or a text with a unit: '20 epochs', '800 kimg' (thousands of real images)."""


class Model(BaseModel):
    """Base of all config models: frozen, no unknown keys, no silent type conversions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Positive = Annotated[int, Field(gt=0, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Widths = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]


class Ramp(Model):
    """A number that goes from `start` to `end` as a function of the step, and stays there."""

    start: Annotated[float, Field(ge=0)]
    """Value at step 0."""
    end: Annotated[float, Field(ge=0)]
    """Value at the end of the ramp and after it."""
    shape: Literal["linear", "cosine"] = "linear"
    """linear, or half a cosine (slow at both ends)."""
    over: Duration | None = None
    """Length of the ramp; null: the whole training."""


Scheduled = Annotated[
    Annotated[float, Field(ge=0), Tag("number")] | Annotated[Ramp, Tag("ramp")],
    Discriminator(lambda value: "ramp" if isinstance(value, (dict, Ramp)) else "number"),
]
"""A number, or a ramp such as {start: 2e-4, end: 0.0}."""


def value_at(scheduled: float | Ramp, step: int, length: int) -> float:
    """The value at `step` (0 is the first) of a number or of a ramp that is `length` steps long."""
    if not isinstance(scheduled, Ramp):
        return scheduled
    share = min(1.0, step / length)
    if scheduled.shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return scheduled.start + (scheduled.end - scheduled.start) * share


def highest_of(scheduled: float | Ramp) -> float:
    """The largest value that a number or ramp takes."""
    return max(scheduled.start, scheduled.end) if isinstance(scheduled, Ramp) else scheduled


def kind(default: str, form: Any) -> BeforeValidator:
    """`augment: basic` is short for `augment: {kind: basic}`; a mapping without `kind` means the default one. `form` is
    the type of the mapping, for the JSON schema."""

    def expand(value: Any) -> Any:
        if value is None:
            return {"kind": default}
        if isinstance(value, str):
            return {"kind": value}
        return {"kind": default, **value} if isinstance(value, dict) else value

    names = tuple(model.model_fields["kind"].default for model in get_args(form))
    short = Literal[names]  # type: ignore[valid-type]
    return BeforeValidator(expand, json_schema_input_type=form | short | None)
