"""Residual networks of torchvision's blocks.

K. He et al., "Deep residual learning for image recognition", CVPR 2016: ResNet-18 and ResNet-34
for ImageNet (table 1), ResNet-20 for CIFAR (section 4.2).

Modules are named as torchvision names them, so that its state dicts fit the ImageNet form at width
1. Where the size changes, the shortcut is a strided 1x1 convolution with batch norm (option B) in
ResNet-20, too: the padded shortcut (option A) would need channels without any threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pooling, one linear layer.

    Args:
        stem: Modules before the first stage by name, the activation included; see `cifar_stem`.
        channels: Of the stem's output.
        block: Kind of the residual blocks.
        planes: Of each stage; a stage has `planes * block.expansion` channels. Every stage but
            the first halves the size.
        blocks: Blocks of each stage.
        classes: Outputs.
        groups, group_width: Of the 3x3 convolutions of `Bottleneck` (ResNeXt); 64 planes make
            groups of `group_width` channels.

    Shape:
        [B, 3, H, W] -> [B, classes]
    """

    def __init__(
        self,
        stem: dict[str, nn.Module],
        channels: int,
        block: type[BasicBlock | Bottleneck],
        planes: Sequence[int],
        blocks: Sequence[int],
        classes: int,
        groups: int = 1,
        group_width: int = 64,
    ):
        super().__init__()
        for name, module in stem.items():
            self.add_module(name, module)
        self._body = list(stem)
        for number, (width, count) in enumerate(zip(planes, blocks, strict=True), 1):
            stage = nn.Sequential()
            for index in range(count):
                stride = 2 if number > 1 and index == 0 else 1
                out, shortcut = width * block.expansion, None
                if stride > 1 or channels != out:
                    shortcut = nn.Sequential(
                        nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
                    )
                stage.append(block(channels, width, stride, shortcut, groups, group_width))
                channels = out
            self.add_module(f"layer{number}", stage)
            self._body.append(f"layer{number}")
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        for name in self._body:
            x = getattr(self, name)(x)
        return self.fc(self.avgpool(x).flatten(1))


def cifar_stem(channels: int) -> dict[str, nn.Module]:
    """One 3x3 convolution at full size."""
    return {
        "conv1": nn.Conv2d(3, channels, 3, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(inplace=True),
    }


def resnet20(form: str, width: float, classes: int) -> ResNet:
    """The standard ResNet-20 for CIFAR: three stages of three blocks, 0.27 M parameters."""
    planes = [round(c * width) for c in (16, 32, 64)]
    return ResNet(cifar_stem(planes[0]), planes[0], BasicBlock, planes, (3, 3, 3), classes)
