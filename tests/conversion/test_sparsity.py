"""The penalty on spikes: what it counts, and that it makes networks sparser."""

import pytest
import torch
from torch import nn

import spikedet
from spikedet.conversion.sparsity import Operations, fan_out
from spikedet.errors import UsageError
from spikedet.runtime.network import SpikingNetwork
from support.engines import Joined, spiking


def test_fan_out_of_simple_layers():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 1, 1, bias=False), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2 * 64, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    graph = spiking(network, torch.rand(2, 3, 4, 4))
    counts = list(fan_out(graph).values())
    # of 16 places 4 reach all nine taps, 8 at a border six, and 4 in a corner four of them
    assert counts[0] == pytest.approx(6 * (4 * 9 + 8 * 6 + 4 * 4) / 16)
    assert counts[1:] == [4 * 2, 5, 0]  # up-sampled to four places; the readout is no step


def test_operations_are_those_counted_by_hand():
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 16, 24)
    graph = spiking(Joined(), pictures)
    operations, spikes = Operations(graph), {}
    for chunk in (5 * 3, 2 * 3, 3):  # all steps at once, unequal parts, and one after the other
        network = SpikingNetwork(graph, 5, chunk=chunk)
        with operations.counted(), network.spike_rates() as rates:
            network(pictures)
        share, total = 0.0, 0.0
        for name, rate in rates.by_layer().items():
            neurons = torch.Size(graph.shapes[name]).numel()
            share += rate * neurons * operations.fan_out[name]
            total += neurons * operations.fan_out[name]
        spikes[chunk] = operations.part().item()
        assert spikes[chunk] == pytest.approx(share / total, rel=1e-5)
    assert 0 < spikes[3] < 1


def test_a_penalty_makes_networks_sparser_and_is_reported(batches):
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(12, 2, 1),
    )  # fmt: skip
    rates = []
    for weight in (0.0, 10.0):
        snn = spikedet.convert(
            network, batches[:8], 4, layer_steps=0, end_to_end=40, sparsity=weight, progress=False
        )
        with snn.spike_rates() as counted:
            snn(batches[10])
        rates.append(counted.mean())
    assert rates[1] < 0.8 * rates[0]
    origin = snn.origin
    assert origin["sparsity"] == 10.0
    assert 0 < origin["operations_after"] < origin["operations_before"] < 1


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_of_penalties(batches, weight):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(UsageError, match="sparsity is .*; expected a number of 0 or more"):
        spikedet.convert(
            network, batches[:2], 2, layer_steps=0, end_to_end=1, sparsity=weight, progress=False
        )
    with pytest.raises(UsageError, match="no effect without the end-to-end pass"):
        spikedet.convert(network, batches[:2], 2, layer_steps=0, sparsity=1.0, progress=False)
