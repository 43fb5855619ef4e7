"""A real browser, Debian's chromium, without a window; where there is none the tests skip and say so."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

Open = Callable[..., Any]
WHY = "is not there: install it (Debian: apt install chromium) or name it in $GANTOOL_CHROMIUM"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running browser."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not there: pip install -e '.[browser]'")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("GANTOOL_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"chromium {WHY}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Open]:
    """A function that opens a file in a context of its own. No console message, error or request is left unnoticed."""
    contexts: list[Any] = []
    noticed: list[str] = []

    def opened(path: Path, **settings: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: noticed.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: noticed.append(f"error: {error}"))
        page.on("request", lambda request: noticed.append(f"request: {request.url[:200]}"))
        page.on("dialog", lambda dialog: noticed.append(f"dialog: {dialog.message}"))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [line for line in noticed if not line.startswith(("request: file:", "request: data:"))] == []
