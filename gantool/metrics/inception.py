"""The FID Inception network: Inception v3 with the weights of the 2015 TensorFlow graph.

It differs from torchvision's inception_v3 in the pooling branches: averages leave the padding out, and the last block
takes the maximum. Pool3 features agree with torch-fidelity's '2048', logits with its 'logits_unbiased', the features
for sFID (Nash et al., 2021) with the first 7 channels of mixed_6/conv in the graph, as guided-diffusion takes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gantool.errors import DataError, UsageError
from gantool.metrics.features import Extractor, block_of
from gantool.metrics.inception_weights import FILE_NAMES, SCRIPTED_SHA256, SHA256, URL, Raw, find_weights, read
from gantool.metrics.resize import PROTOCOLS, SIDE
from gantool.metrics.weights import sha256
from gantool.precision import float32_products

SPATIAL_CHANNELS = 7  # of Mixed_6d's first branch, 17 x 17 each
SPATIAL_DIM = SPATIAL_CHANNELS * 17 * 17
_TOLERANCE = 1e-3  # relative to the largest value; a wrong tensor changes everything

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


def open_inception(
    device: torch.device, channels: int, path: Path | None, allow_unknown: bool, protocol: str = "tf1"
) -> Extractor:
    """The extractor with the weights at `path` (a file or a folder; None: see `inception_weights.find_weights`).

    channels: of the images to come. allow_unknown: take a file with any digest; its scores then say so. protocol: one
    of resize.PROTOCOLS. UsageError without a file, DataError when it holds something else.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"found protocol '{protocol}', expected one of {', '.join(PROTOCOLS)}")
    resize, label, ddof = PROTOCOLS[protocol]
    path = find_weights(path)
    digest = sha256(path)
    known = digest in (SHA256, SCRIPTED_SHA256)
    if not known and not allow_unknown:
        expected = f"{SHA256} ({FILE_NAMES[0]}) or {SCRIPTED_SHA256} ({FILE_NAMES[2]})"
        text = f"{path}: these are not the FID Inception weights: found SHA-256 {digest}, expected {expected}"
        raise DataError(text, f"get the file again from {URL}")
    raw = read(path, conv_names())
    _check(raw, path)
    weights = {
        name: (weight.to(device, memory_format=torch.channels_last), bias.to(device))
        for name, (weight, bias) in raw.convs.items()
    }
    fc = raw.fc.to(device)

    def network(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, spatial = forward(weights, resize(images))
        return pooled, pooled @ fc.T, spatial

    notes = []
    if not known:
        notes.append(f"unknown Inception weights (SHA-256 {digest[:8]}...): the numbers agree with no other tool")
    if channels == 1:
        notes.append("grey images were repeated to RGB for Inception, which was trained on colour photographs")
    common = f"{label}|u8|{{}}|w={digest[:8]}"
    return Extractor(
        name="inception",
        digest=digest,
        protocol=common.format("pool3-2048"),
        logits_protocol=common.format(f"logits-{len(fc)}-nobias"),
        feature_dim=fc.shape[1],
        num_logits=len(fc),
        block=block_of(device),
        device=device,
        network=network,
        notes=tuple(notes),
        ddof=ddof,
        spatial_dim=SPATIAL_DIM,
        spatial_protocol=common.format(f"mixed6d-{SPATIAL_DIM}"),
    )


def _check(raw: Raw, path: Path) -> None:
    """DataError unless the tensors fit together, and do what the TorchScript module does, where there is one."""
    shapes = {name: (weight.to("meta"), bias.to("meta")) for name, (weight, bias) in raw.convs.items()}
    try:  # tensors without data: only shapes that fit get through
        forward(shapes, torch.empty(1, 3, SIDE, SIDE, device="meta"))[0] @ raw.fc.to("meta").T
    except RuntimeError as error:
        raise DataError(f"{path}: the tensors do not fit together: {error}", f"get the file from {URL}") from error
    if raw.scripted is None:
        return
    image = torch.randint(0, 256, (1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode(), float32_products(tf32=False):
        pooled, _ = forward(raw.convs, (image.float() - 128) / 128)
        ours = {"features": pooled, "class probabilities": (pooled @ raw.fc.T).softmax(1)}
        try:
            theirs = {
                "features": raw.scripted(image, return_features=True).reshape(1, -1),
                "class probabilities": raw.scripted(image, no_output_bias=True).reshape(1, -1),
            }
        except RuntimeError as error:
            text = f"{path}: the TorchScript module cannot be run: {str(error).splitlines()[-1]}"
            raise DataError(text, f"get the file from {URL}") from error
    for what, found in ours.items():
        expected = theirs[what]
        same = found.shape == expected.shape and bool(torch.isfinite(expected).all())
        away = float((found - expected).abs().max() / expected.abs().max()) if same else float("inf")
        if not away <= _TOLERANCE:
            text = f"{path}: {what} from the converted weights are {away:.1e} away from the module's own, relatively"
            raise DataError(f"{text}; at most {_TOLERANCE:.0e} is expected", f"get the file from {URL}")


def conv_names() -> list[str]:
    """The 94 convolutions, as they are called in the weights file."""
    names = [name for name in _STEM if name != "pool"]
    for block, (branches, pool) in _BLOCKS.items():
        for element in (element for branch in branches for element in branch):
            names += [f"{block}.{part}" for part in ((element,) if isinstance(element, str) else element)]
        if pool != "halve":
            names.append(f"{block}.branch_pool")
    return names


def forward(weights: Weights, images: Tensor) -> tuple[Tensor, Tensor]:
    """Of normalised images [n, 3, 299, 299]: pool3 features [n, 2048], and those for sFID [n, 2023] (height, width,
    channels, as TensorFlow flattens them), both float32."""
    x = images
    for name in _STEM:
        x = F.max_pool2d(x, 3, 2) if name == "pool" else _conv(weights, name, x)
    for block in _BLOCKS:
        x = _mixed(weights, block, x)
        if block == "Mixed_6d":  # its output begins with that of branch1x1
            spatial = x[:, :SPATIAL_CHANNELS].float().permute(0, 2, 3, 1).flatten(1)
    return x.float().mean((2, 3)), spatial


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
