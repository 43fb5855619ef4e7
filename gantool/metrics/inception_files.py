"""Where the file with the weights of the FID Inception network is, without opening it: a login node may lack torch.

The weights of the 2015 TensorFlow graph were converted twice: for pytorch-fid (a plain state dict; torch-fidelity and
torchmetrics use the same file) and by NVIDIA (a TorchScript module, used by stylegan2-ada and clean-fid). Neither is
downloaded here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from gantool.metrics import weights

FILE_NAMES = (
    "pt_inception-2015-12-05-6726825d.pth",
    "weights-inception-2015-12-05-6726825d.pth",
    "inception-2015-12-05.pt",
)
SCRIPTED = FILE_NAMES[2]
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of the first two, which are one file
SCRIPTED_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAMES[0]}"


def find_weights(path: Path | None = None) -> Path:
    """The weights file (see `weights.find`); clean-fid's in the folder for temporary files comes last."""
    hint = f"download {URL} (95.6 MB) on a machine with internet, and give it with --weights FILE or $GANTOOL_WEIGHTS"
    hint += f", or put it into {weights.hub_folder()}; or use an extractor that needs no file, like 'classifier'"
    left = Path(tempfile.gettempdir(), SCRIPTED)
    return weights.find(weights.Wanted("Inception weights", FILE_NAMES, hint, (left,)), path)
