"""Spike trains that are kept packed come back as they were, in every layout."""

import pytest
import torch

from spikedet.conversion.stored import StoredOutputs
from spikedet.neurons.layers import IFNeuron
from support.engines import CORRECTING, NETWORKS, spiking


@pytest.mark.parametrize("slope", [None, 0.2, CORRECTING])
@pytest.mark.parametrize("name", ["max_pool", "linear", "one_dimension"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_spikes_come_back(name, layout, slope):
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 16, 16).contiguous(memory_format=layout)
    graph = spiking(NETWORKS[name], pictures, slope=slope)
    stored = StoredOutputs(graph, [pictures], 5)
    for index, site in enumerate(stored.sites):
        if not site.is_neuron:
            continue
        current = stored.run(site, stored.sources(site, 0))
        neuron = site.node.module
        spikes, _ = neuron.fire(current, neuron.start(current, 3), 5)
        stored.advance(index)
        if site.node.name in stored.outputs:
            unpacked = stored.unpack(site.node.name, 0)
            assert torch.equal(unpacked, neuron.scale_spikes(spikes))
            if unpacked.ndim == 4:
                assert unpacked.is_contiguous(memory_format=layout)
            assert stored.outputs[site.node.name][0].nbytes <= -(-2 * spikes.numel() // 8)


class Negative(IFNeuron):
    """A registered neuron that does not say that it sends spikes of -1."""

    def fire(self, current, state, steps, alpha=1.0):
        spikes, state = super().fire(current, state, steps, alpha)
        return -spikes, state


def test_negative_spikes_of_registered_neurons_come_back():
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 16, 16)
    graph = spiking(NETWORKS["linear"], pictures)
    first = graph.of((IFNeuron,))[0]
    graph.replace(first.name, Negative(first.module.threshold, first.module.initial))
    stored = StoredOutputs(graph, [pictures], 5)
    stored.advance(0)
    assert stored.unpack(first.name, 0).unique().tolist() == [-1, 0]
