"""Networks and objectives that do not go together, sizes that a net cannot make: file, line, key, problem, fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from gantool.config.loader import load_run_config
from gantool.errors import ConfigError

BIGGAN = "discriminator: {kind: resnet, condition: projection}\ngenerator:\n  kind: biggan\n"
RESNET = "discriminator: {kind: resnet, spectral_norm: true}\ngenerator:\n  kind: resnet\n"
WRONG = {
    # the file; line, key and words of its problem; words of the fix
    "attention at a size that is not there": (
        RESNET + "  attention: 20\n", 4, "generator.attention", "of this network have the sizes 8, 16 and 32",
        "for images of 32 pixels give one of them, or null",
    ),
    "attention of another size of images": (
        BIGGAN + "  latent_dim: 81\ndata: {name: mnist}\n", 5, "generator.attention", "found 16, but the feature maps",
        "for images of 28 pixels",
    ),
    "attention in the discriminator": (
        "discriminator: {kind: resnet, attention: 32}\n", 1, "discriminator.attention", "the sizes 8 and 16", "or null",
    ),
    "z that cannot be shared by the blocks": (
        BIGGAN + "  latent_dim: 90\n", 4, "generator.latent_dim", "expected a multiple of 4", "for example 92",
    ),
    "groups that do not fit": (
        "generator:\n  kind: r3gan\n  width: 20\n  group: 16\n", 3, "generator.width", "a multiple of group (16)",
        "for example 24",
    ),
    "a size that cannot be halved": (
        "data: {name: faces, size: 4}\ngenerator: mlp\ndiscriminator: sngan_cnn\n", 1, "data.size", "8, 12, 16",
        "set discriminator.kind to conv",
    ),
    "no stage for attention": (
        "data: {name: faces, size: 4}\ngenerator:\n  kind: resnet\n  attention: 8\n", 4, "generator.attention",
        "all have the size of the images", "give null",
    ),
    "a width that would be cut": (
        RESNET + "  width: 512\n", 4, "generator.width", "no stage gets more than max_width, which is 256",
        "set generator.max_width too",
    ),
    "classes without norms to carry them": (
        "discriminator: {condition: projection}\ngenerator:\n  kind: resnet\n  condition: batch_norm\n  norm: none\n",
        5, "generator.norm", "condition batch_norm gives the class to the norms", "set generator.norm to batch",
    ),
    "one player with classes": (
        "generator:\n  condition: concat\n", 2, "discriminator.condition", "the discriminator is not", "or acgan",
    ),
    "the other player with classes": (
        "discriminator:\n  condition: acgan\n", 2, "generator.condition", "the generator is not", "concat (conv, mlp",
    ),
    "no classes in the data": (
        "data: {name: celeba, size: 64}\ngenerator: {condition: concat}\ndiscriminator: {condition: acgan}\n",
        1, "data.name", "celeba has no classes", "another dataset",
    ),
    "wasserstein without a bound": ("loss: wasserstein\n", 1, "loss", "bounded slope", "set penalty to gp"),
    "lecam on differences": (
        "loss: relativistic\npenalty: lecam\n", 2, "penalty", "only differences mean something", "take r1, r2 or r1_r2",
    ),
    "r1 over a batch norm": (
        "penalty: r1\n", 1, "discriminator.norm", "does not go with a gradient penalty", "instance or none",
    ),
    "r1 without weight": (
        "discriminator: {norm: none}\npenalty:\n  kind: r1\n  weight: 0\n", 4, "penalty.weight", "found 0", "none",
    ),
    "ada without anything to follow": (
        "discriminator: {norm: none}\npenalty: gp\nloss: wasserstein\naugment: ada\n", 4, "augment.target",
        "means nothing with the loss wasserstein", "augment.target: null",
    ),
    "ada that never changes anything": (
        "augment:\n  kind: ada\n  target: null\n", 3, "augment.p", "p stays at 0", "give augment.p a probability",
    ),
    "ada with a target and a ramp": (
        "augment:\n  kind: ada\n  p: {start: 0.0, end: 0.5}\n", 3, "augment.p", "goes with augment.target: null", "",
    ),
    "pairs of different numbers": (
        "loss: relativistic\ngenerator_batch: 32\n", 2, "generator_batch", "compares pairs", "set it to batch (64)",
    ),
    "half a ramp": ("optimizer:\n  generator:\n    lr: {start: 1.0}\n", 3, "optimizer.generator.lr.end", "require", ""),
    "a list for a ramp": (
        "optimizer:\n  generator:\n    lr: [1e-4]\n", 3, "optimizer.generator.lr", "a number, or a ramp such as", "",
    ),
    "a ramp that cannot be": (
        "optimizer:\n  generator:\n    beta2: {start: 0.9, end: 1.0}\n", 3, "optimizer.generator.beta2",
        "found 1.0, expected less than 1", "0.999",
    ),
    "no learning": (
        "optimizer:\n  discriminator: {kind: sgd, lr: 0}\n", 2, "optimizer.discriminator.lr", "found 0", "for example",
    ),
    "images in the place of checkpoints": (
        "runtime:\n  final_dir: Checkpoints\n", 2, "runtime.final_dir", "the name of something else", "another name",
    ),
    "images in the place of a mark": (
        "runtime:\n  samples_dir: stopped\n", 2, "runtime.samples_dir", "the name of something else", "another name",
    ),
    "two kinds of images in one place": (
        "runtime:\n  final_dir: samples\n", 2, "runtime.final_dir", "the folder of the grids", "another name",
    ),
    "a shift out of the image": (
        "data: {name: mnist}\naugment: {kind: basic, shift: 28}\n", 2, "augment.shift", "side of the images, 28", "2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_go_together_is_refused_with_its_place(tmp_path: Path, name: str) -> None:
    text, line, key, words, fix = WRONG[name]
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_run_config(tmp_path / "run.yaml")
    found = [p for p in caught.value.problems if p[1] == key]
    assert found, caught.value.problems
    problem = found[0]
    assert problem[0] == f"{tmp_path}/run.yaml:{line}"
    assert words in problem[2] and fix in (problem[3] or "")


def test_a_kind_replaces_the_default_kind_below_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "generator: {width: 16}\noptimizer: {generator: {beta1: 0.0}}\naugment: {kind: ada, p: 0.1}\n"
    )
    (tmp_path / "run.yaml").write_text(
        "extends: base.yaml\ngenerator: {kind: mlp, widths: [8]}\noptimizer: {generator: {kind: sgd}}\naugment: basic\n"
    )
    config = load_run_config(tmp_path / "run.yaml")
    assert (config.generator.kind, config.optimizer.generator.kind, config.augment.kind) == ("mlp", "sgd", "basic")
    (tmp_path / "same.yaml").write_text("extends: base.yaml\ngenerator: {kind: conv, norm: none}\naugment: none\n")
    assert load_run_config(tmp_path / "same.yaml").generator.width == 16  # type: ignore[union-attr]


def test_the_place_of_own_code_is_no_part_of_the_identity(tmp_path: Path) -> None:
    text = "class Generator:\n    pass\n"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text(text)
        (tmp_path / folder / "run.yaml").write_text("generator: {kind: custom, file: net.py}\n")
    one, other = (load_run_config(tmp_path / folder / "run.yaml") for folder in ("a", "b"))
    assert one.generator.file != other.generator.file and one.fingerprint == other.fingerprint  # type: ignore[union-attr]
    (tmp_path / "b" / "net.py").write_text(text + "\n")
    assert load_run_config(tmp_path / "b" / "run.yaml").fingerprint != one.fingerprint
    (tmp_path / "b" / "net.py").write_text("import helper\n" + text)
    (tmp_path / "b" / "helper.py").write_text("")
    with pytest.raises(ConfigError, match="imports helper, which lies beside it"):
        load_run_config(tmp_path / "b" / "run.yaml")


def test_naming_the_same_kind_keeps_its_settings(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("generator: {width: 16, norm: none}\naugment: {kind: basic, shift: 5}\n")
    text = "extends: base.yaml\ngenerator: conv\naugment: basic\n"
    (tmp_path / "run.yaml").write_text(text)
    config = load_run_config(tmp_path / "run.yaml")
    assert (config.generator.width, config.augment.shift) == (16, 5)  # type: ignore[union-attr]
    other = load_run_config(tmp_path / "run.yaml", ["augment=diffaugment", "generator=mlp"])
    assert (other.generator.kind, other.augment.kind) == ("mlp", "diffaugment")
