"""One step of the game: which images, labels, noise and augmentation each player sees, and what its update is.

All that is random comes from (seed, what for, step), drawn for the whole batch; a rank takes its rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gantool import losses, precision, randomness
from gantool.config.base import Ramp, value_at
from gantool.config.objective import AdaAugment, DiffAugment, GradientPenalty, R1Penalty, R1R2Penalty, R2Penalty
from gantool.config.schema import RunConfig
from gantool.data import ada, diffaugment
from gantool.data.loader import RealImages, to_device
from gantool.graphs import Graphs
from gantool.models.layers import Dropout, dropout_starts, iterate_spectral_norms, set_dropout
from gantool.models.resampling import rewritten
from gantool.penalties import Side, gradient_penalty, zero_centred_penalty
from gantool.precision import float32_products
from gantool.runtime import Runtime
from gantool.state import State

SCALARS = ("loss_d", "loss_g", "penalty", "logit_real", "logit_fake", "accuracy_real", "accuracy_fake")
"""The numbers of a step, in the order of `State.pending`: losses, mean logits, share of right decisions."""


class Players:
    """The updates of both players at the step of `state`.

    `steps_of` turns the length of a ramp into steps; `labels` are those of the real images, int64 [N].
    """

    def __init__(
        self,
        config: RunConfig,
        state: State,
        real: RealImages,
        labels: np.ndarray,
        num_classes: int,
        runtime: Runtime,
        steps_of: Callable[[int | str], int],
        graphs: Graphs | None = None,
    ) -> None:
        self.config, self.state, self.runtime, self.steps_of = config, state, runtime, steps_of
        self.real, self.real_of_generator = real, real.in_other_order("_g")
        self.labels, self.num_classes = labels, num_classes
        self.loss = losses.build_loss(config.loss)
        # Batch statistics of real and fake images must not mix; else one pass over both is the same and cheaper.
        self.one_pass = not config.discriminator.batch_statistics
        networks = {"discriminator": state.discriminator, "generator": state.generator}
        # Listed once: going through a network for them takes a part of the time of a small step.
        self.parameters = {player: list(network.parameters()) for player, network in networks.items()}
        self.trainable = [p for p in self.parameters["discriminator"] if p.requires_grad]
        self.has_dropout = any(isinstance(module, Dropout) for module in state.discriminator.modules())
        condition = getattr(config.discriminator, "condition", None)
        self.class_weights = (getattr(condition, "weight", 0.0), getattr(condition, "generator_weight", 0.0))
        self._kept: tuple[Tensor, Tensor | None] | None = None  # what the generator made for the discriminator, labels
        self.update = 0  # of the discriminator, within the step
        self.graphs = graphs or Graphs(None)
        self.batches = {"discriminator": config.batch, "generator": config.generator_batch or config.batch}

    def step(self) -> Tensor:
        """`n_dis` updates of the discriminator and one of the generator; the step's numbers, float32 [len(SCALARS)]."""
        with self.arithmetic():
            sums = torch.zeros(len(SCALARS), device=self.runtime.device)
            for update in range(self.config.n_dis):
                sums += self.update_discriminator(update)
            numbers = sums / self.config.n_dis
            numbers[SCALARS.index("loss_g")] = self.update_generator()
            return numbers

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """How products and layers are computed, as the config has it."""
        tf32 = self.config.precision != "float32" and self.runtime.device.type == "cuda"
        with float32_products(tf32), rewritten(self.config.runtime.rewrites):
            yield

    def call(self, network: nn.Module, inputs: Tensor, labels: Tensor | None) -> Any:
        """What a network makes of its inputs in the arithmetic of the config, float32."""
        return precision.call(network, inputs, labels, self.config.precision == "bfloat16")

    def update_discriminator(self, update: int) -> Tensor:
        """One update of the discriminator; its numbers, float32 [len(SCALARS)] on the device."""
        self.update, ada = update, self.state.ada
        if ada is not None and isinstance(ada.settings.p, Ramp):
            ada.state[0] = self.value(ada.settings.p)
        penalised = self.turn % getattr(self.config.penalty, "interval", 1) == 0
        numbers, gradients = self.graphs.run(("discriminator", penalised), self._discriminator_gradients)
        self.descend("discriminator", gradients)
        return numbers

    @property
    def turn(self) -> int:
        """The number of the discriminator's update since the first step."""
        return self.state.step * self.config.n_dis + self.update

    def _discriminator_gradients(self) -> tuple[Tensor, list[Tensor | None]]:
        """The numbers and gradients of the discriminator's update."""
        state, pair, take = self.state, self.loss, self.graphs.take
        real, labels = take(lambda: self.real.batch(self.turn)), take(lambda: self.labels_of(self.real, self.turn))
        fake_labels = labels
        if not pair.paired:
            fake_labels = take(lambda: self.random_labels("discriminator", state.step, self.update))
        self._train_discriminator(True)
        latents = take(lambda: self.latents("discriminator", state.step, self.update))
        if self.config.reuse_fakes and self.update == self.config.n_dis - 1:
            iterate_spectral_norms(state.generator)
            with parametrize.cached():
                self._kept = self.call(state.generator, latents, fake_labels), fake_labels
            fake = self._kept[0].detach()
        else:
            with torch.no_grad(), parametrize.cached():
                fake = self.call(state.generator, latents, fake_labels)
        iterate_spectral_norms(state.discriminator)
        look = Look(self, "discriminator")
        # The normalised weights are computed once and shared by all passes of the update.
        with parametrize.cached():
            if self.one_pass:
                logits, classes = look.both(real, labels, fake, fake_labels)
                real_logits, fake_logits = logits.chunk(2)
            else:
                (real_logits, classes), (fake_logits, _) = look.real(real, labels), look.fake(fake, fake_labels)
            loss = pair.discriminator(real_logits, fake_logits)
            if classes is not None and labels is not None:
                loss = loss + self.class_weights[0] * F.cross_entropy(classes[: len(real)], labels)
            extra = self.penalty(look, real, labels, fake, fake_labels)
            if state.lecam is not None:
                means = torch.stack([real_logits.detach().mean(), fake_logits.detach().mean()])
                self.runtime.average([means])
                extra = state.lecam.penalty(real_logits, fake_logits, means)
            gradients = self._gradients("discriminator", loss + extra)
        with torch.no_grad():
            if state.ada is not None and pair.boundary is not None:
                sign = (real_logits - pair.boundary).sign().mean()
                self.runtime.average([sign])
                state.ada.observe(sign)
            right = losses.accuracies(pair, real_logits, fake_logits)
            numbers = [loss, loss.new_zeros(()), extra, real_logits.mean(), fake_logits.mean(), *right]
            return torch.stack([number.detach().float() for number in numbers]), gradients

    def update_generator(self) -> Tensor:
        """One update of the generator; its loss."""
        loss, gradients = self.graphs.run("generator", self._generator_gradients)
        self.descend("generator", gradients)
        return loss

    def _generator_gradients(self) -> tuple[Tensor, list[Tensor | None]]:
        """The loss and gradients of the generator's update."""
        state, take = self.state, self.graphs.take
        self._train_discriminator(False)
        kept, self._kept = self._kept, None
        if kept is None:
            iterate_spectral_norms(state.generator)
        look = Look(self, "generator")
        real_logits = None
        with parametrize.cached():
            if kept is not None:
                fake, labels = kept
            else:
                if self.loss.paired:
                    labels = take(lambda: self.labels_of(self.real_of_generator, state.step))
                else:
                    labels = take(lambda: self.random_labels("generator", state.step))
                fake = self.call(state.generator, take(lambda: self.latents("generator", state.step)), labels)
            if self.loss.paired:
                real = take(lambda: self.real_of_generator.batch(state.step))
                with torch.no_grad():
                    real_logits, _ = look.real(real, labels)
            fake_logits, classes = look.fake(fake, labels)
            loss = self.loss.generator(real_logits, fake_logits)
            if classes is not None and labels is not None:
                loss = loss + self.class_weights[1] * F.cross_entropy(classes, labels)
            return loss.detach(), self._gradients("generator", loss)

    def _train_discriminator(self, wanted: bool) -> None:
        """Let gradients reach the discriminator's weights, or not; what a network of the user's own froze stays so."""
        for parameter in self.trainable:
            parameter.requires_grad_(wanted)

    def _gradients(self, player: str, loss: Tensor) -> list[Tensor | None]:
        """Of `loss` with respect to each parameter of `player`."""
        self.state.optimizers[player].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return [parameter.grad for parameter in self.parameters[player]]

    def descend(self, player: str, gradients: list[Tensor | None]) -> None:
        """Update `player` by its optimizer, with gradients averaged over the ranks."""
        optimizer = self.state.optimizers[player]
        for parameter, gradient in zip(self.parameters[player], gradients, strict=True):
            parameter.grad = gradient
        self.runtime.average([gradient for gradient in gradients if gradient is not None])
        settings = getattr(self.config.optimizer, player)
        for group in optimizer.param_groups:
            if isinstance(settings.lr, Ramp):
                group["lr"] = self.value(settings.lr)
            if isinstance(getattr(settings, "beta2", None), Ramp):
                group["betas"] = (settings.beta1, self.value(settings.beta2))
        optimizer.step()

    def value(self, scheduled: float | Ramp) -> float:
        """A number of the config at this step."""
        over = scheduled.over if isinstance(scheduled, Ramp) and scheduled.over is not None else self.config.steps
        return value_at(scheduled, self.state.step, self.steps_of(over))

    def latents(self, player: str, *counters: int) -> Tensor:
        """This rank's latent vectors for an update of `player`: float32 [batch / ranks, latent_dim], N(0, 1)."""
        draw = randomness.generator(self.config.seed, f"noise_{player[0]}", *counters).standard_normal
        return self.share(draw((self.batches[player], self.config.generator.latent_dim), dtype=np.float32))

    def random_labels(self, player: str, *counters: int) -> Tensor | None:
        """This rank's classes for generated images, int64 [batch / ranks], uniform; None for unconditional networks."""
        if not self.config.conditional:
            return None
        rng = randomness.generator(self.config.seed, f"labels_{player[0]}", *counters)
        return self.share(rng.integers(self.num_classes, size=self.batches[player]))

    def labels_of(self, images: RealImages, draw: int) -> Tensor | None:
        """Classes of this rank's real images of a draw, int64 [batch / ranks]; None for unconditional networks."""
        if not self.config.conditional:
            return None
        return to_device(self.labels[images.indices(draw)], self.runtime.device)

    def share(self, values: np.ndarray) -> Tensor:
        """This rank's rows of values drawn for the whole batch, on the device."""
        return to_device(values[self.rows(len(values))], self.runtime.device)

    def rows(self, batch: int) -> slice:
        """This rank's rows of a batch."""
        share = batch // self.runtime.num_ranks
        return slice(self.runtime.rank * share, (self.runtime.rank + 1) * share)

    def penalty(
        self, look: Look, real: Tensor, labels: Tensor | None, fake: Tensor, fake_labels: Tensor | None
    ) -> Tensor:
        """The weighted gradient penalty of the discriminator's update; 0 where there is none."""
        settings = self.config.penalty
        if isinstance(settings, GradientPenalty):
            mix = self.graphs.take(self._mix)
            return gradient_penalty(settings.weight, lambda x: look.mixed(x, labels)[0], real, fake, mix)
        if isinstance(settings, (R1Penalty, R2Penalty, R1R2Penalty)):
            sides = Side(lambda x: look.real(x, labels)[0], real), Side(lambda x: look.fake(x, fake_labels)[0], fake)
            weight: float | Tensor = self.value(settings.weight)
            if isinstance(settings.weight, Ramp) and self.graphs.wanted:
                weight = self.graphs.take(lambda: self._on_device(self.value(settings.weight)))
            return zero_centred_penalty(settings, weight, self.turn, *sides)
        return real.new_zeros(())

    def _mix(self) -> Tensor:
        """Shares of real images in those between real and generated ones, float32 [batch / ranks] in [0, 1)."""
        draw = randomness.generator(self.config.seed, "mix", self.turn).random
        return self.share(draw(self.config.batch, dtype=np.float32))

    def _on_device(self, number: float) -> Tensor:
        return to_device(torch.tensor(number, dtype=torch.float64), self.runtime.device)


class Look:
    """How the discriminator sees images in one update: with the augmentation and dropout of that update."""

    def __init__(self, players: Players, player: str) -> None:
        self.players, self.player = players, player
        self.network = players.state.discriminator
        self.starts: Tensor = players.graphs.take(self._dropout_starts) if players.has_dropout else torch.empty(0)

    @property
    def turn(self) -> int:
        """The number of the player's update."""
        return self.players.turn if self.player == "discriminator" else self.players.state.step

    def real(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(logits [B], class logits or None) of real images."""
        return self._judge(self._change(images, "real"), labels, self._rows(0, len(images)))

    def fake(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same of generated images."""
        return self._judge(self._change(images, "fake"), labels, self._rows(1, len(images)))

    def mixed(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same of images between real and generated ones."""
        return self._judge(self._change(images, "mixed"), labels, self._rows(2, len(images)))

    def both(
        self, real: Tensor, labels: Tensor | None, fake: Tensor, fake_labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """`real` and `fake` in one pass."""
        images = torch.cat([self._change(real, "real"), self._change(fake, "fake")])
        joined = None if labels is None or fake_labels is None else torch.cat([labels, fake_labels])
        return self._judge(images, joined, torch.cat([self._rows(0, len(real)), self._rows(1, len(fake))]))

    def _judge(self, images: Tensor, labels: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.players.has_dropout:
            set_dropout(self.network, self.starts, rows)
        found = self.players.call(self.network, images, labels)
        return found if isinstance(found, tuple) else (found, None)

    def _dropout_starts(self) -> Tensor:
        rng = randomness.generator(self.players.config.seed, f"dropout_{self.player[0]}", self.turn)
        return to_device(dropout_starts(self.network, int(rng.integers(2**63))), self.players.runtime.device)

    def _rows(self, part: int, share: int) -> Tensor:
        """Numbers of a rank's images that no other image of the update has."""
        runtime = self.players.runtime
        first = (part * runtime.num_ranks + runtime.rank) * share
        return torch.arange(first, first + share, device=runtime.device)

    def _change(self, images: Tensor, part: str) -> Tensor:
        """What DiffAugment or ADA make of images, float [B, C, H, W]."""
        settings, players = self.players.config.augment, self.players
        if not isinstance(settings, (DiffAugment, AdaAugment)):
            return images
        module = diffaugment if isinstance(settings, DiffAugment) else ada
        size = len(images) * players.runtime.num_ranks, module.NUM_DRAWS

        def draw() -> Tensor:
            rng = randomness.generator(players.config.seed, f"{settings.kind}_{self.player[0]}_{part}", self.turn)
            return players.share(rng.random(size, dtype=np.float32))

        draws = players.graphs.take(draw)
        if isinstance(settings, DiffAugment):
            return diffaugment.diffaugment(settings.policy, images, draws)
        assert players.state.ada is not None
        return players.state.ada.augment(images, draws)
