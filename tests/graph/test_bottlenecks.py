"""Layers without an activation between them: which get signed neurons, and what these compute."""

import pytest
import torch
from torch import nn
from torchvision.models.mobilenetv2 import Conv2dNormActivation, InvertedResidual
from torchvision.models.resnet import BasicBlock

from spikedet.analysis.operations import measure_cost
from spikedet.conversion.calibrate import calibrate
from spikedet.conversion.prepare import prepare
from spikedet.conversion.thresholds import estimate_thresholds
from spikedet.graph.operations import ACTIVATIONS, Leaky
from spikedet.graph.rewrites.linear_bottlenecks import spike_linear_bottlenecks
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.layers import IFNeuron
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import LayerWise
from support.stages import spiking_copy

T = 8


class Chain(nn.Module):
    """Four 1x1 convolutions; `joint` makes what `c` reads of the spikes and what `b` gives."""

    def __init__(self, joint=lambda spikes, linear: linear, norm=False):
        super().__init__()
        self.joint, self.norm = joint, nn.BatchNorm2d(4) if norm else None
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, 4, 1) for n in (3, 4, 4, 4))
        self.p, self.q = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.p(self.a(x))
        linear = self.b(x) if self.norm is None else self.norm(self.b(x))
        return self.d(self.q(self.c(self.joint(x, linear))))


def signed(graph):
    """Names of the activations that are the identity."""
    return [node.name for node in graph.of((Leaky,)) if node.module.slope == 1]


class Shared(nn.Module):
    """`b` stands at two names and is called twice; so is an identity, after `b` and `c`."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 4, 1) for n in (3, 4, 4))
        self.again, self.same, self.d = self.b, nn.Identity(), nn.Conv2d(4, 4, 1)
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(3))

    def forward(self, x):
        x = self.relus[0](self.a(x))
        x = self.relus[1](self.c(self.same(self.b(x))))
        return self.d(self.relus[2](self.same(self.c(self.again(x)))))


def layers(*kinds):
    makers = {"conv": lambda: nn.Conv2d(3, 3, 1), "relu": nn.ReLU, "pool": lambda: nn.MaxPool2d(2)}
    return nn.Sequential(*[makers[kind]() for kind in kinds])


@pytest.mark.parametrize(
    ("network", "signs"),
    [
        (Chain(), ["b_spikes"]),
        (Chain(norm=True), ["b_spikes"]),
        (Chain(lambda spikes, linear: spikes + linear), ["b_spikes"]),
        (Chain(lambda spikes, linear: spikes + linear, norm=True), ["b_spikes"]),
        (Chain(lambda spikes, linear: torch.cat([spikes, linear], 1)[:, 2:6]), ["b_spikes"]),
        (Shared(), ["again_spikes", "again_1_spikes"]),
        # layers that read the picture run once, and so do readouts
        (layers("conv", "conv", "relu", "conv", "conv"), []),
        (layers("conv", "relu", "conv", "pool", "conv", "relu", "conv"), ["2_spikes"]),
        (layers("conv", "relu", "conv", "pool", "relu", "conv"), []),
        (nn.Sequential(layers("conv", "relu"), BasicBlock(3, 3), nn.Conv2d(3, 3, 1)), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bottlenecks_are_found_by_what_runs(network, signs, pictures):
    network.eval()
    with torch.no_grad():
        before = network(pictures)
    for fold in (True, False):
        graph = prepare(network, pictures, fold)
        assert signed(graph) == signs
        if fold:
            assert [n.name for n in graph if n.name.endswith("_spikes")] == signs
        with torch.no_grad():
            assert torch.allclose(graph(pictures), before, atol=1e-5)


def test_a_second_time_finds_nothing(pictures):
    graph = prepare(Chain().eval(), pictures)
    spike_linear_bottlenecks(graph)
    assert signed(graph) == ["b_spikes"]


def spiking(network, pictures, T=T, scale=1.0):
    """(quantised, spiking) graphs; `scale` times the estimated thresholds."""
    graph = prepare(network.eval(), pictures)
    thresholds = estimate_thresholds(graph, [pictures], T)
    quantise(graph, {name: scale * t for name, t in thresholds.items()}, T)
    graph.eval()
    return graph, spiking_copy(graph)


class Binary(nn.Module):
    """Neurons that fire in every step or never, so that those behind them see constant currents.

    The readout gets the spikes of a residual block, or the sum of those of a linear bottleneck and
    its shortcut.
    """

    def __init__(self, residual):
        super().__init__()
        self.a, self.b, self.last = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))
        self.p, self.residual = nn.ReLU(), residual
        self.q = nn.ReLU() if residual else nn.LeakyReLU(1.0)
        nn.init.dirac_(self.a.weight)

    def forward(self, x):
        x = self.p(self.a(x))
        linear = self.b(x)
        return self.last(self.q(linear + x) if self.residual else self.q(linear) + x)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_equal_to_the_quantised_network_on_constant_currents(residual, steps, pictures):
    torch.manual_seed(0)
    graph = prepare(Binary(residual).eval(), pictures)
    # 1.5 for a neuron that gets 0 or 1.5 fires always or never; elsewhere nothing saturates
    thresholds = {node.name: torch.tensor(4.0) for node in graph.of(ACTIVATIONS)}
    thresholds["p"] = torch.tensor(1.5)
    quantise(graph, thresholds, steps)
    graph.eval()
    binary = (pictures > 0.5).float() * 1.5
    with torch.no_grad():
        wanted = graph(binary)
        make_spiking(graph)
        assert torch.allclose(SpikingNetwork(graph, steps)(binary), wanted, atol=1e-5)
    if steps > 1:
        assert len(wanted.unique()) > 8


class Mobile(nn.Module):
    """Two inverted residuals of MobileNetV2, the second with a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = Conv2dNormActivation(3, 8, stride=2, activation_layer=nn.ReLU6)
        self.blocks = nn.Sequential(InvertedResidual(8, 6, 1, 2), InvertedResidual(6, 6, 1, 2))
        self.head = Conv2dNormActivation(6, 12, kernel_size=1, activation_layer=nn.ReLU6)
        self.drop, self.fc = nn.Dropout(), nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(self.drop(self.head(self.blocks(self.stem(x))).mean((2, 3))))


@pytest.fixture
def mobile():
    torch.manual_seed(0)
    network = Mobile()
    with torch.no_grad():  # statistics for batch norm
        for _ in range(20):
            network.train()(torch.rand(8, 3, 16, 16))
    return network.eval()


def test_inverted_residuals_approach_the_float_network(mobile, pictures):
    with torch.no_grad():
        wanted = mobile(pictures)
        _, network = spiking(mobile, pictures, 256)
        nodes = network.of((IFNeuron,))
        linear = ["blocks.0.conv.2_spikes", "blocks.1.conv.2_spikes"]
        assert [node.name for node in nodes if node.module.slope == 1] == linear
        # both meet at the shortcut; the others are read by one layer each
        assert [node.name for node in nodes if not node.module.folded] == linear
        errors = [(SpikingNetwork(network, t)(pictures) - wanted).abs().max() for t in (8, 256)]
    assert errors[1] < 0.02 * wanted.std() + 0.1 * errors[0]


def test_no_layer_multiplies_in_every_step(mobile, pictures):
    _, network = spiking(mobile, pictures)
    cost = measure_cost(SpikingNetwork(network, T), [pictures], T)
    once = [name for name, values in cost.multiplies.items() if values.any()]
    assert once == ["stem.0", "fc"]
    # what the shortcut brings reaches the head with the spikes of the last bottleneck
    linear = [f"blocks.{i}.conv.2_spikes" for i in (0, 1)]
    fired = sum(cost.rates[name] * cost.neurons[name] for name in linear)
    assert torch.allclose(cost.accumulates["head.0"], fired * T * 12)
    assert cost.accumulates["head.0"].all()


def test_calibration_worsens_no_layer(mobile):
    coarse = torch.rand(20, 8, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    batches = [nn.functional.interpolate(b, size=(16, 16), mode="bilinear") for b in coarse]
    fit, judge = batches[:14], batches[14:]
    quantised, network = spiking(mobile, batches[0])
    reports = calibrate(
        quantised, network, fit, judge, T, LayerWise(steps=40, check=10, half=False)
    )
    assert all(report.after <= report.coarse <= report.before for report in reports)
    better = {report.name for report in reports if report.after < report.before}
    assert {"blocks.0.conv.2_spikes", "blocks.1.conv.2_spikes", "head.2"} <= better
    # the error reported for the last layer is that of the network as it runs
    with torch.no_grad():
        error = SpikingNetwork(network, T)(torch.cat(judge)) - quantised(torch.cat(judge))
        spread = quantised(torch.cat(batches)).std(0)
    assert reports[-1].after == pytest.approx((error / spread).square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("per_channel", [True, False])
def test_thresholds_of_a_relu6_stay_below_six(per_channel, pictures):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1)).eval()
    network[0].weight.data *= 100
    graph = prepare(network, pictures)
    thresholds = estimate_thresholds(graph, [pictures], T, per_channel=per_channel)
    theta = thresholds["1"]
    assert (theta <= 6).all() and theta.max() > 5.5
    quantise(graph, thresholds, T)
    with torch.no_grad():
        current = network[0](pictures)
        output = graph.eval().module("1")(graph.module("0")(pictures))
    assert current.max() > 12
    theta = theta.view(-1, 1, 1)
    assert torch.allclose(output, theta * (current / theta * T + 0.5).floor().div(T).clamp(0, 1))
