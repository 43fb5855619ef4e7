"""report.html without a browser: what stands on it, that nothing leaves it, and that it is made from files alone."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
import pytest
from conftest import Gantool
from made_sweep import fid_of, made_sweep
from PIL import Image

from gantool.config.grid import Report
from gantool.local import OUTPUT_FILE
from gantool.manifest import SweepPlan, load_trials
from gantool.metrics.scores import direction
from gantool.progress import Detail, Silent
from gantool.report.facts import read_run
from gantool.report.page import MOST_SHOWN, _best, _directions, render, write_page
from gantool.report.variants import median
from gantool.result_tables import flat, sweep_latex
from gantool.results import Row, collect, grouped
from gantool.sweep import merged, told_apart

ENDINGS = ("csv", "jsonl", "md", "tex")
AXES = {"augment": ["none", "basic"], "residual": ["no", "yes"]}
ODD = ["<b onclick=\"alert(1)\">'x' & y</b>", "\U0001f600 {{ 7*7 }} </script>", "$\\alpha$ " + "long" * 50]


class Page(html.parser.HTMLParser):
    """The elements of a page, the text of each table cell, and whether all elements are closed in order."""

    VOID = ("meta", "link", "img", "input", "br", "path", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


class Said(Silent):
    """Remembers what was said, and how far each task came."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[str, int, int | None]] = []

    def step(self, what: str, done: int, total: int | None, detail: Detail = "", left: float | None = None) -> None:
        self.steps.append((what, done, total))

    def say(self, text: str) -> None:
        self.lines.append(text)


def page_of(plan: SweepPlan, price: float | None = None) -> Page:
    return Page(render(plan, collect(plan.trials, Silent()), Silent(), price))


def test_the_page_says_what_the_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # commands are those of the working directory
    plan = made_sweep(tmp_path, AXES, 3, states={1: "failed", 5: "stopped", 11: "planned"}, classes=["cat", "dog"])
    page = page_of(load_trials(plan.folder), price=2.0)
    for words in (
        "12 runs : 9 done, 1 failed, 1 stopped, 1 planned",
        "Not done: 3 of 12 runs",
        "the loss became NaN",
        'ValueError: <broken> & "quoted"',
        "stopped by SIGTERM",
        "200 of 400",
        "fid 35.38 ± 0.18 (2 of 3)",
        "shapes 16x16",
        "gantool sweep sweep.yaml --local --set steps=400",
        "0123456789ab",
        "NVIDIA H100",
        "cat",
        "0.9000",
    ):
        assert words.replace(" :", ":") in page.text.replace(" :", ":"), words
    # 9 whole trainings of 80 s and two halves of 40 s, on two devices; three scores of 30 s of each of the 11
    train, score = (9 * 80 + 2 * 40) * 2, 11 * 3 * 30 * 2
    assert f"{train / 60:.1f} min" in page.text and f"{score / 60:.1f} min" in page.text
    assert f" {round((train + score) / 3600 * 2, 2)} " in page.text  # at 2 for each hour
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    way = f"cd {plan.folder.resolve().parent.parent} && gantool sweep sweep.yaml --local --set steps=400"
    assert way in page_of(replace(load_trials(plan.folder), folder=elsewhere)).text
    first = load_trials(plan.folder).trials[0]
    (first.run.path / "starts.jsonl").write_text('{"step": 0, "shared_by": 4}\n{"step": 200, "shared_by": 1}\n')
    hours = read_run(first, collect([first], Silent())).train_hours
    assert hours is not None and hours == pytest.approx(80 * 2 * (0.5 / 4 + 0.5) / 3600)
    (first.run.path / "starts.jsonl").write_text(
        '{"step": 0}\n{"step": 200, "shared_by": 4}\n{"step": 100, "shared_by": 2}\n'
    )
    again = read_run(first, collect([first], Silent())).train_hours  # the third start did anew what the second had done
    assert again == pytest.approx(80 * 2 * (0.25 + 0.75 / 2) / 3600)
    (first.run.path / "starts.jsonl").write_text('{"step": 0, "shared_by": 4}\n{"step": 200, "shared_by": 1}\n')
    on_cpu = json.loads((first.run.path / "run.json").read_text()) | {"device": "cpu"}  # its processes share it
    (first.run.path / "run.json").write_text(json.dumps(on_cpu))
    assert read_run(first, collect([first], Silent())).train_hours == pytest.approx(hours / 2)
    (first.run.path / "run.json").write_text(json.dumps(on_cpu | {"device": "NVIDIA H100"}))
    assert median([200.0, None, 100.0]) == 150 and median([]) is None
    for trial in plan.trials:  # as if four runs had shared each device
        (trial.run.path / "starts.jsonl").write_text('{"step": 0}\n{"step": 40, "shared_by": 4}\n')
    assert f" {round((train + score) / 4 / 3600 * 2, 2)} " in page_of(load_trials(plan.folder), price=2.0).text


def test_nothing_on_the_page_comes_from_elsewhere_and_all_elements_are_whole(tmp_path: Path) -> None:
    plans = [load_trials(made_sweep(tmp_path / title, AXES, title=title).folder) for title in ("one", "two")]
    page = page_of(merged(plans))
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name) or ""
            assert not re.match(r"[a-z]+://|//", value), (tag, value)
            assert name != "src" or not value or value.startswith("data:image/"), (tag, value)
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for target in re.findall(r"^#(.+)|url\(#(.+?)\)", attributes.get("href") or attributes.get("clip-path") or ""):
            assert (target[0] or target[1]) in ids


def test_links_lead_to_the_runs_from_the_folder_of_the_page(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path / "a #1 & 'b'?", AXES, 1)
    page = page_of(load_trials(plan.folder))
    targets = [a["href"] for tag, a in page.elements if tag == "a" and not str(a["href"]).startswith("#")]
    found = [plan.folder / unquote(str(target)) for target in targets if not str(target).startswith("results.")]
    assert len(found) > 8
    assert all(path.exists() for path in found) and sum(path.name == "curves.png" for path in found) == 4


def test_names_of_any_kind_stay_names(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, {"augment": ODD, ODD[0]: ["x", "y"]}, 1, classes=[ODD[0]], title=ODD[1])
    page = page_of(load_trials(plan.folder))
    assert not any(tag == "b" and "onclick" in attributes for tag, attributes in page.elements)
    assert "49" not in [word.strip() for word in page.words]
    for name in ODD:
        assert re.sub(r"\s+", " ", name) in page.text
    names = {str(a["data-name"]) for tag, a in page.elements if "data-name" in a}
    assert names == {f"augment {a}, {ODD[0]} {b}" for a in ODD for b in "xy"}
    labels = [json.loads(str(a["data-labels"])) for tag, a in page.elements if "data-labels" in a]
    assert sorted(labels) == [[a, b] for a in range(len(ODD)) for b in range(2)]


def test_frames_are_the_grids_of_one_seed_from_the_first_to_the_last(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, {"augment": ["none", "basic"]}, 2, num_grids=30, num_rows=1000, size=48)
    page = page_of(load_trials(plan.folder))
    lists: list[list[int]] = []
    for tag, attributes in page.elements:
        if tag == "ol":
            lists.append([])
        elif tag == "li" and "data-step" in attributes:
            lists[-1].append(int(attributes["data-step"] or ""))
    assert len(lists) == 2 and lists[0] == lists[1] and (lists[0][0], lists[0][-1]) == (0, 10_000)
    assert 5 <= len(lists[0]) <= 8 and lists[0] == sorted(lists[0])
    grids = [a for tag, a in page.elements if tag == "img" and "Grid at step 10000" in str(a["alt"])]
    for attributes, labels in zip(grids, ("basic", "none"), strict=True):
        (trial,) = [t for t in plan.trials if t.labels["augment"] == labels and t.seed == 0]
        shown = Image.open(io.BytesIO(base64.b64decode(str(attributes["src"]).partition(",")[2])))
        full = Image.open(trial.run.path / "samples/step-00010000.png")
        assert shown.size == full.size
        assert np.abs(np.asarray(shown.convert("RGB"), float) - np.asarray(full, float)).mean() < 12


def test_a_large_sweep_is_a_small_page(tmp_path: Path) -> None:
    axes = {"first": [f"a{i}" for i in range(10)], "second": [f"b{i}" for i in range(8)]}
    plan = made_sweep(tmp_path, axes, 1, num_rows=10, num_grids=3)
    text = render(plan, collect(plan.trials, Silent()), Silent())
    page = Page(text)
    assert sum(tag == "article" for tag, _ in page.elements) == MOST_SHOWN == 60
    assert "The first 60 of 80 variants" in page.text and len(text) < 20_000_000
    assert page.text.count("a9") >= 8  # all are in the table


def test_a_page_stays_below_its_bound_and_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {"first": [f"a{i}" for i in range(4)], "second": [f"b{i}" for i in range(3)]}
    plan = made_sweep(tmp_path, axes, 1, num_rows=100, num_grids=8, states=dict.fromkeys(range(6, 12), "failed"))
    scored = collect(plan.trials, Silent())

    def page_below(most: int) -> tuple[Page, int, int, int]:
        """The page, its bytes, its pictures, its rows of variants."""
        monkeypatch.setattr("gantool.report.page.MOST_BYTES", most)
        page = Page(text := render(plan, scored, Silent()))
        rows = sum("data-variant" in attributes for tag, attributes in page.elements if tag == "tr")
        return page, len(text.encode()), sum(tag == "img" for tag, _ in page.elements), rows

    page, size, pictures, all_rows = page_below(19_500_000)
    assert pictures == 12 * 8 and all_rows == 3 * 12 and "would be larger" not in page.text

    page, small, pictures, rows = page_below(size * 9 // 10)  # fewer grids of each variant, and nothing else
    assert small <= size * 9 // 10 and rows == all_rows and "would be larger" not in page.text
    assert 12 < pictures < 12 * 8
    steps = [int(str(a["data-step"])) for tag, a in page.elements if tag == "li" and "data-step" in a]
    assert 0 in steps and sum(step in (500, 1000) for step in steps) >= 12  # still to the last, and from the first

    page, small, pictures, rows = page_below(size // 4)  # what takes most is cut: curves and figures, no scores
    assert size // 8 < small <= size // 4 and rows == all_rows and "Here:" not in page.text
    assert 0 < sum(tag == "article" for tag, _ in page.elements) < 12

    most = 130_000
    while rows == all_rows:  # then the first rows remain, and no pictures
        page, small, _, rows = page_below(most := most * 98 // 100)
    assert small <= most and rows >= 3
    assert page.text.count(f"Here: {rows // 3} of 12 variants, from the first; with all of them the page would be") == 3
    assert "No grid yet." not in page.text
    assert [title for title in ("fid", "is") if f"{title} (shapes 16x16)" in page.text] == ["fid"]
    assert "Without figures here: 1 more of metrics and protocols" in page.text
    ids = {a["id"] for _, a in page.elements if a.get("id")}
    assert all(str(a["href"])[1:] in ids for tag, a in page.elements if tag == "a" and str(a["href"])[0] == "#")

    words = Said()
    monkeypatch.setattr("gantool.report.page.MOST_BYTES", 10_000)
    text = render(plan, scored, words)
    assert "Here: 1 of 6 runs that are not done, from the first" in text
    assert words.lines == ["report.html is larger than 20 MB (0 MB), and cannot be made smaller"]


def test_texts_of_megabytes_are_cut_on_the_page(tmp_path: Path) -> None:
    long = ["é" * 3_000_000, "b" * 3_000_000]
    plan = made_sweep(
        tmp_path, {"a": long, "c" * 3_000_000: ["x", "y"]}, 1, states={0: "failed"}, classes=["k" * 10**6]
    )
    output = "\n".join(f"line {number} " + "z" * 3000 for number in range(5))
    (plan.trials[0].run.path / OUTPUT_FILE).write_text(output)
    status = plan.trials[0].run.path / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"step": ["x" * 2_000_000]}))
    text = render(plan, collect(plan.trials, Silent()), Silent())
    assert len(text.encode()) < 1_000_000
    page = Page(text)
    assert "b" * 3999 + "…" in page.text and "b" * 4000 not in text
    assert all(f"line {number} zzz" in page.text for number in range(5))
    rows = [json.loads(str(a["data-labels"])) for tag, a in page.elements if "data-labels" in a]
    assert sorted(rows) == [[0, 0], [0, 1], [1, 0], [1, 1]]
    axes = [str(a["data-axis"]) for tag, a in page.elements if tag == "select" and a.get("data-axis")]
    options = [str(a["value"]) for tag, a in page.elements if tag == "option"]
    assert axes == ["0", "1"] and options.count("0") == options.count("1") == 2


@pytest.mark.parametrize("what", ["labels", "warnings", "notes", "classes"])
def test_many_long_texts_are_cut_before_anything_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    long = [f"{number} " + "b" * 3000 for number in range(60)]
    axes = {"a": long[:3], "b": long[3:6]} if what == "labels" else AXES
    plan = made_sweep(tmp_path, axes, 1, num_grids=1, classes=long if what == "classes" else ())
    rows = collect(plan.trials, Silent())
    if what == "warnings":
        rows = [replace(row, warnings=tuple(long)) for row in rows]
    if what == "notes":
        plan = replace(plan, notes=tuple(long))
    whole = len(render(plan, rows, Silent()))
    monkeypatch.setattr("gantool.report.page.MOST_BYTES", whole * 7 // 10)
    words = Said()
    text = render(plan, rows, words)
    assert len(text.encode()) <= whole * 7 // 10 and words.lines == [] and "Here:" not in text
    assert "b" * 60 in text and "b" * 3000 not in text
    scores = [a for tag, a in Page(text).elements if tag == "td" and a.get("data-value")]
    assert len(scores) >= 2 * len(plan.trials)


def test_what_is_no_text_does_no_harm(tmp_path: Path) -> None:
    """A folder whose name is not UTF-8, a class of such a name, and half of a UTF-16 pair in a label."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this filesystem takes only names in UTF-8")
    plan = load_trials(made_sweep(folder, {"a": ["x\ud800", "y"]}, 2, classes=["k\udce9"]).folder)
    path = write_page(plan, collect(plan.trials, Silent()), Silent())
    page = Page(path.read_text("utf-8"))
    assert "x\\ud800" in page.text and "k\\udce9" in page.text
    links = [str(a["href"]) for tag, a in page.elements if tag == "a" and "curves.png" in str(a["href"])]
    found = {(plan.folder / os.fsdecode(unquote_to_bytes(link))).parent.resolve() for link in links}
    assert found == {trial.run.path.resolve() for trial in plan.trials}


def test_drawing_the_page_tells_how_far_it_is(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, AXES, 2, states={1: "failed"})
    words = Said()
    render(plan, collect(plan.trials, Silent()), words)
    told = [(what, total) for what, done, total in words.steps if what.startswith("page: ") and done == 4]
    assert {("page: scores", 4), ("page: images", 4), ("page: cost", 4), ("page: configs", 4)} <= set(told)
    assert all(0 <= done <= (total or 0) for what, done, total in words.steps if what.startswith("page: "))


def test_nearest_neighbours_have_a_picture_and_its_link(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, {"only": ["x", "y"]}, 2, nearest=True)
    page = page_of(load_trials(plan.folder))
    shown = [a for tag, a in page.elements if tag == "img" and "nearest training images" in str(a["alt"])]
    links = [str(a["href"]) for tag, a in page.elements if tag == "a" and "nearest" in str(a["href"])]
    assert len(shown) == len(links) == 2 and all((plan.folder / link).is_file() for link in links)
    picture = Image.open(io.BytesIO(base64.b64decode(str(shown[0]["src"]).partition(",")[2])))
    assert picture.size == (96, 48) and "Nearest neighbours are drawn where" not in page.text
    assert (
        "Nearest neighbours are drawn where eval.metrics has overfit"
        in page_of(made_sweep(tmp_path / "b", AXES, 1)).text
    )


def test_classes_have_curves_where_snapshots_say_how_often_the_discriminator_was_right(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, {"only": ["x"]}, 1)
    folder = plan.trials[0].run.path / "snapshots"
    folder.mkdir()

    def write(step: int, facts: object) -> None:
        header = json.dumps({"__metadata__": {"gantool": json.dumps(facts)}}).encode()
        (folder / f"step-{step:08d}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    accuracy = {"accuracy_real": [0.5, None], "accuracy_fake": [0.25, 1.0]}
    write(10, {"accuracy": accuracy, "data": {"classes": ["<cat>", "dog"]}})
    for step, facts in (
        (20, []),
        (30, {"accuracy": None}),
        (40, {"accuracy": accuracy, "data": {"classes": ["a"] * 9}}),
    ):
        write(step, facts)  # none of them says it
    (folder / "step-00000050.safetensors").write_bytes(b"\xff" * 8 + b"{")
    (folder / "step-00000051.safetensors").write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    write(52, {"accuracy": {"accuracy_real": [10**400], "accuracy_fake": [1e308]}, "data": {"classes": ["x"]}})
    run = read_run(plan.trials[0], ())
    expected = {"<cat>": {"accuracy_real": 0.5, "accuracy_fake": 0.25}, "dog": {"accuracy_fake": 1.0}}
    assert run.accuracy_history() == {10: expected} and run.per_class == {}
    assert "in each class, at each snapshot" not in page_of(plan).text
    write(60, {"accuracy": accuracy, "data": {"classes": ["<cat>", "dog"]}})
    assert list(read_run(plan.trials[0], ()).accuracy_history()) == [10, 60]
    page = page_of(plan)
    assert "in each class, at each snapshot" in page.text and page.text.count("mean of the classes") == 2
    assert page.text.count("<cat>") == 1  # the table, of the newest snapshot, which sorts by its numbers
    cells = [a["data-value"] for tag, a in page.elements if tag == "td" and a.get("data-value") in ("0.5", "0.25")]
    assert cells == ["0.5", "0.25"]


def test_a_metric_that_has_figures_alone_can_be_chosen(tmp_path: Path) -> None:
    """As `gantool eval --metrics kid` leaves it: scores of snapshots, and none in the results."""
    plan = made_sweep(tmp_path, {"only": ["x", "y"]}, 2)
    for file in tmp_path.glob("runs/*/scores/*.json"):
        score = json.loads(file.read_text())
        file.write_text(json.dumps(score | {"values": score["values"] | {"kid": 0.01 * score["step"]}}))
    page = page_of(plan)
    options = [str(a["value"]) for tag, a in page.elements if tag == "option"]
    assert options.count("kid") == 1 and "kid (figures)" in page.text
    assert [a["data-figures"] for _, a in page.elements if "data-figures" in a] == ["fid", "is", "kid"]


def test_what_a_device_hour_costs_is_told_for_each_variant_and_in_all(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, {"only": ["x", "y"]}, 2)
    facts = next((plan.trials[0].run.path).glob("run.json"))
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"device": "NVIDIA A100"}))
    text = render(plan, collect(plan.trials, Silent()), Silent(), 7200.0)
    assert '<tfoot><tr><th scope="row">all</th>' in text
    cost = re.search(r"<section id=\"cost\">.*?</section>", text, re.DOTALL)
    assert cost is not None
    prices = [float(number) for number in re.findall(r">([0-9]+\.[0-9]{2})</td>", cost[0])]
    # Of two devices, of all, of two variants: 40 rows of 2 s on 2 GPUs each, and three scores of 30 s on 2.
    one = (80 * 2 + 90 * 2) * 2.0
    assert sorted(prices) == sorted([one, 3 * one, 4 * one, 2 * one, 2 * one])


def test_many_seeds_are_cut_in_the_table_of_their_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = made_sweep(tmp_path, {"only": ["x"]}, 80, num_rows=4, num_grids=1)
    monkeypatch.setattr("gantool.report.page.MOST_BYTES", 120_000)
    text = render(plan, collect(plan.trials, Silent()), Silent())
    (shown,) = re.findall(r"Here: (\d+) of 80 runs, from the first", Page(text).text)
    assert len(text.encode()) <= 120_000 and text.count("picture<span") == int(shown) < 80


def test_pictures_that_cannot_be_read_are_no_matter_of_room(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, {"only": ["x", "y"]}, 1)
    for grid in plan.trials[0].run.path.glob("samples/*.png"):
        grid.write_text("no picture")
    page = page_of(plan)
    assert page.text.count("Its grids are not readable as pictures") == 1 and "too large" not in page.text


def test_sweeps_that_have_not_begun_or_have_no_scores(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, AXES, 1, states=dict.fromkeys(range(4), "planned"))
    text = page_of(plan).text
    assert "No run is done and scored yet." in text and "Nothing has been trained yet." in text
    assert "No grid yet." in text and "snapshots in training" not in text
    plan = made_sweep(tmp_path / "b", AXES, 1, states=dict.fromkeys(range(4), "stopped"))
    text = page_of(plan).text
    assert "4 stopped" in text and "The scores of snapshots in training are in the figures." in text
    assert "fid of the snapshots that were scored during training" in text


def test_damaged_files_count_as_not_there(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, AXES, 1)
    path = plan.trials[0].run.path
    for name in (
        "run.json",
        "journal.jsonl",
        "starts.jsonl",
        "samples/step-00000400.png",
        "scores/00000400-classifier-0.json",
    ):
        (path / name).write_bytes(b'{"step": 3, "versions": 7\x00')
    (path / "status.json").write_text("[1")
    text = page_of(load_trials(plan.folder)).text
    assert "4 runs: 4 done" in text.replace(" :", ":")


def test_curves_are_means_over_intervals_of_steps(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, {"a": ["x"]}, 1, num_rows=6001, num_grids=1)
    run = read_run(plan.trials[0], collect(plan.trials, Silent()))
    assert len(run.curve.steps) <= 150 and list(run.curve.steps) == sorted(run.curve.steps)
    for step, value in zip(run.curve.steps, run.curve.values["loss_g"], strict=True):
        assert value == pytest.approx(0.7 + 0.5 * step / 60010)  # the journal's law is linear
    assert run.series[collect(plan.trials, Silent())[0].protocol_digest]["fid"][-1] == (60010, fid_of((0,), 0))


def test_several_sweeps_are_never_averaged_together(tmp_path: Path) -> None:
    plans = [load_trials(made_sweep(tmp_path / n, {"augment": ["none", "basic"]}, 2, name=n).folder) for n in "pq"]
    both = merged(plans)
    assert [trial.labels["sweep"] for trial in both.trials] == ["p"] * 4 + ["q"] * 4
    assert merged([plans[0], plans[0]]).trials == merged([plans[0]]).trials
    alone = [load_trials(trial.run.path) for trial in plans[0].trials]
    assert [trial.labels for trial in merged([told_apart(plan) for plan in alone]).trials] == [
        {"config": re.sub(r"-s\d+$", "", trial.run.path.name)} for trial in plans[0].trials
    ]  # its seeds are averaged
    assert {trial.labels["sweep"] for trial in merged([plans[1], *alone]).trials} == {plans[1].name, "(single runs)"}
    assert merged([plans[0], *alone]).trials == merged([plans[0]]).trials  # none counts twice
    copy = tmp_path / "elsewhere" / alone[0].folder.name
    shutil.copytree(alone[0].folder, copy)
    apart = merged([alone[0], load_trials(copy)]).trials
    assert [trial.labels["in"] for trial in apart] == [str(alone[0].folder.parent), str(copy.parent)]
    named = [replace(plan, trials=tuple(replace(t, labels={"sweep": "z"}) for t in plan.trials)) for plan in plans]
    assert [trial.labels for trial in merged(named).trials][::4] == [{"in sweep": n, "sweep": "z"} for n in "pq"]
    shared = replace(plans[1], trials=(*plans[1].trials, replace(plans[0].trials[0], labels={"augment": "new"})))
    page = page_of(merged([plans[0], shared]))  # a run that two sweeps share is in the rows of both, and one run
    assert "8 runs" in page.text and "augment new" in page.text and page.text.count("40.00 (1)") >= 1
    text = page_of(both).text
    assert "8 runs" in text and "(4)" not in text and text.count("(2)") > 4


def test_the_verb_writes_all_forms_also_elsewhere_and_in_the_middle(gantool: Gantool, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    made_sweep(tmp_path, AXES, 2, states={0: "stopped"})
    shown = gantool("report", "sweeps/made")
    assert shown.returncode == 0 and "written: sweeps/made/report.html" in shown.stderr
    names = {"report.html", "results.csv", "results.jsonl", "results.md", "results.tex"}
    assert names <= {path.name for path in Path("sweeps/made").iterdir()}
    assert shown.stdout.splitlines()[0].split()[:2] == ["augment", "residual"]
    latex = gantool("report", "sweeps/made", "--format", "latex").stdout
    assert latex == Path("sweeps/made/results.tex").read_text()
    made_sweep(tmp_path / "b", AXES, 2, name="other")
    refused = gantool("report", "sweeps/made", "b/sweeps/other")
    assert refused.returncode == 2 and "--out FOLDER" in refused.stderr
    assert gantool("report", "sweeps/made", "b/sweeps/other", "--out", "both").returncode == 0
    assert names == {path.name for path in Path("both").iterdir()}
    (tmp_path / "file").write_text("")
    wrong = gantool("report", "sweeps/made", "--out", "file")
    assert wrong.returncode == 2 and "--out: found file, which is a file, expected a folder" in wrong.stderr


def test_the_page_needs_no_torch(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, AXES, 1)
    program = "import sys; sys.modules['torch'] = None; from gantool.cli import main; sys.argv[0] = 'gantool'; main()"
    words = [sys.executable, "-c", program, "report", str(plan.folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.move(tmp_path / "sweeps", tmp_path / "runs/../moved")
    assert "4 runs: 4 done" in page_of(load_trials(tmp_path / "moved/made")).text.replace(" :", ":")


def test_the_best_is_where_more_or_less_is_better_and_the_report_has_the_last_word() -> None:
    assert [direction(name) for name in ("fid", "authpct", "is", "accuracy_fake", "fid_train_to_test")] == [
        -1,
        1,
        1,
        0,
        0,
    ]
    rows = [
        Row({"a": label}, 0, label, "done", 1, {"fid": fid, "authpct": share, "accuracy_fake": 0.5}, protocol="p")
        for label, fid, share in (("x", 30.0, 80.0), ("y", 20.0, 60.0))
    ]
    for report, best in (
        (Report("fid", "min"), {"fid": "y", "authpct": "x"}),
        (Report("fid", "max"), {"fid": "x", "authpct": "x"}),
    ):
        groups = grouped(rows, report)
        marks = _best(groups, _directions(report, ["fid", "authpct", "accuracy_fake"]))
        found = {name: [groups[place].labels["a"] for place in places] for name, places in marks.items()}
        assert found == {name: [label] for name, label in best.items()} | {"accuracy_fake": []}
    assert _best(grouped(rows[:1], Report("fid")), {"fid": -1}) == {"fid": set()}  # the best of one is nothing


def test_runs_of_two_commits_are_warned_of_before_they_are_done(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, AXES, 1, states=dict.fromkeys(range(4), "stopped"))
    assert "several commits" not in page_of(plan).text
    path = plan.trials[2].run.path / "run.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"before": [facts | {"versions": facts["versions"] | {"commit": "fedcba"}}]}))
    assert "trained and scored by several commits: 0123456789ab, fedcba" in page_of(plan).text


def test_values_of_configs_are_shown_as_they_are_written(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, {"n_dis": ["1", "2", "3"]}, 1)
    value = json.loads((plan.folder / "sweep.json").read_text())
    for number, trial in enumerate(value["trials"]):
        trial["config"] |= [{"n_dis": 1}, {"n_dis": 2, "odd": [1, 0.0]}, {"n_dis": 3, "odd": {}}][number]
    (plan.folder / "sweep.json").write_text(json.dumps(value))
    text = page_of(load_trials(plan.folder)).text
    assert "n_dis: 1" in text and "n_dis: 2" in text and "odd: 1,0.0" in text and "odd: {}" in text


@pytest.mark.parametrize("form", ["table", "csv"])
def test_files_are_written_also_where_nobody_reads_the_table(form: str, tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, AXES, 1, num_grids=1)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "gantool", "report", str(plan.folder), "--format", form]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert {path.name for path in plan.folder.glob("re*")} == {"report.html", *(f"results.{e}" for e in ENDINGS)}


def test_reports_of_what_is_not_there_overwrite_nothing(gantool: Gantool, tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, AXES, 1)
    assert gantool("report", plan.folder).returncode == 0
    before = (plan.folder / "results.csv").read_text()
    shutil.rmtree(tmp_path / "runs")
    refused = gantool("report", plan.folder)
    assert refused.returncode == 2 and "none of the 4 runs is there" in refused.stderr
    assert (plan.folder / "results.csv").read_text() == before


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    plan = made_sweep(tmp_path, {"a": [str(number) for number in range(6)]}, 1)
    paths = [trial.run.path for trial in plan.trials]

    def change(path: Path, **values: object) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    change(paths[0] / "result.json", scores=[1, None, {"values": {"fid": 10**400, "is": 1e300}}])
    change(paths[1] / "result.json", scores=[{"values": {"fid": 3.0}, "warnings": 3, "protocol": {"a": [1]}}])
    (paths[2] / "journal.jsonl").write_text('{"step": 1' + "0" * 400 + ', "loss_d": 1' + "0" * 400 + "}")
    (paths[3] / "samples/step-\u00b25.png").write_bytes(b"")
    (paths[4] / "run.json").write_text("[" * 100_000)
    text = page_of(load_trials(plan.folder)).text
    assert "6 runs:" in text.replace(" :", ":") and "38.00" not in text and "40.00" not in text
    assert all(f"{fid} (1)" in text for fid in ("34.00", "31.25", "40.25"))  # of the others


def test_an_axis_of_any_name_keeps_its_labels_in_all_files() -> None:
    rows = [Row({"fid": "p", "protocol": "m"}, 0, "r", "done", 1, {"fid": 3.5}, protocol="x")]
    assert flat(rows)[0] == {"axis_fid": "p", "axis_protocol": "m", "seed": 0, "run": "r", "state": "done", "step": 1,
                             "fid": 3.5, "data": "", "protocol": rows[0].protocol_digest}  # fmt: skip
    plan = SweepPlan("s", Path("s"), (), Report("fid"))
    assert "axis fid & axis protocol & fid" in sweep_latex(plan, rows)
    for label in ("[3pt]", "*"):
        assert f"{{}}{label} & " in sweep_latex(plan, [Row({"a": label}, 0, "r", "done", 1, {"fid": 1.0})])
