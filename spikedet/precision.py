"""Devices, and the number formats and memory layouts that are fast on them."""

from __future__ import annotations

from functools import cache
from itertools import chain
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map

from spikedet.errors import UsageError, list_choices, shorten


def has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions. Otherwise bfloat16 is slower than float32."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(known and known())


@cache
def fast_bfloat16() -> bool:
    """Whether this CPU computes convolutions faster in bfloat16 than in float32.

    A CPU with bfloat16 instructions may be slower with them. An Intel Xeon takes twice as long
    where its matrix unit (AMX) is switched off, as on some virtual machines. So one small
    convolution is timed in both formats, once in a process.
    """
    if not has_bfloat16():
        return False
    with unset_fake_temporarily(), torch.inference_mode(), torch.autocast("cpu", enabled=False):
        return _time_of(torch.bfloat16) < _time_of(torch.float32)


def _time_of(dtype: torch.dtype) -> float:
    """The shortest time of a small convolution in this format, in seconds."""
    shapes = (4, 64, 32, 32), (64, 64, 3, 3)
    empty = (torch.zeros(shape, device="cpu", dtype=dtype) for shape in shapes)
    picture, weights = (x.contiguous(memory_format=torch.channels_last) for x in empty)
    times = []
    for _ in range(8):  # the first one also prepares the kernel
        begun = perf_counter()
        nn.functional.conv2d(picture, weights, padding=1)
        times.append(perf_counter() - begun)
    return min(times)


def present_device(name: str) -> str:
    """Convert the name of a device to `cpu` or `cuda:N`. `cuda` and `0` are the first GPU.

    Raises:
        UsageError: This machine has no such device, or it is neither a CPU nor a CUDA GPU.
    """
    try:
        chosen = torch.device(f"cuda:{int(name)}" if name.isdecimal() else name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise UsageError(no_device(name))
    if chosen.type == "cpu":
        return "cpu"
    if (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(no_device(name))
    full_precision()
    return f"cuda:{chosen.index or 0}"


def no_device(name: str) -> str:
    """The message for a device that does not exist. It lists the devices of this machine."""
    count = torch.cuda.device_count()
    devices = ["cpu", *(f"cuda:{number}" for number in range(count))]
    counted = "1 CUDA device" if count == 1 else f"{count} CUDA devices"
    return f"{shorten(name)!r}: this machine has {counted}; expected {list_choices(name, devices)}"


def full_precision() -> None:
    """Make GPUs compute float32 in full precision, like CPUs, not in TF32."""
    torch.backends.cudnn.allow_tf32 = False


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's first tensor."""
    return next(chain(network.parameters(), network.buffers())).device


def mixed(device: str, enabled: bool = True) -> torch.autocast:
    """Autocast to bfloat16 on a device, except on CPUs that are slower at it (`fast_bfloat16`).

    On a CPU with only AVX2, a training step of ResNet-20 in bfloat16 takes 10 times as long as in
    float32.
    """
    enabled = enabled and (device != "cpu" or fast_bfloat16())
    return torch.autocast(device, torch.bfloat16, enabled=enabled)


def layout(network: nn.Module) -> torch.memory_format:
    """The memory layout for training: channels-last, which is faster on CPUs, if it is safe.

    It is not safe for a strided 1x1 convolution with fewer channels than a vector register holds (8
    with AVX2, 16 with AVX-512). There the float32 weight gradient accesses memory past the end of
    the tensor (oneDNN's issue 6035, as of torch 2.14).
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or max(module.stride) == 1:
            continue
        if module.kernel_size == (1, 1) and module.in_channels // module.groups < 16:
            return torch.contiguous_format
    return torch.channels_last


def channels_last(x: Tensor) -> Tensor:
    """Maps [B, C, H, W] in the channels-last layout: the channels of a place beside each other.

    `Tensor.contiguous` leaves any stride of a batch of size 1, such as that of `picture[None]`.
    Convolutions do not recognise the layout then, and compute in another one.
    """
    if x.ndim != 4:
        return x
    places = x.movedim(1, -1)
    return places.flatten().view(places.shape).movedim(-1, 1)


def as_float(value: Any) -> Any:
    """Convert every floating-point tensor of a nested structure to float32."""

    def widened(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(widened, value)
