"""The Spiking-YOLO baseline: channel-wise normalisation."""

import pytest
import torch
from torch import nn

from spikedet.conversion.prepare import prepare
from spikedet.conversion.thresholds import channel_maxima
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.quantize import QuantClip
from spikedet.runtime.network import SpikingNetwork


def scaled_channels():
    """Channel k of the first layer is k + 1 times the grey value; the third never fires."""
    network = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1))
    network[0].weight.data = torch.tensor([1.0, 2.0, -3.0]).view(3, 1, 1, 1)
    return network.eval()


def test_each_channel_gets_its_own_maximum():
    network = scaled_channels()
    pictures = torch.linspace(0, 1, 1001)[:1000].view(1, 1, 20, 50)
    many = [pictures] * 20
    (maxima,) = channel_maxima(prepare(network, pictures), many, percentile=99.0).values()
    assert maxima[0].item() == pytest.approx(0.99, abs=0.01)
    assert maxima[1].item() == pytest.approx(1.98, abs=0.02)
    assert maxima[2] == maxima[:2].min()  # silent: the lower median of the others


def test_rates_approach_the_activations_from_a_potential_of_zero():
    network = scaled_channels()
    picture = torch.full((1, 1, 4, 4), 0.5)
    wanted = network(picture)
    graph = prepare(network, picture)
    quantise(graph, channel_maxima(graph, [picture]), 8)
    assert any(isinstance(m, QuantClip) for m in graph.modules())
    make_spiking(graph, initial=0.0)
    spiking = SpikingNetwork(graph, 8)
    errors = [(spiking(picture, T) - wanted).abs().max().item() for T in (2, 16, 256)]
    assert errors[-1] < 0.02 and errors[-1] <= errors[0] + 1e-6


def test_a_layer_that_never_fires_stays_silent():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1)).eval()
    network[0].weight.data.fill_(-1.0)
    network[0].bias.data.fill_(-1.0)
    picture = torch.rand(1, 1, 4, 4)
    (maxima,) = channel_maxima(prepare(network, picture), [picture]).values()
    assert torch.equal(maxima, torch.ones(2))


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_negative_activations_count_by_their_size(slope):
    """As of a linear bottleneck: signed neurons fire once a step at most, in either direction."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.LeakyReLU(slope), nn.Conv2d(2, 2, 1), nn.ReLU(),
        nn.Conv2d(2, 1, 1),
    ).eval()  # fmt: skip
    network[0].weight.data = torch.tensor([1.0, -4.0]).view(2, 1, 1, 1)
    picture = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = network(picture)
    graph = prepare(network, picture)
    maxima = channel_maxima(graph, [picture], percentile=100)
    assert maxima["1"].tolist() == pytest.approx([1.0, 4 * slope], rel=0.05)
    quantise(graph, maxima, 8)
    make_spiking(graph, initial=0.0)
    assert (SpikingNetwork(graph, 512)(picture) - wanted).abs().max() < 0.05
