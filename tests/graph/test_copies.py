"""Layers that are called several times, in float checkpoints."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from spikedet.checkpoint import Checkpoint, restore_graph
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


def test_each_call_of_a_layer_gets_the_weights_of_that_layer():
    net, task = Net().eval(), SimpleNamespace(head_of=lambda network: {})
    checkpoint = Checkpoint("float", "classification", {}, ("a", "b"), 8, net.state_dict())
    graph = restore_graph(float_checkpoint(task, checkpoint, net))
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(graph(x), net(x))
