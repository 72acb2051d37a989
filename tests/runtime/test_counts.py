"""Numbers of time steps, rates of several runs, and values without channels."""

import numpy as np
import pytest
import torch
from torch import nn

import spikedet
from spikedet.errors import ConversionError, UsageError
from spikedet.runtime.network import SpikingNetwork


def converted(net, x):
    return spikedet.convert(net.eval(), [x], T=2, method="opi", progress=False)


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def test_a_count_is_the_same_everywhere(tmp_path):
    x = torch.rand(4, 3)
    graph = converted(mlp(), x).graph
    snn = SpikingNetwork(graph, T=np.int64(4))
    assert snn.T == 4 and type(snn.T) is int
    assert torch.equal(snn(x), snn(x, T=np.int64(4)))
    spikedet.save(snn, tmp_path / "own")
    for T in (0, True, 2.5, "4", None, 10_001):
        with pytest.raises(UsageError, match="T is .*; expected an integer from 1 to 10000"):
            SpikingNetwork(graph, T=T)


def test_rates_of_runs_of_unlike_length():
    x = torch.rand(4, 3)
    snn = converted(mlp(), x)
    with snn.spike_rates() as rates:
        snn(x, T=2)
        snn(x, T=5)
    assert rates.mean(2) >= 0 and rates.mean() >= 0
    with pytest.raises(UsageError, match="rates of 3 steps; expected 1 to 2"):
        rates.mean(3)


def test_an_activation_without_channels_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3, 1)

        def forward(self, x):
            return torch.relu(self.last(x).squeeze(1))

    with pytest.raises(ConversionError, match=r"an activation of one number .*\[B, 1\]"):
        converted(Net(), torch.rand(4, 3))
