"""Settings of what the players play: losses, penalties, optimizers, augmentation, averaging."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gantool.config.base import Model, Positive, Scheduled, Share, kind
from gantool.config.custom import CustomLossFile

Decay = Annotated[float, Field(ge=0, lt=1)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


class BceLoss(Model):
    """Binary cross-entropy on logits (Goodfellow et al., 2014)."""

    kind: Literal["bce"] = "bce"
    saturating: bool = False
    """The generator minimises log(1 - D(G(z))), the game's own value, instead of -log D(G(z))."""
    smoothing: Smoothing = 0.0
    """One-sided label smoothing: the target of real images is 1 - smoothing (Salimans et al., 2016)."""


class LeastSquaresLoss(Model):
    """Least squares with the targets 0 for generated and 1 for real (Mao et al., 2017, eq. 9)."""

    kind: Literal["least_squares"] = "least_squares"
    smoothing: Smoothing = 0.0
    """One-sided label smoothing: the target of real images is 1 - smoothing."""


class HingeLoss(Model):
    """Hinge loss (Lim & Ye, 2017; Miyato et al., 2018)."""

    kind: Literal["hinge"] = "hinge"


class WassersteinLoss(Model):
    """Difference of the mean logits (Arjovsky et al., 2017); needs a penalty or spectral norms."""

    kind: Literal["wasserstein"] = "wasserstein"


class RelativisticLoss(Model):
    """Cross-entropy on the difference of the logits of a real and a generated image (Jolicoeur-Martineau, 2019, paired
    form; Huang et al., 2024)."""

    kind: Literal["relativistic"] = "relativistic"


class CustomLoss(CustomLossFile):
    """Losses of your own: a file with discriminator(real, fake) and generator(real, fake): logits [B] -> scalar."""

    kind: Literal["custom"] = "custom"
    paired: bool = False
    """The generator's loss looks at real images too; real and generated images of a pair then share their class."""
    boundary: float | None = 0.0
    """The logit between real and generated, for accuracies; null: only differences of logits mean something."""


class NoPenalty(Model):
    """No penalty."""

    kind: Literal["none"] = "none"


class GradientPenalty(Model):
    """WGAN-GP: two-sided penalty on interpolates of real and fake (Gulrajani et al., 2017)."""

    kind: Literal["gp"] = "gp"
    weight: Annotated[float, Field(gt=0)] = 10.0
    """Lambda of the paper."""


class _ZeroCentred(Model):
    weight: Scheduled = 10.0
    """Gamma of the paper: gamma/2 times the mean squared gradient norm; a number or a ramp."""
    interval: Positive = 1
    """Apply it at every interval-th discriminator update, that many times as strong (Karras et al., 2020: lazy)."""


class R1Penalty(_ZeroCentred):
    """R1: zero-centred gradient penalty on real images (Mescheder et al., 2018)."""

    kind: Literal["r1"] = "r1"


class R2Penalty(_ZeroCentred):
    """R2: zero-centred gradient penalty on generated images (Mescheder et al., 2018)."""

    kind: Literal["r2"] = "r2"


class R1R2Penalty(_ZeroCentred):
    """R1 + R2: on real and on generated images (Huang et al., 2024)."""

    kind: Literal["r1_r2"] = "r1_r2"


class LeCamPenalty(Model):
    """LeCam: logits are drawn to the moving average of the other side (Tseng et al., 2021); for few images."""

    kind: Literal["lecam"] = "lecam"
    weight: Annotated[float, Field(gt=0)] = 0.1
    """Lambda of the paper."""
    decay: Decay = 0.99
    """Weight of the past in the moving averages, per discriminator update."""


class AdamConfig(Model):
    """Adam (Kingma & Ba, 2015)."""

    kind: Literal["adam"] = "adam"
    lr: Scheduled = 2e-4
    """Learning rate, a number or a ramp: {start: 2e-4, end: 0.0} falls to zero over the training."""
    beta1: Decay = 0.5
    """Decay of the running mean of the gradient."""
    beta2: Scheduled = 0.999
    """Decay of the running mean of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""


class AdamWConfig(Model):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    kind: Literal["adamw"] = "adamw"
    lr: Scheduled = 2e-4
    """Learning rate, a number or a ramp."""
    beta1: Decay = 0.5
    """Decay of the running mean of the gradient."""
    beta2: Scheduled = 0.999
    """Decay of the running mean of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Times the learning rate: the share by which weights shrink at each update."""


class RmspropConfig(Model):
    """RMSProp (Tieleman & Hinton, 2012)."""

    kind: Literal["rmsprop"] = "rmsprop"
    lr: Scheduled = 5e-5
    """Learning rate, a number or a ramp."""
    alpha: Decay = 0.99
    """Decay of the running mean of the squared gradient."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""


class SgdConfig(Model):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: Scheduled = 0.01
    """Learning rate, a number or a ramp."""
    momentum: Decay = 0.5
    """Share of the last update in the next one; 0: none."""


class NoAugment(Model):
    """Real images as they are."""

    kind: Literal["none"] = "none"


class BasicAugment(Model):
    """Mirror images and small shifts of the real images."""

    kind: Literal["basic"] = "basic"
    flip: Share = 0.5
    """Probability of a left-right mirror image."""
    shift: Annotated[int, Field(ge=0, le=1024)] = 2
    """Largest shift in pixels along each axis; the border repeats the edge by reflection."""


class AdvancedAugment(Model):
    """Random crops, mirror images, colour and cutout on the real images. Colour and cutout change what the generator
    learns to draw, since it never sees the unchanged images."""

    kind: Literal["advanced"] = "advanced"
    flip: Share = 0.5
    """Probability of a left-right mirror image."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Smallest side of the random square crop, as a fraction of the image; it is resized back (bilinear)."""
    color: Share = 0.2
    """Largest relative change of brightness, contrast and (RGB) saturation."""
    cutout: Share = 0.0
    """Probability that a square of half the side is painted mid-grey."""


class DiffAugment(Model):
    """Random changes of real and generated images alike, each time the discriminator looks, with gradients to the
    generator (Zhao et al., 2020): they do not leak into what it draws."""

    kind: Literal["diffaugment"] = "diffaugment"
    policy: Annotated[
        tuple[Literal["color", "translation", "cutout"], ...], Field(strict=False, min_length=1)
    ] = ("color", "translation", "cutout")  # fmt: skip
    """Which changes: color (brightness, saturation, contrast), translation (an eighth of the side), cutout (half the
    side)."""
    flip: Share = 0.5
    """Probability of a left-right mirror image of the real images."""


class AdaAugment(Model):
    """Adaptive augmentation of real and generated images (Karras et al., 2020): the probability p of each change
    follows the discriminator's overfitting. Geometry is resampled bilinearly, without the original's wavelet filter."""

    kind: Literal["ada"] = "ada"
    target: Share | None = 0.6
    """Wanted mean sign of the logits of real images, around the boundary; null: p stays as it is."""
    p: Scheduled = 0.0
    """Probability of each change: at the start, or (without a target) always; then it may be a ramp."""
    interval: Positive = 4
    """Discriminator updates between two adjustments of p."""
    kimg: Annotated[float, Field(gt=0)] = 500.0
    """Thousands of real images in which p may go from 0 to 1."""
    flip: Share = 0.5
    """Probability of a left-right mirror image of the real images."""


class EmaConfig(Model):
    """Exponential moving average of the generator, the one that is sampled and scored."""

    decay: Decay = 0.999
    """Weight of the past per step; 0: the generator itself."""
    warmup: bool = True
    """Start with min(decay, (1 + step) / (10 + step)), so that early samples do not show the initial weights."""


AnyLoss = BceLoss | LeastSquaresLoss | HingeLoss | WassersteinLoss | RelativisticLoss | CustomLoss
AnyPenalty = NoPenalty | GradientPenalty | R1Penalty | R2Penalty | R1R2Penalty | LeCamPenalty
AnyOptimizer = AdamConfig | AdamWConfig | RmspropConfig | SgdConfig
AnyAugment = NoAugment | BasicAugment | AdvancedAugment | DiffAugment | AdaAugment

LossConfig = Annotated[AnyLoss, Field(discriminator="kind"), kind("bce", AnyLoss)]
PenaltyConfig = Annotated[AnyPenalty, Field(discriminator="kind"), kind("none", AnyPenalty)]
OptimizerConfig = Annotated[AnyOptimizer, Field(discriminator="kind"), kind("adam", AnyOptimizer)]
AugmentConfig = Annotated[AnyAugment, Field(discriminator="kind"), kind("none", AnyAugment)]


class OptimizersConfig(Model):
    """One optimizer for each player."""

    generator: OptimizerConfig = AdamConfig()
    """Optimizer of the generator."""
    discriminator: OptimizerConfig = AdamConfig()
    """Optimizer of the discriminator."""
