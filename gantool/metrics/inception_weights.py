"""The two files that hold the FID Inception network, and one form for both.

The weights of the 2015 TensorFlow graph were converted twice: for pytorch-fid (a plain state dict with torchvision's
names; torch-fidelity and torchmetrics use the same file) and by NVIDIA (a TorchScript module with TensorFlow's names,
used by stylegan2-ada and clean-fid). Neither is downloaded here. To look for them needs no torch.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantool import container
from gantool.errors import DataError
from gantool.metrics import weights

if TYPE_CHECKING:
    from torch import Tensor

FILE_NAMES = (
    "pt_inception-2015-12-05-6726825d.pth",
    "weights-inception-2015-12-05-6726825d.pth",
    "inception-2015-12-05.pt",
)
SCRIPTED = FILE_NAMES[2]
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of the first two, which are one file
SCRIPTED_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAMES[0]}"

_BN_EPS = 1e-3
_PARTS = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")

# TensorFlow's names of a block's convolutions: 'mixed_4/tower_1/conv_2' is layers.mixed_4.tower_1.conv_2.
_FOLLOWERS = ("conv", "conv_1", "conv_2", "conv_3", "conv_4")
_TOWERS = {  # torchvision's name without its number -> TensorFlow's tower, by the letter of the block
    "A": {"branch5x5": "tower", "branch3x3dbl": "tower_1"},
    "B": {"branch3x3dbl": "tower"},
    "C": {"branch7x7": "tower", "branch7x7dbl": "tower_1"},
    "D": {"branch3x3": "tower", "branch7x7x3": "tower_1"},
}
_SINGLE = {"branch1x1": "conv", "branch3x3": "conv", "branch_pool": "tower_2.conv"}
_E = {
    "branch1x1": "conv",
    "branch3x3_1": "tower_conv",
    "branch3x3_2a": "tower_mixed_conv",
    "branch3x3_2b": "tower_mixed_conv_1",
    "branch3x3dbl_1": "tower_1_conv",
    "branch3x3dbl_2": "tower_1_conv_1",
    "branch3x3dbl_3a": "tower_1_mixed_conv",
    "branch3x3dbl_3b": "tower_1_mixed_conv_1",
    "branch_pool": "tower_2_conv",
}
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_BLOCKS = {"5b": "A", "5c": "A", "5d": "A", "6a": "B", "6b": "C", "6c": "C", "6d": "C", "6e": "C", "7a": "D"}
_BLOCKS |= {"7b": "E", "7c": "E"}


class Raw(NamedTuple):
    """The contents of a weights file."""

    convs: dict[str, tuple[Tensor, Tensor]]  # name -> (weight, bias), float32, batch normalisation folded in
    fc: Tensor  # float32 [1008, 2048]; the bias is not used
    scripted: Any | None  # the TorchScript module itself, to be compared with


def find_weights(path: Path | None = None) -> Path:
    """The weights file (see `weights.find`); clean-fid's in the folder for temporary files comes last."""
    hint = f"download {URL} (95.6 MB) on a machine with internet, and give it with --weights FILE or $GANTOOL_WEIGHTS"
    hint += f", or put it into {weights.hub_folder()}; or use an extractor that needs no file, like 'classifier'"
    temporary = container.temporary_folder()
    left = (temporary / SCRIPTED,) if temporary else ()
    return weights.find(weights.Wanted("Inception weights", FILE_NAMES, hint, left), path)


def read(path: Path, names: Iterable[str]) -> Raw:
    """The convolutions `names` (torchvision's) and the last layer of either file; DataError when it is something else.

    The digest should be known before: TorchScript cannot run Python, but it is a program.
    """
    scripted = _load_scripted(path) if _is_scripted(path) else None
    state = weights.read_state(path) if scripted is None else _renamed(scripted.state_dict(), names)
    wanted = [f"{name}.{part}" for name in names for part in _PARTS] + ["fc.weight"]
    if missing := [name for name in wanted if name not in state]:
        found = len(state) if scripted is None else len(scripted.state_dict())
        text = f"found {found} tensors, {len(missing)} of the expected ones are missing (the first: {missing[0]})"
        raise DataError(f"{path}: not the FID Inception network: {text}", f"get the file from {URL}")
    try:
        convs = {name: _fold(state, name) for name in names}
    except RuntimeError as error:
        raise DataError(f"{path}: the tensors do not fit together: {error}", f"get the file from {URL}") from error
    return Raw(convs, state["fc.weight"].float(), scripted)


def _fold(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and its batch normalisation in one; folded in float64."""
    weight, gamma, beta, mean, variance = (state[f"{name}.{part}"].double() for part in _PARTS)
    scale = gamma / (variance + _BN_EPS).sqrt()
    return (weight * scale[:, None, None, None]).float(), (beta - mean * scale).float()


def _is_scripted(path: Path) -> bool:
    """Does the file hold a program? torch.save makes zip files too, without one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _load_scripted(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions of torch call TorchScript as such deprecated
            return torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"{path}: not a TorchScript file that torch can read: {str(error).splitlines()[0]}") from error


def _renamed(scripted: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of NVIDIA's module by the names of the state dict; a missing one stays missing. Its batch
    normalisation has no gamma, because the graph has none."""
    state = {}
    for name in names:
        theirs = tensorflow_name(name)
        for part, ending in zip(_PARTS, ("weight", "gamma", "beta", "mean", "var"), strict=True):
            if f"layers.{theirs}.{ending}" in scripted:
                state[f"{name}.{part}"] = scripted[f"layers.{theirs}.{ending}"]
        if f"{name}.bn.bias" in state:
            bias = state[f"{name}.bn.bias"]
            state.setdefault(f"{name}.bn.weight", bias.new_ones(bias.shape))
    if "output.weight" in scripted:
        state["fc.weight"] = scripted["output.weight"]
    return state


def tensorflow_name(name: str) -> str:
    """'Mixed_6b.branch7x7_2' -> 'mixed_4.tower.conv_1': what NVIDIA's module calls a convolution."""
    if name in _STEM:
        return _FOLLOWERS[_STEM.index(name)]
    block, branch = name.removeprefix("Mixed_").split(".")
    number = list(_BLOCKS).index(block)
    mixed = f"mixed_{number}" if number else "mixed"
    if _BLOCKS[block] == "E":
        return f"{mixed}.{_E[branch]}"
    tower, _, position = branch.rpartition("_")
    if position.isdigit():
        return f"{mixed}.{_TOWERS[_BLOCKS[block]][tower]}.{_FOLLOWERS[int(position) - 1]}"
    return f"{mixed}.{_SINGLE[branch]}"
