"""Additions of branches with different thresholds, and what cannot be added."""

import copy

import pytest
import torch
from torch import nn

from spikedet.conversion.calibrate import calibrate
from spikedet.conversion.thresholds import estimate_thresholds
from spikedet.errors import ConversionError
from spikedet.graph.record import record
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.layers import IFNeuron
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import LayerWise

T = 8


class Branches(nn.Module):
    """Three neurons on constant currents; `join` makes what the readout gets of their outputs."""

    def __init__(self, join, channels=4, relu=nn.ReLU):
        super().__init__()
        self.join = join
        self.a, self.b, self.c = (nn.Conv2d(3, 4, 1) for _ in range(3))
        self.p, self.q, self.r = (relu() for _ in range(3))
        self.last = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        return self.last(self.join(self.p(self.a(x)), self.q(self.b(x)), self.r(self.c(x))))


def add_in_place(p, q, r):
    p += q
    return p


JOINS = {
    "addition": (lambda p, q, r: p + q, 4, "pq"),
    "two additions": (lambda p, q, r: torch.add(p + q, r), 4, "pqr"),
    "in place": (add_in_place, 4, "pq"),
    "addition beside": (lambda p, q, r: torch.cat([p + q, r], 1), 8, "pq"),
    "concatenation": (lambda p, q, r: torch.cat([p, q, r], 1), 12, ""),
    "above each other": (lambda p, q, r: torch.cat([p, q], 2), 4, "pq"),
    "halves of one": (lambda p, q, r: torch.cat([p[:, :2] + p[:, 2:], q], 1), 6, "p"),
    "pooled sum": (lambda p, q, r: nn.functional.avg_pool2d(p + q, 2), 4, "pq"),
    "padded": (lambda p, q, r: nn.functional.pad(p, (1, 1, 1, 1)), 4, ""),
    "difference": (lambda p, q, r: torch.add(p, q, alpha=-1), 4, "pq"),
    "difference to itself": (lambda p, q, r: torch.add(p, p.transpose(2, 3), alpha=-1), 4, ""),
    "negative constant": (lambda p, q, r: p + torch.full((4, 1, 1), -1.0), 4, "p"),
    "another negative constant": (lambda p, q, r: p + -0.5, 4, "p"),
    "padded by a constant": (lambda p, q, r: nn.functional.pad(p, (1, 1, 1, 1), value=-2), 4, "p"),
    "average at the border": (lambda p, q, r: nn.functional.avg_pool2d(q, 3, 2, 1), 4, ""),
}


def converted(network, pictures):
    """(quantised, spiking, letters of the neurons that keep theta on the wire)."""
    graph = record(network.eval(), pictures)
    thresholds = estimate_thresholds(graph, [pictures], T, per_channel=True)
    # twice, so that nothing saturates: where a leaky neuron does, it may lose its first step
    quantise(graph, {name: 2 * theta for name, theta in thresholds.items()}, T)
    graph.eval()
    spiking = copy.deepcopy(graph)
    make_spiking(spiking)
    neurons = spiking.of((IFNeuron,))
    return graph, spiking, "".join(node.name for node in neurons if not node.module.folded)


@pytest.mark.parametrize("name", JOINS)
@pytest.mark.parametrize("relu", [nn.ReLU, lambda: nn.LeakyReLU(0.3)], ids=["relu", "leaky"])
def test_equal_to_the_quantised_network_on_constant_currents(name, relu, pictures):
    """Every neuron's rate is its quantised level here, so the sums must be equal, too."""
    torch.manual_seed(0)
    join, channels, kept = JOINS[name]
    network, spiking, names = converted(Branches(join, channels, relu), pictures)
    assert names == kept
    with torch.no_grad():
        wanted = network(pictures)
        for chunk in (4, 1000):
            assert torch.allclose(SpikingNetwork(spiking, T, chunk)(pictures), wanted, atol=1e-5)


class Bottleneck(nn.Module):
    """A residual block: spikes and, with `raw`, a current without a neuron are added."""

    def __init__(self, raw):
        super().__init__()
        self.raw = raw
        self.first, self.deep, self.relu = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 1), nn.ReLU()
        self.mix, self.last = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x):
        x = self.relu(self.first(x))
        deep = self.deep(x)
        x = x + (deep if self.raw else self.relu(deep))
        return self.last(self.relu(self.mix(x)))


@pytest.mark.parametrize("raw", [True, False])
def test_a_residual_block_approaches_the_clipped_network(raw, pictures):
    torch.manual_seed(0)
    network, spiking, names = converted(Bottleneck(raw), pictures)
    assert names == ("relu" if raw else "relurelu_1")
    for quantiser in network.modules():
        if hasattr(quantiser, "noise"):
            quantiser.steps = 1 << 20  # as good as none
    with torch.no_grad():
        wanted, spiking = network(pictures), SpikingNetwork(spiking, T)
        errors = [(spiking(pictures, steps) - wanted).abs().max() for steps in (8, 512)]
    assert errors[0] > 4 * errors[1]
    assert errors[1] < 0.02 * wanted.std()


class Shortcut(nn.Module):
    """Neurons read spikes without a weight between, beside a convolution's current or alone."""

    def __init__(self, pool):
        super().__init__()
        self.first, self.p = nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU()
        self.deep, self.q = None if pool else nn.Conv2d(6, 6, 1), nn.ReLU()
        self.pool, self.last = nn.AvgPool2d(2), nn.Conv2d(6, 5, 1)

    def forward(self, x):
        x = self.p(self.first(x))
        x = self.pool(x) if self.deep is None else self.deep(x) + x
        return self.last(self.q(x))


@pytest.mark.parametrize("pool", [True, False])
def test_theta_travels_on_a_shortcut_to_other_neurons(pool, pictures):
    torch.manual_seed(0)
    network, spiking, names = converted(Shortcut(pool), pictures)
    assert names == "p"
    with torch.no_grad():
        wanted, spiking = network(pictures), SpikingNetwork(spiking, T)
        errors = [(spiking(pictures, steps) - wanted).abs().mean() for steps in (2, 8)]
    assert errors[0] > 2 * errors[1]
    assert errors[1] < 0.1 * wanted.std()


def test_calibration_sends_theta_on(pictures):
    """The error reported for the last layer is that of the network as it runs."""
    torch.manual_seed(0)
    network, spiking, _ = converted(Bottleneck(False), pictures)
    batches = list(torch.rand(5, 4, 3, 16, 16, generator=torch.Generator().manual_seed(5)))
    options = LayerWise(steps=10, check=5, half=False)
    reports = calibrate(network, spiking, batches[:4], batches[4:], T, options)
    with torch.no_grad():
        error = SpikingNetwork(spiking, T)(batches[4]) - network(batches[4])
        spread = torch.cat([network(b) for b in batches]).transpose(0, 1).flatten(1).std(1)
    error = (error / spread.view(1, -1, 1, 1)).square().mean().item()
    assert reports[-1].after == pytest.approx(error, rel=1e-3)


class TwoStems(nn.Module):
    """Two layers that read the picture, added in place before the first neuron."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.ReLU()
        self.last = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.last(self.relu(add_in_place(self.a(x), self.b(x), None)))


@pytest.mark.parametrize("chunk", [4, 1000])
def test_what_is_computed_once_is_not_changed_in_place(chunk, pictures):
    torch.manual_seed(0)
    network, spiking, _ = converted(TwoStems(), pictures)
    with torch.no_grad():
        wanted = network(pictures)
        assert torch.allclose(SpikingNetwork(spiking, T, chunk)(pictures), wanted, atol=1e-5)


class FromPicture(nn.Module):
    """Spikes meet the picture's own current, or what the readout gives."""

    def __init__(self, readout):
        super().__init__()
        self.readout, self.first, self.relu = readout, nn.Conv2d(3, 3, 1), nn.ReLU()
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        spikes = self.relu(self.first(x))
        return self.last(spikes) + spikes if self.readout else self.last(spikes + self.first(x))


@pytest.mark.parametrize(
    ("readout", "words"),
    [(True, "^add: .*a readout"), (False, "^add: .*from the picture alone")],
)
def test_a_signal_without_time_steps_is_refused_by_name(readout, words, pictures):
    with pytest.raises(ConversionError, match=words):
        converted(FromPicture(readout), pictures)
