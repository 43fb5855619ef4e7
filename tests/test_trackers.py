"""TensorBoard and Weights & Biases get what the journal, the grids and the scores have; a run does not notice them."""

from __future__ import annotations

import io
import json
import signal
import struct
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Gantool, start, tiny_config
from PIL import Image
from test_resume import SETS, assert_same, interrupt, sets, train_whole

from gantool.checkpoint import digest_tensors, load
from gantool.config.schema import RuntimeConfig
from gantool.errors import UsageError
from gantool.players import SCALARS
from gantool.runs import Journal, RunDirectory
from gantool.runtime import Runtime, Trackers

OPTIONS = sets((*SETS, "runtime.sample_every=50", "eval={num: 40, every: 50, budget: 1.0}"))
BOARD = ("--set", "runtime.trackers=[tensorboard]")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The run of OPTIONS without trackers, that nothing disturbed."""
    config = tiny_config(tmp_path_factory.mktemp("whole"), data_dir)
    out, err = (process := start("train", config, *OPTIONS)).communicate(timeout=300)
    assert process.returncode == 0, err
    return Path(out.strip())


def board_of(run: Path) -> Any:
    """The event files of a run, read as TensorBoard reads them."""
    accumulation = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulation.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def assert_board_is_that_of(run: Path) -> None:
    """Each step once, with the numbers of the journal, the pictures of the grids, the values of the scores."""
    board = board_of(run)
    rows = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    for name in SCALARS:
        events = board.Scalars(name)
        assert [event.step for event in events] == [row["step"] for row in rows]
        assert np.array_equal(np.float32([event.value for event in events]), np.float32([row[name] for row in rows]))
    pictures = {event.step: event.encoded_image_string for event in board.Images("samples")}
    assert len(board.Images("samples")) == len(pictures)
    grids = {int(path.stem[5:]): path for path in (run / "samples").glob("*.png")}
    assert pictures.keys() == grids.keys() == {0, 50, 100, 150, 200}
    for step, png in pictures.items():
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), np.asarray(Image.open(grids[step])))
    scores = [json.loads(path.read_text()) for path in sorted((run / "scores").glob("*.json"))]
    assert [score["step"] for score in scores] == [50, 100, 150, 200]
    for name in scores[0]["values"]:
        events = board.Scalars(f"score/{name}")
        assert [event.step for event in events] == [50, 100, 150, 200]
        values = [score["values"][name] for score in scores]
        assert np.array_equal(np.float32([event.value for event in events]), np.float32(values))


def test_curves_go_on_after_a_kill_and_the_run_has_the_bits_of_one_without_trackers(
    gantool: Gantool, tiny: Path, tmp_path: Path, whole: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'gantool[tensorboard]'")
    run = tmp_path / "runs" / whole.name
    for at_step in (65, 130):  # between checkpoints; what came after the last one comes again
        assert interrupt(signal.SIGKILL, run, tiny, at_step, *OPTIONS, *BOARD) == -signal.SIGKILL
    again = gantool("train", tiny, *OPTIONS, *BOARD)
    assert again.returncode == 0 and "resuming at step" in again.stderr and "tracker" not in again.stderr
    assert len(list((run / "tensorboard").glob("events.*"))) == 3
    assert_board_is_that_of(run)
    (config,) = (run / "tensorboard").glob("*/hparams.yml")
    assert "generator.width: 4" in config.read_text()
    assert_same(whole, run)
    for snapshot in (whole / "snapshots").iterdir():
        assert digest_tensors(load(run / "snapshots" / snapshot.name)[0]) == digest_tensors(load(snapshot)[0])


def test_a_tracker_that_comes_later_has_what_was_before(
    gantool: Gantool, tiny: Path, tmp_path: Path, whole: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'gantool[tensorboard]'")
    run = tmp_path / "runs" / whole.name
    assert interrupt(signal.SIGTERM, run, tiny, 110, *OPTIONS) == 75
    assert gantool("train", tiny, *OPTIONS, *BOARD).returncode == 0
    assert_board_is_that_of(run)


def test_a_finished_run_that_is_scored_anew_adds_to_its_curves(gantool: Gantool, tiny: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'gantool[tensorboard]'")
    run = train_whole(gantool, tiny, *BOARD)
    steps = [event.step for event in board_of(run).Scalars("loss_d")]
    assert "score/fid" not in board_of(run).Tags()["scalars"]
    assert gantool("train", run, "--set", "eval={num: 40}").returncode == 0
    assert [event.step for event in board_of(run).Scalars("score/fid")] == [40]
    assert [event.step for event in board_of(run).Scalars("loss_d")] == steps == list(range(5, 41, 5))


def test_a_tracker_that_fails_is_told_of_and_changes_nothing(
    gantool: Gantool, tiny: Path, tmp_path: Path, whole: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'gantool[tensorboard]'")
    run = tmp_path / "runs" / whole.name
    run.mkdir(parents=True)
    (run / "tensorboard").write_text("a file where the tracker wants its folder\n")
    done = gantool("train", tiny, *OPTIONS, *BOARD)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert done.stderr.count("warning: the tracker tensorboard failed and is left out: ") == 1
    assert_same(whole, run)


def test_one_failing_tracker_leaves_the_others_open() -> None:
    class Tracker:
        def __init__(self, broken: bool) -> None:
            self.broken, self.got = broken, []

        def log(self, values: dict[str, float], step: int) -> None:
            if self.broken:
                raise OSError("the disk is full\nindeed")
            self.got.append((values, step))

        def finish(self) -> None:
            self.log({}, -1)

    trackers, told = Trackers(()), []
    trackers.start(Path(), {}, 0, told.append)
    good, bad = Tracker(False), Tracker(True)
    trackers._open = {"tensorboard": (bad, 0), "wandb": (good, 0)}
    trackers.numbers({"loss_d": 1.0}, 5)
    trackers.numbers({"loss_d": 2.0}, 10)
    trackers.close()
    assert good.got == [({"loss_d": 1.0}, 5), ({"loss_d": 2.0}, 10), ({}, -1)]
    assert told == ["warning: the tracker tensorboard failed and is left out: OSError: the disk is full"]


def wandb_rows(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of history, and config, of an offline file: protobuf in the log format of LevelDB, after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, part, rows, config = path.read_bytes(), 7, b"", [], {}
    while place + 7 <= len(data):
        left = 32768 - place % 32768  # records are in blocks, whose last bytes may be unused
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        part += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last of several parts
            record, part = wandb_internal_pb2.Record.FromString(part), b""
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
            updates = [*record.config.update, *record.run.config.update]
            config |= {item.key: json.loads(item.value_json) for item in updates if item.key}
    return rows, config


def test_weights_and_biases_offline(gantool: Gantool, tiny: Path, tmp_path: Path, whole: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'gantool[wandb]'")
    options, run = ("--set", "runtime.trackers=[wandb]"), tmp_path / "runs" / whole.name
    assert interrupt(signal.SIGKILL, run, tiny, 110, *OPTIONS, *options) == -signal.SIGKILL
    assert gantool("train", tiny, *OPTIONS, *options).returncode == 0
    assert_same(whole, run)
    folder = (run / "wandb" / "latest-run").resolve()  # the whole curve, though the one before was killed
    assert folder.name.endswith(f"-{run.name}")
    rows, config = wandb_rows(folder / f"run-{run.name}.wandb")
    journal = Journal(run / "journal.jsonl").rows()
    losses = [(row["_step"], row["loss_d"], row["loss_g"]) for row in rows if "loss_d" in row]
    assert losses == [(row["step"], row["loss_d"], row["loss_g"]) for row in journal]
    asked = RunDirectory(run).config()
    expected = {"seed": asked.seed, "loss.kind": "bce", "generator.width": 4, "eval.num": 40, "ema.decay": 0.9}
    assert {key: config[key] for key in expected} == expected and config["batch"] == asked.batch == 8
    found = (folder / "files" / "media" / "images").glob("samples_*.png")
    grids = sorted(found, key=lambda path: int(path.name.split("_")[1]))
    for grid, path in zip(grids, sorted((run / "samples").glob("*.png")), strict=True):
        assert np.array_equal(np.asarray(Image.open(grid)), np.asarray(Image.open(path)))


@pytest.mark.parametrize("spec", [None, ModuleSpec("wandb", None)])  # the second is a folder of that name
def test_a_tracker_that_is_not_installed(spec: ModuleSpec | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(UsageError, match=r"runtime\.trackers: wandb is not installed") as wrong:
        Runtime(RuntimeConfig(device="cpu", trackers=("wandb",)))
    assert wrong.value.hint == "pip install 'gantool[wandb]'"
