"""Networks of torchvision and of PyTorch's tutorials: recorded as they are, near when they spike.

On random weights, thresholds are the largest activations of the pictures that are looked at.
"""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from support.stages import alive, distance, recorded

WITHOUT_SIGNED, WITH_SIGNED = 0.03, 0.1  # of the float outputs' standard deviation, at T = 256


def pictures(side: int, count: int = 4, channels: int = 3) -> torch.Tensor:
    """Smooth pictures of unlike colours."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    return F.interpolate(coarse, size=(side, side), mode="bilinear") * 2 - 1


INCEPTION = {"googlenet": 2.0, "inception_v3": 3.0}  # their batch norms' biases here


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"weights": None, "num_classes": 10}
    if name in INCEPTION:
        options |= {"init_weights": True, "aux_logits": False}
    network = getattr(torchvision.models, name)(**options)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # most units stay active: with 0 a random network of fifty layers is chaotic, and
            # amplifies any difference, be it the rounding of 256 levels. GoogLeNet and Inception,
            # which take the maximum of counts at many places, need more: GoogLeNet has 0.54 with 0,
            # 0.10 with 1, 0.026 with 2 (0.025 with 1 at T = 1024); Inception 0.31, 0.04
            # and, with 3, 0.018
            nn.init.constant_(module.bias, INCEPTION.get(name, 1.0))
    return network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "bound"),
    [
        ("resnet50", 64, WITHOUT_SIGNED),
        ("resnext50_32x4d", 64, WITHOUT_SIGNED),
        ("densenet121", 64, WITH_SIGNED),  # its layers are joined before their batch norms
        ("googlenet", 64, WITHOUT_SIGNED),
        ("inception_v3", 75, WITHOUT_SIGNED),
        ("squeezenet1_1", 64, WITHOUT_SIGNED),
        ("shufflenet_v2_x1_0", 64, WITH_SIGNED),
        ("mnasnet1_0", 64, WITH_SIGNED),
        ("regnet_x_400mf", 64, WITHOUT_SIGNED),
        ("mobilenet_v2", 64, WITH_SIGNED),
    ],
)
def test_classifiers_of_torchvision(name, side, bound):
    network = alive(built(name), pictures(side, 8))
    looked_at = pictures(side, 2)
    graph = recorded(network, looked_at)
    assert distance(graph, looked_at) < bound


class MNIST(nn.Module):
    """As in PyTorch's examples/mnist, but for the final log-soft-max."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, 1), nn.Conv2d(32, 64, 3, 1)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x):
        x = self.conv1(x)
        x = F.relu(x)
        x = self.conv2(x)
        x = F.relu(x)
        x = F.max_pool2d(x, 2)
        x = self.dropout1(x)
        x = torch.flatten(x, 1)
        x = self.fc1(x)
        x = F.relu(x)
        x = self.dropout2(x)
        return self.fc2(x)


class CIFAR(nn.Module):
    """As in the tutorial "Training a classifier"."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class OldCIFAR(CIFAR):
    """As the tutorial had it before: view, and sizes of which the batch is left open."""

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class FashionMNIST(nn.Module):
    """As in the tutorial "Quickstart"."""

    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(28 * 28, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )

    def forward(self, x):
        x = self.flatten(x)
        return self.linear_relu_stack(x)


@pytest.mark.parametrize(
    ("kind", "side", "channels"),
    [(MNIST, 28, 1), (CIFAR, 32, 3), (OldCIFAR, 32, 3), (FashionMNIST, 28, 1)],
)
def test_networks_of_the_tutorials(kind, side, channels):
    torch.manual_seed(0)
    looked_at = pictures(side, 4, channels)
    graph = recorded(kind(), looked_at)
    assert distance(graph, looked_at) < WITHOUT_SIGNED


class PreActivation(nn.Module):
    """A block of He et al., "Identity mappings in deep residual networks"."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.short = None
        if stride != 1 or inputs != outputs:
            self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        out = F.relu(self.norm1(x))
        shortcut = x if self.short is None else self.short(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.norm2(out)))
        return out + shortcut


class PreActivationNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(
            PreActivation(8, 8), PreActivation(8, 8), PreActivation(8, 16, 2),
            PreActivation(16, 16), PreActivation(16, 32, 2), PreActivation(32, 32),
        )  # fmt: skip
        self.norm, self.fc = nn.BatchNorm2d(32), nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.blocks(self.conv(F.relu(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PlainStem(PreActivationNet):
    """As published: the residual stream begins with currents of the picture."""

    def forward(self, x):
        x = F.relu(self.norm(self.blocks(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize("kind", [PlainStem, PreActivationNet])
def test_pre_activation_residual_networks(kind):
    torch.manual_seed(0)
    network = alive(kind(), pictures(16, 16))
    looked_at = pictures(16)
    graph = recorded(network, looked_at)
    assert distance(graph, looked_at) < WITH_SIGNED
