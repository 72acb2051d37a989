"""Whether a graph is still what an engine was compiled from."""

import copy
import pickle

import pytest
import torch
from torch import nn

from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool
from spikedet.runtime.snapshot import Snapshot
from support.engines import CORRECTING, spiking


@pytest.fixture
def graph():
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    rest = (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    return spiking(nn.Sequential(*first, *rest), torch.rand(2, 3, 8, 8), slope=CORRECTING)


def only(graph, kind):
    return graph.of((kind,))[0]


def weighs_steps(graph):
    mean = only(graph, MeanOverTime).module
    mean.log_weights = nn.Parameter(torch.zeros(4))


def other_data(graph):
    weight = only(graph, nn.Conv2d).module.weight
    weight.data = weight.data.clone()


@torch.no_grad()
def adds(graph):
    only(graph, nn.Conv2d).module.bias.add_(1)


CHANGES = {
    "weights in place": adds,
    "weights by data": other_data,
    "another parameter": lambda graph: setattr(
        only(graph, nn.Conv2d).module, "bias", nn.Parameter(torch.zeros(8))
    ),
    "no bias": lambda graph: setattr(only(graph, nn.Conv2d).module, "bias", None),
    "weights of steps": weighs_steps,
    "a buffer more": lambda graph: only(graph, nn.Conv2d).module.register_buffer(
        "more", torch.zeros(1)
    ),
    "threshold": lambda graph: only(graph, IFNeuron).module.threshold.mul_(2),
    "slope": lambda graph: setattr(only(graph, IFNeuron).module, "slope", 0.5),
    "margin": lambda graph: setattr(only(graph, CorrectingNeuron).module, "margin", 0.7),
    "theta on the wire": lambda graph: setattr(only(graph, IFNeuron).module, "folded", False),
    "pooling": lambda graph: setattr(only(graph, SpikingMaxPool).module, "mode", "step"),
    "another operation": lambda graph: graph.replace(
        only(graph, SpikingMaxPool).name, nn.AvgPool2d(2)
    ),
    "an edge": lambda graph: graph.redirect(
        only(graph, SpikingMaxPool).name, only(graph, IFNeuron).name
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_is_seen(graph, change):
    before = Snapshot(graph)
    assert before.holds(graph) and before.holds(graph)
    change(graph)
    assert not before.holds(graph)
    assert Snapshot(graph).holds(graph)


def test_reading_changes_nothing(graph):
    before = Snapshot(graph)
    with torch.no_grad():
        graph(torch.rand(1, 3, 8, 8))
    graph.state_dict()
    graph.requires_grad_(False).eval()
    assert before.holds(graph)


def test_copies_hold_of_nothing(graph):
    before = Snapshot(graph)
    assert not before.holds(copy.deepcopy(graph))
    for again in (copy.deepcopy(before), pickle.loads(pickle.dumps(before))):
        assert not again.holds(graph)
    assert not Snapshot().holds(graph)
