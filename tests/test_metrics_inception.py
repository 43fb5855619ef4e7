"""The FID Inception network with random weights in the layout of the real file, against torchvision's modules."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import Inception3, InceptionA, InceptionC, InceptionE

from gantool.errors import DataError, UsageError
from gantool.metrics import weights as staged
from gantool.metrics.inception import conv_names, open_inception
from gantool.metrics.inception_weights import FILE_NAMES, find_weights, tensorflow_name
from gantool.metrics.resize import PROTOCOLS, like_tf1

CPU = torch.device("cpu")


def reference_network() -> Inception3:
    """torchvision's Inception v3, patched like pytorch-fid's, not fused, channels first."""
    with torch.random.fork_rng():
        network = Inception3(num_classes=1008, aux_logits=False, init_weights=False, dropout=0.0)
    for module in network.modules():
        if isinstance(module, InceptionA | InceptionC | InceptionE):
            module.branch_pool = nn.Sequential(_Unpooled(maximum=module is network.Mixed_7c), module.branch_pool)
    return network.eval()


class _Unpooled(nn.Module):
    """Stands before branch_pool: the FID network's pooling of the block's input, whatever torchvision has pooled."""

    def __init__(self, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.source: Tensor | None = None

    def forward(self, _: Tensor) -> Tensor:
        assert self.source is not None
        if self.maximum:
            return F.max_pool2d(self.source, 3, 1, 1)
        return F.avg_pool2d(self.source, 3, 1, 1, count_include_pad=False)


@torch.inference_mode()
def reference_features(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(pool3, logits without bias, sFID's features) of normalised images, computed as plainly as possible."""
    network = reference_network()
    named = {name.replace(".branch_pool.", ".branch_pool.1."): tensor for name, tensor in state.items()}
    missing, unexpected = network.load_state_dict(named, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    pooled: list[Tensor] = []
    network.avgpool.register_forward_hook(lambda _, __, out: pooled.append(out.flatten(1)))
    for block in (m for m in network.modules() if isinstance(m, InceptionA | InceptionC | InceptionE)):
        block.register_forward_pre_hook(lambda module, x: setattr(module.branch_pool[0], "source", x[0]))
    branch: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, out: branch.append(out))
    logits = network(images)
    spatial = branch[0].permute(0, 2, 3, 1)[..., :7].reshape(len(images), -1)
    return pooled[0], logits - network.fc.bias, spatial


def random_state() -> dict[str, Tensor]:
    """The 472 tensors of the real file, with values that keep the activations in a sane range."""
    rng = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}
    for name, tensor in reference_network().state_dict().items():
        name = name.replace(".branch_pool.1.", ".branch_pool.")
        normal = torch.randn(tensor.shape, generator=rng)
        if name.endswith("conv.weight"):
            state[name] = normal * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = 0.75 + 0.5 * torch.rand(tensor.shape, generator=rng)
        elif not name.endswith("num_batches_tracked"):
            state[name] = normal * 0.1
    assert len(state) == 472
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state()


@pytest.fixture(scope="module")
def weights(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / FILE_NAMES[0]
    torch.save(state, path)
    return path


def noise(num: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(num)
    return torch.randint(0, 256, (num, height, width, channels), generator=rng, dtype=torch.uint8)


def test_grey_is_said(weights: Path) -> None:
    assert "repeated to RGB" in " ".join(open_inception(CPU, 1, weights, True).notes)
    assert "repeated to RGB" not in " ".join(open_inception(CPU, 3, weights, True).notes)


def test_features_agree_with_torchvisions_modules(state: dict[str, Tensor], weights: Path) -> None:
    extractor = dataclasses.replace(open_inception(CPU, 3, weights, True), block=2)
    images = noise(3, 48, 40)
    pooled, logits, spatial = extractor(images)
    assert spatial is not None
    expected = reference_features(state, like_tf1(images).contiguous())
    assert pooled.shape == (3, 2048) and logits.shape == (3, 1008) and spatial.shape == (3, 2023)
    assert (extractor.feature_dim, extractor.num_logits, extractor.spatial_dim) == (2048, 1008, 2023)
    assert float(expected[0].std(0).mean()) > 1e-3  # the features do tell images apart
    torch.testing.assert_close(pooled, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-4)
    assert 0.2 < float((spatial > 0).float().mean()) < 0.8  # after the ReLU
    torch.testing.assert_close(spatial, expected[2], rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_the_batch(weights: Path) -> None:
    extractor = dataclasses.replace(open_inception(CPU, 3, weights, True), block=4)
    images = noise(5, 8, 8)
    together = extractor(images)
    for start, num in ((0, 1), (0, 3), (4, 1)):
        some = extractor(images[start : start + num])
        for tensor, whole in zip(some.tensors(), together.tensors(), strict=True):
            assert torch.equal(tensor, whole[start : start + num])
    assert len(some.tensors()) == 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_say_what_they_do(protocol: str, weights: Path) -> None:
    extractor = open_inception(CPU, 3, weights, True, protocol)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    labels = {"pytorch-fid": "torch-bilinear", "clean": "clean-bicubic"}
    assert extractor.digest == digest
    label = labels.get(protocol, "tf1-bilinear")
    assert extractor.protocol == f"{label}|u8|pool3-2048|w={digest[:8]}"
    assert extractor.logits_protocol == f"{label}|u8|logits-1008-nobias|w={digest[:8]}"
    assert extractor.spatial_protocol == f"{label}|u8|mixed6d-2023|w={digest[:8]}"
    assert extractor.ddof == (0 if protocol == "stylegan3" else 1)
    assert any("unknown Inception weights" in note for note in extractor.notes)


def test_protocols_give_other_features_and_large_images_too(weights: Path) -> None:
    image = noise(1, 512, 512)
    found = {}
    for protocol in PROTOCOLS:
        found[protocol] = dataclasses.replace(open_inception(CPU, 3, weights, True, protocol), block=1)(image).pooled
        assert torch.isfinite(found[protocol]).all()
    assert torch.equal(found["tf1"], found["stylegan3"])
    for one, other in (("tf1", "pytorch-fid"), ("tf1", "clean"), ("pytorch-fid", "clean")):
        assert float((found[one] - found[other]).abs().max()) > 1e-3


def test_a_wrong_protocol_is_said(weights: Path) -> None:
    with pytest.raises(UsageError, match="found protocol 'clean-fid', expected one of tf1, pytorch-fid, clean"):
        open_inception(CPU, 3, weights, True, "clean-fid")


def test_unknown_weights_are_refused_unless_allowed(weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"found SHA-256 {digest}, expected 6726825d"):
        open_inception(CPU, 3, weights, allow_unknown=False)


@pytest.mark.parametrize("kind", ["html", "truncated", "nested", "missing", "shape"])
def test_files_that_are_something_else(kind: str, tmp_path: Path, state: dict[str, Tensor], weights: Path) -> None:
    path = tmp_path / "weights.pth"
    if kind == "html":
        path.write_text("<html>404</html>")
    elif kind == "truncated":
        path.write_bytes(weights.read_bytes()[:5000])
    elif kind == "nested":
        torch.save({"model": {}, "epoch": 3}, path)
    elif kind == "missing":
        torch.save({name: tensor for name, tensor in state.items() if "Mixed_7c" not in name}, path)
    else:
        torch.save(state | {"Mixed_6c.branch7x7_2.conv.weight": torch.zeros(160, 100, 1, 7)}, path)
    words = {"missing": "Mixed_7c.branch1x1", "shape": "do not fit together", "nested": "found a dict with 'model'"}
    expected = words.get(kind, "not a weights file")
    with pytest.raises(DataError, match=expected) as caught:
        open_inception(CPU, 3, path, allow_unknown=True)
    assert str(path) in caught.value.message


def test_where_weights_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {name: tmp_path / name for name in ("flag", "environment", "image", "hub", "temporary")}
    for place in places.values():
        place.mkdir()
    torch_home = tmp_path / "torch"
    (torch_home / "hub").mkdir(parents=True)
    (torch_home / "hub" / "checkpoints").symlink_to(places["hub"])
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.setattr(staged, "IMAGE_FOLDER", places["image"])
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(places["temporary"]))
    monkeypatch.delenv("GANTOOL_WEIGHTS", raising=False)

    (places["temporary"] / FILE_NAMES[0]).touch()  # nobody keeps it there
    with pytest.raises(UsageError) as caught:
        find_weights()
    for place in (torch_home / "hub" / "checkpoints", places["image"], places["temporary"] / "inception-2015-12-05.pt"):
        assert str(place) in caught.value.message
    assert caught.value.hint is not None
    assert "https://github.com/mseitzer/pytorch-fid/releases" in caught.value.hint and "--weights" in caught.value.hint

    left = places["temporary"] / "inception-2015-12-05.pt"  # by clean-fid
    left.touch()
    assert find_weights() == left
    for name in reversed(FILE_NAMES):
        in_hub = torch_home / "hub" / "checkpoints" / name
        in_hub.touch()
        assert find_weights() == in_hub
    (places["image"] / FILE_NAMES[0]).touch()
    assert find_weights() == places["image"] / FILE_NAMES[0]
    monkeypatch.setenv("GANTOOL_WEIGHTS", str(places["environment"]))
    with pytest.raises(UsageError, match=r"\$GANTOOL_WEIGHTS: no Inception weights"):
        find_weights()  # what was asked for is not silently replaced
    (places["environment"] / FILE_NAMES[1]).touch()
    assert find_weights() == places["environment"] / FILE_NAMES[1]
    own = places["flag"] / "own.pth"
    with pytest.raises(UsageError, match="--weights: no Inception weights"):
        find_weights(own)
    own.touch()
    assert find_weights(own) == own


# NVIDIA's TorchScript file: TensorFlow's names, batch normalisation without gamma, the resize inside.


class Layer(nn.Module):
    def __init__(self, state: dict[str, Tensor], name: str, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.weight = nn.Parameter(state[f"{name}.conv.weight"])
        self.beta = nn.Parameter(state[f"{name}.bn.bias"])
        self.register_buffer("mean", state[f"{name}.bn.running_mean"])
        self.register_buffer("var", state[f"{name}.bn.running_var"])
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, None, [self.stride, self.stride], self.padding)
        return F.relu(F.batch_norm(x, self.mean, self.var, None, self.beta, False, 0.0, 1e-3))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class A(nn.Module):
    """Also C: they differ in the lengths of the towers."""

    def __init__(self, conv: Layer, tower: nn.Module, tower_1: nn.Module, tower_2: nn.Module) -> None:
        super().__init__()
        self.conv, self.tower, self.tower_1, self.tower_2 = conv, tower, tower_1, tower_2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), self.tower_1(x), self.tower_2(x)], 1)


class B(nn.Module):
    def __init__(self, conv: Layer, tower: nn.Module) -> None:
        super().__init__()
        self.conv, self.tower = conv, tower

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), F.max_pool2d(x, 3, 2)], 1)


class D(nn.Module):
    def __init__(self, tower: nn.Module, tower_1: nn.Module) -> None:
        super().__init__()
        self.tower, self.tower_1 = tower, tower_1

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.tower(x), self.tower_1(x), F.max_pool2d(x, 3, 2)], 1)


class E(nn.Module):
    def __init__(self, parts: dict[str, nn.Module], swapped: bool) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.tower_conv(x), self.tower_1_conv_1(self.tower_1_conv(x))
        first, second = self.tower_mixed_conv(a), self.tower_mixed_conv_1(a)
        if self.swapped:
            first, second = second, first
        last = [self.tower_1_mixed_conv(b), self.tower_1_mixed_conv_1(b), self.tower_2_conv(self.tower_2_pool(x))]
        return torch.cat([self.conv(x), first, second] + last, 1)  # noqa: RUF005 (TorchScript)


class Scripted(nn.Module):
    def __init__(self, layers: nn.Module, output: nn.Linear, always_bias: bool = False) -> None:
        super().__init__()
        self.layers, self.output, self.always_bias = layers, output, always_bias

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        num, channels, height, width = img.shape
        theta = torch.eye(2, 3)
        theta[0, 2] += theta[0, 0] / width - theta[0, 0] / 299
        theta[1, 2] += theta[1, 1] / height - theta[1, 1] / 299
        grid = F.affine_grid(theta.unsqueeze(0).repeat([num, 1, 1]), [num, channels, 299, 299], False)
        x = F.grid_sample(img.to(torch.float32), grid, "bilinear", "border", False)
        features = self.layers((x - 128) / 128).reshape(-1, 2048)
        if return_features:
            return features
        if no_output_bias and not self.always_bias:
            return F.linear(features, self.output.weight).softmax(1)
        return self.output(features).softmax(1)


class OtherSignature(nn.Module):
    def __init__(self, layers: nn.Module, output: nn.Linear, always_bias: bool = False) -> None:
        super().__init__()
        self.layers, self.output = layers, output

    def forward(self, img: Tensor) -> Tensor:
        return self.layers(img)


def scripted_network(state: dict[str, Tensor], wrong: str = "") -> torch.jit.ScriptModule:
    """A module with the names of NVIDIA's file from random weights; `wrong`: one that is something else."""

    def layer(name: str) -> Layer:
        height, width = state[f"{name}.conv.weight"].shape[2:]
        halving = {"6a": ("branch3x3", "branch3x3dbl_3"), "7a": ("branch3x3_2", "branch7x7x3_4")}
        if name.endswith("1a_3x3") or name.partition(".")[2] in halving.get(name[6:8], ()):
            return Layer(state, name, 2)
        unpadded = name.endswith(("2a_3x3", "4a_3x3"))
        return Layer(state, name, 1, (0, 0) if unpadded else (height // 2, width // 2))

    def tower(block: str, branch: str, num: int, pool: nn.Module | None = None) -> nn.Sequential:
        parts = [("pool", pool)] if pool else []
        names = [branch] if num == 1 else [f"{branch}_{i + 1}" for i in range(num)]
        parts += [(f"conv_{i}" if i else "conv", layer(f"{block}.{name}")) for i, name in enumerate(names)]
        return nn.Sequential(OrderedDict(parts))

    def mixed(block: str) -> nn.Module:
        if block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            towers = tower(block, "branch5x5", 2), tower(block, "branch3x3dbl", 3)
            return A(layer(f"{block}.branch1x1"), *towers, tower(block, "branch_pool", 1, Mean()))
        if block == "Mixed_6a":
            return B(layer("Mixed_6a.branch3x3"), tower(block, "branch3x3dbl", 3))
        if block == "Mixed_7a":
            return D(tower(block, "branch3x3", 2), tower(block, "branch7x7x3", 4))
        if block.startswith("Mixed_6"):
            towers = tower(block, "branch7x7", 3), tower(block, "branch7x7dbl", 5)
            return A(layer(f"{block}.branch1x1"), *towers, tower(block, "branch_pool", 1, Mean()))
        names = ("1x1", "3x3_1", "3x3_2a", "3x3_2b", "3x3dbl_1", "3x3dbl_2", "3x3dbl_3a", "3x3dbl_3b", "_pool")
        theirs = ("conv", "tower_conv", "tower_mixed_conv", "tower_mixed_conv_1")
        theirs += ("tower_1_conv", "tower_1_conv_1", "tower_1_mixed_conv", "tower_1_mixed_conv_1", "tower_2_conv")
        parts: dict[str, nn.Module] = {b: layer(f"{block}.branch{a}") for a, b in zip(names, theirs, strict=True)}
        parts["tower_2_pool"] = nn.MaxPool2d(3, 1, 1) if block == "Mixed_7c" else Mean()
        return E(parts, wrong == "order" and block == "Mixed_7b")

    stem = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "pool0", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "pool1")
    layers: list[tuple[str, nn.Module]] = []
    for name in stem:
        number = sum(isinstance(module, Layer) for _, module in layers)
        conv = f"conv_{number}" if number else "conv"
        layers.append((name, nn.MaxPool2d(3, 2)) if name.startswith("pool") else (conv, layer(name)))
    for number, letters in enumerate(("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")):
        layers.append((f"mixed_{number}" if number else "mixed", mixed(f"Mixed_{letters}")))
    if wrong == "names":
        layers = [(name.replace("mixed_9", "mixed_9a"), module) for name, module in layers]
    output = nn.utils.skip_init(nn.Linear, 2048, 1008)
    with torch.no_grad():
        output.weight.copy_(state["fc.weight"])
        output.bias.copy_(state["fc.bias"])
    kind = OtherSignature if wrong == "signature" else Scripted
    network = kind(nn.Sequential(OrderedDict([*layers, ("pool2", nn.AvgPool2d(8, 8))])), output, wrong == "bias")
    return torch.jit.script(network.eval())


@pytest.fixture(scope="module")
def without_gamma(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The random weights with a gamma of one everywhere, like the real ones."""
    return {name: torch.ones_like(value) if name.endswith("bn.weight") else value for name, value in state.items()}


def test_nvidias_file_gives_the_same_features(without_gamma: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(without_gamma, tmp_path / "plain.pth")
    scripted_network(without_gamma).save(tmp_path / "scripted.pt")
    image = noise(1, 20, 20)
    plain, scripted = (
        dataclasses.replace(open_inception(CPU, 3, tmp_path / name, True), block=1)(image)
        for name in ("plain.pth", "scripted.pt")
    )
    for one, other in zip(plain.tensors(), scripted.tensors(), strict=True):
        assert torch.equal(one, other)


def test_all_94_convolutions_have_another_name_in_nvidias_file(without_gamma: dict[str, Tensor]) -> None:
    theirs = {name.removesuffix(".beta") for name in scripted_network(without_gamma).state_dict() if "beta" in name}
    assert {f"layers.{tensorflow_name(name)}" for name in conv_names()} == theirs
    assert len(theirs) == 94


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("names", r"\d+ of the expected ones are missing \(the first: Mixed_7b"),
        ("order", "features from the converted weights are .* away from the module's own"),
        ("bias", "class probabilities from the converted weights are .* away from the module's own"),
        ("signature", "the TorchScript module cannot be run: .*argument"),
    ],
)
def test_a_torchscript_module_that_is_something_else(
    wrong: str, expected: str, without_gamma: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "inception-2015-12-05.pt"
    scripted = scripted_network(without_gamma, wrong)
    scripted.save(path)
    with pytest.raises(DataError, match=expected) as caught:
        open_inception(CPU, 3, path, allow_unknown=True)
    assert str(path) in caught.value.message
