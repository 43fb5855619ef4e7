"""Several processes give the numbers of one, at equal global batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Gantool, start
from test_resume import PRODUCTS, REWRITES, WINOGRAD, journal_step, sets, train_whole, wait_for

from gantool import checkpoint

NORM_FREE = ("generator.norm=none", "discriminator.norm=none", "steps=20", "augment=advanced", "penalty=gp", "n_dis=2")
BATCH_NORM = ("generator.norm=batch", "discriminator.norm=batch", "steps=20", "augment=basic")
# Dropout, ADA's p, LeCam's averages, labels and the generator's own batch are those of the global batch too.
CONDITIONAL = (
    "generator={kind: conv, latent_dim: 8, width: 4, max_width: 8, norm: none, condition: concat}",
    "discriminator={kind: conv, width: 4, max_width: 8, norm: none, dropout: 0.3, condition: projection}",
    "augment={kind: ada, target: 0.0, kimg: 0.2, interval: 2}",
    "penalty=lecam",
    "generator_batch=12",
    "steps=20",
)
MLP = (
    "generator={kind: mlp, latent_dim: 8, widths: [16], condition: concat}",
    "discriminator={kind: mlp, widths: [16], condition: acgan}",
    "augment=diffaugment",
    "steps=20",
)
CASES = {
    "norm-free": (NORM_FREE, 1e-5),
    "batch": (BATCH_NORM, 1e-4),
    "conditional": (CONDITIONAL, 1e-5),
    "mlp": (MLP, 1e-4),
    "rewrites": ((*REWRITES, "steps=20"), 1e-5),
    "products": ((*PRODUCTS, "steps=20"), 1e-2),
    "winograd": ((*WINOGRAD, "batch=64", "steps=8"), 1e-3),
    "reused": (("reuse_fakes=true", "generator.norm=none", "discriminator.norm=none", "steps=20"), 1e-5),
}


def test_stdout_is_for_results_whatever_libraries_write_to_it(gantool: Gantool, tiny: Path, tmp_path: Path) -> None:
    """Gloo in torch 2.10, and NCCL if asked, tell of their connections on file descriptor 1."""
    lines = (
        "import os",
        "os.write(1, b'connected to 1 peer\\n')",
        "def discriminator(real, fake): return (fake - real).mean()",
    )
    (tmp_path / "loss.py").write_text("\n".join([*lines, "def generator(real, fake): return -fake.mean()\n"]))
    loss = f"loss={{kind: custom, file: {tmp_path / 'loss.py'}}}"
    done = gantool("train", tiny, "--nproc", 2, "--set", "steps=2", "--set", loss)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.removesuffix("\n")).is_dir()
    assert done.stderr.count("connected to 1 peer") >= 2


@pytest.mark.parametrize(("options", "tolerance"), CASES.values(), ids=CASES)
def test_two_ranks_equal_one(
    options: tuple[str, ...], tolerance: float, gantool: Gantool, tiny: Path, tmp_path: Path
) -> None:
    # A large eps keeps Adam from blowing rounding up where a gradient is all but zero.
    words = sets(("optimizer.generator.eps=1e-3", "optimizer.discriminator.eps=1e-3", *options))
    one = train_whole(gantool, tiny, *words, "--set", f"runtime.runs_dir={tmp_path / 'one'}")
    two = train_whole(gantool, tiny, *words, "--nproc", "2")
    assert one.name == two.name
    a, _ = checkpoint.load(sorted((one / "snapshots").glob("*"))[-1])
    b, _ = checkpoint.load(sorted((two / "snapshots").glob("*"))[-1])
    for name in a:
        torch.testing.assert_close(a[name].float(), b[name].float(), atol=tolerance, rtol=tolerance)
    rows = [[json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()] for run in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for left, right in zip(*rows, strict=True):
        assert left["loss_d"] == pytest.approx(right["loss_d"], abs=10 * tolerance)
        assert left["accuracy_real"] == pytest.approx(right["accuracy_real"], abs=1e-6)


def test_ranks_agree_on_a_step_when_one_gets_the_signal(gantool: Gantool, tiny: Path, tmp_path: Path) -> None:
    process = start("train", tiny, "--nproc", "2", *sets(("steps=100000",)))
    run = next(iter_run(tmp_path / "runs"))
    wait_for(lambda: journal_step(run) > 0)
    ranks = children_of(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGUSR2)
    process.communicate(timeout=120)
    assert process.returncode == 75
    status = json.loads((run / "status.json").read_text())
    facts = checkpoint.read_facts(sorted((run / "checkpoints").glob("*"))[-1])
    assert status["state"] == "stopped" and facts["step"] == status["step"]


def test_ranks_of_a_torchrun_that_dies_save_and_leave(tiny: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "gantool", "train", tiny, *sets(("steps=100000",))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([*torchrun, *map(str, words)], stdout=said, stderr=said)
    run = next(iter_run(tmp_path / "runs"))
    wait_for(lambda: journal_step(run) > 0)
    ranks = children_of(process.pid)
    process.send_signal(signal.SIGUSR2)  # which it does not know
    assert len(ranks) == 2 and process.wait(timeout=120) == -signal.SIGUSR2
    wait_for(lambda: not any(map(alive, ranks)))
    status = json.loads((run / "status.json").read_text())
    facts = checkpoint.read_facts(sorted((run / "checkpoints").glob("*"))[-1])
    assert status["state"] == "stopped" and facts["step"] == status["step"]


OF_ITS_OWN = """\
import os
import torch
from torch import nn


class Generator(nn.Sequential):
    def __init__(self, size, channels, num_classes, latent_dim):
        last = nn.Linear(latent_dim, channels * size * size)
        torch.nn.init.constant_(last.bias, float(os.environ.get("RANK", "0")) / 1000)
        super().__init__(last, nn.Tanh(), nn.Unflatten(1, (channels, size, size)))
"""


def test_ranks_whose_weights_differ_are_told(gantool: Gantool, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OF_ITS_OWN)
    words = sets((f"generator={{kind: custom, file: {tmp_path / 'own.py'}, latent_dim: 8}}",))
    done = gantool("train", tiny, *words, "--nproc", "2")
    assert done.returncode == 1
    assert "the processes have different weights at step 10" in done.stderr  # the first checkpoint
    run = next(iter_run(tmp_path / "runs"))
    assert not list((run / "checkpoints").glob("*"))


def iter_run(folder: Path):  # type: ignore[no-untyped-def]
    while True:
        found = [path for path in folder.glob("*") if path.is_dir()]
        if found:
            yield found[0]
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody asks after."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children, oldest first."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_a_batch_that_ranks_cannot_share_is_refused_before_torch(gantool: Gantool, tiny: Path) -> None:
    refused = gantool("train", tiny, "--nproc", "3")
    assert refused.returncode == 2
    assert "batch: found 8, which 3 processes cannot share equally" in refused.stderr
    assert "set batch to 6 or 9" in refused.stderr
