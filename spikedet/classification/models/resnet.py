"""Residual networks made of torchvision's blocks.

K. He et al., "Deep residual learning for image recognition", CVPR 2016: ResNet-18 and ResNet-34
(table 1), ResNet-20 for CIFAR (section 4.2).

The two-stage paper's ResNet-20 has "two more layers than ResNet-18" (footnote of its table II). The
paper does not say where. `resnet20-wide` has them in the stem: three 3x3 convolutions with 64
channels instead of one.

The modules have the same names as in torchvision, so torchvision's state dicts fit the ImageNet
form at width 1. Where the size changes, the shortcut is a strided 1x1 convolution with batch norm
(option B). This also holds for ResNet-20, for which its authors padded with zeros (option A).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck


class ResNet(nn.Module):
    """A stem, stages of residual blocks, global average pooling, and one linear layer.

    Args:
        stem: Function of the number of channels that makes the modules before the first stage.
        block: Class of the residual blocks.
        planes: Planes of each stage at width 1. A stage has `planes * block.expansion` channels.
            The stem has as many channels as the first stage has planes. Every stage except the
            first halves the size.
        blocks: Number of blocks of each stage.
        width: Factor for the planes.
        classes: Number of classes.
        groups: Groups of the 3x3 convolutions of `Bottleneck`; each group is as wide as the planes
            (ResNeXt).

    Shape:
        [B, 3, H, W] -> [B, classes]
    """

    def __init__(
        self,
        stem: Callable[[int], dict[str, nn.Module]],
        block: type[BasicBlock | Bottleneck],
        planes: Sequence[int],
        blocks: Sequence[int],
        width: float,
        classes: int,
        groups: int = 1,
    ):
        super().__init__()
        planes = [max(1, round(count * width)) for count in planes]
        channels = planes[0]
        body = stem(channels)
        for number, (size, count) in enumerate(zip(planes, blocks, strict=True), 1):
            stage = nn.Sequential()
            for index in range(count):
                stride = 2 if number > 1 and index == 0 else 1
                out, shortcut = size * block.expansion, None
                if stride > 1 or channels != out:
                    shortcut = nn.Sequential(
                        nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
                    )
                stage.append(block(channels, size, stride, shortcut, groups))
                channels = out
            body[f"layer{number}"] = stage
        for name, module in body.items():
            self.add_module(name, module)
        self.body = tuple(body)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        for name in self.body:
            x = getattr(self, name)(x)
        return self.fc(self.avgpool(x).flatten(1))


def cifar_stem(channels: int) -> dict[str, nn.Module]:
    """One 3x3 convolution at full size."""
    return {
        "conv1": nn.Conv2d(3, channels, 3, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(inplace=True),
    }


def deep_stem(channels: int) -> dict[str, nn.Module]:
    """Three 3x3 convolutions at full size, named as in timm's deep stems."""
    layers: list[nn.Module] = []
    for inputs in (3, channels):
        layers.append(nn.Conv2d(inputs, channels, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    last = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return {**cifar_stem(channels), "conv1": nn.Sequential(*layers, last)}


def imagenet_stem(channels: int) -> dict[str, nn.Module]:
    """A 7x7 convolution and max-pooling, a quarter of the size."""
    conv = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
    return {**cifar_stem(channels), "conv1": conv, "maxpool": nn.MaxPool2d(3, 2, 1)}


PLANES = (64, 128, 256, 512)
# Networks by name and form, made of (width, classes).
NETWORKS = {
    "resnet20": {"cifar": partial(ResNet, cifar_stem, BasicBlock, (16, 32, 64), (3, 3, 3))},
    "resnet20-wide": {"cifar": partial(ResNet, deep_stem, BasicBlock, PLANES, (2, 2, 2, 2))},
    "resnet18": {
        "cifar": partial(ResNet, cifar_stem, BasicBlock, PLANES, (2, 2, 2, 2)),
        "imagenet": partial(ResNet, imagenet_stem, BasicBlock, PLANES, (2, 2, 2, 2)),
    },
    "resnet34": {
        "cifar": partial(ResNet, cifar_stem, BasicBlock, PLANES, (3, 4, 6, 3)),
        "imagenet": partial(ResNet, imagenet_stem, BasicBlock, PLANES, (3, 4, 6, 3)),
    },
}
