"""The FID Inception network with random weights in the layout of the real file, against torchvision's modules."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import Inception3, InceptionA, InceptionC, InceptionE

from gantool.errors import DataError, UsageError
from gantool.metrics import inception
from gantool.metrics.inception import FILE_NAMES, find_weights, open_inception, resize_like_tf1

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
def reference_features(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """(pool3, logits without bias) of normalised images, computed as plainly as possible."""
    network = reference_network()
    named = {name.replace(".branch_pool.", ".branch_pool.1."): tensor for name, tensor in state.items()}
    missing, unexpected = network.load_state_dict(named, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    pooled: list[Tensor] = []
    network.avgpool.register_forward_hook(lambda _, __, out: pooled.append(out.flatten(1)))
    for block in (m for m in network.modules() if isinstance(m, InceptionA | InceptionC | InceptionE)):
        block.register_forward_pre_hook(lambda module, x: setattr(module.branch_pool[0], "source", x[0]))
    logits = network(images)
    return pooled[0], logits - network.fc.bias


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


def straight_resize(images: Tensor, side: int) -> Tensor:
    """TensorFlow 1's resize_bilinear as its kernel is written: four neighbours of each target pixel, x first."""
    height, width = images.shape[1:3]
    out = torch.empty(len(images), side, side, images.shape[3])
    pixels, scales = images.float(), torch.tensor([height / side, width / side], dtype=torch.float32)
    for i in range(side):
        y = torch.tensor(float(i)) * scales[0]
        top, dy = int(y), y - int(y)
        bottom = min(top + 1, height - 1)
        for j in range(side):
            x = torch.tensor(float(j)) * scales[1]
            left, dx = int(x), x - int(x)
            right = min(left + 1, width - 1)
            above = pixels[:, top, left] + (pixels[:, top, right] - pixels[:, top, left]) * dx
            below = pixels[:, bottom, left] + (pixels[:, bottom, right] - pixels[:, bottom, left]) * dx
            out[:, i, j] = above + (below - above) * dy
    return out


@pytest.mark.parametrize(("height", "width", "side"), [(8, 12, 29), (28, 28, 37), (40, 64, 37), (31, 31, 31)])
def test_resizing_is_tensorflows_to_the_last_bit(height: int, width: int, side: int) -> None:
    images = noise(2, height, width)
    expected = (straight_resize(images, side) - 128) / 128
    found = resize_like_tf1(images, side)
    assert torch.equal(found, expected.permute(0, 3, 1, 2))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_grey_is_repeated_and_said(weights: Path) -> None:
    grey = noise(2, 12, 12, 1)
    assert torch.equal(resize_like_tf1(grey, 29), resize_like_tf1(grey.expand(-1, -1, -1, 3), 29))
    assert "repeated to RGB" in " ".join(open_inception(CPU, 1, weights, True).notes)
    assert "repeated to RGB" not in " ".join(open_inception(CPU, 3, weights, True).notes)


def test_features_agree_with_torchvisions_modules(state: dict[str, Tensor], weights: Path) -> None:
    extractor = dataclasses.replace(open_inception(CPU, 3, weights, True), block=2)
    images = noise(3, 48, 40)
    pooled, logits = extractor(images)
    expected = reference_features(state, resize_like_tf1(images, 299).contiguous())
    assert pooled.shape == (3, 2048) and logits.shape == (3, 1008)
    assert float(expected[0].std(0).mean()) > 1e-3  # the features do tell images apart
    torch.testing.assert_close(pooled, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-4)


def test_features_do_not_depend_on_the_batch(weights: Path) -> None:
    extractor = dataclasses.replace(open_inception(CPU, 3, weights, True), block=3)
    images = noise(5, 8, 8)
    together = extractor(images)
    apart = [extractor(images[i : i + 1]) for i in (0, 4)]
    for row, single in zip((0, 4), apart, strict=True):
        assert torch.equal(together.pooled[row], single.pooled[0])
        assert torch.equal(together.logits[row], single.logits[0])


def test_protocol_carries_the_digest(weights: Path) -> None:
    extractor = open_inception(CPU, 3, weights, True)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert extractor.digest == digest
    assert extractor.protocol == f"tf1-bilinear|u8|pool3-2048|w={digest[:8]}"
    assert extractor.logits_protocol == f"tf1-bilinear|u8|logits-1008-nobias|w={digest[:8]}"
    assert any("unknown Inception weights" in note for note in extractor.notes)


def test_unknown_weights_are_refused_unless_allowed(weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"found SHA-256 {digest}, expected 6726825d"):
        open_inception(CPU, 3, weights, allow_unknown=False)


@pytest.mark.parametrize("kind", ["html", "truncated", "missing", "shape"])
def test_files_that_are_something_else(kind: str, tmp_path: Path, state: dict[str, Tensor], weights: Path) -> None:
    path = tmp_path / "weights.pth"
    if kind == "html":
        path.write_text("<html>404</html>")
    elif kind == "truncated":
        path.write_bytes(weights.read_bytes()[:5000])
    elif kind == "missing":
        torch.save({name: tensor for name, tensor in state.items() if "Mixed_7c" not in name}, path)
    else:
        torch.save(state | {"Mixed_6c.branch7x7_2.conv.weight": torch.zeros(160, 100, 1, 7)}, path)
    expected = {"missing": "Mixed_7c.branch1x1", "shape": "do not fit together"}.get(kind, "not a weights file")
    with pytest.raises(DataError, match=expected) as caught:
        open_inception(CPU, 3, path, allow_unknown=True)
    assert str(path) in caught.value.message


def test_where_weights_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {name: tmp_path / name for name in ("flag", "environment", "image", "hub")}
    for place in places.values():
        place.mkdir()
    torch_home = tmp_path / "torch"
    (torch_home / "hub").mkdir(parents=True)
    (torch_home / "hub" / "checkpoints").symlink_to(places["hub"])
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.setattr(inception, "IMAGE_FOLDER", places["image"])
    monkeypatch.delenv("GANTOOL_WEIGHTS", raising=False)

    with pytest.raises(UsageError) as caught:
        find_weights()
    assert str(torch_home / "hub" / "checkpoints") in caught.value.message
    assert caught.value.hint is not None
    assert "https://github.com/mseitzer/pytorch-fid/releases" in caught.value.hint and "--weights" in caught.value.hint

    in_hub = torch_home / "hub" / "checkpoints" / FILE_NAMES[1]  # the other tools' name
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
