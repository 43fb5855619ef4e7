"""A run that was killed, stopped or damaged ends with the same bits as one that was not; real signals."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Gantool, start, tiny_config

from gantool import checkpoint

STEPS = 200
SETS = (f"steps={STEPS}", "runtime.checkpoint_every=50", "runtime.snapshot_every=100", "ema.decay=0.9")
FEW_STEPS = 100
REWRITES = (  # 16 pixels: both changes of size take their strided form
    "data={name: shapes, size: 16}",
    "generator={kind: resnet, latent_dim: 8, width: 8, max_width: 8}",
    "discriminator={kind: resnet, width: 8, max_width: 8}",
)
PRODUCTS = (  # and here that of a product of matrices
    "data={name: shapes, size: 16}",
    "generator={kind: conv, latent_dim: 8, width: 64, max_width: 128, norm: none}",
    "discriminator={kind: conv, width: 64, max_width: 128, norm: none}",
    "precision=bfloat16",
)
WINOGRAD = (  # and here the generator's last block
    "data={name: shapes, size: 16}",
    "generator={kind: resnet, latent_dim: 8, width: 128, max_width: 128}",
    "batch=32",
)
VARIANTS = {
    "dcgan": (),
    "rewrites": REWRITES,
    "products": PRODUCTS,
    "winograd": WINOGRAD,
    "residual": ("generator.residual=true", "discriminator.residual=true", "augment=advanced", "loss=hinge", "n_dis=2"),
    "spectral": (
        "generator.spectral_norm=true",
        "discriminator.spectral_norm=true",
        "discriminator.norm=none",
        "augment=basic",
        "penalty=r1",
    ),
    "mlp": (
        "generator={kind: mlp, latent_dim: 8, widths: [16, 16]}",
        "discriminator={kind: mlp, widths: [16, 16], dropout: 0.3}",
        "optimizer.generator=rmsprop",
        "optimizer.discriminator={kind: sgd, lr: 0.01, momentum: 0.5}",
        "loss={kind: least_squares, smoothing: 0.1}",
        "augment=diffaugment",
    ),
    "biggan": (
        "generator={kind: biggan, latent_dim: 8, width: 8, max_width: 8, embedding_dim: 4, attention: 8}",
        "discriminator={kind: resnet, width: 8, max_width: 8, spectral_norm: true, condition: projection}",
        "loss=hinge",
        "augment={kind: ada, target: 0.3, kimg: 1.0, interval: 3}",
        "optimizer.generator.lr={start: 1e-3, end: 0.0}",
        "optimizer.discriminator={kind: adamw, lr: 1e-3}",
        "n_dis=2",
    ),
    "acgan": (
        "generator.condition=concat",
        "discriminator={kind: conv, width: 4, max_width: 8, norm: none, dropout: 0.2, condition: acgan}",
        "penalty=lecam",
        "generator_batch=16",
    ),
    "r3gan": (
        "generator={kind: r3gan, latent_dim: 8, width: 8, group: 4, condition: concat, embedding_dim: 4}",
        "discriminator={kind: r3gan, width: 8, group: 4, condition: projection}",
        "loss=relativistic",
        "penalty={kind: r1_r2, weight: {start: 1.0, end: 0.1, shape: cosine, over: 75}, interval: 2}",
        "optimizer.generator.beta2={start: 0.9, end: 0.99, shape: cosine}",
    ),
}


def sets(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def final_state(run: Path, steps: int) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The tensors of the last checkpoint, and the journal without its times."""
    tensors, facts = checkpoint.load(sorted((run / "checkpoints").glob("*.safetensors"))[-1])
    assert facts["step"] == steps
    rows = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return tensors, [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def assert_same(one: Path, other: Path, steps: int = STEPS, log_every: int = 5) -> None:
    (a, rows_a), (b, rows_b) = final_state(one, steps), final_state(other, steps)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert rows_a == rows_b
    assert [row["step"] for row in rows_a] == list(range(log_every, steps + 1, log_every))


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def journal_step(run: Path) -> int:
    try:
        return int(json.loads((run / "journal.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, IndexError, ValueError):
        return 0


def train_whole(gantool: Gantool, config: Path, *options: str) -> Path:
    done = gantool("train", config, *options)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def interrupt(number: int, run: Path, config: Path, at_step: int, *options: str) -> int:
    """Start training, send a signal once the journal has passed `at_step`, return the exit code."""
    process = start("train", config, *options)
    wait_for(lambda: journal_step(run) >= at_step or process.poll() is not None)
    process.send_signal(number)
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_in_the_middle_is_bit_equal(variant: str, gantool: Gantool, tiny: Path, tmp_path: Path) -> None:
    steps = 12 if variant == "winograd" else FEW_STEPS
    every = {"log": steps // 20 or 1, "checkpoint": steps // 4, "snapshot": steps // 2}
    few = (f"steps={steps}", "ema.decay=0.9", *(f"runtime.{name}_every={value}" for name, value in every.items()))
    options = sets(few + VARIANTS[variant])
    whole = train_whole(gantool, tiny, *options, "--set", f"runtime.runs_dir={tmp_path / 'whole'}")
    run = tmp_path / "runs" / whole.name
    assert interrupt(signal.SIGKILL, run, tiny, 55 * steps // 100, *options) == -signal.SIGKILL
    assert not (run / "result.json").exists()
    again = gantool("train", tiny, *options)
    assert again.returncode == 0 and "resuming at step" in again.stderr
    assert_same(whole, run, steps, every["log"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The run of SETS that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    config = tiny_config(folder, data_dir)
    process = start("train", config, *sets(SETS))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return Path(out.strip())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_saves_leaves_with_75_and_goes_on_equal(
    number: int, gantool: Gantool, tiny: Path, tmp_path: Path, whole: Path
) -> None:
    options = sets(SETS)
    run = tmp_path / "runs" / whole.name
    assert interrupt(number, run, tiny, 60, *options) == 75
    assert (run / "stopped").exists()
    status = json.loads((run / "status.json").read_text())
    assert status["message"] == f"stopped by {signal.Signals(number).name}"
    saved = checkpoint.read_facts(sorted((run / "checkpoints").glob("*"))[-1])["step"]
    assert status["state"] == "stopped" and status["step"] == saved  # nothing of the work is lost
    assert gantool("train", run).returncode == 0
    assert not (run / "stopped").exists()
    assert_same(whole, run)


def test_truncated_checkpoint_falls_back_to_the_one_before(
    gantool: Gantool, tiny: Path, tmp_path: Path, whole: Path
) -> None:
    options = sets(SETS)
    run = tmp_path / "runs" / whole.name
    assert interrupt(signal.SIGTERM, run, tiny, 120, *options) == 75
    newest = sorted((run / "checkpoints").glob("*"))[-1]
    size = random.randrange(newest.stat().st_size)
    newest.write_bytes(newest.read_bytes()[:size])
    again = gantool("train", run)
    assert again.returncode == 0, (size, again.stderr)
    assert "passed over" in again.stderr and newest.name in again.stderr
    assert_same(whole, run)


def test_five_random_kills_leave_no_gap_and_no_double_in_the_journal(
    gantool: Gantool, tiny: Path, tmp_path: Path, whole: Path
) -> None:
    options = sets((*SETS, "runtime.checkpoint_every=15"))
    run = tmp_path / "runs" / whole.name
    for kill in range(5):
        interrupt(signal.SIGKILL, run, tiny, 20 + 30 * kill + random.randrange(20), *options)
    assert gantool("train", run).returncode == 0
    assert_same(whole, run)


def test_the_time_limit_stops_a_run_like_a_signal(gantool: Gantool, tiny: Path) -> None:
    stopped = gantool("train", tiny, GANTOOL_DEADLINE=str(time.time()))
    assert stopped.returncode == 75 and "stopped by the time limit" in stopped.stderr
    assert gantool("train", tiny).returncode == 0


def test_a_run_whose_last_step_is_done_ends_in_spite_of_the_time_limit(gantool: Gantool, tiny: Path) -> None:
    run = Path(gantool("train", tiny, "--set", "steps=20").stdout.strip())
    (run / "result.json").unlink()
    ended = gantool("train", run, GANTOOL_DEADLINE=str(time.time()))
    assert ended.returncode == 0 and "resuming at step 20 of 20" in ended.stderr
    assert json.loads((run / "result.json").read_text())["step"] == 20
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    # But not where single images are still to be drawn: they would be as many as there was time for.
    (run / "result.json").unlink()
    words = ("--set", "runtime.final_images=8")
    assert gantool("train", run, *words, GANTOOL_DEADLINE=str(time.time())).returncode == 75


def test_a_signal_before_training_leaves_at_once_and_loses_nothing(
    gantool: Gantool, tiny: Path, tmp_path: Path
) -> None:
    process = start("train", tiny)
    wait_for(lambda: list(tmp_path.glob("runs/*/config.yaml")))  # torch is being loaded
    process.send_signal(signal.SIGUSR2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped by SIGUSR2" in err and "Traceback" not in err
    assert gantool("train", tiny).returncode == 0


def test_another_number_of_threads_is_told(gantool: Gantool, done_run: Path) -> None:
    """Its sums may round otherwise."""
    for name in ("result.json", "checkpoints/step-00000040.safetensors", "snapshots/step-00000040.safetensors"):
        (done_run / name).unlink()
    again = gantool("train", done_run, "--set", "runtime.threads=2")
    assert again.returncode == 0 and "resuming at step 30" in again.stderr
    assert "warning: the number of threads was 1, is 2: from here on the bits are others" in again.stderr
