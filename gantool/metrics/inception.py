"""The FID Inception network: Inception v3 with the weights of the 2015 TensorFlow graph, as converted for pytorch-fid.

It differs from torchvision's inception_v3 in the pooling branches: averages leave the padding out, and the last block
takes the maximum. Images are resized like TensorFlow 1 did (bilinear; source = target * in / out), then turned into
(x - 128) / 128. Pool3 features agree with torch-fidelity's '2048', logits with its 'logits_unbiased'. Never downloads.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gantool.errors import DataError, UsageError
from gantool.metrics.features import Extractor

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FILE_NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAMES[0]}"
IMAGE_FOLDER = Path("/opt/gantool/weights")  # where the container image keeps them

SIDE = 299
_BN_EPS = 1e-3

# A block: branches of convolutions one after the other (a tuple in a branch: side by side), and a pooling branch.
_A = (("branch1x1",), ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
_B = (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
_C = (
    ("branch1x1",),
    ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
    ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
)
_D = (("branch3x3_1", "branch3x3_2"), ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"))
_E = (
    ("branch1x1",),
    ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
    ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
)
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "pool", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "pool")
_BLOCKS: dict[str, tuple[tuple[Any, ...], str]] = {
    "Mixed_5b": (_A, "average"),
    "Mixed_5c": (_A, "average"),
    "Mixed_5d": (_A, "average"),
    "Mixed_6a": (_B, "halve"),
    "Mixed_6b": (_C, "average"),
    "Mixed_6c": (_C, "average"),
    "Mixed_6d": (_C, "average"),
    "Mixed_6e": (_C, "average"),
    "Mixed_7a": (_D, "halve"),
    "Mixed_7b": (_E, "average"),
    "Mixed_7c": (_E, "maximum"),
}
_HALVING = {
    "Conv2d_1a_3x3",
    "Mixed_6a.branch3x3",
    "Mixed_6a.branch3x3dbl_3",
    "Mixed_7a.branch3x3_2",
    "Mixed_7a.branch7x7x3_4",
}
_UNPADDED = {*_HALVING, "Conv2d_2a_3x3", "Conv2d_4a_3x3"}

Weights = dict[str, tuple[Tensor, Tensor]]  # convolution -> (weight, bias), batch normalisation folded in


def open_inception(device: torch.device, channels: int, path: Path | None, allow_unknown: bool) -> Extractor:
    """The extractor with the weights at `path` (a file or a folder; None: see `find_weights`).

    channels: of the images to come. allow_unknown: take a file with any digest; its scores then say so.
    """
    path = find_weights(path)
    digest = _file_digest(path)
    if digest != SHA256 and not allow_unknown:
        text = f"{path}: these are not the FID Inception weights: found SHA-256 {digest}, expected {SHA256}"
        raise DataError(text, f"get the file again from {URL}")
    state = _read_state(path)
    weights = {name: _fold(state, name) for name in conv_names()}
    fc = state["fc.weight"].float()
    _check_shapes(weights, fc, path)
    weights = {
        name: (weight.to(device, memory_format=torch.channels_last), bias.to(device))
        for name, (weight, bias) in weights.items()
    }
    fc = fc.to(device)

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = forward(weights, resize_like_tf1(images, SIDE))
        return pooled, pooled @ fc.T

    notes = []
    if digest != SHA256:
        notes.append(f"unknown Inception weights (SHA-256 {digest[:8]}...): the numbers agree with no other tool")
    if channels == 1:
        notes.append("grey images were repeated to RGB for Inception, which was trained on colour photographs")
    common = f"tf1-bilinear|u8|{{}}|w={digest[:8]}"
    return Extractor(
        name="inception",
        digest=digest,
        protocol=common.format("pool3-2048"),
        logits_protocol=common.format(f"logits-{len(fc)}-nobias"),
        feature_dim=fc.shape[1],
        num_logits=len(fc),
        block=32,
        device=device,
        network=network,
        notes=tuple(notes),
    )


def find_weights(path: Path | None = None) -> Path:
    """The weights file: `path`, else $GANTOOL_WEIGHTS (each a file or a folder, and nothing else when given), else the
    container image's folder, else the cache of torch.hub, where other tools put it; UsageError when there is none."""
    hint = f"download {URL} (95.6 MB) on a machine with internet, and give it with --weights FILE or $GANTOOL_WEIGHTS"
    for origin, given in (("--weights", path), ("$GANTOOL_WEIGHTS", os.environ.get("GANTOOL_WEIGHTS"))):
        if given:
            found = _in_place(Path(given))
            if found is None:
                expected = f"expected the weights file, or a folder with {' or '.join(FILE_NAMES)}"
                raise UsageError(f"{origin}: no Inception weights at {given}; {expected}", hint)
            return found
    cache = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    places = (IMAGE_FOLDER, Path(cache, "hub", "checkpoints").expanduser())
    for place in places:
        found = _in_place(place)
        if found is not None:
            return found
    looked = " and in ".join(str(place) for place in places)
    raise UsageError(
        f"no Inception weights: looked for {' or '.join(FILE_NAMES)} in {looked}",
        f"{hint}, or put it into {places[-1]}; or use the extractor 'classifier', which needs no weights",
    )


def _in_place(place: Path) -> Path | None:
    place = place.expanduser()
    if place.is_file():
        return place
    return next((place / name for name in FILE_NAMES if (place / name).is_file()), None)


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def conv_names() -> list[str]:
    """The 94 convolutions, as they are called in the weights file."""
    names = [name for name in _STEM if name != "pool"]
    for block, (branches, pool) in _BLOCKS.items():
        for element in (element for branch in branches for element in branch):
            names += [f"{block}.{part}" for part in ((element,) if isinstance(element, str) else element)]
        if pool != "halve":
            names.append(f"{block}.branch_pool")
    return names


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own for a file that is none of its kind
        raise DataError(f"{path}: not a weights file of torch: {str(error).splitlines()[0]}") from error
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    wanted = {f"{name}.{part}" for name in conv_names() for part in parts} | {"fc.weight"}
    found = set(state) if isinstance(state, dict) else set()
    if missing := sorted(wanted - found):
        text = f"found {len(found)} tensors, {len(missing)} of the expected ones are missing (the first: {missing[0]})"
        raise DataError(f"{path}: not the FID Inception network: {text}", f"get the file from {URL}")
    return {name: state[name] for name in wanted}


def _fold(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and its batch normalisation in one; folded in float64."""
    values = {part: state[f"{name}.{part}"].double() for part in ("conv.weight", "bn.weight", "bn.bias")}
    mean, variance = state[f"{name}.bn.running_mean"].double(), state[f"{name}.bn.running_var"].double()
    scale = values["bn.weight"] / torch.sqrt(variance + _BN_EPS)
    weight = values["conv.weight"] * scale[:, None, None, None]
    return weight.float(), (values["bn.bias"] - mean * scale).float()


def _check_shapes(weights: Weights, fc: Tensor, path: Path) -> None:
    """Run the network on tensors without data: only shapes that fit get through."""
    shapes = {name: (weight.to("meta"), bias.to("meta")) for name, (weight, bias) in weights.items()}
    try:
        forward(shapes, torch.empty(1, 3, SIDE, SIDE, device="meta")) @ fc.to("meta").T
    except RuntimeError as error:
        raise DataError(f"{path}: the tensors do not fit together: {error}", f"get the file from {URL}") from error


def resize_like_tf1(images: Tensor, side: int) -> Tensor:
    """tf.image.resize_bilinear of TensorFlow 1 (no corner alignment, no half-pixel centres, no antialiasing), then
    (x - 128) / 128: uint8 [n, H, W, 1 or 3] -> float32 [n, 3, side, side], channels last. Grey is repeated to RGB."""
    pixels = images.float()
    height, width = images.shape[1:3]
    # Along the rows of the source first, then along columns: the same sums as TensorFlow's, with far fewer of them.
    low, high, weight = _taps(width, side, images.device)
    left, right = pixels[:, :, low], pixels[:, :, high]
    rows = left + (right - left) * weight[:, None]
    low, high, weight = _taps(height, side, images.device)
    top, bottom = rows[:, low], rows[:, high]
    resized = top + (bottom - top) * weight[:, None, None]
    normalised = (resized - 128) / 128
    return normalised.expand(-1, -1, -1, 3).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _taps(size: int, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    position = torch.arange(side, dtype=torch.float32, device=device) * torch.tensor(size / side, dtype=torch.float32)
    low = position.long()
    return low, (low + 1).clamp_max(size - 1), position - low


def forward(weights: Weights, images: Tensor) -> Tensor:
    """Pool3 features, float32 [n, 2048], of normalised images [n, 3, 299, 299]."""
    x = images
    for name in _STEM:
        x = F.max_pool2d(x, 3, 2) if name == "pool" else _conv(weights, name, x)
    for block in _BLOCKS:
        x = _mixed(weights, block, x)
    return x.mean((2, 3))


def _mixed(weights: Weights, block: str, x: Tensor) -> Tensor:
    branches, pool = _BLOCKS[block]
    outputs = []
    for branch in branches:
        y = x
        for element in branch:
            if isinstance(element, str):
                y = _conv(weights, f"{block}.{element}", y)
            else:
                y = torch.cat([_conv(weights, f"{block}.{part}", y) for part in element], 1)
        outputs.append(y)
    if pool == "halve":
        outputs.append(F.max_pool2d(x, 3, 2))
    elif pool == "maximum":
        outputs.append(_conv(weights, f"{block}.branch_pool", F.max_pool2d(x, 3, 1, 1)))
    else:
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        outputs.append(_conv(weights, f"{block}.branch_pool", pooled))
    return torch.cat(outputs, 1)


def _conv(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight, bias = weights[name]
    height, width = weight.shape[2:]
    padding = (0, 0) if name in _UNPADDED else (height // 2, width // 2)
    return F.relu_(F.conv2d(x, weight, bias, 2 if name in _HALVING else 1, padding))
