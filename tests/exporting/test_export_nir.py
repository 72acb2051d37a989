"""NIR files, read back and run by several simulators beside our own runtime."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spikedet
from spikedet.conversion.prepare import prepare
from spikedet.exporting.registry import ExportError
from spikedet.neurons.functional import integrate_and_fire
from spikedet.neurons.layers import IFNeuron, MeanOverTime
from spikedet.runtime.network import SpikingNetwork
from support.engines import CORRECTING, Joined, Plain, spiking
from support.exported import fresh
from support.stages import seen_in

nir = pytest.importorskip("nir")
nirtorch = pytest.importorskip("nirtorch")


class Ours(nn.Module):
    """A NIR neuron as metadata describe it, by our own dynamics."""

    def __init__(self, node):
        super().__init__()
        assert node.metadata["reset"] in ("subtract", b"subtract")
        self.threshold = torch.from_numpy(node.v_threshold)
        self.initial = torch.from_numpy(node.metadata["initial_potential"])
        self.spikes = []

    def first(self, x):
        return self.initial.expand(x.shape).clone()

    def forward(self, x, state=None):
        spikes, state = self.fire(x, self.first(x) if state is None else state)
        self.spikes.append(spikes.detach())
        return spikes, state

    def fire(self, x, u):
        return integrate_and_fire(x, u, self.threshold, 1)


class SnnTorch(Ours):
    def fire(self, x, u):
        snntorch = pytest.importorskip("snntorch")
        neuron = snntorch.Leaky(
            beta=1.0, threshold=self.threshold, reset_mechanism="subtract", reset_delay=False
        )
        return neuron(x, u)


class SpikingJelly(Ours):
    def fire(self, x, u):
        neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
        (threshold,) = self.threshold.unique().tolist()  # it knows one a layer
        layer = neuron.IFNode(v_threshold=threshold, v_reset=None)
        layer.v = u
        return layer(x), layer.v


def layers_by_snntorch():
    module = pytest.importorskip("snntorch.import_nir")
    return dict.fromkeys(
        (nir.Affine, nir.Linear, nir.Conv2d, nir.AvgPool2d), module._nir_to_snntorch_module
    )


def layers_by_spikingjelly():
    module = pytest.importorskip("spikingjelly.activation_based.nir_exchange.from_nir")
    return module._NodeMapper(dt=1.0).map_dict


def torch_layer(node):
    """A layer by torch, after NIR's own words: shapes without the batch."""
    if isinstance(node, nir.Flatten):
        start, end = int(node.start_dim), int(node.end_dim)
        return nn.Flatten(start + 1 if start >= 0 else start, end + 1 if end >= 0 else end)
    if isinstance(node, nir.Scale):
        scale = torch.from_numpy(node.scale)

        class Scale(nn.Module):
            def forward(self, x):
                return x * scale

        return Scale()
    if isinstance(node, nir.AvgPool2d):
        sizes = [tuple(int(n) for n in v) for v in (node.kernel_size, node.stride, node.padding)]
        return nn.AvgPool2d(*sizes)
    weight = torch.from_numpy(node.weight)
    if isinstance(node, nir.Affine | nir.Linear):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=isinstance(node, nir.Affine))
    else:

        def two(value):
            if isinstance(value, str | bytes):
                return value if isinstance(value, str) else value.decode()
            return tuple(int(n) for n in np.atleast_1d(value))

        kind = nn.Conv2d if isinstance(node, nir.Conv2d) else nn.Conv1d
        options = {"stride": two(node.stride), "padding": two(node.padding)}
        options["dilation"] = two(node.dilation)
        layer = kind(weight.shape[1], weight.shape[0], weight.shape[2:], **options)
    layer.weight.data = weight
    if layer.bias is not None:
        layer.bias.data = torch.from_numpy(node.bias)
    return layer


KINDS = (nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.AvgPool2d, nir.Flatten, nir.Scale)


@torch.no_grad()
def run(path, pictures, steps, neuron, layers=None):
    """The mean output of a file, and the spikes of each of its layers, [T, B, ...]."""
    graph = nir.read(path)
    nodes = {}

    def make(node):
        name = node.metadata["name"]
        nodes[name if isinstance(name, str) else name.decode()] = module = neuron(node)
        return module

    node_map = {**dict.fromkeys(KINDS, torch_layer), **(layers or {}), nir.IF: make}
    network = nirtorch.nir_to_torch(graph, node_map)
    told = graph.nodes["output"].metadata
    assert int(told["time_steps"]) == steps
    weights = told.get("step_weights", np.full(steps, 1 / steps, np.float32))
    total, state = 0, None
    for weight in weights:
        output, state = network(pictures, state)
        total = total + output * float(weight)
    return total, {name: torch.stack(module.spikes) for name, module in nodes.items()}


@torch.no_grad()
def expect_equal(graph, pictures, path, neuron, layers=None, steps=5):
    network = SpikingNetwork(graph, steps)
    done = spikedet.export(network, path)
    with seen_in(graph) as seen:
        wanted = network(pictures)
    output, spikes = run(path, pictures, steps, neuron, layers)
    assert set(spikes) == {node.name for node in graph.of((IFNeuron,))}
    for name, value in spikes.items():
        truth = torch.cat(seen[name]).unflatten(0, (steps, len(pictures)))
        if not graph.module(name).folded:
            truth = (truth > 0).float()
        assert torch.equal(value, truth), name
        assert 0 < truth.mean() < 1
    assert torch.allclose(output, wanted, rtol=1e-4, atol=1e-5)
    return done


CLASSIFIER = Plain(
    nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(),
    nn.Flatten(), nn.Linear(12 * 16, 20), nn.ReLU(), nn.Linear(20, 4),
)  # fmt: skip
SIMULATORS = {
    "ours": (Ours, dict),
    "snntorch": (SnnTorch, layers_by_snntorch),
    "spikingjelly": (SpikingJelly, layers_by_spikingjelly),
}


@pytest.mark.parametrize(
    ("simulator", "each_channel"),
    [("ours", False), ("ours", True), ("snntorch", False), ("snntorch", True),
     ("spikingjelly", False)],
)  # fmt: skip
def test_a_classifier_fires_alike_in_other_simulators(simulator, each_channel, tmp_path):
    neuron, layers = SIMULATORS[simulator]
    torch.manual_seed(7)
    pictures = torch.rand(3, 3, 16, 16)
    graph = spiking(fresh(CLASSIFIER), pictures, 4, each_channel=each_channel)
    if simulator == "snntorch":  # which resets once more what stays above its threshold
        for node in graph.of((IFNeuron,)):
            node.module.threshold *= 4
    expect_equal(graph, pictures, tmp_path / "a.nir", neuron, layers())


class Residual(nn.Module):
    """Shortcuts: sums of currents, and spikes that are added as they are."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.third, self.short = nn.Conv2d(8, 12, 3, 2, "valid"), nn.Conv2d(8, 12, 3, 2)
        self.same, self.last = nn.Conv2d(12, 6, 3, padding="same"), nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(self.second(x) + x)
        x = F.relu(self.third(x) + self.short(x))
        return self.last(F.relu(self.same(x) * 0.5).mean((2, 3)))


def test_residual_networks_and_weighted_means(tmp_path):
    torch.manual_seed(8)
    pictures = torch.rand(2, 3, 16, 16)
    graph = spiking(Residual(), pictures, 4, each_channel=True, free=True)
    assert any(not node.module.folded for node in graph.of((IFNeuron,)))
    for node in graph.of((MeanOverTime,)):
        node.module.log_weights = nn.Parameter(torch.randn(3))
    done = expect_equal(graph, pictures, tmp_path / "a.nir", Ours)
    told = nir.read(tmp_path / "a.nir").metadata
    assert tuple(told["not_in_nir"].split("\n")) == done.notes
    assert json.loads(told["spikedet"])["T"] == 5
    notes = " ".join(done.notes)
    assert all(word in notes for word in ("subtraction", "initial_potential", "weighted mean"))


def test_one_dimension_and_networks_that_end_in_neurons(tmp_path):
    torch.manual_seed(9)
    network = Plain(nn.Conv1d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv1d(8, 6, 3, 1, 1), nn.ReLU(),
                    nn.Flatten(), nn.Linear(48, 5), nn.ReLU())  # fmt: skip
    pictures = torch.rand(2, 3, 16)
    expect_equal(spiking(network, pictures), pictures, tmp_path / "a.nir", Ours)


def refused(network, pictures, path, slope=None):
    graph = spiking(network, pictures, 4, slope)
    with pytest.raises(ExportError, match="nothing was written") as error:
        spikedet.export(SpikingNetwork(graph, 4), path)
    assert not path.exists()
    return graph, str(error.value)


def test_what_nir_cannot_say_is_refused_node_by_node(tmp_path, small_net, pictures):
    path = tmp_path / "a.nir"
    graph, why = refused(Joined(), pictures, path)
    for kind in ("concatenate", "upsample", "channel_shuffle"):
        (node,) = [node for node in graph if node.kind == kind]
        assert f"{node.name}: " in why
    assert "output: several outputs (0, 1)" in why
    pooled = Plain(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    assert "max-pooling of spike counts" in refused(pooled, pictures, path)[1]
    plain = Plain(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(),
                  nn.Conv2d(4, 2, (1, 3)))  # fmt: skip
    graph, why = refused(plain, pictures, path, 0.1)
    assert why.count("a second threshold below 0") == 2
    assert "several groups" in why and "not square" in why
    cut = Plain(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
                nn.Conv2d(4, 2, 1))  # fmt: skip
    assert "cut at the border" in refused(cut, pictures, path)[1]
    assert "neurons that take back spikes" in refused(plain, pictures, path, CORRECTING)[1]
    with pytest.raises(ExportError, match="holds spiking networks"):
        spikedet.export(prepare(small_net, pictures[:1]), path)
