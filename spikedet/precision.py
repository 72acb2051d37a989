"""Devices, and the number formats and memory layouts that are fast on them."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from spikedet.errors import UsageError, among, cut


def has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16; without, it is slower than float32."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(known and known())


def present_device(name: str) -> str:
    """`cpu` or `cuda:N` for the name of a device of this machine; `cuda` and `0` are the first one.

    Raises:
        UsageError: No such device here, or one of a kind that nothing here was tested on.
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
    """A sentence on a name that is that of no device of this machine: says which there are."""
    count = torch.cuda.device_count()
    there = ["cpu", *(f"cuda:{number}" for number in range(count))]
    counted = "1 CUDA device" if count == 1 else f"{count} CUDA devices"
    return f"{cut(name)!r}: this machine has {counted}; expected {among(name, there)}"


def full_precision() -> None:
    """Let GPUs compute float32 in float32, as CPUs do, and not in TF32."""
    torch.backends.cudnn.allow_tf32 = False


def device_of(network: nn.Module) -> torch.device:
    """Where a network runs: that of its first tensor."""
    return next(chain(network.parameters(), network.buffers())).device


def mixed(device: str, enabled: bool = True) -> torch.autocast:
    """Autocast to bfloat16 on a kind of device, but on no CPU that would only imitate it.

    A training step of ResNet-20 on a CPU with AVX2 alone takes 10 times as long as in float32.
    """
    enabled = enabled and (device != "cpu" or has_bfloat16())
    return torch.autocast(device, torch.bfloat16, enabled=enabled)


def layout(network: nn.Module) -> torch.memory_format:
    """Channels-last, in which CPUs train faster, but for networks that it would be unsafe for.

    The weight gradient of a 1x1 convolution with a stride, of fewer channels than a vector
    register holds (8 with AVX2, 16 with AVX-512), is computed past the end of its memory in
    float32: oneDNN's issue 6035, as of torch 2.14.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or max(module.stride) == 1:
            continue
        if module.kernel_size == (1, 1) and module.in_channels // module.groups < 16:
            return torch.contiguous_format
    return torch.channels_last


def as_float(value: Any) -> Any:
    """Every floating-point tensor of a nested structure in float32."""

    def widened(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(widened, value)
