"""Build classifiers from a network description.

A description is a plain dict, as in `configs/models` and in checkpoints:

    task: classification
    arch: resnet20          one of `NETWORKS`, or torchvision/NAME: a classifier of torchvision
    form: cifar             cifar or imagenet: stem and strides; not for torchvision/NAME
    width: 1.0              factor for the number of channels
    activation: relu        relu: that of the network (ReLU, ReLU6); leaky: LeakyReLU(0.1)
    pooling: max            max: that of the network; avg: average pooling instead
    spike_pooling: count    max-pooling of spikes after conversion: count or step
    mean: [0.49, 0.48, 0.45]  subtracted from red, green and blue (0..1) before the network
    std: [0.25, 0.24, 0.26]   divisor of red, green and blue after that

All but `task` and `arch` may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from numbers import Real
from typing import Any

import torchvision
from torch import nn

from spikedet.classification.models import mobilenet, resnet, resnext, vgg
from spikedet.errors import UsageError, list_choices, shorten

KEYS = ("task", "arch", "form", "width", "activation", "pooling", "spike_pooling", "mean", "std")
FORMS = ("cifar", "imagenet")
ACTIVATIONS = ("relu", "leaky")
POOLINGS = ("max", "avg")
SLOPE = 0.1  # slope of the leaky ReLU, table IX
NETWORKS: dict[str, Mapping[str, Callable[[float, int], nn.Module]]]
NETWORKS = {**resnet.NETWORKS, **resnext.NETWORKS, **vgg.NETWORKS, **mobilenet.NETWORKS}
FOREIGN = "torchvision/"
TORCHVISION = tuple(FOREIGN + n for n in torchvision.models.list_models(module=torchvision.models))
# They are built without the auxiliary heads, which help training only. The weights that torchvision
# publishes of them take pictures between -1 and 1.
AUXILIARY = (FOREIGN + "googlenet", FOREIGN + "inception_v3")
HALF = [0.5, 0.5, 0.5]
# A part of their activations or pooling is calls of functions, which nothing can take the place of.
FUNCTIONAL = ("densenet", "googlenet", "inception_v3")


def build(description: dict[str, Any], classes: int) -> nn.Module:
    """Build a network with new weights.

    Args:
        description: Network description; see the top of this file.
        classes: Number of classes, 1 or more.

    Returns:
        The network, [B, 3, H, W] -> [B, classes].

    Raises:
        UsageError: The description has an unknown key or value, or values that do not fit
            together.
    """
    expect_valid(description)
    if classes < 1:
        raise UsageError(f"{classes} classes; expected 1 or more")
    arch, width = description["arch"], description.get("width", 1.0)
    if arch in TORCHVISION:
        plain = {"aux_logits": False, "init_weights": False} if arch in AUXILIARY else {}
        name = arch.removeprefix(FOREIGN)
        network = torchvision.models.get_model(name, weights=None, num_classes=classes, **plain)
    else:
        network = NETWORKS[arch][description.get("form", FORMS[0])](width, classes)
    if description.get("activation") == "leaky":
        _replace(network, (nn.ReLU, nn.ReLU6), lambda _: nn.LeakyReLU(SLOPE, inplace=True))
    if description.get("pooling") == "avg" and not _replace(network, (nn.MaxPool2d,), _averaging):
        raise UsageError(f"pooling: avg; {arch} has no max-pooling to replace")
    return network


def foreign(name: str) -> dict[str, Any]:
    """The description of a classifier of torchvision.

    Args:
        name: Name for `torchvision.models.get_model`.

    Raises:
        UsageError: There is no such classifier.
    """
    description: dict[str, Any] = {"task": "classification", "arch": FOREIGN + name}
    if description["arch"] in AUXILIARY:
        description |= {"mean": HALF, "std": HALF}
    expect_valid(description)
    return description


def usual_side(description: dict[str, Any]) -> int:
    """The usual input side in pixels of a network for ImageNet.

    For torchvision's networks it is the side of torchvision's weights (299 for `inception_v3`).
    Otherwise it is 224.
    """
    arch = description.get("arch", "")
    if arch not in TORCHVISION:
        return 224
    weights = torchvision.models.get_model_weights(arch.removeprefix(FOREIGN)).DEFAULT
    return weights.transforms.keywords["crop_size"]


def expect_valid(description: dict[str, Any]) -> None:
    """Check a description.

    Raises:
        UsageError: A key or a value is unknown. The message lists the known ones.
    """
    for key in description:
        if key not in KEYS:
            raise UsageError(
                f"{key}: no such key in a classifier; there are {list_choices(key, KEYS)}"
            )
    arch = description.get("arch")
    if isinstance(arch, str) and arch.startswith(FOREIGN):
        if arch not in TORCHVISION:
            near = get_close_matches(arch, TORCHVISION, cutoff=0)
            raise UsageError(
                f"arch: {arch}; torchvision has no such classifier; similar names are "
                f"{', '.join(near)}"
            )
    else:
        _expect("arch", arch, (*NETWORKS, FOREIGN + "NAME"))
    _expect("task", description.get("task", "classification"), ("classification",))
    _expect("activation", description.get("activation", "relu"), ACTIVATIONS)
    _expect("pooling", description.get("pooling", "max"), POOLINGS)
    _expect("spike_pooling", description.get("spike_pooling", "count"), ("count", "step"))
    forms = NETWORKS.get(str(arch), FORMS)
    _expect("form", description.get("form", FORMS[0]), tuple(forms), arch)
    width = description.get("width", 1.0)
    if not _is_number(width) or not 0 < width <= 16:
        raise UsageError(f"width: {width}; expected a number above 0, up to 16")
    if arch in TORCHVISION and width != 1:
        raise UsageError(f"width: {width}; {arch} has width 1.0 only")
    if str(arch).removeprefix(FOREIGN).startswith(FUNCTIONAL):
        _expect("activation", description.get("activation", "relu"), ("relu",), arch)
        _expect("pooling", description.get("pooling", "max"), ("max",), arch)
    expect_colours(description)


def expect_colours(description: dict[str, Any]) -> None:
    """Check `mean` and `std` of a description.

    Raises:
        UsageError: They are wrong. The message says what is expected.
    """
    for key in ("mean", "std"):
        values = description.get(key, [1.0] * 3)
        good = isinstance(values, list | tuple) and len(values) == 3
        if not good or not all(_is_number(value) and 0 <= value < math.inf for value in values):
            raise UsageError(f"{key}: {values}; expected three numbers, of red, green and blue")
        if key == "std" and 0 in values:
            raise UsageError(f"std: {values}; expected numbers above 0")


def _expect(key: str, value: Any, known: tuple[str, ...], arch: str | None = None) -> None:
    if value not in known:
        owner = f"{arch} has" if arch else "there are" if len(known) > 1 else "there is"
        raise UsageError(f"{key}: {shorten(value)}; {owner} {list_choices(value, known)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _replace(network: nn.Module, kinds: tuple[type, ...], make) -> int:
    """Replace every module of these kinds by `make(module)`; returns their number."""
    names = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, make(network.get_submodule(name)))
    return len(names)


def _averaging(pool: nn.MaxPool2d) -> nn.AvgPool2d:
    return nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)
