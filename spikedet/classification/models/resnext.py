"""ResNeXt-29 for CIFAR with two groups of 64 channels.

S. Xie et al., "Aggregated residual transformations for deep neural networks", CVPR 2017,
section 5.1: a 3x3 convolution, three stages of three bottlenecks, global average pooling.
"""

from __future__ import annotations

from functools import partial

from torchvision.models.resnet import Bottleneck

from spikedet.classification.models.resnet import ResNet, cifar_stem

# Networks by name and form, made of (width, classes).
NETWORKS = {
    "resnext29-2x64d": {
        "cifar": partial(ResNet, cifar_stem, Bottleneck, (64, 128, 256), (3, 3, 3), groups=2)
    },
}
