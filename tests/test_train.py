"""Training runs as a user sees them: files, states, refusals; and the averaged generator against its formula."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from conftest import Gantool, start
from PIL import Image
from test_resume import journal_step, sets, wait_for

from gantool import checkpoint
from gantool.config.schema import EmaConfig, RunConfig
from gantool.state import State


def test_a_run_leaves_the_files_it_promises(gantool: Gantool, tiny: Path) -> None:
    done = gantool("train", tiny)
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.strip())  # stdout is the run directory, nothing else
    assert done.stdout == f"{run}\n"
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml", "run.json", "status.json", "journal.jsonl", "log.txt", "result.json", "curves.png",
        "checkpoints/step-00000030.safetensors", "checkpoints/step-00000040.safetensors",
        "snapshots/step-00000020.safetensors", "snapshots/step-00000040.safetensors",
        "samples/step-00000000.png", "samples/step-00000040.png",
    }  # fmt: skip
    assert not {name for name in names if "tmp" in name or name in ("stopped", "cancelled")}
    assert len(list((run / "checkpoints").iterdir())) == 2
    rows = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 41, 5))
    assert all(0 <= row["accuracy_real"] <= 1 and row["loss_d"] > 0 for row in rows)
    assert Image.open(run / "samples/step-00000040.png").size == (2 * 10 + 2, 2 * 10 + 2)
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    identity = json.loads((run / "run.json").read_text())
    assert identity["data"]["title"] == "shapes" and identity["versions"]["torch"] == torch.__version__
    again = gantool("train", tiny)
    assert (again.returncode, again.stdout) == (0, done.stdout) and "done already" in again.stderr


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_last_good_snapshot(gantool: Gantool, tiny: Path) -> None:
    # Adam with an enormous rate: the first steps are finite, then the logits overflow.
    words = sets(
        ("optimizer.discriminator.lr=1e30", "loss=hinge", "discriminator.norm=none", "runtime.snapshot_every=1")
    )
    diverged = gantool("train", tiny, *words)
    assert diverged.returncode == 1
    assert "NaN or infinite" in diverged.stderr and "lower the learning rates" in diverged.stderr
    assert "Traceback" not in diverged.stderr
    (run,) = (tiny.parent / "runs").iterdir()
    assert json.loads((run / "status.json").read_text())["state"] == "diverged"
    assert not (run / "result.json").exists()
    for path in (run / "snapshots").glob("*"):
        tensors, _ = checkpoint.load(path)
        assert all(torch.isfinite(value).all() for value in tensors.values())
    for line in (run / "journal.jsonl").read_text().splitlines():
        assert "NaN" not in line and "Infinity" not in line


def test_a_signal_while_scoring_is_no_failure(gantool: Gantool, tiny: Path, tmp_path: Path) -> None:
    # Scoring 100,000 images takes long enough to be interrupted; the state must say "go on", not "failed".
    words = sets(("steps=5", "eval={num: 100000}"))
    process = start("train", tiny, *words)
    wait_for(lambda: list(tmp_path.glob("runs/*/snapshots/step-00000005.safetensors")) or process.poll() is not None)
    (run,) = (tmp_path / "runs").iterdir()
    wait_for(lambda: json.loads((run / "status.json").read_text())["message"] == "scoring")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped by SIGTERM" in err
    assert json.loads(gantool("status", run, "-f", "json").stdout)[0]["state"] == "stopped"
    assert gantool("train", run, *sets(("eval={num: 50}",))).returncode == 0
    assert json.loads((run / "result.json").read_text())["step"] == 5


def test_a_second_process_is_sent_away_and_the_first_is_unharmed(gantool: Gantool, tiny: Path) -> None:
    words = sets(("steps=100000",))
    first = start("train", tiny, *words)
    wait_for(lambda: list(tiny.parent.glob("runs/*/journal.jsonl")))
    second = gantool("train", tiny, *words)
    assert second.returncode == 1 and "another process is training this run" in second.stderr
    assert str(first.pid) in second.stderr
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode == 75


def test_changed_data_is_refused_on_resume(gantool: Gantool, tiny: Path, tmp_path: Path) -> None:
    process = start("train", tiny, *sets(("steps=100000",)))
    (run,) = wait_for_run(tmp_path / "runs")
    wait_for(lambda: journal_step(run) > 20)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    newest = sorted((run / "checkpoints").glob("*"))[-1]
    tensors, facts = checkpoint.load(newest)
    facts.pop("digest")
    checkpoint.save(newest, tensors, {**facts, "data": "0" * 64})
    refused = gantool("train", run)
    assert refused.returncode == 1 and "the data is not the one the checkpoint was made with" in refused.stderr


def wait_for_run(folder: Path) -> list[Path]:
    wait_for(lambda: list(folder.glob("*/journal.jsonl")))
    return [path.parent for path in folder.glob("*/journal.jsonl")]


def test_an_existing_run_keeps_its_numbers(gantool: Gantool, tiny: Path) -> None:
    run = gantool("train", tiny).stdout.strip()
    refused = gantool("train", run, "--set", "batch=16")
    assert refused.returncode == 2 and "--set changes the numbers of an existing run" in refused.stderr


def test_a_cancelled_run_does_not_start(gantool: Gantool, tiny: Path) -> None:
    run = Path(gantool("train", tiny, "--set", "steps=1").stdout.strip())
    (run / "cancelled").write_text("")
    (run / "result.json").unlink()
    refused = gantool("train", run)
    assert refused.returncode == 1 and "was cancelled" in refused.stderr and "cancelled" in refused.stderr


def test_epochs_and_kimg_are_steps_of_the_dataset(gantool: Gantool, tiny: Path) -> None:
    # 10,000 images of `shapes`, 500 a step: 0.2 epochs are 4 steps, 3 kimg are 6.
    for duration, steps in (("0.2 epochs", 4), ("3 kimg", 6)):
        words = sets((f"steps={duration}", "batch=250", "n_dis=2"))
        run = Path(gantool("train", tiny, *words).stdout.strip())
        assert json.loads((run / "result.json").read_text())["step"] == steps


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_is_the_weighted_sum_of_all_past_weights(warmup: bool) -> None:
    config = RunConfig.model_validate(
        {"data": {"size": 8}, "generator": {"width": 2, "latent_dim": 3}, "discriminator": {"width": 2}}
    )
    state = State(config.model_copy(update={"ema": EmaConfig(decay=0.7, warmup=warmup)}), torch.device("cpu"))
    name = "linear.weight"
    expected = state.generator.state_dict()[name].clone()
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in state.generator.parameters():
                parameter += torch.randn_like(parameter)
            state.generator.get_buffer("body.0.running_mean").add_(1.0)
        state.step = step
        state.update_ema()
        decay = min(0.7, (1 + step) / (10 + step)) if warmup else 0.7
        expected = decay * expected + (1 - decay) * state.generator.state_dict()[name]
    torch.testing.assert_close(state.ema.state_dict()[name], expected)
    running = state.ema.get_buffer("body.0.running_mean")
    assert (running > 0).all() and (running < 5).all()  # averaged like the weights, not copied


def test_a_state_comes_back_from_its_tensors() -> None:
    config = RunConfig.model_validate({"data": {"size": 8}, "generator": {"width": 2}, "discriminator": {"width": 2}})
    first, second = (
        State(config, torch.device("cpu")),
        State(config.model_copy(update={"seed": 9}), torch.device("cpu")),
    )
    for optimizer, network in ((first.optimizers["generator"], first.generator),):
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    first.pending = [torch.arange(7.0)]
    tensors = {name: value.detach().contiguous() for name, value in first.tensors().items()}
    second.load(tensors, 12)
    assert second.step == 12
    assert second.tensors().keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in second.tensors().items())
    moments = second.optimizers["generator"].state_dict()["state"]
    parameters = list(second.generator.parameters())
    assert all(moments[i]["exp_avg"].stride() == p.stride() for i, p in enumerate(parameters))
