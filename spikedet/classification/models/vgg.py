"""VGG-16 with batch norm.

K. Simonyan and A. Zisserman, "Very deep convolutional networks for large-scale image recognition",
ICLR 2015, configuration D. Both forms have thirteen convolutions. The CIFAR form has one linear
layer on the global average. The ImageNet form has torchvision's three linear layers.

The modules have the same names as in torchvision, so torchvision's state dicts fit the ImageNet
form at width 1.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn
from torchvision.models.vgg import cfgs, make_layers


def vgg16(form: str, width: float, classes: int) -> nn.Sequential:
    """VGG-16 in the form `cifar` or `imagenet`; `width` multiplies the channels.

    Shape:
        [B, 3, H, W] -> [B, classes], H and W multiples of 32
    """

    def scaled(channels: int) -> int:
        return max(1, round(channels * width))

    sizes = [size if size == "M" else scaled(size) for size in cfgs["D"]]
    last, hidden = scaled(512), scaled(4096)
    places = 1 if form == "cifar" else 7
    classifier: nn.Module
    if form == "cifar":
        classifier = nn.Linear(last, classes)
    else:
        classifier = nn.Sequential(
            nn.Linear(last * places**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )
    network = nn.Sequential(
        OrderedDict(
            features=make_layers(sizes, batch_norm=True),
            avgpool=nn.AdaptiveAvgPool2d(places),
            flatten=nn.Flatten(),
            classifier=classifier,
        )
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None  # as `make_layers` has it
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
    return network


# Networks by name and form, made of (width, classes).
NETWORKS = {"vgg16": {form: partial(vgg16, form) for form in ("cifar", "imagenet")}}
