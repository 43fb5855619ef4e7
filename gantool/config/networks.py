"""Settings of the networks, one model for each `kind`. The networks themselves are in `gantool.models`.

Each says whether it is class-conditional (`conditional`), a discriminator also whether it mixes the images of a batch
(`batch_statistics`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gantool.config.base import Model, Positive, Widths, kind
from gantool.config.custom import CustomNetwork

Init = Literal["normal", "he", "xavier", "orthogonal"]


class Unconditional(Model):
    """No classes."""

    kind: Literal["none"] = "none"


class Projection(Model):
    """The logit gets the inner product of the features with a learned vector of the class (Miyato & Koyama, 2018)."""

    kind: Literal["projection"] = "projection"


class AuxiliaryClassifier(Model):
    """A second head that names the class, trained on real images and followed by the generator (Odena et al., 2017)."""

    kind: Literal["acgan"] = "acgan"
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the cross-entropy on real images in the discriminator's loss."""
    generator_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the cross-entropy on generated images in the generator's loss."""


_Condition = Annotated[Unconditional | Projection | AuxiliaryClassifier, Field(discriminator="kind")]
Condition = Annotated[_Condition, kind("none", Unconditional | Projection | AuxiliaryClassifier)]


class _Generator(Model):
    latent_dim: Positive = 128
    """Length of the latent vector z ~ N(0, I)."""

    @property
    def conditional(self) -> bool:
        """Whether it takes labels."""
        return getattr(self, "condition", "none") != "none"


class _Discriminator(Model):
    condition: Condition = Unconditional()
    """How it uses the class: none, projection, or acgan."""

    @property
    def batch_statistics(self) -> bool:
        """Whether a logit depends on the other images of the batch."""
        return getattr(self, "norm", "none") == "batch"

    @property
    def conditional(self) -> bool:
        """Whether it takes labels."""
        return self.condition.kind != "none"


class ConvGenerator(_Generator):
    """DCGAN-style generator (Radford et al., 2016): a stem to about 4x4, then stages that double the size."""

    kind: Literal["conv"] = "conv"
    width: Positive = 64
    """Channels at full size; doubled at each halving of the size, up to max_width."""
    max_width: Positive = 512
    """Most channels of any stage."""
    stem: Literal["linear", "conv"] = "linear"
    """From the latent vector to the first feature map: a linear layer, or (no dense layer) a transposed convolution."""
    upsample: Literal["transposed", "nearest"] = "transposed"
    """Doubling by a 4x4 transposed convolution, or by nearest upsampling and a 3x3 convolution."""
    norm: Literal["batch", "instance", "none"] = "batch"
    """Normalisation before each activation."""
    activation: Literal["relu", "leaky_relu"] = "relu"
    """Activation (the leaky slope is 0.2)."""
    residual: bool = False
    """Residual blocks (two convolutions and a shortcut) instead of single convolutions."""
    spectral_norm: bool = False
    """Spectral normalisation of all weights (Miyato et al., 2018)."""
    condition: Literal["none", "concat"] = "none"
    """concat: a learned vector of the class (as long as z) is appended to z (Mirza & Osindero, 2014)."""
    init: Init | None = None
    """Initial weights; null: N(0, 0.02) with a norm, else he."""


class ConvDiscriminator(_Discriminator):
    """DCGAN-style discriminator: stages that halve the size down to about 4x4, then one logit."""

    kind: Literal["conv"] = "conv"
    width: Positive = 64
    """Channels of the first stage; doubled at each halving of the size, up to max_width."""
    max_width: Positive = 512
    """Most channels of any stage."""
    norm: Literal["batch", "instance", "none"] = "batch"
    """Normalisation after each convolution but the first."""
    residual: bool = False
    """Residual blocks instead of single convolutions."""
    head: Literal["linear", "pool"] = "linear"
    """Linear layer on all features, or (no dense layer but the last) on their sum over the positions."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a feature is dropped after each stage."""
    spectral_norm: bool = False
    """Spectral normalisation of all weights (Miyato et al., 2018)."""
    init: Init | None = None
    """Initial weights; null: N(0, 0.02) with a norm, else he."""


class MlpGenerator(_Generator):
    """Fully connected generator (Goodfellow et al., 2014), tanh at its end."""

    kind: Literal["mlp"] = "mlp"
    latent_dim: Positive = 100
    """Length of the latent vector z ~ N(0, I)."""
    widths: Widths = (256, 512, 1024)
    """Units of the hidden layers."""
    norm: Literal["batch", "none"] = "batch"
    """Normalisation before each activation."""
    activation: Literal["relu", "leaky_relu"] = "leaky_relu"
    """Activation (the leaky slope is 0.2)."""
    condition: Literal["none", "concat"] = "none"
    """concat: a learned vector of the class (as long as z) is appended to z (Mirza & Osindero, 2014)."""


class MlpDiscriminator(_Discriminator):
    """Fully connected discriminator with LeakyReLU of slope 0.2."""

    kind: Literal["mlp"] = "mlp"
    widths: Widths = (1024, 512, 256)
    """Units of the hidden layers."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Probability that a unit is dropped after each hidden layer."""
    spectral_norm: bool = False
    """Spectral normalisation of all weights (Miyato et al., 2018)."""


class SnganCnnDiscriminator(_Discriminator):
    """The convolutional discriminator of SNGAN (Miyato et al., 2018, table 3): 3x3 and strided 4x4 convolutions
    in turn, LeakyReLU of slope 0.1."""

    kind: Literal["sngan_cnn"] = "sngan_cnn"
    width: Positive = 64
    """Channels at full size; doubled at each halving of the size, up to max_width."""
    max_width: Positive = 512
    """Most channels of any stage."""
    spectral_norm: bool = True
    """Spectral normalisation of all weights."""


class ResnetGenerator(_Generator):
    """The residual generator of WGAN-GP and SNGAN (Gulrajani et al., 2017; Miyato et al., 2018, table 4)."""

    kind: Literal["resnet"] = "resnet"
    width: Positive = 256
    """Channels at full size; doubled at each halving of the size, up to max_width."""
    max_width: Positive = 256
    """Most channels of any block."""
    upsample: Literal["nearest", "bilinear"] = "nearest"
    """How a block doubles the size."""
    norm: Literal["batch", "none"] = "batch"
    """Normalisation before each activation."""
    condition: Literal["none", "batch_norm"] = "none"
    """batch_norm: the scale and shift of the norms in the blocks depend on the class (Dumoulin et al., 2017)."""
    attention: Positive | None = None
    """Size of the feature maps that get self-attention (Zhang et al., 2019), e.g. 16; null: none."""
    spectral_norm: bool = False
    """Spectral normalisation of all weights (Miyato et al., 2018)."""
    init: Init = "xavier"
    """Initial weights; xavier and he have the gain sqrt(2) on 3x3 convolutions of the blocks and 1 elsewhere."""


class BigganGenerator(_Generator):
    """The generator of BigGAN (Brock et al., 2019): z in parts, one for the stem and one for each block, where it
    gives, with a class vector that all blocks share, the scale and shift of the norms."""

    kind: Literal["biggan"] = "biggan"
    latent_dim: Positive = 80
    """Length of the latent vector z ~ N(0, I); a multiple of the number of blocks plus one (4 at 32x32)."""
    width: Positive = 384
    """Channels at full size; doubled at each halving of the size, up to max_width."""
    max_width: Positive = 384
    """Most channels of any block."""
    embedding_dim: Positive = 128
    """Length of the class vector."""
    attention: Positive | None = 16
    """Size of the feature maps that get self-attention (Zhang et al., 2019); null: none."""
    spectral_norm: bool = True
    """Spectral normalisation of all weights (Miyato et al., 2018)."""
    init: Init = "orthogonal"
    """Initial weights."""

    @property
    def conditional(self) -> bool:
        """It always takes labels."""
        return True


class ResnetDiscriminator(_Discriminator):
    """The residual discriminator of WGAN-GP and SNGAN: blocks that halve the size down to 8x8, two that keep it,
    pooling, one logit."""

    kind: Literal["resnet"] = "resnet"
    width: Positive = 128
    """Channels of the first block; doubled at each halving of the size, up to max_width."""
    max_width: Positive = 128
    """Most channels of any block."""
    pool: Literal["sum", "mean"] = "sum"
    """What is done over the positions of the last features."""
    attention: Positive | None = None
    """Size of the feature maps that get self-attention (Zhang et al., 2019), e.g. 16; null: none."""
    spectral_norm: bool = False
    """Spectral normalisation of all weights (Miyato et al., 2018)."""
    init: Init = "xavier"
    """Initial weights; xavier and he have the gain sqrt(2) on 3x3 convolutions of the blocks and 1 elsewhere."""


class R3ganGenerator(_Generator):
    """The generator of R3GAN (Huang et al., 2024): a learned 4x4 basis, stages of inverted bottlenecks with grouped
    convolutions, no norm, no tanh."""

    kind: Literal["r3gan"] = "r3gan"
    latent_dim: Positive = 64
    """Length of the latent vector z ~ N(0, I)."""
    width: Positive = 768
    """Channels of all stages; a multiple of half of group."""
    blocks: Positive = 2
    """Blocks of a stage."""
    group: Positive = 16
    """Channels in a group of the 3x3 convolutions, which have twice the channels of the stage."""
    embedding_dim: Positive = 64
    """Length of the class vector that is appended to z, with `condition: concat`."""
    condition: Literal["none", "concat"] = "none"
    """concat: class-conditional."""


class R3ganDiscriminator(_Discriminator):
    """The discriminator of R3GAN: the mirror image of its generator."""

    kind: Literal["r3gan"] = "r3gan"
    width: Positive = 768
    """Channels of all stages; a multiple of half of group."""
    blocks: Positive = 2
    """Blocks of a stage."""
    group: Positive = 16
    """Channels in a group of the 3x3 convolutions, which have twice the channels of the stage."""


class CustomGenerator(CustomNetwork):
    """A generator of your own: forward(latents float [B, latent_dim][, labels]) -> images in [-1, 1]."""

    kind: Literal["custom"] = "custom"
    name: str = "Generator"
    """Name of the class."""
    latent_dim: Positive = 128
    """Length of the latent vector z ~ N(0, I); the class is given it as `latent_dim`."""


class CustomDiscriminator(CustomNetwork):
    """A discriminator of your own: forward(images in [-1, 1][, labels]) -> logits float [B], positive for real."""

    kind: Literal["custom"] = "custom"
    name: str = "Discriminator"
    """Name of the class."""
    batch_statistics: bool = False
    """It mixes the images of a batch (batch normalisation): real and fake images then pass one after the other."""


AnyGenerator = ConvGenerator | MlpGenerator | ResnetGenerator | BigganGenerator | R3ganGenerator | CustomGenerator
AnyDiscriminator = (
    ConvDiscriminator
    | MlpDiscriminator
    | SnganCnnDiscriminator
    | ResnetDiscriminator
    | R3ganDiscriminator
    | CustomDiscriminator
)
GeneratorConfig = Annotated[AnyGenerator, Field(discriminator="kind"), kind("conv", AnyGenerator)]
DiscriminatorConfig = Annotated[AnyDiscriminator, Field(discriminator="kind"), kind("conv", AnyDiscriminator)]


def base_size(size: int) -> tuple[int, int]:
    """(smallest side, number of doublings) for images of `size` pixels: 32 -> (4, 3), 28 -> (7, 2)."""
    doublings = 0
    while size % 2 == 0 and size // 2 >= 4:
        size //= 2
        doublings += 1
    return size, doublings


def resnet_halvings(size: int) -> int:
    """Blocks of the resnet discriminator that halve images of `size` pixels: down to 8x8 if it goes, at least one."""
    halvings = 1
    while size >> halvings > 8 and (size >> halvings) % 2 == 0:
        halvings += 1
    return halvings
