"""`gantool bench`: how fast the trainer is on this machine, what a step is made of, and how far it is from the limits.

The bare loop is what is left when everything but the arithmetic of the two players is taken away: the same networks,
losses, passes and optimizers on random tensors that already lie on the device, without penalties, augmentation and
losses of classes, whose cost a ratio then shows too. Both run in turns, so that a drift of the machine's speed meets
both; a ratio is the median over the pairs.
"""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gantool.config.schema import RunConfig
from gantool.counts import flop_and_traffic
from gantool.data.pack import PackedDataset, open_packed
from gantool.errors import GantoolError
from gantool.interrupts import Interrupts
from gantool.models.layers import set_dropout
from gantool.progress import Progress, Silent, counted
from gantool.runs import RunDirectory
from gantool.runtime import Runtime, freed_blocks, num_threads, peak_megabytes
from gantool.train import Trainer

_CEILING_SIZE = 2048


@dataclass(frozen=True)
class Measure:
    """Median and range over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, numbers: list[float]) -> Measure:
        """Of at least one number."""
        return cls(statistics.median(numbers), min(numbers), max(numbers))


@dataclass(frozen=True)
class BenchResult:
    """An image is a real image shown to the discriminator; a step is an update of the generator and `n_dis` of the
    discriminator."""

    device: str
    ranks: int
    threads: int
    precision: str
    rounds: int
    steps_per_round: int
    images_per_second: Measure
    steps_per_second: Measure
    against_bare: Measure
    """Speed over that of the bare loop."""
    against_plain: Measure | None
    """Speed over that of the trainer in float32 without rewrites, where it was asked for."""
    shares: dict[str, float]
    """Of the time of a step: data, discriminator, generator, average, report, and the rest."""
    first_step_seconds: float
    """Warming up: apart from all other numbers."""
    peak_megabytes: float
    """Of the device; on a CPU of this process, over what the imports take."""
    flop_per_step: int
    """Of convolutions and matrix products, a multiplication and an addition counting as 2."""
    ceiling_flops: float
    """Reached here by a product of two large matrices in the same arithmetic, a second."""
    traffic_per_step: int
    """Bytes that the operators of a step read and write, each for itself, as if nothing stayed in a cache."""
    ceiling_bytes: float
    """Read and written here by the copy of a large tensor, a second."""

    @property
    def share_of_ceiling(self) -> float:
        """Of the arithmetic that this machine can do, what the trainer does."""
        return self.flop_per_step * self.steps_per_second.median / self.ceiling_flops

    @property
    def floor_seconds(self) -> float:
        """A step at best: its arithmetic or its traffic, whichever takes longer at the machine's ceilings. Where
        tensors stay in a cache, or operators are fused, there is less traffic than is counted here."""
        return max(self.flop_per_step / self.ceiling_flops, self.traffic_per_step / self.ceiling_bytes)

    def table(self) -> list[list[str]]:
        """Lines of name, median and range, for eyes."""
        workers = f"{counted(self.ranks, 'rank')}, {counted(self.threads, 'thread')}"
        rows = [["device", f"{self.device}, {workers}, {self.precision}", ""]]
        measures = {
            "images/s": self.images_per_second,
            "steps/s": self.steps_per_second,
            "speed / bare loop": self.against_bare,
            "speed / plain": self.against_plain,
        }
        for name, found in measures.items():
            if found:
                rows.append([name, f"{found.median:.4g}", f"{found.least:.4g} to {found.most:.4g}"])
        rows += [[f"time in {name}", f"{100 * share:.1f} %", ""] for name, share in self.shares.items()]
        rows.append(["first step", f"{self.first_step_seconds:.2f} s", ""])
        rows.append(["peak memory", f"{self.peak_megabytes:.0f} MB", ""])
        rows.append(["arithmetic of a step", f"{self.flop_per_step / 1e9:.3g} GFLOP", ""])
        of = f"of {self.ceiling_flops / 1e9:.0f} GFLOP/s, a large matrix product"
        rows.append(["arithmetic used", f"{100 * self.share_of_ceiling:.1f} %", of])
        of = f"operators one by one; a large copy does {self.ceiling_bytes / 1e9:.0f} GB/s"
        rows.append(["traffic of a step", f"{self.traffic_per_step / 1e9:.3g} GB", of])
        took = 1 / self.steps_per_second.median
        of = f"the step took {took / self.floor_seconds:.2f} times as long"
        rows.append(["arithmetic or traffic", f"{1000 * self.floor_seconds:.3g} ms", of])
        return rows


def bench(
    config: RunConfig, data: PackedDataset, rounds: int, steps: int, progress: Progress, plain: bool = False
) -> BenchResult:
    """Time `rounds` turns of `steps` steps of each contender, after one turn to warm up; `plain`: also the trainer
    without rewrites in float32. Under several ranks each calls this."""
    before = peak_megabytes(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        settings = config.runtime.model_copy(update={"runs_dir": folder, "trackers": ()})
        config = config.model_copy(update={"runtime": settings})
        runtime = Runtime(settings)
        device = runtime.device
        stack.enter_context(freed_blocks(kept=True, device=device))
        total = rounds + 5  # besides: building, warming up twice, where the time goes, what the machine can do
        progress.step("bench", 0, total)
        trainer = _trainer(config, data, runtime, Path(folder))
        first = _seconds(device, trainer.train_step)
        contenders = {"trainer": _trainer_steps(trainer, steps)}
        _seconds(device, contenders["trainer"])
        progress.step("bench", 2, total)
        peak = peak_megabytes(device) - (before if device.type == "cpu" else 0.0)
        contenders["bare"] = _bare_steps(trainer, steps)
        if plain:
            simple = settings.model_copy(update={"rewrites": False, "cuda_graphs": False})
            other = config.model_copy(update={"runtime": simple, "precision": "float32"})
            contenders["plain"] = _trainer_steps(_trainer(other, data, runtime, Path(folder) / "plain"), steps)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for index in range(rounds + 1):
            for name, work in contenders.items():
                took = _seconds(device, work)
                if index:  # the first turn is for warming up
                    seconds[name].append(took)
            progress.step("bench", index + 3, total)
        shares = _shares(trainer, steps)
        progress.step("bench", total - 1, total)
        flop, traffic = _counts(trainer)
        ceiling, ceiling_bytes = _ceiling(trainer) * runtime.num_ranks, _ceiling_bytes(device) * runtime.num_ranks
        progress.step("bench", total, total)
    ratios = {
        name: Measure.of([other / own for other, own in zip(times, seconds["trainer"], strict=True)])
        for name, times in seconds.items()
    }
    per_second = Measure.of([steps / took for took in seconds["trainer"]])
    images = config.batch * config.n_dis
    return BenchResult(
        device=device.type,
        ranks=runtime.num_ranks,
        threads=torch.get_num_threads(),
        precision=config.precision,
        rounds=rounds,
        steps_per_round=steps,
        images_per_second=Measure(*(images * number for number in _numbers(per_second))),
        steps_per_second=per_second,
        against_bare=ratios["bare"],
        against_plain=ratios.get("plain"),
        shares=shares,
        first_step_seconds=first,
        peak_megabytes=peak,
        flop_per_step=flop * runtime.num_ranks,
        ceiling_flops=ceiling,
        traffic_per_step=traffic * runtime.num_ranks,
        ceiling_bytes=ceiling_bytes,
    )


def bench_packed(config: RunConfig, packed: int, rounds: int, steps: int, progress: Progress) -> tuple[float, float]:
    """Images per second of one process alone, and of `packed` processes together on the same device (medians); see
    `sharing`."""
    return _together(config, 1, rounds, steps, progress), _together(config, packed, rounds, steps, progress)


def sharing(config: RunConfig, number: int) -> RunConfig:
    """The config for one of `number` processes that share the CPU threads, unless it says how many each has."""
    threads = config.runtime.threads or max(1, num_threads(0) // number)
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"threads": threads})})


def _together(config: RunConfig, number: int, rounds: int, steps: int, progress: Progress) -> float:
    config = sharing(config, number)
    context = multiprocessing.get_context("spawn")
    barrier, found, done = context.Barrier(number), context.Queue(), context.Value("i", 0)
    work = functools.partial(_packed_member, config.model_dump(mode="json"), rounds, steps, barrier, found, done)
    total = number * rounds + 1
    members = [context.Process(target=work) for _ in range(number)]
    for member in members:
        member.start()
    try:
        while any(member.is_alive() for member in members) and found.empty():
            if any(member.exitcode for member in members):
                raise GantoolError("one of the packed processes failed", "its message says why")
            progress.step(f"bench of {number}", min(done.value, total - 1), total)
            time.sleep(0.1)
        progress.step(f"bench of {number}", total, total)
        times = [found.get(timeout=60) for _ in members]
    finally:
        for member in members:
            member.join(timeout=5)  # one that waits for another, which has failed, never ends
            member.kill()
    slowest: list[float] = [max(each) for each in zip(*times, strict=True)]  # of each round, which all begin together
    images = number * steps * config.batch * config.n_dis
    return images / statistics.median(slowest)


def _packed_member(plain: dict[str, Any], rounds: int, steps: int, barrier: Any, found: Any, done: Any) -> None:
    config = RunConfig.model_validate(plain)
    data = open_packed(config.data, Path(config.runtime.data_dir))
    runtime = Runtime(config.runtime)
    with tempfile.TemporaryDirectory() as folder, freed_blocks(kept=True, device=runtime.device):
        work = _trainer_steps(_trainer(config, data, runtime, Path(folder)), steps)
        _seconds(runtime.device, work)
        times = []
        for _ in range(rounds):
            barrier.wait()
            times.append(_seconds(runtime.device, work))
            with done.get_lock():
                done.value += 1
        found.put(times)


def _trainer(config: RunConfig, data: PackedDataset, runtime: Runtime, folder: Path) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(RunDirectory(folder), config, data, runtime, Interrupts(), Silent(), lambda *_: None)


def _numbers(measure: Measure) -> Iterator[float]:
    yield from (measure.median, measure.least, measure.most)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    _wait_for(device)
    began = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _shares(trainer: Trainer, steps: int) -> dict[str, float]:
    """Where the time goes: the parts are timed one by one, the device being waited for after each."""
    players, device = trainer.players, trainer.runtime.device
    spent = dict.fromkeys(("data", "discriminator", "generator", "ranks", "average", "report"), 0.0)
    parts: list[tuple[Any, str, str]] = [
        (players.real, "batch", "data"),
        (players.real_of_generator, "batch", "data"),
        (players, "update_discriminator", "discriminator"),
        (players, "update_generator", "generator"),
        (trainer.runtime, "average", "ranks"),
        (trainer.state, "update_ema", "average"),
        (trainer, "report", "report"),
    ]
    inside = [0.0]  # data is fetched, and gradients are averaged over the ranks, within the updates

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            found: list[Any] = []
            already = inside[0]
            took = _seconds(device, lambda: found.append(function(*arguments)))
            spent[name] += took - (inside[0] - already)
            if name in ("data", "ranks"):
                inside[0] += took
            return found[0]

        return call

    for owner, method, name in parts:
        setattr(owner, method, timed(getattr(owner, method), name))
    try:
        whole = _seconds(device, _trainer_steps(trainer, steps))
    finally:
        for owner, method, _ in parts:
            delattr(owner, method)
    return {name: took / whole for name, took in spent.items()} | {"the rest": 1 - sum(spent.values()) / whole}


def _counts(trainer: Trainer) -> tuple[int, int]:
    """Floating point operations, and bytes of traffic, of a step; on average where a penalty is not in each update."""
    interval, updates = getattr(trainer.config.penalty, "interval", 1), trainer.config.n_dis
    period = interval // math.gcd(interval, updates)  # in steps
    first = -(-trainer.state.step // period) * period
    penalties = [sum((step * updates + update) % interval == 0 for update in range(updates)) for step in range(period)]
    least, most = (penalties.index(number) for number in (min(penalties), max(penalties)))

    def counted(step: int) -> tuple[int, int]:
        trainer.state.step = step
        return flop_and_traffic(trainer.train_step)

    with trainer.players.graphs.off():
        with_least = counted(first + least)
        if least == most:
            return with_least
        with_most = counted(first + period + most)
    share = (updates / interval - penalties[least]) / (penalties[most] - penalties[least])
    flop, traffic = (round(a + share * (b - a)) for a, b in zip(with_least, with_most, strict=True))
    return flop, traffic


def _ceiling(trainer: Trainer) -> float:
    """Floating point operations a second of a large product of matrices, the best of some."""
    device = trainer.runtime.device
    kind = torch.bfloat16 if trainer.config.precision == "bfloat16" else torch.float32
    size = _CEILING_SIZE * (4 if device.type == "cuda" else 1)
    a, b = (torch.rand(size, size, device=device, dtype=kind) for _ in range(2))
    with trainer.players.arithmetic():
        best = min(_seconds(device, lambda: a @ b) for _ in range(8))
    return float(2 * size**3) / best


def _ceiling_bytes(device: torch.device) -> float:
    """Bytes a second of the copy of a large tensor, read and written, the best of some."""
    one = torch.zeros(2**26 * (4 if device.type == "cuda" else 1), device=device)
    other = torch.empty_like(one)
    best = min(_seconds(device, lambda: other.copy_(one)) for _ in range(8))
    return 2.0 * one.nbytes / best


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
    share = config.batch // trainer.runtime.num_ranks
    real = torch.rand(share, channels, size, size, device=device) * 2 - 1
    real = real.contiguous(memory_format=torch.channels_last)
    latent_dim = config.generator.latent_dim
    batches = {player: batch // trainer.runtime.num_ranks for player, batch in players.batches.items()}
    latents = {player: torch.randn(batch, latent_dim, device=device) for player, batch in batches.items()}
    labels: dict[str, torch.Tensor | None] = dict.fromkeys(batches)
    if config.conditional:
        labels = {p: torch.zeros(batch, dtype=torch.int64, device=device) for p, batch in batches.items()}
    generator, discriminator = state.generator, state.discriminator

    rows = torch.arange(4 * max(batches.values()), device=device)
    dropout = bool(getattr(config.discriminator, "dropout", 0))

    def judge(images: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        if dropout:
            set_dropout(discriminator, 1, rows[: len(images)])
        found = players.call(discriminator, images, classes)
        logits: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return logits

    def update(player: str, loss: torch.Tensor) -> None:
        state.optimizers[player].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizers[player].step()

    kept: list[torch.Tensor] = []

    def update_discriminator(keep: bool) -> None:
        own = labels["discriminator"]
        with torch.set_grad_enabled(keep):
            made = players.call(generator, latents["discriminator"], own)
        kept.extend([made] if keep else [])
        fake = made.detach()
        if players.one_pass:
            both = judge(torch.cat([real, fake]), None if own is None else torch.cat([own, own]))
            real_logits, fake_logits = both.chunk(2)
        else:
            real_logits, fake_logits = judge(real, own), judge(fake, own)
        update("discriminator", players.loss.discriminator(real_logits, fake_logits))

    def update_generator() -> None:
        own, real_logits = labels["generator"], None
        if players.loss.paired:
            with torch.no_grad():
                real_logits = judge(real, own)
        logits = judge(kept.pop() if kept else players.call(generator, latents["generator"], own), own)
        update("generator", players.loss.generator(real_logits, logits))

    def work() -> None:
        with players.arithmetic():
            for _ in range(steps):
                discriminator.requires_grad_(True)
                for update in range(config.n_dis):
                    update_discriminator(config.reuse_fakes and update == config.n_dis - 1)
                discriminator.requires_grad_(False)
                update_generator()

    return work
