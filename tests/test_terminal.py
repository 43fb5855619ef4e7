"""What a person sees: on pseudo-terminals of several widths, without colours, and where there is no terminal."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pytest
from conftest import Gantool
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from gantool.progress import Part, clock
from gantool.terminal import TerminalProgress, fitted
from gantool.train import _parts_of

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(width: int, *arguments: object, **environment: str) -> tuple[int, str]:
    """`gantool ARGUMENTS` on a pseudo-terminal: its exit code, and all that it wrote there."""
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    env = plain | {"OMP_NUM_THREADS": "1", "TERM": "xterm-256color"} | environment
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        os.execvpe(sys.executable, [sys.executable, "-m", "gantool", *map(str, arguments)], env)
    said = b""
    while True:
        try:
            said += (block := os.read(terminal, 65536))
        except OSError:  # as Linux says that the other end is closed
            break
        if not block:
            break
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said.decode()


def lines_of(said: str) -> list[str]:
    """The lines that were drawn, also those that others were drawn over, without colours."""
    return [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", said)) if line.strip()]


PARTS = [Part("D 0.693  G 0.693", "D 0.693 G 0.693"), Part("1234 images/s", "1234/s"), Part("1.2 GB memory", "1.2G")]


@given(
    st.text("abc é漢", max_size=40),
    st.lists(st.tuples(st.text("xy漢", max_size=30), st.text("x", max_size=9)), max_size=6),
    st.integers(1, 220),
)
def test_a_line_never_is_wider_than_the_terminal(name: str, parts: list[tuple[str, str]], width: int) -> None:
    bar, rest = fitted(name, ["12/345", "1:02"], [Part(*part) for part in parts], width)
    assert (cell_len(name) + bar + 2 if bar else 0) + cell_len(rest) <= width


@pytest.mark.parametrize(
    ("width", "rest"),
    [
        (90, "120/4000 1:02  D 0.693  G 0.693  1234 images/s  1.2 GB memory"),
        (60, "120/4000 1:02 D 0.693 G 0.693 1234/s 1.2G"),
        (50, "120/4000 1:02 D 0.693 G 0.693 1234/s"),
        (41, "120/4000 1:02 D 0.693 G 0.693"),
        (30, "120/4000 1:02"),
    ],
)
def test_what_matters_least_goes_first(width: int, rest: str) -> None:
    bar, found = fitted("train", ["120/4000", "1:02"], PARTS, width)
    assert found == rest and bar >= 4


def test_eighty_columns_hold_all_that_training_tells() -> None:
    values = {"loss_d": 1.386, "loss_g": 0.693, "accuracy_real": 0.871, "accuracy_fake": 1.0}
    *first, memory = _parts_of(values, 12345.6, 45678.9)
    parts = [*first, Part("fid 18.08 at step 20000", "fid 18.08"), memory]
    everything = "D 1.386 G 0.693 acc 87/100% 12346/s fid 18.08 44.6G"
    assert fitted("train", ["9000/20000", "12:34"], parts, 79) == (4, f"9000/20000 12:34 {everything}")
    bar, rest = fitted("train", ["120000/200000", "1:23:45"], parts, 79)
    assert bar and rest == f"120000/200000 1:23:45 {everything.removesuffix(' 44.6G')}"


def test_a_line_without_room_for_a_bar() -> None:
    assert fitted("train", ["120/4000", "1:02"], PARTS, 23) == (0, "train 120/4000 1:02")
    assert fitted("features of images", ["120/4000", "1:02"], [], 24) == (0, "features … 120/4000 1:02")
    assert fitted("train", ["120/4000", "1:02"], [], 8) == (0, "120/4000")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (65, "1:05"), (3599.6, "1:00:00"), (90000, "1d 01:00"), (-3, "0:00")],
)
def test_times(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_plain_lines_say_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr("gantool.terminal.time.monotonic", lambda: now)
    with TerminalProgress() as progress:
        for done in range(0, 101, 10):
            progress.step("train", done, 100, PARTS)
            now += 4.0
    numbers = "D 0.693  G 0.693  1234 images/s  1.2 GB memory"
    assert capsys.readouterr().err.splitlines() == [
        f"train 30/100  0:28 left  {numbers}",  # once in ten seconds
        f"train 60/100  0:16 left  {numbers}",
        f"train 90/100  0:04 left  {numbers}",
        f"train 100/100  {numbers}",
    ]


def test_who_knows_better_says_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("gantool.terminal.time.monotonic", lambda: now)
    with TerminalProgress() as progress:
        for done, left in ((0, math.nan), (1, math.nan), (2, 100.0), (4, 0.0)):
            progress.step("trials", done, 4, "2 running", left)
            now += 11.0
    assert capsys.readouterr().err.splitlines() == [
        "trials 1/4  2 running",
        "trials 2/4  1:40 left  2 running",
        "trials 4/4  2 running",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_bars_fit_the_terminal(width: int, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    code, said = on_terminal(width, "prepare", "--dataset", "shapes")
    bars = [line for line in lines_of(said) if line.startswith("packing")]
    assert code == 0 and bars and all(len(line) < width for line in bars)
    assert all(re.search(r"\d+/12000 [\d-]+:[\d-]+", line) for line in bars)
    assert lines_of(said)[-1].endswith(".npy")


@pytest.mark.parametrize("width", [60, 80])
def test_training_shows_the_numbers_of_its_journal(width: int, tiny: Path, tmp_path: Path) -> None:
    words = ("--set", "steps=100", "--set", "eval={num: 50, every: 20}")
    code, said = on_terminal(width, "train", tiny, *words)
    shown = [line for line in lines_of(said) if line.startswith("train ")]
    assert code == 0 and all(len(line) < width for line in shown)
    (run,) = (tmp_path / "runs").iterdir()
    rows = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    numbers = [
        (
            f"D {row['loss_d']:.3f} G {row['loss_g']:.3f} acc {100 * row['accuracy_real']:.0f}/"
            f"{100 * row['accuracy_fake']:.0f}%",
            row["images_per_second"],
        )
        for row in rows
    ]
    found = [match for line in shown if (match := re.search(r"\d+/100 \S+ (D .*%) (\d+)/s", line))]
    for match in found:
        assert any(match[1] == text and abs(rate - int(match[2])) <= 0.51 for text, rate in numbers), match[0]
    assert found
    scores = [json.loads(path.read_text()) for path in (run / "scores").glob("*.json")]
    fids = {f"fid {score['values']['fid']:.4g}" for score in scores}
    assert width < 80 or fids & {word for line in shown for word in re.findall(r"fid [\d.]+", line)}
    assert width < 80 or any(re.search(r"\d\.\dG$", line.rstrip()) for line in shown)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_only_where_they_are_wanted(environment: dict[str, str], tmp_path: Path) -> None:
    os.chdir(tmp_path)
    colour = re.compile(r"\x1b\[(?:\d+;)*[349]\d[\d;]*m")
    (tmp_path / "bad.yaml").write_text("batsh: 8\n")
    assert colour.search(on_terminal(80, "train", "bad.yaml")[1])
    for words in (("train", "bad.yaml"), ("prepare", "--dataset", "shapes"), ("--help",)):
        _, said = on_terminal(80, *words, **environment)
        assert not colour.search(said), words
        assert environment != {"TERM": "dumb"} or "\x1b" not in said


def test_quiet_says_nothing_but_errors(gantool: Gantool, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    code, said = on_terminal(80, "--quiet", "prepare", "--dataset", "shapes")
    assert code == 0 and len(lines_of(said)) == 1 and lines_of(said)[0].endswith(".npy")
    wrong = gantool("--quiet", "status", "nowhere")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: nowhere: there is no such folder")


def test_verbose_names_what_is_read_and_written_with_the_time(gantool: Gantool, tiny: Path, tmp_path: Path) -> None:
    done = gantool("-v", "train", tiny, "--set", "steps=20")
    (run,) = (tmp_path / "runs").iterdir()
    assert done.returncode == 0 and done.stdout == f"{run}\n"
    notes = [re.fullmatch(r" *(\d+\.\d\d) s  (.*)", line) for line in done.stderr.splitlines()]
    told = [match[2] for match in notes if match]
    assert f"read {tiny}" in told and f"wrote {run}/snapshots/step-00000020.safetensors" in told
    assert any(
        text.startswith("torch ") and "cpu, 1 CPU threads" in text and "precision float32" in text for text in told
    )
    assert any(text.startswith("parameters: generator ") for text in told)
    assert told[-1].startswith("exit code 0 after") and not any("status.json" in text for text in told)
    times = [float(match[1]) for match in notes if match]
    assert times == sorted(times)
    without = gantool("train", tiny, "--set", "steps=20", "--set", "seed=1")
    assert not re.search(r"read |wrote ", without.stderr)
    both = gantool("-v", "-q", "status", run)
    assert both.returncode == 2 and "leave one of them out" in both.stderr


def test_verbose_lines_stand_above_the_bar(tiny: Path) -> None:
    code, said = on_terminal(80, "-v", "train", tiny)
    lines = lines_of(said)
    assert code == 0 and any(re.match(r" +\d+\.\d\d s  wrote ", line) for line in lines)
    assert not [line for line in lines if line.startswith("train ") and "wrote" in line]
