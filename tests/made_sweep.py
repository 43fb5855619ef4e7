"""Sweeps made in an instant: run directories with the files of trained and scored runs, and numbers of a known law."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gantool import files
from gantool.config.grid import Report
from gantool.config.schema import EvalConfig, RunConfig
from gantool.manifest import SweepPlan, Trial, write_manifest
from gantool.runs import RunDirectory, eval_digest

PROTOCOL = {"fid": "FID extractor=classifier num=1000", "is": "IS splits=10 num=1000"}
VERSIONS = {"gantool": "0.1.0", "commit": "0123456789ab", "torch": "2.14.1", "python": "3.11.7"}


def fid_of(place: Sequence[int], seed: int, share: float = 1.0) -> float:
    """The law: 40, less 3 for each of 4 steps along the first axis, less 2 along the second, and a seed's own part."""
    first, second = (*place, 0, 0)[:2]
    return 40 - 3 * (first % 5) - 2 * (second % 5) + 0.5 * seed + 0.25 * ((seed + first) % 2) + 60 * (1 - share)


def made_sweep(
    folder: Path,
    axes: Mapping[str, Sequence[str]],
    num_seeds: int = 2,
    *,
    name: str = "made",
    states: Mapping[int, str] | None = None,
    num_rows: int = 40,
    num_grids: int = 6,
    classes: Sequence[str] = (),
    size: int = 64,
    title: str = "shapes 16x16",
    noise: float = 0.1,
    nearest: bool = False,
) -> SweepPlan:
    """A sweep over `axes`, below `folder`; `states` says which trials (by number) are not done."""
    (folder / "sweep.yaml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text("base: x.yaml\n")
    trials = []
    combinations = itertools.product(*(range(len(labels)) for labels in axes.values()), range(num_seeds))
    for number, (*place, seed) in enumerate(combinations):
        labels = {axis: found[at] for (axis, found), at in zip(axes.items(), place, strict=True)}
        config = RunConfig(
            name=name,
            seed=seed,
            batch=8 + sum(at * 100**i for i, at in enumerate(place)),
            eval=EvalConfig(num=1000, every=10),
        )
        run = RunDirectory(folder / "runs" / config.run_id)
        make_run(
            run, config, place, (states or {}).get(number, "done"), num_rows, num_grids, classes, size, title, noise
        )
        if nearest:
            Image.fromarray(np.full((48, 96, 3), 200, np.uint8)).save(run.path / "scores/00000400-nearest.png")
        trials.append(Trial(run, labels, seed, config))
    first = {axis: found[0] for axis, found in axes.items()}
    report, file = Report("fid", "min", first), folder / "sweep.yaml"
    plan = SweepPlan(name, folder / "sweeps" / name, tuple(trials), report, file, assignments=("steps=400",))
    write_manifest(plan)
    return plan


def make_run(
    run: RunDirectory,
    config: RunConfig,
    place: Sequence[int],
    state: str,
    num_rows: int,
    num_grids: int,
    classes: Sequence[str],
    size: int,
    title: str,
    noise: float,
) -> None:
    """The files of one run that is `done`, `failed`, `stopped` or only `planned`."""
    run.write_config(config, durable=False)
    if state == "planned":
        return
    total = 10 * num_rows if state == "done" else 10 * (num_rows // 2)
    shades = np.random.default_rng(config.seed)
    steps = np.arange(1, total // 10 + 1) * 10
    rows = [
        {
            "step": int(step),
            "loss_d": 1.4 - 0.4 * step / total + noise * float(shades.normal()),
            "loss_g": 0.7 + 0.5 * step / total,
            "penalty": 0.0,
            "accuracy_real": 0.5 + 0.3 * step / total,
            "accuracy_fake": 0.55 + noise * float(shades.normal()),
            "seconds": 2.0,
            "images_per_second": 100.0 + config.seed,
        }
        for step in steps
    ]
    (run.path / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.path / "starts.jsonl").write_text('{"step": 0}\n')
    facts = {"versions": VERSIONS, "device": "NVIDIA H100", "num_ranks": 2, "threads": 4, "image": None}
    facts["data"] = {"title": title, "digest": "abc123"}
    files.write_json(run.path / "run.json", facts, durable=False)
    (run.path / "samples").mkdir(exist_ok=True)
    for step in np.linspace(0, total, num_grids, dtype=int):
        picture = shades.integers(0, 255, (size, size, 3), np.uint8) if step == 0 else _squares(shades, size)
        Image.fromarray(picture).save(run.path / f"samples/step-{step:08d}.png")
    Image.fromarray(_squares(shades, 8)).save(run.path / "curves.png")
    if state != "done":
        words = "the loss became NaN" if state == "failed" else "stopped by SIGTERM"
        run.write_status(state, total, 10 * num_rows, 0.0, words)
        if state == "stopped":
            run.mark("stopped", "SIGTERM")
        (run.path / "output.txt").write_text('step 10\nValueError: <broken> & "quoted"\n')
    scores = []
    for share in (0.25, 0.5, 1.0):
        step = int(total * share) // 10 * 10
        score = _score(config, place, step, share, classes, title)
        files.write_json(run.path / f"scores/{step:08d}-classifier-0.json", score, durable=False)
        scores.append(score)
    if state != "done":
        return
    result = {"step": total, "seconds": 2.0 * num_rows, "scores": scores[-1:], "eval": eval_digest(config)}
    files.write_json(run.path / "result.json", result, durable=False)


def _score(
    config: RunConfig, place: Sequence[int], step: int, share: float, classes: Sequence[str], title: str
) -> dict[str, Any]:
    fid = fid_of(place, config.seed, share)
    per_class = {name: {"accuracy_real": 0.9 - 0.01 * i, "accuracy_fake": 0.6} for i, name in enumerate(classes)}
    return {
        "step": step,
        "seed": 0,
        "values": {"fid": fid, "is": 100 / fid, "is_std": 0.1},
        "real": {"fid": 1.25, "is": 9.5},
        "data_title": title,
        "protocol": PROTOCOL | {"fid": f"{PROTOCOL['fid']} ref={title}"},
        "per_class": per_class,
        "warnings": [],
        "versions": VERSIONS,
        "num_ranks": 2,
        "seconds": 30.0,
    }


def _squares(shades: np.random.Generator, size: int) -> np.ndarray:
    """Squares of one colour each, as grids of small images have them."""
    cells = shades.integers(0, 255, (size // 8, size // 8, 3), np.uint8)
    return np.kron(cells, np.ones((8, 8, 1), np.uint8))
