"""Networks as others build them, by events: equal to the reference to the last spike."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from spikedet.engines.events_engine import EventsEngine
from spikedet.engines.reference_engine import ReferenceEngine
from support.engines import needs_kernels, ran, spiking


class PreActivationBlock(nn.Module):
    """norm, ReLU, convolution twice; the shortcut leaves before the norm or behind the ReLU."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, outside, 3, stride, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(outside), nn.Conv2d(outside, outside, 3, 1, 1)
        self.short = nn.Conv2d(inside, outside, 1, stride) if inside != outside else None

    def forward(self, x):
        y = F.relu(self.norm1(x))
        short = x if self.short is None else self.short(y)
        return self.conv2(F.relu(self.norm2(self.conv1(y)))) + short


def pre_activation():
    """A small ResNet v2 with the stem of ImageNet: 7 x 7, then a maximum."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 16, 3, 1, 1), PreActivationBlock(16, 16, 1), PreActivationBlock(16, 24, 2),
        PreActivationBlock(24, 24, 1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


def torchvision_s(name):
    """A network of torchvision with fresh weights; vgg11 with smaller linear layers."""
    network = getattr(torchvision.models, name)(weights=None, num_classes=10)
    if name == "vgg11":
        network.classifier = nn.Sequential(
            nn.Linear(512 * 49, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10)
        )
    return network


NETWORKS = {"pre_activation": pre_activation}
NETWORKS |= {n: lambda n=n: torchvision_s(n) for n in ("resnet18", "mobilenet_v2", "vgg11")}
LEFT = {"vgg11": ["avgpool"]}  # 2 x 2 places to 7 x 7: an average with several divisors


@needs_kernels
@pytest.mark.parametrize(
    "name",
    [
        "pre_activation",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet18", "mobilenet_v2", "vgg11")),
    ],
)
def test_events_are_the_reference_to_the_last_spike(name):
    torch.manual_seed(0)
    network, pictures = NETWORKS[name](), torch.randn(1, 3, 64, 64)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in")
    with torch.no_grad():  # batch norms as after training: layers keep the size of their values
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        network.train()
        network(torch.randn(4, 3, 64, 64))
    graph = spiking(network, pictures)
    events, reference = EventsEngine(graph), ReferenceEngine(graph)
    assert [line.partition(":")[0] for line in events.describe()[1:]] == LEFT.get(name, [])
    wanted, spikes = ran(reference, pictures, [4])
    assert all(sum(counts) > 0 for counts in spikes.values())
    shown = {}
    for engine in (events, reference):
        shown[engine] = {}

        def on_spikes(name, first, value, into=shown[engine]):
            into[name] = value

        (output,) = [read() for _, read in engine.simulate(pictures, [4], False, None, on_spikes)]
        assert torch.equal(output, wanted[0])
    assert shown[events].keys() == shown[reference].keys() >= spikes.keys()
    for layer, value in shown[reference].items():
        assert torch.equal(shown[events][layer].double(), value.double()), layer
    _, counts = ran(events, pictures, [3, 1])
    assert counts == spikes
