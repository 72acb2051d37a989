"""Layers that are called several times, in float checkpoints."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikedet.checkpoint import Checkpoint, restore_graph
from spikedet.errors import WeightsError
from spikedet.networks import float_checkpoint


class Net(nn.Module):
    """A layer that is called twice, beside one with the name that its second call would get."""

    def __init__(self):
        super().__init__()
        self.conv, self.conv_1 = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.norm(F.relu(self.conv(self.norm(F.relu(self.conv(x))))))
        return self.head(F.relu(self.conv_1(x)).mean((2, 3)))


class Tied(nn.Module):
    """Layers that share a weight, each with its own bias, and a weight without its own layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.second.weight, self.two.weight = self.first.weight, self.one.weight
        self.free, self.head = nn.Parameter(torch.rand(3)), nn.Linear(3, 2)

    def forward(self, x):
        x = self.two(F.relu(self.second(self.one(F.relu(self.first(x))))))
        x = F.relu(F.conv2d(x, self.first.weight, self.free))
        return self.head(x.mean((2, 3)))


class Standardised(Net):
    """Its first weight is computed in every pass."""

    def forward(self, x):
        weight = self.conv.weight - self.conv.weight.mean()
        return self.head(F.relu(F.conv2d(x, weight, self.conv.bias)).mean((2, 3)))


def restored(net):
    """The graph of a float checkpoint; its tensors get other values after it is made."""
    task = SimpleNamespace(head_of=lambda network: {})
    checkpoint = Checkpoint("float", "classification", {}, ("a", "b"), 8, {})
    checkpoint = float_checkpoint(task, checkpoint, net.eval())
    for tensor in [*net.parameters(), *net.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 1)
    return restore_graph(replace(checkpoint, tensors=net.state_dict()))


@pytest.mark.parametrize("kind", [Net, Tied])
def test_each_call_of_a_layer_gets_the_weights_of_that_layer(kind):
    net = kind()
    graph, x = restored(net), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(graph(x), net(x))


def test_weights_that_are_computed_are_refused():
    words = "conv2d.weight is computed in forward, and not a tensor of the network"
    with pytest.raises(WeightsError, match=words):
        restored(Standardised())
