"""Neurons and the activation of stage I by compiled kernels (`kernels/csrc/dense.h`).

In a training step on a CPU, neurons by torch take about as long as the convolutions between them,
because each operation reads and writes whole tensors. A kernel does all operations, and all time
steps, for a few hundred neurons at a time. Its values equal those of torch to the last bit. Only
the gradient of a threshold, which is a long sum, differs in its last digits.

The kernels are used if there are any and if the tensors are of a kind that they know. Otherwise
`usable` returns None, and torch computes the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from spikedet.kernels import library
from spikedet.kernels.structs import fields

NO_SLOPE = 1e-12  # a channel with a smaller slope has no lower threshold
HALF = {torch.float32: 0, torch.bfloat16: 1}
ADVANCE, RETREAT, QUANTISE = range(3)


class DenseStruct(Structure):
    _fields_ = [
        ("outer", c_int64),
        ("channels", c_int64),
        ("inner", c_int64),
        ("steps", c_int32),
        ("half", c_int32),
        ("half_out", c_int32),
        ("negative", c_int32),
        ("constant", c_int32),
    ]


class AdvanceStruct(Structure):
    _fields_ = [
        ("shape", DenseStruct),
        *fields(c_void_p, "current potential counts spikes near threshold low up"),
        *fields(c_void_p, "window_low window_high depth_offset depth_factor"),
    ]


class RetreatStruct(Structure):
    _fields_ = [
        ("shape", DenseStruct),
        *fields(c_void_p, "near grad_spikes grad_current grad height slope"),
        ("passed", c_float),
    ]


class QuantiseStruct(Structure):
    _fields_ = [
        ("shape", DenseStruct),
        ("lag", c_float),
        ("keep_outer", c_int64),
        *fields(c_void_p, "x y grad grad_theta keep threshold inverse slope"),
    ]


def present() -> bool:
    """Whether there are kernels. If not, the log says why."""
    return not isinstance(library.found_once(), str)


@dataclass
class Places:
    """How the kernels see tensors of one shape.

    Attributes:
        layout: Memory layout of all tensors.
        outer, channels, inner: The sizes in memory order (see `dense.h`).
    """

    layout: torch.memory_format
    outer: int
    channels: int
    inner: int

    def fits(self, x: Tensor | None, shape: Sequence[int], *kinds: torch.dtype) -> bool:
        """Whether a tensor has this shape, one of these types, and the layout of the others."""
        if x is None:
            return True
        like = x.shape == torch.Size(shape) and x.dtype in kinds and _in_memory(x)
        return like and x.is_contiguous(memory_format=self.layout)

    def values(self, value: float | Tensor) -> Tensor:
        """A number, or a tensor that broadcasts to [B, C, ...], as one number for each channel."""
        if not isinstance(value, Tensor):
            return torch.full((self.channels,), float(value), dtype=torch.float32, device="cpu")
        return value.detach().flatten().expand(self.channels).contiguous()

    def shape(self, x: Tensor, steps: int, negative: int, **more: int) -> DenseStruct:
        """The first part of a kernel's arguments, for values like `x`."""
        half = HALF[x.dtype]
        sizes = (self.outer, self.channels, self.inner, steps)
        return DenseStruct(*sizes, half=half, negative=negative, **{"half_out": half, **more})

    def run(self, kind: int, arguments: Structure) -> None:
        """Run a kernel with as many threads as torch has."""
        library.library().sd_run_dense(
            kind,
            ctypes.byref(arguments),
            library.kernels().index(library.chosen()),
            max(1, torch.get_num_threads()),
            library.threads_of_torch(),
        )


def _in_memory(x: Tensor) -> bool:
    """Whether the kernels can read a tensor: its values lie in the memory of this machine."""
    plain = type(x) in (Tensor, Parameter) and x.device.type == "cpu"
    return plain and not (x.is_neg() or x._is_zerotensor())


def usable(x: Tensor, batch: int, broadcast: Iterable[float | Tensor]) -> Places | None:
    """Whether kernels can compute this. None if not.

    Args:
        x: The currents or pre-activations, [B, C, ...] or [T*B, C, ...].
        batch: Batch size B.
        broadcast: Thresholds and slopes. Kernels know one for each layer or for each channel.
    """
    if not _in_memory(x) or x.dtype not in HALF or x.ndim < 2 or not x.numel() or not present():
        return None
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return None
    channels, inner = x.shape[1], x[0, 0].numel()
    for value in broadcast:
        if isinstance(value, Tensor):
            each = (1, channels, *[1] * (x.ndim - 2))
            known = value.numel() == 1 or value.shape == each
            if not known or value.dtype != torch.float32 or not _in_memory(value):
                return None
    if x.is_contiguous():
        return Places(torch.contiguous_format, batch, channels, inner)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return Places(torch.channels_last, batch * inner, channels, 1)
    return None


def advance(
    current: Tensor,
    potential: Tensor,
    threshold: Tensor,
    slope: float | Tensor,
    counts: Tensor | None,
    margin: float,
    spikes: Tensor,
    near: Tensor | None = None,
    alpha: float = 1.0,
) -> bool:
    """Run neurons over time, if there are kernels for this (see `functional.integrate_and_fire`).

    Args:
        current: [T*B, C, ...] or [B, C, ...].
        potential: Potentials before the first step, [B, C, ...] float32. They are updated.
        threshold: Thresholds.
        slope: Slope of the negative side.
        counts: Counts of neurons that correct themselves, or None. They are updated.
        margin: Margin of these neurons.
        spikes: To be filled with the spikes, [T*B, C, ...].
        near: To be filled with the windows of the surrogate gradient, [T*B, C, ...] uint8: 1 near
            the threshold, 2 near the lower threshold, 3 near both.
        alpha: Width of these windows, in units of the threshold.

    Returns:
        False if there are no such kernels. Then nothing was changed.
    """
    batch, size = len(potential), current.shape[1:]
    places = usable(current, batch, (threshold, slope))
    if places is None or not batch or len(spikes) % batch:
        return False
    if len(current) not in (batch, len(spikes)):
        return False
    kinds = (current.dtype, torch.bfloat16) if near is None else (current.dtype,)
    if not (
        places.fits(potential, (batch, *size), torch.float32)
        and places.fits(counts, (batch, *size), torch.float32)
        and places.fits(spikes, (len(spikes), *size), *kinds)
        and places.fits(near, (len(spikes), *size), torch.uint8)
    ):
        return False
    if (margin or counts is not None) and (isinstance(slope, Tensor) or slope != 1):
        return False
    theta = places.values(threshold)
    depth, low, offset, factor = lower_threshold(theta, places.values(slope), margin)
    kept = (theta, low, depth, theta * (1 - alpha / 2), theta * (1 + alpha / 2), offset, factor)
    negative = 2 if counts is not None else int(bool((factor != 0).any()))
    shape = places.shape(
        current,
        len(spikes) // batch,
        negative,
        half_out=HALF[spikes.dtype],
        constant=int(len(current) == batch),
    )
    tensors = (current, potential, counts, spikes, near, *kept)
    places.run(ADVANCE, AdvanceStruct(shape, *map(_address, tensors)))
    return True


def lower_threshold(
    theta: Tensor, slope: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The lower threshold of neurons, as the kernels want it.

    Args:
        theta: Thresholds, [C].
        slope: Slopes a, [C]; with slope 0 there is no lower threshold.
        margin: Margin of neurons with slope 1.

    Returns:
        What a negative spike adds to the potential (theta / a); the highest potential that sends
        one; and the offset and the factor of the potential measured downwards, which equals theta
        where a negative spike is sent. [C] each.
    """
    none, flat = slope == 0, slope == 1
    depth = theta / slope.clamp(min=NO_SLOPE)
    # Neurons with slope 1 send a negative spike below -margin theta, the others at -theta / a. The
    # next number below 0 is the smallest normal one, as a processor may take smaller ones for 0.
    below = torch.nextafter(depth * -margin, torch.full_like(theta, -torch.inf))
    below = below.clamp(max=-torch.finfo(torch.float32).tiny)
    low = torch.where(flat, below, -depth).masked_fill(none, torch.nan)  # nothing is below nan
    offset = torch.where(flat, theta * (1 - margin), torch.zeros_like(theta))
    return depth.masked_fill(none, 0), low, offset, -slope


def retreat(
    near: Tensor,
    grad_spikes: Tensor,
    grad_current: Tensor,
    grad: Tensor,
    threshold: Tensor,
    alpha: float,
    slope: float | Tensor,
) -> bool:
    """Back-propagate through time, if there are kernels for this.

    Args:
        near: See `advance`.
        grad_spikes: Gradient of the spikes, [T*B, C, ...].
        grad_current: To be filled with the gradient of the currents: [T*B, C, ...], or [B, C, ...]
            float32 for constant currents.
        grad: Gradient of the last potentials, [B, C, ...] float32. It becomes that of the first.
        threshold: Thresholds.
        alpha: Width of the windows, in units of the threshold.
        slope: Slope of the negative side.

    Returns:
        False if there are no such kernels. Then nothing was changed.
    """
    batch, size = len(grad), near.shape[1:]
    constant = len(grad_current) == batch
    kind = torch.float32 if constant else grad_spikes.dtype
    places = usable(grad_spikes, batch, (threshold, slope))
    if places is None or not batch or len(near) % batch:
        return False
    if len(grad_current) not in (batch, len(near)):
        return False
    if not (
        places.fits(grad_spikes, near.shape, grad_spikes.dtype)
        and places.fits(near, near.shape, torch.uint8)
        and places.fits(grad_current, (len(grad_current), *size), kind)
        and places.fits(grad, (batch, *size), torch.float32)
    ):
        return False
    slopes = places.values(slope)
    height = 1 / (alpha * places.values(threshold))
    negative = int(bool((slopes != 0).any()))
    shape = places.shape(grad_spikes, len(near) // batch, negative, constant=int(constant))
    tensors = (near, grad_spikes, grad_current, grad, height, slopes)
    places.run(RETREAT, RetreatStruct(shape, *map(_address, tensors), 1 / alpha))
    return True


def quantise(
    x: Tensor,
    threshold: Tensor,
    steps: int,
    keep: Tensor | None,
    slope: float | Tensor,
    lag: float,
    grad: Tensor | None = None,
) -> tuple[Tensor, Tensor | None] | None:
    """The activation of stage I or its gradient, if there are kernels for this (see `quantize`).

    Args:
        x: Pre-activations, [B, C, ...].
        threshold: Thresholds.
        steps: Number of levels T.
        keep: 1 where an element is not rounded, else 0, [1, C, ...]. None: all are rounded.
        slope: Slope of the negative side.
        lag: How far below a threshold the gradient ends, in units of the threshold.
        grad: Gradient of the output, [B, C, ...]. None to compute the output.

    Returns:
        The output and None; or the gradients of x and of the threshold. None if there are no such
        kernels.
    """
    places = usable(x, len(x), (threshold, slope))
    if places is None or not (
        places.fits(keep, (1, *x.shape[1:]), torch.float32) and places.fits(grad, x.shape, x.dtype)
    ):
        return None
    theta, slopes = places.values(threshold), places.values(slope)
    shape = places.shape(x, steps, int(isinstance(slope, Tensor) or slope != 0))
    result, sums = torch.empty_like(x), None
    if grad is not None:
        items = library.library().sd_dense_items(ctypes.byref(shape))
        sums = torch.zeros(items, places.channels, dtype=torch.float32, device="cpu")
    tensors = (x, result, grad, sums, keep, theta, 1 / theta, slopes)
    outer = places.outer // len(x)
    places.run(QUANTISE, QuantiseStruct(shape, lag, outer, *map(_address, tensors)))
    if sums is None:
        return result, None
    each = sums.sum(0)
    return result, each.sum() if threshold.numel() == 1 else each


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
