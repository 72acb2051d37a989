"""Networks that classify, built from a description.

A description is a plain dict, as it stands in `configs/models` and in checkpoints:

    task: classification
    arch: resnet20          one of `NAMES`
    form: cifar             or imagenet: stem and strides; torchvision/... has none
    width: 1.0              multiplies the channels
    activation: relu        the network's own (ReLU, ReLU6), or leaky: LeakyReLU(0.1)
    pooling: max            the network's own, or avg: average pooling in its place
    spike_pooling: count    how spikes are max-pooled once converted, count or step
    mean: [0.49, 0.48, 0.45]  of red, green, blue in 0..1, subtracted before the network
    std: [0.25, 0.24, 0.26]   by which they are divided then

All but `task` and `arch` may be left out.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import torchvision
from torch import nn

from spikedet.classification.models import mobilenet, resnet, resnext, vgg
from spikedet.errors import UsageError

KEYS = ("task", "arch", "form", "width", "activation", "pooling", "spike_pooling", "mean", "std")
FORMS = ("cifar", "imagenet")
ACTIVATIONS = ("relu", "leaky")
POOLINGS = ("max", "avg")
SLOPE = 0.1  # of the leaky ReLU, table IX
NETWORKS = {**resnet.NETWORKS, **resnext.NETWORKS, **vgg.NETWORKS, **mobilenet.NETWORKS}
FOREIGN = "torchvision/"
TORCHVISION = tuple(FOREIGN + name for name in ("vgg16_bn", "resnet18", "resnet34", "mobilenet_v2"))
NAMES = (*NETWORKS, *TORCHVISION)


def build(description: dict[str, Any], classes: int) -> nn.Module:
    """A network with fresh weights.

    Args:
        description: See the head of this file.
        classes: Outputs, 1 or more.

    Returns:
        The network, [B, 3, H, W] -> [B, classes].

    Raises:
        UsageError: The description holds something that there is not, or that does not fit.
    """
    expect_valid(description)
    if classes < 1:
        raise UsageError(f"{classes} classes; expected 1 or more")
    arch, width = description["arch"], description.get("width", 1.0)
    if arch in TORCHVISION:
        name = arch.removeprefix(FOREIGN)
        network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    else:
        network = NETWORKS[arch][description.get("form", FORMS[0])](width, classes)
    if description.get("activation") == "leaky":
        _replace(network, (nn.ReLU, nn.ReLU6), lambda _: nn.LeakyReLU(SLOPE, inplace=True))
    if description.get("pooling") == "avg" and not _replace(network, (nn.MaxPool2d,), _averaging):
        raise UsageError(f"pooling: avg; {arch} has no max-pooling to replace")
    return network


def expect_valid(description: dict[str, Any]) -> None:
    """Refuse a description that cannot be built.

    Raises:
        UsageError: An unknown key, or a value that there is not; says what there is.
    """
    for key in description:
        if key not in KEYS:
            raise UsageError(f"{key}: no such key in a classifier; there are {', '.join(KEYS)}")
    arch = description.get("arch")
    _expect("arch", arch, NAMES)
    _expect("task", description.get("task", "classification"), ("classification",))
    _expect("activation", description.get("activation", "relu"), ACTIVATIONS)
    _expect("pooling", description.get("pooling", "max"), POOLINGS)
    _expect("spike_pooling", description.get("spike_pooling", "count"), ("count", "step"))
    _expect("form", description.get("form", FORMS[0]), tuple(NETWORKS.get(arch, FORMS)), arch)
    width = description.get("width", 1.0)
    if not _is_number(width) or not 0 < width <= 16:
        raise UsageError(f"width: {width}; expected a number above 0, up to 16")
    if arch in TORCHVISION and width != 1:
        raise UsageError(f"width: {width}; {arch} has width 1.0 only")
    for key in ("mean", "std"):
        values = description.get(key, [1.0] * 3)
        good = isinstance(values, list | tuple) and len(values) == 3
        if not good or not all(_is_number(value) and value >= 0 for value in values):
            raise UsageError(f"{key}: {values}; expected three numbers, of red, green and blue")
        if key == "std" and 0 in values:
            raise UsageError(f"std: {values}; expected numbers above 0")


def _expect(key: str, value: Any, known: tuple[str, ...], arch: str | None = None) -> None:
    if value not in known:
        owner = f"{arch} has" if arch else "there are" if len(known) > 1 else "there is"
        raise UsageError(f"{key}: {value}; {owner} {', '.join(known)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _replace(network: nn.Module, kinds: tuple[type, ...], make) -> int:
    """Put `make(module)` in place of every module of these kinds; how many there were."""
    names = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, make(network.get_submodule(name)))
    return len(names)


def _averaging(pool: nn.MaxPool2d) -> nn.AvgPool2d:
    return nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)
