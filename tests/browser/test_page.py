"""report.html in a real browser: sorting, filtering, switching, training time, keyboard, paper, phone, dark, axe."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Open
from made_sweep import made_sweep
from PIL import Image

from gantool.manifest import load_trials
from gantool.progress import Silent
from gantool.report.page import write_page
from gantool.results import collect

AXES = {"augment": ["none", "basic", "advanced"], "residual": ["no", "yes"]}
ODD = ["<img src=x onerror=alert(1)>\"'", "\U0001f600 tab\tand {{ 7*7 }} </script>", "long" * 50]
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep of 18 runs, some of them not done."""
    folder = tmp_path_factory.mktemp("report")
    plan = made_sweep(folder, AXES, 3, states={4: "failed", 11: "stopped"}, classes=["cat", "dog"], size=272)
    return written(plan.folder)


def written(folder: Path) -> Path:
    plan = load_trials(folder)
    return write_page(plan, collect(plan.trials, Silent()), Silent(), 2.5)


def column(page: Any, number: int) -> list[str]:
    """The texts of a column of the table, of the rows that are shown."""
    rows = page.locator("#table tbody tr:visible")
    return [rows.nth(i).locator("th, td").nth(number).inner_text().strip() for i in range(rows.count())]


def means(texts: list[str]) -> list[float]:
    return [float(re.sub("[★ +]", "", text).split("±")[0].split("[")[0].split("(")[0]) for text in texts]


def test_columns_sort_both_ways_and_say_so(open_page: Open, report: Path) -> None:
    page = open_page(report)
    fid = means(column(page, 2))
    assert len(fid) == 6 and fid == sorted(fid)
    header = page.locator("#table thead th").nth(2)
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending" and means(column(page, 2)) == fid
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending" and means(column(page, 2)) == fid[::-1]
    page.locator("#table thead th").nth(0).locator("button").click()
    assert column(page, 0) == ["advanced"] * 2 + ["basic"] * 2 + ["none"] * 2
    assert header.get_attribute("aria-sort") is None
    page.locator("#table thead th").nth(4).locator("button").click()  # the baseline has no difference: it comes last
    assert means(column(page, 4)[:-1]) == sorted(means(column(page, 4)[:-1])) and column(page, 4)[-1] == "-"


def test_filters_narrow_rows_and_cards(open_page: Open, report: Path) -> None:
    page = open_page(report)
    page.locator("select[data-axis='0']").select_option(label="basic")
    assert column(page, 0) == ["basic"] * 2 and page.locator("article:visible").count() == 2
    assert page.locator("#shown").inner_text() == "2 of 6 variants"
    page.locator("#search").fill("YES")
    assert column(page, 1) == ["yes"] and page.locator("article:visible").count() == 1
    page.locator("#search").fill("nothing like it")
    assert column(page, 0) == [] and page.locator("#shown").inner_text() == "0 of 6 variants"
    page.locator("#search").fill("")
    page.locator("select[data-axis='0']").select_option("")
    assert len(column(page, 0)) == 6


def test_the_metric_switches_figures_differences_and_order(open_page: Open, report: Path) -> None:
    page = open_page(report)
    assert page.locator("[data-figures]:visible h3").all_inner_texts() == ["fid (shapes 16x16)"]
    assert "difference of fid" in page.locator("#table thead").inner_text()
    page.locator("#metric").select_option("is")
    assert page.locator("[data-figures]:visible h3").all_inner_texts() == ["is (shapes 16x16)"]
    header = page.locator("#table thead").inner_text()
    assert "difference of is" in header and "difference of fid" not in header and "real is" in header
    scores = means(column(page, 3))
    assert scores == sorted(scores, reverse=True)  # more is better
    assert means(column(page, 4)[:-1])[0] > 0 and page.locator("article .score:visible").first.inner_text()[:2] == "is"


def test_training_time_shows_the_same_share_of_all_grids(open_page: Open, report: Path) -> None:
    page = open_page(report)

    def shown() -> list[str]:
        return page.locator(".frames li:visible").evaluate_all("items => items.map((item) => item.dataset.step)")

    most = int(page.locator("#time").get_attribute("max"))
    assert most == 5 and shown() == ["400"] * 6
    page.locator("#time").fill("0")
    assert shown() == ["0"] * 6 and page.locator("#time-shown").inner_text() == "step 0"
    page.locator("#time").press("ArrowRight")
    assert shown() == ["80"] * 6 and page.locator("#time").get_attribute("aria-valuetext") == "step 80"


def test_all_of_it_works_by_keyboard(open_page: Open, report: Path) -> None:
    page = open_page(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "metric"
    page.keyboard.press("ArrowDown")
    assert page.locator("[data-figures]:visible h3").all_inner_texts() == ["is (shapes 16x16)"]
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('th') && document.activeElement.tagName") == "BUTTON":
            break
    page.keyboard.press("Enter")
    assert page.locator("#table th[aria-sort]").inner_text().startswith("augment")
    page.locator("article details summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("article details[open]").count() == 1
    assert page.locator("article details[open] svg").is_visible()


@pytest.mark.parametrize(
    "settings", [{}, {"color_scheme": "dark"}, {"viewport": PHONE}], ids=["light", "dark", "phone"]
)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
    open_page: Open, report: Path, settings: dict[str, Any]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(report, **settings)
    page.locator("details").evaluate_all("items => items.forEach((item) => (item.open = true))")
    found = axe.run(page).response
    assert len(found["passes"]) > 20
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_dark_is_dark_and_light_is_light(open_page: Open, report: Path) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        page = open_page(report, color_scheme=scheme)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("L")
        shades[scheme] = picture.getpixel((5, 5))
        title = page.locator("figure svg text").first
        ink = title.evaluate("item => getComputedStyle(item).fill")
        shades[f"{scheme} ink"] = sum(map(int, re.findall(r"\d+", ink)[:3])) / 3
    assert shades["light"] > 240 and shades["dark"] < 40
    assert shades["light ink"] < 80 and shades["dark ink"] > 180  # text of the figures too


def test_without_javascript_all_is_there(open_page: Open, report: Path) -> None:
    page = open_page(report, java_script_enabled=False)
    assert page.locator("#controls").is_hidden() and page.locator(".flick").is_hidden()
    assert page.locator(".frames").first.locator("li:visible").count() == 6
    assert page.locator("[data-figures]:visible").count() == 2
    assert page.locator("#table tbody tr:visible").count() == 6
    for metric in ("fid", "is"):
        assert page.locator(f"#table td span[data-metric={metric}]:visible").count() == 12


def test_on_paper_everything_is_open_and_no_controls_are_left(open_page: Open, report: Path) -> None:
    page = open_page(report)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0 and page.locator("#controls").is_hidden()
    assert page.locator("article svg:visible").count() == 6
    assert page.pdf()[:5] == b"%PDF-"


def test_names_of_any_kind_do_no_harm(open_page: Open, tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, {"augment": ODD, ODD[0]: ["x", "y"]}, 1, classes=ODD[:2], title=ODD[0])
    page = open_page(written(plan.folder), viewport=PHONE)
    page.locator("details").evaluate_all("items => items.forEach((item) => (item.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("img[onerror]").count() == 0
    for label in ODD:
        page.locator("select[data-axis='0']").select_option(str(ODD.index(label)))
        assert len(column(page, 0)) == 2
    page.locator("#search").fill("7*7 </script>")
    page.locator("select[data-axis='0']").select_option("")
    assert len(column(page, 0)) == 2


def test_a_sweep_without_scores_has_a_page(open_page: Open, tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, AXES, 1, states=dict.fromkeys(range(6), "stopped"))
    page = open_page(written(plan.folder))
    assert "No run is done and scored yet." in page.locator("#scores").inner_text()
    assert page.locator("#effects svg:visible").count() == 2
    assert page.locator(".frames li:visible").count() == 6
