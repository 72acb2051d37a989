"""MobileNetV2: torchvision's class, with the strides of the `cifar` or `imagenet` form.

M. Sandler et al., "MobileNetV2: Inverted residuals and linear bottlenecks", CVPR 2018, table 2. In
the CIFAR form the stem and the second stage keep the size, so that 32 pixels become 4. The number
of channels times the width is rounded to a multiple of 8. The last layer has at least 1280
channels.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import MobileNetV2

# Expansion, channels, blocks and stride of each stage.
CIFAR = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def cifar_mobilenetv2(width: float, classes: int) -> nn.Module:
    """MobileNetV2 for pictures of 32 pixels, [B, 3, H, W] -> [B, classes]."""
    network = MobileNetV2(classes, width, CIFAR)
    network.features[0][0].stride = (1, 1)
    return network


def imagenet_mobilenetv2(width: float, classes: int) -> nn.Module:
    """MobileNetV2 in torchvision's layout, [B, 3, H, W] -> [B, classes]."""
    return MobileNetV2(classes, width)


# Networks by name and form, made of (width, classes).
NETWORKS = {"mobilenetv2": {"cifar": cifar_mobilenetv2, "imagenet": imagenet_mobilenetv2}}
