"""Networks that classify, built from a description.

A description is a plain dict, as it stands in `configs/models` and in checkpoints:

    task: classification
    arch: resnet20          one of `NETWORKS`, or torchvision/NAME: a classifier of torchvision
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

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from numbers import Real
from typing import Any

import torchvision
from torch import nn

from spikedet.classification.models import mobilenet, resnet, resnext, vgg
from spikedet.errors import UsageError, among, cut

KEYS = ("task", "arch", "form", "width", "activation", "pooling", "spike_pooling", "mean", "std")
FORMS = ("cifar", "imagenet")
ACTIVATIONS = ("relu", "leaky")
POOLINGS = ("max", "avg")
SLOPE = 0.1  # of the leaky ReLU, table IX
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
        name: As `torchvision.models.get_model` takes it.

    Raises:
        UsageError: There is none of that name.
    """
    description: dict[str, Any] = {"task": "classification", "arch": FOREIGN + name}
    if description["arch"] in AUXILIARY:
        description |= {"mean": HALF, "std": HALF}
    expect_valid(description)
    return description


def usual_side(description: dict[str, Any]) -> int:
    """Side in pixels of the pictures of ImageNet that a network usually takes.

    That of the weights which torchvision publishes of its own networks (299 for `inception_v3`),
    else 224.
    """
    arch = description.get("arch", "")
    if arch not in TORCHVISION:
        return 224
    weights = torchvision.models.get_model_weights(arch.removeprefix(FOREIGN)).DEFAULT
    return weights.transforms.keywords["crop_size"]


def expect_valid(description: dict[str, Any]) -> None:
    """Refuse a description that cannot be built.

    Raises:
        UsageError: An unknown key, or a value that there is not; says what there is.
    """
    for key in description:
        if key not in KEYS:
            raise UsageError(f"{key}: no such key in a classifier; there are {among(key, KEYS)}")
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
    """Refuse what pictures cannot be normalised by.

    Raises:
        UsageError: Says what was expected.
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
        raise UsageError(f"{key}: {cut(value)}; {owner} {among(value, known)}")


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
