"""Thumbnails of grids as data URIs, so that the page is one file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from PIL import Image, features

_MOST_PIXELS = 50_000_000  # of a picture that is opened


class Thumbnail(NamedTuple):
    """A picture in the page."""

    uri: Markup
    width: int
    height: int


def thumbnail(path: Path, side: int) -> Thumbnail | None:
    """The picture at `path`, made smaller if a side is longer than `side` pixels; None when it cannot be read."""
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                return None
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind = "webp" if features.check("webp") else "jpeg"
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=80)
    text = base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(Markup(f"data:image/{kind};base64,{text}"), *picture.size)
