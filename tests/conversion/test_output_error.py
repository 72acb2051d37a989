"""The outputs of a converted network are compared with those of the float network."""

import re
import warnings

import pytest
import torch
from torch import nn

import spikedet
from spikedet.conversion.output_error import MOST, output_error, warn_if_large
from spikedet.graph.record import record
from support.engines import NETWORKS, spiking


@pytest.fixture
def pictures():
    return torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_error_is_relative_to_the_variance_of_each_output(pictures):
    torch.manual_seed(0)
    graph = spiking(NETWORKS["max_pool"], pictures[:2])
    snn = spikedet.SpikingNetwork(graph, 4)
    snn.use_engine("auto")
    outputs = snn(pictures)

    def network(batch):
        return snn(batch) + 0.5 * outputs.std()

    apart = output_error(network, graph, 4, [pictures[:3], pictures[3:]])
    assert apart == pytest.approx(0.25, rel=1e-2)  # one variance per output, of all pictures
    assert output_error(snn, graph, 4, [pictures]) == 0


def test_no_more_pictures_are_run_than_needed(pictures):
    graph = spiking(NETWORKS["max_pool"], pictures[:2])
    snn = spikedet.SpikingNetwork(graph, 1)
    sizes = []

    def network(batch):
        sizes.append(len(batch))
        return snn(batch)

    output_error(network, graph, 1, [pictures] * 5)
    assert sizes == [20, MOST - 20]


@pytest.mark.parametrize("error", [0.26, float("nan"), float("inf")])
def test_large_errors_are_told(error):
    with pytest.warns(UserWarning, match="at T=3 the outputs are far .* better are more steps"):
        warn_if_large(error, 3, ["more steps"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_large(0.25, 3, ["more steps"])


def test_convert_tells_what_loses_less(pictures):
    torch.manual_seed(0)
    layers = [
        part for n in (3, 16, 16, 16) for part in (nn.Conv2d(n, 16, 3, bias=False), nn.ReLU())
    ]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 5, bias=False))
    words = {"method": "copy", "progress": False}
    better = "neuron='correcting', per_channel=True, method='stage2', training (epochs), more steps"
    with pytest.warns(UserWarning, match=re.escape(f"better are {better}")):
        short = spikedet.convert(network, [pictures], T=1, **words)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words |= {"neuron": "correcting", "per_channel": True}
        long = spikedet.convert(network, [pictures], T=64, **words)
    assert long.origin["output_error"] < 0.05 < 0.25 < short.origin["output_error"]
    graph = record(network, pictures)
    again = output_error(graph, long.graph, 64, [pictures])
    assert again == pytest.approx(long.origin["output_error"])


def test_a_trained_network_has_outputs_of_its_own(pictures):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 2))
    batches = [(pictures, torch.zeros(20, dtype=torch.long))]
    words = {"loss": nn.functional.cross_entropy, "end_to_end": 1, "progress": False}
    assert "output_error" in spikedet.convert(network, batches, T=4, progress=False).origin
    assert "output_error" not in spikedet.convert(network, batches, T=4, **words).origin
