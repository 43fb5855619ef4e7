"""An extractor without downloads: a small CNN trained on the real training set, once, and kept beside the data.

Its distances tell generators of one dataset apart; they cannot be compared with FIDs of the Inception network. Training
is seeded and gives the same bits on the same machine with the same number of threads; other machines round differently,
so scores carry the digest of the weights, and a copied file makes them comparable.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gantool import files, randomness
from gantool.config.schema import digest_of
from gantool.data.pack import PackedDataset
from gantool.errors import UsageError
from gantool.metrics.cache import once
from gantool.metrics.features import Extractor, batches
from gantool.optimizers import AdamW
from gantool.precision import float32_products
from gantool.progress import Progress

WIDTHS = (32, 64, 128, 128)
BATCH = 64
EPOCHS = 2
MOST_IMAGES = 100_000  # of all epochs together; what bounds the time
FEWEST_IMAGES = 10_000
PEAK_RATE = 0.01
WINDOW = 20  # steps; when their mean loss is below SOLVED, training ends within 2 * WINDOW more
SOLVED = 0.05
_NUM_TESTED = 10_000
_POOR_ACCURACY = 0.5
RECIPE = digest_of([1, WIDTHS, BATCH, EPOCHS, MOST_IMAGES, FEWEST_IMAGES, PEAK_RATE, WINDOW, SOLVED])[:8]


@dataclass(frozen=True)
class Trained:
    """Weights of a `Classifier`, and how well it does."""

    state: dict[str, Tensor]
    accuracy: float  # 0..1
    tested_on: str  # 'test images' or 'training images'


class Classifier(nn.Module):
    """Four 3x3 convolutions with batch normalisation, halving the size between them; their mean over the image is the
    feature, one linear layer makes the logits. Images of 64 pixels and more are strided down to about 32 by the first.
    """

    def __init__(self, channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        stride = max(1, size // 32)
        ins, kernels, strides = (channels, *WIDTHS[:-1]), (stride + 2, 3, 3, 3), (stride, 1, 1, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(ins[i], WIDTHS[i], kernels[i], strides[i], padding=1, bias=False) for i in range(len(WIDTHS))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in WIDTHS)
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [n, H, W, C] -> features [n, 128], logits [n, num_classes]."""
        x = (images.permute(0, 3, 1, 2).float() - 127.5) / 127.5
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if i > 0 and min(x.shape[2:]) > 1:
                x = F.max_pool2d(x, 2)
            x = F.relu(norm(conv(x)))
        pooled = x.mean((2, 3))
        return pooled, self.head(pooled)


def open_classifier(data: PackedDataset, data_dir: Path, device: torch.device, progress: Progress) -> Extractor:
    """The extractor trained on `data`, from its file below `data_dir`, or trained now; UsageError without labels."""
    check_classes(data)
    path = data_dir / "metrics" / f"classifier-{data.digest[:16]}-{RECIPE}.safetensors"
    what = f"the classifier of {data.title}"

    def make() -> Trained:
        trained = _train(data, device, progress)
        progress.say(f"{what}: {trained.accuracy:.1%} right on the {trained.tested_on}")
        return trained

    trained = once(path, _read, make, _write, what, progress)
    digest = _digest(trained.state)
    common = f"classifier-{RECIPE}|u8|{{}}|w={digest[:8]}"
    notes = []
    if trained.accuracy < _POOR_ACCURACY:
        notes.append(
            f"{what} is right on only {trained.accuracy:.1%} of the {trained.tested_on}: read its scores with care"
        )
    return Extractor(
        name="classifier",
        digest=digest,
        protocol=common.format(f"mean-{WIDTHS[-1]}"),
        logits_protocol=common.format(f"logits-{len(data.classes)}"),
        feature_dim=WIDTHS[-1],
        num_logits=len(data.classes),
        block=16 if device.type == "cpu" else 64,
        device=device,
        network=_folded(_build(data.images.shape[1:], len(data.classes), trained.state), device),
        notes=tuple(notes),
    )


def check_classes(data: PackedDataset) -> None:
    """UsageError when there are not two classes of training images to tell apart."""
    if len(data.classes) < 2 or len(np.unique(_labelled(data, "train")[1])) < 2:
        text = (
            f"{data.title}: the extractor 'classifier' needs images of two or more classes, found {len(data.classes)}"
        )
        raise UsageError(text, "use the extractor 'inception', or pack a source with a folder for each class")


def _build(
    shape: tuple[int, ...], num_classes: int, state: dict[str, Tensor] | None = None, seed: int = 0
) -> Classifier:
    """The network for images [H, W, C], with the weights `state`, or with the initial ones (He et al., 2015)."""
    height, width, channels = shape
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws from the global generator
        network = Classifier(channels, min(height, width), num_classes)
    if state is not None:
        network.load_state_dict(state)
        return network
    rng = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=rng) * math.sqrt(gain / fan_in)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _folded(network: Classifier, device: torch.device) -> Classifier:
    """For features: batch normalisation folded into the convolutions, channels last, no gradients."""
    network.eval().requires_grad_(False)
    for i, norm in enumerate(network.norms):
        conv = network.convs[i]
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        network.convs[i] = fuse_conv_bn_eval(conv, norm)
        network.norms[i] = nn.Identity()
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _train(data: PackedDataset, device: torch.device, progress: Progress) -> Trained:
    images, labels = data.split("train")
    what = f"training the classifier of {data.title}"
    network = train_network(images.__getitem__, labels, images.shape[1:], len(data.classes), device, what, progress)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return Trained(state, *_accuracy(data, network, device))


def train_network(
    images: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]],
    labels: npt.NDArray[np.int64],
    shape: tuple[int, ...],
    num_classes: int,
    device: torch.device,
    what: str,
    progress: Progress,
    seed: int = 0,
) -> Classifier:
    """A classifier trained by Adam with a linearly falling rate, until the images are used up or the set is solved.

    images: indices -> uint8 [n, H, W, C]; labels: int64 [N], -1 for those that are left out; shape: [H, W, C]. `what`
    is the work in words; `seed` names the initial weights and the order.
    """
    usable = np.flatnonzero(labels >= 0)
    batch = min(BATCH, len(usable))
    end = max(1, min(MOST_IMAGES, max(FEWEST_IMAGES, EPOCHS * len(usable))) // batch)
    network = _build(shape, num_classes, seed=seed)
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = AdamW(network.parameters(), lr=PEAK_RATE)
    total, step = end * batch, 0
    losses = torch.zeros((), device=device)
    with float32_products(tf32=False), torch.enable_grad():
        for indices in _batches_in_order(usable, batch, seed):
            optimizer.param_groups[0]["lr"] = PEAK_RATE * min(1.0, (step + 1) / WINDOW) * (end - step) / end
            _, logits = network(torch.from_numpy(np.array(images(indices))).to(device))
            loss = F.cross_entropy(logits, torch.from_numpy(labels[indices]).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses += loss.detach()
            step += 1
            if step % WINDOW == 0:
                mean = float(losses) / WINDOW
                losses.zero_()
                end = min(end, step + 2 * WINDOW) if mean < SOLVED else end
                progress.step(what, min(step * batch, total - 1), total, f"loss {mean:.3f}")
            if step >= end:
                break
    progress.step(what, total, total)
    return network


def _batches_in_order(usable: np.ndarray, batch: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Indices of the batches, epoch after epoch without end; ascending in a batch, as the disk likes it."""
    epoch = 0
    while True:
        order = usable[randomness.generator(seed, "classifier", epoch).permutation(len(usable))]
        for start in range(0, len(order) - batch + 1, batch):
            yield np.sort(order[start : start + batch])
        epoch += 1


@torch.inference_mode()
def _accuracy(data: PackedDataset, network: Classifier, device: torch.device) -> tuple[float, str]:
    """Fraction of right answers, and on which images."""
    has_test = "test" in data.splits and len(_labelled(data, "test")[0]) > 0
    split = "test" if has_test else "train"
    indices, labels = _labelled(data, split)
    chosen = np.arange(min(len(indices), _NUM_TESTED)) * len(indices) // min(len(indices), _NUM_TESTED)
    network.eval()
    with float32_products(tf32=False):
        parts = [network(part.to(device))[1].argmax(1).cpu() for part in batches(data.split(split)[0], indices[chosen])]
    right = float((torch.cat(parts).numpy() == labels[chosen]).mean())
    return right, "test images" if has_test else "training images"


def _labelled(data: PackedDataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images with a label, and the labels."""
    labels = data.split(split)[1]
    indices = np.flatnonzero(labels >= 0)
    return indices, labels[indices]


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, trained: Trained) -> None:
    facts = {"accuracy": trained.accuracy, "tested_on": trained.tested_on, "digest": _digest(trained.state)}
    with files.atomic_file(path) as file:
        file.write(safetensors.torch.save(trained.state, {"gantool-classifier": json.dumps(facts)}))


def _read(path: Path) -> Trained | None:
    try:
        state = safetensors.torch.load(path.read_bytes())
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["gantool-classifier"])
        whole = _digest(state) == facts["digest"]
        return Trained(state, float(facts["accuracy"]), str(facts["tested_on"])) if whole else None
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None
