"""Pictures in terminals: what is drawn, read back from the escape sequences and from the colours of half blocks."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import Gantool
from PIL import Image
from test_terminal import on_terminal

from gantool.pictures import columns_of, half_blocks, kind_of, sequence
from gantool.status import TrialStatus, newest_grids

NOISE = np.random.default_rng(0).integers(0, 256, (37, 90, 3), dtype=np.uint8)
KITTY = re.compile(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\")
ITERM = re.compile(r"\x1b\]1337;File=([^:]*):([^\x07]*)\x07")
CELL = re.compile(r"\x1b\[(?:38;2;(\d+);(\d+);(\d+))(?:;48;2;(\d+);(\d+);(\d+))?m(▀+)")


def png_of(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def read_back(said: str) -> tuple[bytes, str]:
    """The PNG in an escape sequence, and its keys."""
    if found := ITERM.search(said):
        return base64.b64decode(found[2], validate=True), found[1]
    chunks = KITTY.findall(said)
    assert [re.search(r"m=(\d)", keys)[1] for keys, _ in chunks] == ["1"] * (len(chunks) - 1) + ["0"]
    assert all(len(data) <= 4096 for _, data in chunks)
    return base64.b64decode("".join(data for _, data in chunks), validate=True), chunks[0][0]


def test_sequences_hold_the_picture() -> None:
    png = png_of(NOISE)
    assert len(png) > 2 * 4096
    read, keys = read_back(sequence("kitty", png, 50))
    assert read == png and {"a=T", "f=100", "c=50", "q=2"} <= set(keys.split(","))
    read, keys = read_back(sequence("iterm", png, 50))
    assert read == png and {"inline=1", f"size={len(png)}", "width=50"} <= set(keys.split(";"))


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"KITTY_WINDOW_ID": "1", "TERM": "xterm-256color"}, "kitty"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"KITTY_WINDOW_ID": "1", "TMUX": "/tmp/x", "TERM": "tmux-256color"}, None),
        ({}, None),
    ],
)
def test_terminals_that_draw_pictures(environment: dict[str, str], kind: str | None) -> None:
    assert kind_of(environment) == kind


def test_small_pictures_are_enlarged_and_none_is_wider_than_the_terminal() -> None:
    assert [columns_of(*case) for case in ((22, 80), (400, 80), (4000, 80), (22, 30))] == [40, 50, 80, 30]


def test_half_blocks_are_the_pixels_of_a_picture_that_fits() -> None:
    rows = half_blocks(Image.fromarray(NOISE), 90)
    assert len(rows) == 19 and all(below is None for _, below in rows[-1])
    upper = [[above for above, _ in row] for row in rows]
    lower = [[below for _, below in row] for row in rows[:-1]]
    assert np.array_equal(upper, NOISE[::2]) and np.array_equal(lower, NOISE[1::2])


def test_half_blocks_of_a_picture_that_does_not_fit_are_means() -> None:
    rows = half_blocks(Image.fromarray(NOISE[:36]), 45)
    means = NOISE[:36].reshape(18, 2, 45, 2, 3).mean((1, 3))
    assert np.abs(np.array([[above for above, _ in row] for row in rows]) - means[::2]).max() <= 1
    grey = half_blocks(Image.fromarray(NOISE[:, :, 0]), 90)
    assert grey[0][0] == ((NOISE[0, 0, 0],) * 3, (NOISE[1, 0, 0],) * 3)


def test_sample_draws_the_grid_that_it_writes(done_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    words = ("sample", "--ckpt", done_run, "--grid", "2x3", "--show")
    for environment in ({"TERM": "xterm-kitty"}, {"TERM_PROGRAM": "iTerm.app"}):
        code, said = on_terminal(80, *words, "--out", out, **environment)
        assert code == 0 and read_back(said)[0] == out.read_bytes() and str(out) in said
        code, said = on_terminal(80, *words, **environment)
        assert code == 0 and read_back(said)[0] == out.read_bytes() and str(out) not in said
    pixels = np.asarray(Image.open(out))
    assert pixels.shape == (2 * 10 + 2, 3 * 10 + 2, 3)
    assert np.array_equal(drawn(on_terminal(80, *words, COLORTERM="truecolor")[1]), pixels)


def drawn(said: str) -> np.ndarray:
    """The pixels of half blocks, from their colours."""
    rows = []
    for line in said.splitlines():
        cells = [(found, len(found[6])) for found in CELL.findall(line)]
        if cells:
            rows.append([found[:3] for found, count in cells for _ in range(count)])
            rows.append([found[3:6] for found, count in cells for _ in range(count)])
    return np.array(rows, np.uint8)


def test_status_draws_the_newest_grid(done_run: Path) -> None:
    newest = done_run / "samples" / "step-00000040.png"
    code, said = on_terminal(80, "status", done_run, "--show", TERM="xterm-kitty")
    assert code == 0 and read_back(said)[0] == newest.read_bytes() and newest.name in said
    (done_run.parent / "other").mkdir()
    (done_run.parent / "other" / "config.yaml").write_bytes((done_run / "config.yaml").read_bytes())
    code, said = on_terminal(80, "status", done_run.parent, "--show", TERM="xterm-kitty")
    assert code == 0 and "no run that goes on has a sample grid" in said and "\x1b_G" not in said


def test_grids_of_runs_that_go_on_the_latest_first(done_run: Path) -> None:
    states = ("running", "done", "running", "stopped", "running")
    statuses = [TrialStatus(done_run, "", {}, 0, state) for state in states]
    newest = done_run / "samples" / "step-00000040.png"
    assert newest_grids(statuses) == [newest] * 3 and newest_grids(statuses, most=2) == [newest] * 2
    assert newest_grids(statuses[1:2]) == [newest] and newest_grids([statuses[1], statuses[3]]) == []


@pytest.mark.parametrize("width", [40, 70, 120])
def test_a_table_is_folded_to_the_width_and_whole(width: int, done_run: Path) -> None:
    code, said = on_terminal(width, "-q", "status", done_run)
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said).replace("\r", "").splitlines()]
    rows = lines[: next(index for index, line in enumerate(lines) if line.startswith("1 run"))]
    assert code == 0 and max(map(len, rows)) <= width
    assert done_run.name in "".join(row[: len(done_run.name)].split(" ")[0] for row in rows[1:])
    headers = " ".join(rows).split()
    assert {"done", "40"} <= set(headers)


def test_where_nothing_can_be_drawn(gantool: Gantool, done_run: Path, tmp_path: Path) -> None:
    piped = gantool("sample", "--ckpt", done_run, "--show", "--out", tmp_path / "x.png")
    assert piped.returncode == 2 and "stdout is no terminal" in piped.stderr and not (tmp_path / "x.png").exists()
    assert gantool("status", done_run, "--show").returncode == 2
    code, said = on_terminal(200, "status", done_run, "--show", TERM="dumb")
    assert code == 2 and "a terminal without colours" in said
    code, said = on_terminal(200, "sample", "--ckpt", done_run, "--show", "--num", 3)
    assert code == 2 and "--num has no effect with --show" in said
    code, said = on_terminal(200, "sample", "--ckpt", done_run, "--show", "--out", "x.npz")
    assert code == 2 and "expected a .png file" in said
    nowhere = gantool("sample", "--ckpt", done_run)
    assert nowhere.returncode == 2 and "give --out" in nowhere.stderr
