"""What can be written in a run config: pydantic models, one line of text under each field.

Everything outside `runtime:` and `eval:` can change the numbers of a training run and is part of its fingerprint.
`runtime:` holds what cannot (device, folders, intervals); `eval:` is stamped on each score instead. A combination
that is known to fail is refused here, with the key to change, before torch is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


class KnownDataset(NamedTuple):
    """Facts of a published dataset: side of its square images in pixels, channels, classes, images per split."""

    size: int
    channels: int
    num_classes: int
    num_train: int
    num_test: int


KNOWN_DATASETS = {
    "shapes": KnownDataset(32, 3, 10, 10_000, 2_000),
    "mnist": KnownDataset(28, 1, 10, 60_000, 10_000),
    "fashion_mnist": KnownDataset(28, 1, 10, 60_000, 10_000),
    "kmnist": KnownDataset(28, 1, 10, 60_000, 10_000),
    "emnist": KnownDataset(28, 1, 47, 112_800, 18_800),  # the "balanced" split
    "cifar10": KnownDataset(32, 3, 10, 50_000, 10_000),
    "cifar100": KnownDataset(32, 3, 100, 50_000, 10_000),
    "celeba": KnownDataset(64, 3, 0, 162_770, 19_962),  # published at 178x218; cropped and resized on packing
}

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_DURATION = re.compile(r"^(\d+(?:\.\d+)?) *(step|epoch|kimg)s?$")


def parse_duration(text: int | str) -> tuple[Fraction, str]:
    """`5000`, `"5000 steps"`, `"20 epochs"` or `"800 kimg"` as (amount, unit); ValueError for anything else."""
    if isinstance(text, int) and not isinstance(text, bool):
        text = f"{text} steps"
    found = _DURATION.match(text.strip()) if isinstance(text, str) else None
    if not found or Fraction(found[1]) <= 0:
        raise ValueError(f"found {text!r}, expected a positive duration like 5000, '20 epochs' or '800 kimg'")
    unit = "kimg" if found[2] == "kimg" else found[2] + "s"
    if unit == "steps" and Fraction(found[1]).denominator != 1:
        raise ValueError(f"found {text!r}, expected a whole number of steps")
    return Fraction(found[1]), unit


def duration_in_steps(duration: int | str, images_per_step: int, num_images: int) -> int:
    """Generator updates in `duration`; a step shows the discriminator `images_per_step` of `num_images` real images."""
    amount, unit = parse_duration(duration)
    images = amount * {"steps": images_per_step, "epochs": num_images, "kimg": 1000}[unit]
    return max(1, math.ceil(images / images_per_step))


def _check_duration(value: Any) -> Any:
    try:
        amount, unit = parse_duration(value)
    except ValueError as error:
        raise PydanticCustomError("duration", "{text}", {"text": str(error)}) from None
    if unit == "steps":
        return int(amount)
    digits = str(int(amount)) if amount.denominator == 1 else str(value).split(unit[0])[0].strip()
    return f"{digits} {unit}"


Duration = Annotated[int | str, BeforeValidator(_check_duration)]
"""Steps (generator updates), or a text with a unit: '20 epochs', '800 kimg' (thousands of real images)."""


def _kind(default: str, form: Any) -> BeforeValidator:
    """`augment: basic` is short for `augment: {kind: basic}`; a mapping without `kind` means the default one. `form` is
    the type of the mapping, for the JSON schema."""

    def expand(value: Any) -> Any:
        if value is None:
            return {"kind": default}
        if isinstance(value, str):
            return {"kind": value}
        return {"kind": default, **value} if isinstance(value, dict) else value

    return BeforeValidator(expand, json_schema_input_type=form | str | None)


class Model(BaseModel):
    """Base of all config models: frozen, no unknown keys, no silent type conversions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class DataConfig(Model):
    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "shapes"
    """A known dataset (shapes, mnist, fashion_mnist, kmnist, emnist, cifar10, cifar100, celeba) or your own name for a
    collection of images."""
    size: Positive | None = None
    """Side of the square images in pixels, a multiple of 4; null: the dataset's own (required for your own images)."""
    channels: Literal[1, 3] | None = None
    """1: grey, 3: RGB; null: the dataset's own (RGB for your own images)."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """How other shapes become square: crop the centre, pad with black (small images are padded, never enlarged), or
    ignore the aspect; then they are resized."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What an unreadable image does to packing: stop it, or be left out and counted."""

    @property
    def known(self) -> KnownDataset | None:
        return KNOWN_DATASETS.get(self.name)

    @property
    def image_size(self) -> int:
        """Side of the packed images in pixels."""
        if self.size is not None:
            return self.size
        assert self.known is not None
        return self.known.size

    @property
    def image_channels(self) -> int:
        """Channels of the packed images, 1 or 3."""
        return self.channels or (self.known.channels if self.known else 3)


class ConvGenerator(Model):
    """DCGAN-style generator (Radford et al., 2016): linear layer to about 4x4, then stages that double the size."""

    kind: Literal["conv"] = "conv"
    latent_dim: Positive = 128
    """Length of the latent vector z ~ N(0, I)."""
    width: Positive = 64
    """Channels at full size; doubled at each halving of the size, up to max_width."""
    max_width: Positive = 512
    """Most channels of any stage."""
    upsample: Literal["transposed", "nearest"] = "transposed"
    """Doubling by a 4x4 transposed convolution, or by nearest upsampling and a 3x3 convolution."""
    norm: Literal["batch", "instance", "none"] = "batch"
    """Normalisation before each activation."""
    residual: bool = False
    """Residual blocks (two convolutions and a shortcut) instead of single convolutions."""
    spectral_norm: bool = False
    """Spectral normalisation of all weights (Miyato et al., 2018)."""


class ConvDiscriminator(Model):
    """DCGAN-style discriminator: stages that halve the size down to about 4x4, then one linear logit."""

    kind: Literal["conv"] = "conv"
    width: Positive = 64
    """Channels of the first stage; doubled at each halving of the size, up to max_width."""
    max_width: Positive = 512
    """Most channels of any stage."""
    norm: Literal["batch", "instance", "none"] = "batch"
    """Normalisation after each convolution but the first."""
    residual: bool = False
    """Residual blocks instead of single convolutions."""
    spectral_norm: bool = False
    """Spectral normalisation of all weights (Miyato et al., 2018)."""


class BceLoss(Model):
    """Binary cross-entropy on logits, non-saturating for the generator (Goodfellow et al., 2014)."""

    kind: Literal["bce"] = "bce"


class HingeLoss(Model):
    """Hinge loss (Lim & Ye, 2017; Miyato et al., 2018)."""

    kind: Literal["hinge"] = "hinge"


class NoPenalty(Model):
    """No gradient penalty."""

    kind: Literal["none"] = "none"


class GradientPenalty(Model):
    """WGAN-GP: two-sided penalty on interpolates of real and fake (Gulrajani et al., 2017)."""

    kind: Literal["gp"] = "gp"
    weight: Annotated[float, Field(gt=0)] = 10.0
    """Lambda of the paper."""


class R1Penalty(Model):
    """R1: weight/2 times the squared gradient norm on real images (Mescheder et al., 2018)."""

    kind: Literal["r1"] = "r1"
    weight: Annotated[float, Field(gt=0)] = 10.0
    """Gamma of the paper."""


class AdamConfig(Model):
    """Adam (Kingma & Ba, 2015)."""

    kind: Literal["adam"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Learning rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Decay of the running mean of the gradient."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""


class NoAugment(Model):
    """Real images as they are."""

    kind: Literal["none"] = "none"


class BasicAugment(Model):
    """Mirror images and small shifts of the real images."""

    kind: Literal["basic"] = "basic"
    flip: Share = 0.5
    """Probability of a left-right mirror image."""
    shift: Annotated[int, Field(ge=0)] = 2
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


class EmaConfig(Model):
    """Exponential moving average of the generator, the one that is sampled and scored."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Weight of the past per step; 0: the generator itself."""
    warmup: bool = True
    """Start with min(decay, (1 + step) / (10 + step)), so that early samples do not show the initial weights."""


class EvalConfig(Model):
    """The scores of a run; stamped on each score, not part of the fingerprint."""

    extractor: Literal["classifier", "inception"] = "classifier"
    """Features: a small CNN trained on the real training set, or the FID Inception network (needs its weights)."""
    metrics: Annotated[tuple[Literal["fid", "is"], ...], Field(strict=False, min_length=1)] = ("fid", "is")
    """Which scores to compute."""
    num: Annotated[int, Field(ge=2)] = 10_000
    """Number of generated images."""


class RuntimeConfig(Model):
    """What cannot change the numbers of a run (up to rounding): where and how it is computed, what is written when."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: the first of cuda, mps, cpu that is there."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of each process; 0: the CPUs it may use divided by the processes on this machine."""
    data_dir: str = "data"
    """Folder of the packed datasets and of what is computed from them."""
    runs_dir: str = "runs"
    """Folder of the run directories."""
    source: str | None = None
    """Where `prepare` finds the original files; null: download the official ones."""
    resident: Literal["auto", "always", "never"] = "auto"
    """Keep the whole dataset on the device; auto: when it takes less than a third of the free memory."""
    log_every: Duration = 50
    """Interval of the rows in journal.jsonl."""
    sample_every: Duration = 1000
    """Interval of the sample grids."""
    snapshot_every: Duration = 5000
    """Interval of the snapshots (EMA generator); the last step always makes one."""
    checkpoint_every: Duration = 1000
    """Interval of the checkpoints (full state); the last two are kept."""
    grid: Annotated[str, Field(pattern=r"^[1-9]\d?x[1-9]\d?$")] = "8x8"
    """Rows x columns of the sample grids."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Field(strict=False)] = ()
    """Extra trackers that get the journal's numbers."""


GeneratorConfig = ConvGenerator
DiscriminatorConfig = ConvDiscriminator
LossConfig = Annotated[BceLoss | HingeLoss, Field(discriminator="kind")]
PenaltyConfig = Annotated[NoPenalty | GradientPenalty | R1Penalty, Field(discriminator="kind")]
OptimizerConfig = AdamConfig
AugmentConfig = Annotated[NoAugment | BasicAugment | AdvancedAugment, Field(discriminator="kind")]


class OptimizersConfig(Model):
    """One optimizer for each player."""

    generator: Annotated[OptimizerConfig, _kind("adam", OptimizerConfig)] = AdamConfig()
    """Optimizer of the generator."""
    discriminator: Annotated[OptimizerConfig, _kind("adam", OptimizerConfig)] = AdamConfig()
    """Optimizer of the discriminator."""


class RunConfig(Model):
    """One training run."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "gan"
    """First part of the run directory's name."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of everything random in the run."""
    data: DataConfig = DataConfig()
    """The dataset."""
    generator: Annotated[GeneratorConfig, _kind("conv", GeneratorConfig)] = ConvGenerator()
    """The generator network."""
    discriminator: Annotated[DiscriminatorConfig, _kind("conv", DiscriminatorConfig)] = ConvDiscriminator()
    """The discriminator network."""
    loss: Annotated[LossConfig, _kind("bce", BceLoss | HingeLoss)] = BceLoss()
    """The adversarial loss of both players."""
    penalty: Annotated[PenaltyConfig, _kind("none", NoPenalty | GradientPenalty | R1Penalty)] = NoPenalty()
    """Gradient penalty of the discriminator."""
    optimizer: OptimizersConfig = OptimizersConfig()
    """The optimizers."""
    augment: Annotated[AugmentConfig, _kind("none", NoAugment | BasicAugment | AdvancedAugment)] = NoAugment()
    """Augmentation of the real images."""
    ema: EmaConfig = EmaConfig()
    """Average of the generator's weights."""
    batch: Annotated[int, Field(ge=2)] = 64
    """Real images per discriminator update, over all processes; the generator's batch has the same size."""
    n_dis: Positive = 1
    """Discriminator updates per step (one step is one generator update)."""
    steps: Duration = 10_000
    """Length of the training."""
    eval: EvalConfig | None = None
    """Scores computed when training ends; null: none."""
    runtime: RuntimeConfig = RuntimeConfig()
    """Where and how it runs."""

    @model_validator(mode="after")
    def _cross_checks(self) -> RunConfig:
        for keys, text, hint in cross_field_problems(self):
            raise PydanticCustomError("cross_field", "{text}", {"keys": keys, "text": text, "hint": hint})
        return self

    def identity(self) -> dict[str, Any]:
        """All that can change the numbers of the run but the seed, as plain data."""
        plain = self.model_dump(mode="json", exclude={"name", "seed", "eval", "runtime"})
        plain["data"] |= {"size": self.data.image_size, "channels": self.data.image_channels}
        return plain

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of SHA-256 over the canonical JSON of `identity()`."""
        return digest_of(self.identity())

    @property
    def run_id(self) -> str:
        """Name of the run directory: <name>-<fingerprint>-s<seed>."""
        return f"{self.name}-{self.fingerprint}-s{self.seed}"


def digest_of(value: Any) -> str:
    """12 hexadecimal digits of SHA-256 over the canonical JSON of plain data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cross_field_problems(config: RunConfig) -> list[tuple[tuple[str, ...], str, str]]:
    """Combinations of fields that are known to fail, as (keys, what is wrong, what to do); the first key is the one to
    change, the error stands where the first of them that the user wrote stands."""
    problems: list[tuple[tuple[str, ...], str, str]] = []
    data = config.data
    if data.size is None and data.known is None:
        known = ", ".join(KNOWN_DATASETS)
        text = f"'{data.name}' is not a known dataset, so data.size must be given"
        problems.append((("data.name",), text, f"known datasets: {known}; for your own images add data.size, e.g. 64"))
    elif data.image_size % 4 or not 8 <= data.image_size <= 1024:
        text = f"found {data.image_size}, expected a multiple of 4 from 8 to 1024"
        problems.append((("data.size",), text, "the networks start at about 4x4 pixels and double"))
    if config.penalty.kind == "gp" and config.discriminator.norm == "batch":
        text = "batch normalisation in the discriminator does not go with a gradient penalty"
        hint = (
            "the penalty is defined for each image alone, batch normalisation mixes them (Gulrajani et al., 2017, "
            "section 4): set discriminator.norm to instance or none"
        )
        problems.append((("discriminator.norm", "penalty"), text, hint))
    return problems


def rank_problems(config: RunConfig, num_ranks: int) -> list[tuple[tuple[str, ...], str, str]]:
    """What keeps `config` from being trained by `num_ranks` processes, in the form of `cross_field_problems`."""
    if config.batch % num_ranks == 0:
        return []
    below, above = config.batch // num_ranks * num_ranks, -(-config.batch // num_ranks) * num_ranks
    nearest = " or ".join(str(n) for n in (below, above) if n)
    text = f"found {config.batch}, which {num_ranks} processes cannot share equally"
    return [(("batch",), text, f"set batch to {nearest}, or use a number of processes that divides {config.batch}")]


def format_error_key(location: tuple[Any, ...]) -> str:
    """('a', 0, 'b') as `a[0].b`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
