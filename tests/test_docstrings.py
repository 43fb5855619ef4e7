"""A documentation tool renders every docstring as it was meant. (That there is one, ruff's rules D1 see to.)"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pdoc
import pytest

PACKAGE = Path(__file__).parent.parent / "gantool"
MODULES = [
    (path.parent if path.name == "__init__.py" else path.with_suffix("")).relative_to(PACKAGE.parent)
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__main__.py"
]
MEANT = {"p", "code", "a", "pre", "ul", "ol", "li", "div", "span"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    with warnings.catch_warnings():  # names in the annotations of a dataclass' __init__ are beyond it
        warnings.filterwarnings("ignore", "Error parsing type annotation", UserWarning)
        warnings.filterwarnings("ignore", ".* has already been added", UserWarning)  # some packages list theirs
        pdoc.pdoc(*(".".join(module.parts) for module in MODULES), output_directory=folder)
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.html")}


def test_every_module_has_a_page(pages: dict[str, str]) -> None:
    assert {f"{module}.html" for module in MODULES} <= set(pages)
    assert 'class="docstring"' in pages["gantool/train.html"] and "InterruptedRun" in pages["gantool/train.html"]


def test_nothing_in_a_docstring_is_taken_for_markup(pages: dict[str, str]) -> None:
    """`<name>` outside of backticks would vanish, `*` make italics, a `#` a heading."""
    found = {
        (name, tag)
        for name, page in pages.items()
        for text in re.findall(r'<div class="docstring">(.*?)</div>', page, re.DOTALL)
        for tag in re.findall(r"<(\w+)", text)
    }
    assert len(found) > 100
    assert {pair for pair in found if pair[1] not in MEANT} == set()
