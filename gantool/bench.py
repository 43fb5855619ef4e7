"""`gantool bench`: images per second of the trainer beside a bare loop of the same networks.

The bare loop is what is left when everything but the arithmetic of the two players is taken away: the same networks,
losses, passes and optimizers on random tensors that already lie on the device. Both run in turns, so that a drift of
the machine's speed meets both; the ratio is the median over the pairs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gantool.config.schema import RunConfig
from gantool.data.pack import PackedDataset
from gantool.interrupts import Interrupts
from gantool.models.layers import set_dropout
from gantool.progress import Progress, Silent
from gantool.runs import RunDirectory
from gantool.runtime import Runtime
from gantool.train import Trainer


@dataclass(frozen=True)
class BenchResult:
    """Medians and spreads over the rounds; an image is a real image shown to the discriminator."""

    device: str
    threads: int
    rounds: int
    steps_per_round: int
    images_per_second: float
    images_per_second_min: float
    images_per_second_max: float
    bare_images_per_second: float
    ratio: float  # trainer / bare loop, median over the pairs of rounds
    ratio_min: float
    ratio_max: float


def bench(config: RunConfig, data: PackedDataset, rounds: int, steps: int, progress: Progress) -> BenchResult:
    """Time `rounds` pairs of `steps` steps after one warm-up pair."""
    with tempfile.TemporaryDirectory() as folder:
        settings = config.runtime.model_copy(update={"runs_dir": folder, "trackers": ()})
        config = config.model_copy(update={"runtime": settings})
        runtime = Runtime(settings)
        run = RunDirectory(Path(folder))
        trainer = Trainer(run, config, data, runtime, Interrupts(), Silent(), lambda *_: None)
        pairs = []
        for index in range(rounds + 1):
            pair = (
                _seconds(runtime.device, _trainer_steps(trainer, steps)),
                _seconds(runtime.device, _bare_steps(trainer, steps)),
            )
            pairs.append(pair)
            progress.step("bench", index + 1, rounds + 1)
    images = steps * config.batch * config.n_dis
    ours = [images / seconds for seconds, _ in pairs[1:]]
    ratios = [bare / seconds for seconds, bare in pairs[1:]]
    return BenchResult(
        device=runtime.device.type,
        threads=torch.get_num_threads(),
        rounds=rounds,
        steps_per_round=steps,
        images_per_second=round(statistics.median(ours), 1),
        images_per_second_min=round(min(ours), 1),
        images_per_second_max=round(max(ours), 1),
        bare_images_per_second=round(statistics.median(images / bare for _, bare in pairs[1:]), 1),
        ratio=round(statistics.median(ratios), 3),
        ratio_min=round(min(ratios), 3),
        ratio_max=round(max(ratios), 3),
    )


def _seconds(device: torch.device, work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - began


def _trainer_steps(trainer: Trainer, steps: int) -> Callable[[], None]:
    """The trainer's own loop, with its reports, as `run_to_end` has it; grids, snapshots and checkpoints apart."""

    def work() -> None:
        for _ in range(steps):
            trainer.train_step()
            if trainer.state.step % trainer.every["log"] == 0:
                trainer.report()

    return work


def _bare_steps(trainer: Trainer, steps: int) -> Callable[[], None]:
    config, state, device, players = trainer.config, trainer.state, trainer.runtime.device, trainer.players
    channels, size = config.data.image_channels, config.data.image_size
    real = torch.rand(config.batch, channels, size, size, device=device) * 2 - 1
    real = real.contiguous(memory_format=torch.channels_last)
    batches, latent_dim = players.batches, config.generator.latent_dim
    latents = {player: torch.randn(batch, latent_dim, device=device) for player, batch in batches.items()}
    labels: dict[str, list[torch.Tensor]] = {player: [] for player in batches}
    if config.conditional:
        labels = {p: [torch.zeros(batch, dtype=torch.int64, device=device)] for p, batch in batches.items()}
    generator, discriminator = state.generator, state.discriminator

    rows = torch.arange(4 * max(batches.values()), device=device)
    dropout = bool(getattr(config.discriminator, "dropout", 0))

    def judge(images: torch.Tensor, *classes: torch.Tensor) -> torch.Tensor:
        if dropout:
            set_dropout(discriminator, 1, rows[: len(images)])
        found = discriminator(images, *classes)
        logits: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return logits

    def update(player: str, loss: torch.Tensor) -> None:
        state.optimizers[player].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizers[player].step()

    def update_discriminator() -> None:
        own = labels["discriminator"]
        with torch.no_grad():
            fake = generator(latents["discriminator"], *own)
        if players.one_pass:
            both = judge(torch.cat([real, fake]), *(torch.cat([one, one]) for one in own))
            real_logits, fake_logits = both.chunk(2)
        else:
            real_logits, fake_logits = judge(real, *own), judge(fake, *own)
        update("discriminator", players.loss.discriminator(real_logits, fake_logits))

    def update_generator() -> None:
        own, real_logits = labels["generator"], None
        if players.loss.paired:
            with torch.no_grad():
                real_logits = judge(real, *own)
        logits = judge(generator(latents["generator"], *own), *own)
        update("generator", players.loss.generator(real_logits, logits))

    def work() -> None:
        for _ in range(steps):
            discriminator.requires_grad_(True)
            for _ in range(config.n_dis):
                update_discriminator()
            discriminator.requires_grad_(False)
            update_generator()

    return work
