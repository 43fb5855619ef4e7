"""Pictures in terminals: the escape sequences of kitty (also Ghostty) and iTerm2 (also WezTerm), and half blocks.

https://sw.kovidgoyal.net/kitty/graphics-protocol and https://iterm2.com/documentation-images.html
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Literal

from PIL import Image

Kind = Literal["kitty", "iterm"]
Colour = tuple[int, int, int]
_CHUNK = 4096  # characters of base64 in one sequence of kitty, at most
_CELL = 8  # pixels of a column, about
_LEAST = 40  # columns of a picture, where there are so many


def kind_of(environment: Mapping[str, str]) -> Kind | None:
    """How the terminal that set these variables draws pictures; None where it does not, or tmux or screen are between,
    which do not let them through."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or "STY" in environment or term.startswith(("tmux", "screen")):
        return None
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return None


def sequence(kind: Kind, png: bytes, columns: int) -> str:
    """The escape sequence that draws a PNG so many columns wide, its height in proportion."""
    data = base64.b64encode(png).decode()
    if kind == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(png)};width={columns};preserveAspectRatio=1:{data}\x07"
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    keys = [f"a=T,f=100,q=2,c={columns},", *[""] * (len(chunks) - 1)]  # q=2: no answer, which would look like typed
    more = [1] * (len(chunks) - 1) + [0]
    return "".join(f"\x1b_G{key}m={m};{chunk}\x1b\\" for key, m, chunk in zip(keys, more, chunks, strict=True))


def columns_of(pixels: int, width: int) -> int:
    """Columns for a picture of so many pixels in a terminal of `width` columns: small ones are enlarged."""
    return max(1, min(width, max(_LEAST, pixels // _CELL)))


def half_blocks(picture: Image.Image, width: int) -> list[list[tuple[Colour, Colour | None]]]:
    """A picture as rows of cells, each the colours of its upper and lower half (None: below the picture), at most
    `width` cells wide; as it is where it fits, else made smaller."""
    picture = picture.convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.BOX)
    data = picture.tobytes()
    pixels: list[Colour] = [(data[at], data[at + 1], data[at + 2]) for at in range(0, len(data), 3)]
    lines = [pixels[at : at + picture.width] for at in range(0, len(pixels), picture.width)]
    lines += [[]] * (len(lines) % 2)
    return [
        [(colour, below[x] if below else None) for x, colour in enumerate(above)]
        for above, below in zip(lines[::2], lines[1::2], strict=True)
    ]
