"""The operations of a graph, and the table of them.

An operation is an `nn.Module`. Layers with weights and ordinary pooling are modules of torch. The
other operations are in this file. Only `Temporal` modules (`neurons.layers`) depend on earlier time
steps. All other operations treat every frame of a batch in the same way, so time can be folded into
the batch, [T*B, ...].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool
from spikedet.neurons.quantize import QuantClip
from spikedet.neurons.registry import NEURONS


class Add(nn.Module):
    """The sum of its inputs, [B, ...] each, with the broadcasting of torch."""

    def forward(self, *inputs: Tensor) -> Tensor:
        total = inputs[0]
        for x in inputs[1:]:
            total = total + x
        return total


class Subtract(nn.Module):
    """The first input minus the second input."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x - y


class Scale(nn.Module):
    """Product with a constant: a scalar, or broadcastable to [1, ...]."""

    factor: Tensor

    def __init__(self, factor: Tensor | Sequence[int] = ()):
        super().__init__()
        self.register_buffer("factor", _constant(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Shift(nn.Module):
    """Sum with a constant: a scalar, or broadcastable to [1, ...]."""

    offset: Tensor

    def __init__(self, offset: Tensor | Sequence[int] = ()):
        super().__init__()
        self.register_buffer("offset", _constant(offset))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


class Concatenate(nn.Module):
    """Concatenation of the inputs along dimension `dim`, 1 or more."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.dim)


class Stack(nn.Module):
    """The inputs stacked along a new dimension `dim`, 1 or more."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.stack(inputs, self.dim)


class Reshape(nn.Module):
    """[B, ...] -> [B, *shape]; one entry of `shape` may be -1."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


class Permute(nn.Module):
    """The dimensions in another order. The first dimension stays the first."""

    def __init__(self, dims: Sequence[int]):
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class Squeeze(nn.Module):
    """Remove a dimension of size 1."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(self.dim)


class Unsqueeze(nn.Module):
    """Add a dimension of size 1."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(self.dim)


class Slice(nn.Module):
    """Entries `start` to `stop` (None: to the end) along `dim`, every `step`-th."""

    def __init__(self, dim: int, start: int, stop: int | None, step: int = 1):
        super().__init__()
        self.dim, self.start, self.stop, self.step = dim, start, stop, step

    def forward(self, x: Tensor) -> Tensor:
        part = (slice(None),) * self.dim + (slice(self.start, self.stop, self.step),)
        return x[part]


class Select(nn.Module):
    """One entry along `dim`. The dimension is removed."""

    def __init__(self, dim: int, index: int):
        super().__init__()
        self.dim, self.index = dim, index

    def forward(self, x: Tensor) -> Tensor:
        return x.select(self.dim, self.index)


class Mean(nn.Module):
    """Mean over some dimensions, never the first."""

    def __init__(self, dims: Sequence[int], keepdim: bool = False):
        super().__init__()
        self.dims, self.keepdim = tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims, self.keepdim)


class Sum(nn.Module):
    """Sum over some dimensions, never the first."""

    def __init__(self, dims: Sequence[int], keepdim: bool = False):
        super().__init__()
        self.dims, self.keepdim = tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(self.dims, self.keepdim)


PADDINGS = ("constant", "reflect", "replicate", "circular")


class Pad(nn.Module):
    """Padding of the last dimensions, like `torch.nn.functional.pad`.

    Args:
        pad: Padding on each side, in the order of `torch.nn.functional.pad` (last dimension first).
        mode: `constant` (zeros), `reflect`, `replicate` or `circular`.
    """

    def __init__(self, pad: Sequence[int], mode: str = "constant"):
        super().__init__()
        self.pad, self.mode = tuple(pad), mode

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pad, self.mode)


class ClippedReLU(nn.Module):
    """clip(x, 0, top): a ReLU6 for top = 6."""

    def __init__(self, top: float = 6.0):
        super().__init__()
        self.top = top

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, self.top)


class Leaky(nn.Module):
    """Leaky ReLU: max(x, 0) + slope min(x, 0).

    Args:
        slope: Slope of the negative side, 0..1: a number, or a list with one for each channel.

    Shape:
        [B, C, ...] -> [B, C, ...]
    """

    def __init__(self, slope: float | Sequence[float]):
        super().__init__()
        self.slope: float | tuple[float, ...] = (
            slope if isinstance(slope, int | float) else tuple(slope)
        )

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.slope, tuple):
            return F.prelu(x, torch.tensor(self.slope, dtype=x.dtype, device=x.device))
        return F.leaky_relu(x, self.slope)


def _constant(value: Tensor | Sequence[int]) -> Tensor:
    """A constant: the tensor itself, or a new tensor of this shape whose values come later."""
    if isinstance(value, Tensor):
        return value.detach().float().clone()
    return torch.ones(tuple(value))


@dataclass(frozen=True)
class Kind:
    """A kind of operation, with its name in graphs and files.

    Attributes:
        name: Name in files.
        module: Class of the module.
        options: Attributes of the module that are also arguments of its class. Files store them
            beside the tensors. The option `bias` says whether there is a bias. An option that is in
            `sized` is stored as the shape of that tensor.
        sized: Names of the tensors whose shape is an argument.
        inputs: Number of input tensors. None: any number.
        later: More options, with their usual values. Files leave out an option with its usual
            value, so that older versions can read them.
    """

    name: str
    module: type[nn.Module]
    options: tuple[str, ...] = ()
    sized: tuple[str, ...] = ()
    inputs: int | None = 1
    later: Mapping[str, Any] = field(default_factory=dict)

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """The options from which `build` makes a module like this one, as JSON values."""
        options = {}
        for option in self.options:
            value = getattr(module, option)
            options[option] = value is not None if option == "bias" else value
        for option, usual in self.later.items():
            if getattr(module, option) != usual:
                options[option] = getattr(module, option)
        for option, value in options.items():
            options[option] = list(value) if isinstance(value, tuple) else value
        for name in self.sized:
            options[name] = list(getattr(module, name).shape)
        return options

    def build(self, options: dict[str, Any]) -> nn.Module:
        """Make a module of this kind. The values of its tensors must be filled in afterwards.

        Raises:
            TypeError, ValueError: An option does not exist or has a wrong type.
        """
        if set(options) - self.later.keys() != {*self.options, *self.sized}:
            expected = ", ".join([*self.options, *self.sized]) or "none"
            raise ValueError(f"options of {self.name} are {sorted(options)}; expected {expected}")
        values = {
            key: tuple(value) if isinstance(value, list) and key not in self.sized else value
            for key, value in options.items()
        }
        for name in self.sized:
            values[name] = torch.ones(tuple(values[name]))
        return self.module(**values)


CONVOLUTION = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "bias",
)
POOL = ("kernel_size", "stride", "padding")
AVERAGE = (*POOL, "ceil_mode", "count_include_pad")
NORM = ("num_features", "eps", "momentum", "affine")
KINDS: dict[str, Kind] = {}
_BY_MODULE: dict[type[nn.Module], Kind] = {}


def register(kind: Kind) -> None:
    """Register a kind of operation for graphs and files.

    Raises:
        ValueError: The name or the class is registered already.
    """
    if kind.name in KINDS or kind.module in _BY_MODULE:
        raise ValueError(f"{kind.name} ({kind.module.__name__}) is registered already")
    KINDS[kind.name] = kind
    _BY_MODULE[kind.module] = kind


def kind_of(module: nn.Module) -> Kind:
    """Return the kind of a module.

    Raises:
        KeyError: The module is of no registered kind.
    """
    for name, neuron in NEURONS.items():
        if type(module) is neuron:
            return named(name)
    return _BY_MODULE[type(module)]


def named(name: str) -> Kind:
    """Return the kind with this name. Neurons are in their own registry and are found too.

    Raises:
        KeyError: There is no such kind.
    """
    if name in NEURONS:
        neuron = NEURONS[name]
        sized = ("threshold", "initial")
        return Kind(name, neuron, neuron.SETTINGS, sized, later=neuron.LATER_SETTINGS)
    return KINDS[name]


for _kind in (
    Kind("conv1d", nn.Conv1d, CONVOLUTION),
    Kind("conv2d", nn.Conv2d, CONVOLUTION),
    Kind("conv_transpose1d", nn.ConvTranspose1d, (*CONVOLUTION, "output_padding")),
    Kind("conv_transpose2d", nn.ConvTranspose2d, (*CONVOLUTION, "output_padding")),
    Kind("linear", nn.Linear, ("in_features", "out_features", "bias")),
    Kind("batch_norm1d", nn.BatchNorm1d, NORM),
    Kind("batch_norm2d", nn.BatchNorm2d, NORM),
    Kind("relu", nn.ReLU),
    Kind("clipped_relu", ClippedReLU, ("top",)),
    Kind("leaky_relu", Leaky, ("slope",)),
    Kind("quantise_clip", QuantClip, ("steps", "noise", "slope"), ("threshold",)),
    Kind("mean_over_time", MeanOverTime, ("steps",)),
    Kind("max_pool1d", nn.MaxPool1d, (*POOL, "dilation", "ceil_mode")),
    Kind("max_pool2d", nn.MaxPool2d, (*POOL, "dilation", "ceil_mode")),
    Kind("count_max_pool", SpikingMaxPool, (*POOL, "dilation", "ceil_mode", "dimensions", "mode")),
    Kind("avg_pool1d", nn.AvgPool1d, AVERAGE),
    Kind("avg_pool2d", nn.AvgPool2d, (*AVERAGE, "divisor_override")),
    Kind("adaptive_avg_pool1d", nn.AdaptiveAvgPool1d, ("output_size",)),
    Kind("adaptive_avg_pool2d", nn.AdaptiveAvgPool2d, ("output_size",)),
    Kind("upsample", nn.Upsample, ("size", "scale_factor", "mode")),
    Kind("pixel_shuffle", nn.PixelShuffle, ("upscale_factor",)),
    Kind("pixel_unshuffle", nn.PixelUnshuffle, ("downscale_factor",)),
    Kind("channel_shuffle", nn.ChannelShuffle, ("groups",)),
    Kind("flatten", nn.Flatten, ("start_dim", "end_dim")),
    Kind("reshape", Reshape, ("shape",)),
    Kind("permute", Permute, ("dims",)),
    Kind("squeeze", Squeeze, ("dim",)),
    Kind("unsqueeze", Unsqueeze, ("dim",)),
    Kind("slice", Slice, ("dim", "start", "stop", "step")),
    Kind("select", Select, ("dim", "index")),
    Kind("mean", Mean, ("dims", "keepdim")),
    Kind("sum", Sum, ("dims", "keepdim")),
    Kind("pad", Pad, ("pad", "mode")),
    Kind("scale", Scale, (), ("factor",)),
    Kind("shift", Shift, (), ("offset",)),
    Kind("add", Add, inputs=None),
    Kind("subtract", Subtract, inputs=2),
    Kind("concatenate", Concatenate, ("dim",), inputs=None),
    Kind("stack", Stack, ("dim",), inputs=None),
):
    register(_kind)

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)
WeightedLayer: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.Linear
)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
NormLayer: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d
FLOAT_ACTIVATIONS = (nn.ReLU, ClippedReLU, Leaky)
ACTIVATIONS = (*FLOAT_ACTIVATIONS, QuantClip, IFNeuron)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, SpikingMaxPool)
RESHAPES = (Reshape, nn.Flatten, Squeeze, Unsqueeze)
SHUFFLES = (nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
MOVES = (  # operations that only move values and compute none
    *RESHAPES, *SHUFFLES, Concatenate, Stack, Permute, Slice, Select, Pad, nn.Upsample,
)  # fmt: skip
AVERAGES = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, Mean, Sum,
)  # fmt: skip
