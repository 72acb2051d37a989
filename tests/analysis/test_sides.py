"""Sides of a benchmark: other programs give what ours gives."""

import copy

import pytest
import torch
from torch import nn

from spikedet.analysis import sides
from spikedet.analysis.timing import Subject
from spikedet.errors import UsageError
from spikedet.neurons.layers import MeanOverTime
from spikedet.runtime.network import SpikingNetwork
from support.engines import NETWORKS, Joined, spiking

LOOP = {**NETWORKS, "joined": Joined()}


def test_another_simulator_makes_the_same_spikes():
    pytest.importorskip("spikingjelly.activation_based")
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 16, 16)
    graph = spiking(NETWORKS["max_pool"], pictures)
    peer = sides.side(Subject("spikingjelly", "multi-step", 6), SpikingNetwork(graph, 6))
    outputs, wanted = peer(pictures, 6), SpikingNetwork(graph, 6)(pictures)
    assert torch.allclose(outputs, wanted, atol=1e-5)
    assert torch.equal(outputs, peer(pictures, 6))  # nothing is left of a pass
    with pytest.raises(UsageError, match="one threshold per layer"):
        sides.spikingjelly_copy(spiking(NETWORKS["linear"], pictures, slope=0.2), 4)


@pytest.mark.parametrize("slope", [None, 0.3])
@pytest.mark.parametrize("name", LOOP)
def test_the_step_loop_gives_the_outputs_of_the_torch_engine(name, slope):
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 16, 16)
    graph = spiking(copy.deepcopy(LOOP[name]), pictures, slope=slope, each_channel=True)
    for node in graph.of((MeanOverTime,)):
        node.module.log_weights = nn.Parameter(torch.randn(3))
    network = SpikingNetwork(graph, 5)
    loop = sides.side(Subject("step-loop", "torch", 5), network)
    for T in (1, 5, 5):  # nothing is left of a pass
        outputs, wanted = loop(pictures, T), network(pictures, T)
        outputs, wanted = (x if isinstance(x, tuple) else (x,) for x in (outputs, wanted))
        assert wanted[0].std() > 0
        for a, b in zip(outputs, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


def test_the_step_loop_calls_every_layer_in_every_step():
    pictures = torch.rand(1, 3, 16, 16)
    graph = spiking(NETWORKS["max_pool"], pictures)
    loop, calls = sides.StepLoop(graph), []
    for name in loop.graph.edges:
        loop.graph.module(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    loop(pictures, 3)
    assert calls == list(graph.edges) * 3


def test_float_networks_in_either_format(pictures, small_net):
    plain = sides.side(Subject("float32", "torch"), small_net)(pictures, 1)
    assert torch.equal(plain, small_net(pictures)) and plain.dtype == torch.float32
    rounded = sides.side(Subject("bfloat16", "torch"), small_net)(pictures, 1)
    assert rounded.dtype == torch.bfloat16
    assert 0 < (rounded.float() - plain).abs().mean() < 0.02 * plain.abs().mean()
    assert next(small_net.parameters()).dtype == torch.float32  # a copy was rounded
