"""What can be written in a run config: pydantic models, one line of text under each field.

Everything outside `runtime:` and `eval:` can change the numbers of a training run and is part of its fingerprint.
`runtime:` holds what cannot (device, folders, intervals); `eval:` is stamped on each score instead. A combination
that is known to fail is refused here, with the key to change, before torch is loaded.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gantool.config.base import NAME_PATTERN, Duration, Model, Positive, Ramp, highest_of
from gantool.config.evaluation import EvalConfig, eval_problems
from gantool.config.networks import (
    ConvDiscriminator,
    ConvGenerator,
    DiscriminatorConfig,
    GeneratorConfig,
    base_size,
    resnet_halvings,
)
from gantool.config.objective import (
    AugmentConfig,
    BceLoss,
    EmaConfig,
    LossConfig,
    NoAugment,
    NoPenalty,
    OptimizersConfig,
    PenaltyConfig,
)


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


class DataConfig(Model):
    """Which images are learned from, and how they are brought to one size."""

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
        """What is published about the dataset; None for images of your own."""
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
    rewrites: bool = True
    """Train on CPUs with convolutions in the form that is fastest; the same numbers up to rounding."""
    cuda_graphs: bool = False
    """On a GPU, record the updates once and launch their kernels all at once: for small networks, whose time goes into
    launching. Where that cannot be, a line says so."""
    grid: Annotated[str, Field(pattern=r"^[1-9]\d?x[1-9]\d?$")] = "8x8"
    """Rows x columns of the sample grids."""
    samples_dir: Annotated[str, Field(pattern=NAME_PATTERN)] = "samples"
    """Folder of the sample grids in the run directory."""
    final_images: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Single images written when the training ends, img_000.png and so on."""
    final_dir: Annotated[str, Field(pattern=NAME_PATTERN)] = "final_images"
    """Their folder in the run directory."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Field(strict=False)] = ()
    """Extra trackers that get the journal's numbers, the scores, the sample grids and the config."""


class RunConfig(Model):
    """One training run."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "gan"
    """First part of the run directory's name."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of everything random in the run."""
    data: DataConfig = DataConfig()
    """The dataset."""
    generator: GeneratorConfig = ConvGenerator()
    """The generator network."""
    discriminator: DiscriminatorConfig = ConvDiscriminator()
    """The discriminator network."""
    loss: LossConfig = BceLoss()
    """The adversarial loss of both players."""
    penalty: PenaltyConfig = NoPenalty()
    """Penalty in the discriminator's loss."""
    optimizer: OptimizersConfig = OptimizersConfig()
    """The optimizers."""
    augment: AugmentConfig = NoAugment()
    """Augmentation of the real images, or (diffaugment, ada) of all images that the discriminator sees."""
    ema: EmaConfig = EmaConfig()
    """Average of the generator's weights."""
    batch: Annotated[int, Field(ge=2)] = 64
    """Real images per discriminator update, over all processes."""
    generator_batch: Annotated[int, Field(ge=2)] | None = None
    """Generated images per generator update, over all processes; null: as many as `batch`."""
    precision: Literal["float32", "tf32", "bfloat16"] = "tf32"
    """Arithmetic of convolutions and matrix products in training. tf32: float32, but TF32 on GPUs that have it, as
    PyTorch's convolutions do by default; float32: everywhere; bfloat16: mixed precision, for speed. Samples
    are always drawn in float32."""
    reuse_fakes: bool = False
    """The generator learns from the images of the discriminator's last update, seen by the updated discriminator, as in
    PyTorch's DCGAN tutorial: one pass of the generator less. false: from new ones (Goodfellow et al., 2014)."""
    n_dis: Positive = 1
    """Discriminator updates per step (one step is one generator update)."""
    steps: Duration = 10_000
    """Length of the training."""
    eval: EvalConfig | None = None
    """Scores, when training ends and, with `every`, while it goes on; null: none."""
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
        for part in ("generator", "discriminator", "loss"):
            plain[part].pop("file", None)  # code of the user's own is known by its digest, wherever it lies
        return plain

    @property
    def conditional(self) -> bool:
        """Whether the networks take labels."""
        return self.generator.conditional

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of SHA-256 over the canonical JSON of `identity()`."""
        return digest_of(self.identity())

    @property
    def run_id(self) -> str:
        """Name of the run directory: `<name>-<fingerprint>-s<seed>`."""
        return f"{self.name}-{self.fingerprint}-s{self.seed}"


Problems = list[tuple[tuple[str, ...], str, str]]


def digest_of(value: Any) -> str:
    """12 hexadecimal digits of SHA-256 over the canonical JSON of plain data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cross_field_problems(config: RunConfig) -> Problems:
    """Combinations of fields that are known to fail, as (keys, what is wrong, what to do); the first key is the one to
    change, the error stands where the first of them that the user wrote stands."""
    problems: Problems = []
    data = config.data
    if data.size is None and data.known is None:
        known = ", ".join(KNOWN_DATASETS)
        text = f"'{data.name}' is not a known dataset, so data.size must be given"
        problems.append((("data.name",), text, f"known datasets: {known}; for your own images add data.size, e.g. 64"))
    elif data.image_size % 4 or not 4 <= data.image_size <= 1024:
        text = f"found {data.image_size}, expected a multiple of 4 from 4 to 1024"
        problems.append((("data.size",), text, "the networks start at about 4x4 pixels and double"))
    problems += _reuse_problems(config) + _network_problems(config)
    problems += _objective_problems(config) + _output_problems(config.runtime)
    if config.eval:
        problems += eval_problems(config.eval, config.conditional)
    return problems


def _reuse_problems(config: RunConfig) -> Problems:
    if not config.reuse_fakes:
        return []
    problems: Problems = []
    if config.generator_batch not in (None, config.batch):
        text = f"the images of the discriminator's update are {config.batch}, but generator_batch is"
        problems.append((("generator_batch", "reuse_fakes"), f"{text} {config.generator_batch}", "leave it out"))
    if config.loss.kind == "relativistic" or getattr(config.loss, "paired", False):
        text = f"the loss {config.loss.kind} needs real images of the same classes beside new generated ones"
        problems.append((("reuse_fakes", "loss"), text, "set reuse_fakes to false"))
    return problems


def _network_problems(config: RunConfig) -> Problems:
    generator, discriminator, data = config.generator, config.discriminator, config.data
    problems: Problems = []
    if generator.conditional != discriminator.conditional:
        has, lacks = ("generator", "discriminator") if generator.conditional else ("discriminator", "generator")
        text = f"the {has} is class-conditional, the {lacks} is not"
        problems.append(((f"{lacks}.condition", f"{has}.condition", lacks, has), text, _CONDITION_HINT))
    if generator.conditional and data.known is not None and data.known.num_classes < 2:
        text = f"the networks are class-conditional, but {data.name} has no classes"
        problems.append((("data.name",), text, "take another dataset, or networks without condition"))
    if data.size is None and data.known is None:
        return problems
    base, doublings = base_size(data.image_size)
    sizes = [base << i for i in range(1, doublings + 1)]
    for player, settings in (("generator", generator), ("discriminator", discriminator)):
        wanted = getattr(settings, "attention", None)
        halvings = range(1, resnet_halvings(data.image_size) + 1)
        there = sizes if player == "generator" else [data.image_size >> i for i in halvings]
        if wanted is not None and wanted not in there:
            sizes_text = f"have the sizes {_listed(there)}" if there else "all have the size of the images"
            text = f"found {wanted}, but the feature maps of this network {sizes_text}"
            hint = f"for images of {data.image_size} pixels give {'one of them, or ' if there else ''}null"
            problems.append(((f"{player}.attention", "data.size", "data.name"), text, hint))
    if discriminator.kind == "sngan_cnn" and doublings == 0:
        text = f"found {data.image_size}, expected a size that can be halved down to 4 or more: 8, 12, 16 and so on"
        problems.append((("data.size", "discriminator.kind"), text, "set discriminator.kind to conv, resnet or mlp"))
    if generator.kind == "biggan" and generator.latent_dim % (doublings + 1):
        text = f"found {generator.latent_dim}, expected a multiple of {doublings + 1}: one part for the stem, one for "
        text += f"each of the {doublings} blocks"
        hint = f"for example {-(-generator.latent_dim // (doublings + 1)) * (doublings + 1)}"
        problems.append((("generator.latent_dim",), text, hint))
    if generator.kind == "resnet" and generator.condition == "batch_norm" and generator.norm != "batch":
        text = "condition batch_norm gives the class to the norms, but there are none"
        problems.append((("generator.norm", "generator.condition"), text, "set generator.norm to batch"))
    for player, settings in (("generator", generator), ("discriminator", discriminator)):
        if settings.kind == "r3gan" and 2 * settings.width % settings.group:
            text = f"found {settings.width}, but twice the width must be a multiple of group ({settings.group})"
            fitting = -(-2 * settings.width // settings.group) * settings.group
            hint = f"for example {fitting // 2}" if fitting % 2 == 0 else "give an even group"
            problems.append(((f"{player}.width", f"{player}.group"), text, hint))
        width, limit = getattr(settings, "width", 0), getattr(settings, "max_width", None)
        if limit is not None and width > limit:
            text = f"found {width}, but no stage gets more than max_width, which is {limit}"
            problems.append(((f"{player}.width", f"{player}.max_width"), text, f"set {player}.max_width too"))
    return problems


_CONDITION_HINT = """\
generator.condition is concat (conv, mlp, r3gan) or batch_norm (resnet), biggan always has classes;
discriminator.condition is projection or acgan; networks of your own say conditional: true; or leave all of it out"""


def _objective_problems(config: RunConfig) -> Problems:
    problems: Problems = []
    penalty, loss, augment = config.penalty, config.loss, config.augment
    if penalty.kind in ("gp", "r1", "r2", "r1_r2") and config.discriminator.batch_statistics:
        text = "batch normalisation in the discriminator does not go with a gradient penalty"
        hint = (
            "the penalty is defined for each image alone, batch normalisation mixes them (Gulrajani et al., 2017, "
            "section 4): set discriminator.norm to instance or none"
        )
        problems.append((("discriminator.norm", "penalty"), text, hint))
    paired = loss.kind == "relativistic" or (loss.kind == "custom" and loss.paired)
    if paired and config.generator_batch not in (None, config.batch):
        text = f"found {config.generator_batch}, but this loss compares pairs of real and generated images"
        problems.append((("generator_batch", "loss"), text, f"leave it out, or set it to batch ({config.batch})"))
    absolute = loss.kind in ("bce", "least_squares", "hinge") or (loss.kind == "custom" and loss.boundary is not None)
    if augment.kind == "ada" and augment.target is not None and not absolute:
        text = f"ada follows the sign of the logits, which means nothing with the loss {loss.kind}"
        problems.append((("augment.target", "augment"), text, "set augment.target: null and p to a fixed probability"))
    bounded = penalty.kind != "none" and penalty.kind != "lecam"
    bounded = bounded or getattr(config.discriminator, "spectral_norm", config.discriminator.kind == "custom")
    if loss.kind == "wasserstein" and not bounded:
        text = "the Wasserstein loss needs a discriminator of bounded slope, else its logits run away"
        problems.append((("loss",), text, "set penalty to gp, or discriminator.spectral_norm to true"))
    if penalty.kind == "lecam" and loss.kind == "relativistic":
        text = "lecam compares logits with averages, but with the relativistic loss only differences mean something"
        problems.append((("penalty", "loss"), text, "take r1, r2 or r1_r2"))
    if penalty.kind in ("r1", "r2", "r1_r2") and highest_of(penalty.weight) <= 0:
        problems.append((("penalty.weight",), "found 0, expected more than 0", "penalty: none switches it off"))
    if augment.kind == "ada" and augment.target is None and highest_of(augment.p) <= 0:
        text = "without a target p stays at 0: nothing would ever be changed"
        problems.append((("augment.p", "augment.target", "augment"), text, "give augment.p a probability, e.g. 0.2"))
    known = config.data.size is not None or config.data.known is not None
    if augment.kind == "basic" and known and augment.shift >= config.data.image_size:
        text = f"found {augment.shift}, expected less than the side of the images, {config.data.image_size}"
        problems.append((("augment.shift", "data.size", "data.name"), text, "for example 2"))
    if augment.kind == "ada" and highest_of(augment.p) > 1:
        text = f"found {highest_of(augment.p)}, expected a probability, at most 1"
        problems.append((("augment.p",), text, "for example 0.2"))
    if augment.kind == "ada" and augment.target is not None and isinstance(augment.p, Ramp):
        text = "a ramp for p goes with augment.target: null; with a target p moves by itself"
        problems.append((("augment.p",), text, "give p a number, or set augment.target to null"))
    for player in ("generator", "discriminator"):
        settings = getattr(config.optimizer, player)
        if highest_of(settings.lr) <= 0:
            problems.append(((f"optimizer.{player}.lr",), "found 0, expected more than 0", "for example 2e-4"))
        if highest_of(getattr(settings, "beta2", 0.0)) >= 1:
            text = f"found {highest_of(settings.beta2)}, expected less than 1"
            problems.append(((f"optimizer.{player}.beta2",), text, "for example 0.999"))
    return problems


_TAKEN = ("checkpoints", "snapshots", "scores", "code", "lock", "stopped", "cancelled", "tensorboard", "wandb", "parts")


def _output_problems(runtime: RuntimeConfig) -> Problems:
    problems: Problems = []
    for key in ("samples_dir", "final_dir"):
        name = getattr(runtime, key).lower()  # some disks do not tell Scores from scores
        if name in _TAKEN or name.endswith((".json", ".jsonl", ".yaml", ".txt", ".png")):
            text = f"found {name!r}, which is the name of something else in a run directory"
            problems.append(((f"runtime.{key}",), text, "give another name"))
    if runtime.samples_dir.lower() == runtime.final_dir.lower():
        text = f"found {runtime.final_dir!r}, the folder of the grids"
        problems.append((("runtime.final_dir", "runtime.samples_dir"), text, "give it another name than samples_dir"))
    return problems


def _listed(numbers: list[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, sorted(numbers)[:-1])), str(max(numbers))]))


def rank_problems(config: RunConfig, num_ranks: int) -> Problems:
    """What keeps `config` from being trained by `num_ranks` processes, in the form of `cross_field_problems`."""
    problems: Problems = []
    for key in ("batch", "generator_batch"):
        found = getattr(config, key)
        if found is None or found % num_ranks == 0:
            continue
        below, above = found // num_ranks * num_ranks, -(-found // num_ranks) * num_ranks
        nearest = " or ".join(str(n) for n in (below, above) if n)
        text = f"found {found}, which {num_ranks} processes cannot share equally"
        problems.append(((key,), text, f"set {key} to {nearest}, or use a number of processes that divides {found}"))
    return problems


def format_error_key(location: tuple[Any, ...]) -> str:
    """('a', 0, 'b') as `a[0].b`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
