"""Read files of `torch.save` that hold more than tensors, without running code.

Such a file is a pickle. It names classes and functions, and an ordinary reader calls them. torch's
safe reader (`weights_only=True`) calls only functions that build tensors and plain containers, and
refuses everything else. Here the safe reader also accepts the classes in `LISTED`. But it does not
use the real classes: each object becomes a `Shell`, which stores its attributes and runs nothing.
So the program that wrote the file need not be installed.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spikedet.errors import WeightsError

# Layers of torch and ultralytics that detectors consist of, and what their files hold besides.
LISTED = {
    "torch.nn.modules.activation": """
        ELU GELU Hardsigmoid Hardswish Hardtanh LeakyReLU Mish MultiheadAttention PReLU ReLU ReLU6
        Sigmoid SiLU Softmax Softplus Tanh
    """,
    "torch.nn.modules.batchnorm": "BatchNorm1d BatchNorm2d",
    "torch.nn.modules.container": "ModuleList Sequential",
    "torch.nn.modules.conv": "Conv1d Conv2d ConvTranspose2d",
    "torch.nn.modules.dropout": "Dropout Dropout2d",
    "torch.nn.modules.flatten": "Flatten",
    "torch.nn.modules.linear": "Identity Linear NonDynamicallyQuantizableLinear",
    "torch.nn.modules.loss": "BCEWithLogitsLoss",
    "torch.nn.modules.normalization": "GroupNorm LayerNorm",
    "torch.nn.modules.padding": "ZeroPad2d",
    "torch.nn.modules.pixelshuffle": "PixelShuffle PixelUnshuffle",
    "torch.nn.modules.pooling": """
        AdaptiveAvgPool2d AdaptiveMaxPool2d AvgPool2d MaxPool2d
    """,
    "torch.nn.modules.upsampling": "Upsample UpsamplingBilinear2d UpsamplingNearest2d",
    "ultralytics.nn.modules.block": """
        A2C2f AAttn ABlock AConv ADown Attention Bottleneck BottleneckCSP C1 C2 C2PSA C2f C2fCIB
        C2fPSA C3 C3Ghost C3TR C3f C3k C3k2 C3x CBFuse CBLinear CIB DFL ELAN1 GhostBottleneck
        HGBlock HGStem PSA PSABlock RepBottleneck RepC3 RepCSP RepNCSPELAN4 RepVGGDW ResNetBlock
        ResNetLayer SCDown SPP SPPELAN SPPF
    """,
    "ultralytics.nn.modules.conv": """
        CBAM ChannelAttention Concat Conv Conv2 ConvTranspose DWConv DWConvTranspose2d Focus
        GhostConv Index LightConv RepConv SpatialAttention
    """,
    "ultralytics.nn.modules.head": "Detect v10Detect",
    "ultralytics.nn.modules.transformer": """
        AIFI LayerNorm2d MLPBlock TransformerBlock TransformerEncoderLayer TransformerLayer
    """,
    "ultralytics.nn.tasks": "DetectionModel",
    "ultralytics.utils": "IterableSimpleNamespace",
    "ultralytics.utils.loss": "BboxLoss DFLoss E2ELoss v8DetectionLoss",
    "ultralytics.utils.tal": "TaskAlignedAssigner",
    # settings and numbers of a training run
    "argparse": "Namespace",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "pathlib": "Path PosixPath PurePosixPath PureWindowsPath WindowsPath",
    "types": "SimpleNamespace",
}


class Shell:
    """A placeholder for an object in a file. It stores the attributes and runs no code.

    Attributes:
        kind: Name of the object's class, with its module.
    """

    kind = ""

    def __init__(self, *_: Any):
        """Ignore the arguments with which the class would be called."""

    def __setstate__(self, state: Any) -> None:
        if type(state) is dict:
            vars(self).update({key: value for key, value in state.items() if type(key) is str})


def _shells() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    kinds = [f"{module}.{name}" for module, names in LISTED.items() for name in names.split()]
    return [(type(kind.rpartition(".")[2], (Shell,), {"kind": kind}), kind) for kind in kinds]


SHELLS = _shells()


@contextmanager
def _only_listed() -> Iterator[None]:
    """Allow torch's reader only the shells, and no classes that other code has allowed."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(SHELLS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def load(path: Path) -> Any:
    """Read a file of `torch.save`: tensors on the CPU, containers, numbers, text and shells.

    Raises:
        WeightsError: The file is missing or damaged, or names a class that is not in `LISTED`.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        with _only_listed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forms that are unusual; what matters is refused
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever its bytes make of the reader
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise WeightsError(
                f"{path}: damaged, or not a file of torch.save that holds tensors"
            ) from None
        raise WeightsError(
            f"{path}: holds the Python object {named[1]}, which is not read, as no code of a file "
            "is run; save the state dict: torch.save(model.state_dict(), 'state.pt')"
        ) from None
