"""Small networks for the engines, their spiking graphs, and runs of an engine."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikedet.engines import matrix
from spikedet.engines.events_engine import EventsEngine
from spikedet.engines.reference_engine import ReferenceEngine
from spikedet.graph.operations import QuantClip
from spikedet.kernels import library
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.neurons.layers import IFNeuron
from support.stages import quantised, spiking_copy

try:
    KERNELS = library.kernels()
except library.NoLibrary:
    KERNELS = []
MATRIX = [("amx", True)] if "amx" in KERNELS else []  # all that it can compute, by the matrix unit
needs_kernels = pytest.mark.skipif(not KERNELS, reason="no compiled kernels")


CORRECTING = "correcting"  # in place of a slope


def spiking(network, pictures, T=4, slope=None, each_channel=False, free=False, seed=0):
    """The spiking graph of a float network with thresholds that make half of it fire.

    With `CORRECTING` as the slope, neurons correct themselves wherever they can have to. Their
    margins differ.
    """
    torch.manual_seed(seed)
    graph = quantised(network.eval(), [pictures], T, per_channel=each_channel)
    for node in graph.of((QuantClip,)):
        node.module.threshold.data *= 0.7 + 0.3 * torch.rand(node.module.threshold.shape)
        if slope not in (None, CORRECTING):
            node.module.slope = slope
    graph = spiking_copy(graph, neuron=slope if slope == CORRECTING else "neuron")
    for i, neuron in enumerate(graph.only(CorrectingNeuron)):
        neuron.margin = (0.3, 0.0, 1.2)[i % 3]
    for node in graph.of((IFNeuron,)):
        shape = graph.shapes[node.name][1:] if free else node.module.initial.shape
        spread = node.module.threshold.max() * torch.rand(shape)
        node.module.initial.data = spread if free else node.module.initial.data + 0.3 * spread
    return graph.requires_grad_(False)


def ran(engine, pictures, parts, each_step=False):
    """Outputs after each part, and the spikes of each layer and step."""
    counts = {}

    def on_counts(name, first, number, neurons):
        counts.setdefault(name, []).extend(number.tolist())

    outputs = [read() for _, read in engine.simulate(pictures, parts, each_step, on_counts)]
    return outputs, counts


def matrix_layers(plan):
    """The kernel structs of the layers that a matrix unit can compute."""
    return [stage.layer for stage in plan.stages if stage.layer is not None and stage.layer.pitch]


def expect_equal(graph, pictures, steps=4, negative=False):
    """Every spike of every neuron is the reference's, of all kernels; so are the outputs.

    With `negative`, neurons that correct themselves must have done so.
    """
    reference = ReferenceEngine(graph)
    _, currents = reference._before_time(pictures)
    wanted = reference._start(currents, len(pictures)).advance(steps)
    output = ran(reference, pictures, [steps])[0][0]
    for kernels, always in [*((name, False) for name in KERNELS), *MATRIX]:
        engine = EventsEngine(graph, kernels)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matrix, "ALWAYS", always)
            run = engine._start(currents, len(pictures))
        assert all(layer.always == always for layer in matrix_layers(run.plan))
        memory = run.advance(steps, kept=True)
        for op in reference.program.neurons:
            spikes = run.dense(op, memory)
            assert torch.equal(spikes, wanted[op.name]), op.name
            assert 0 < spikes.abs().mean() < 1, f"{op.name} says nothing or everything"
        corrected = [wanted[op.name] for op in reference.program.neurons if op.corrects]
        assert not negative or all(bool((spikes < 0).any()) for spikes in corrected)
        for a, b in zip(output, ran(engine, pictures, [steps])[0][0], strict=True):
            assert torch.equal(a, b)
    return engine


class Layer(nn.Module):
    """A layer between two neurons, and a readout."""

    def __init__(self, middle, channels=6, out=8, inside=3):
        super().__init__()
        self.first, self.middle = nn.Conv2d(inside, channels, 3, 2, 1), middle
        self.last = nn.Conv2d(out, 3, 1)

    def forward(self, x):
        return self.last(F.relu(self.middle(F.relu(self.first(x)))))


CONVOLUTIONS = {
    "plain": nn.Conv2d(6, 8, 3, 1, 1),
    "strided": nn.Conv2d(6, 8, 3, 2, 1),
    "even": nn.Conv2d(6, 8, 4, 2, 1),
    "long": nn.Conv2d(6, 8, (1, 5), (1, 2), (0, 2)),
    "large": nn.Conv2d(6, 8, 7, 3, 3),
    "unpadded": nn.Conv2d(6, 8, 3),
    "same": nn.Conv2d(6, 8, 3, padding="same", dilation=2),
    "same_even": nn.Conv2d(6, 8, 4, padding="same"),
    "dilated": nn.Conv2d(6, 8, 3, 1, 2, dilation=2),
    "pointwise": nn.Conv2d(6, 8, 1, bias=False),
    "grouped": nn.Conv2d(6, 8, 3, 1, 1, groups=2),
    "depthwise": nn.Conv2d(6, 6, 3, 2, 1, groups=6),
    "many_out": nn.Conv2d(6, 330, 3, 1, 1),
    "grouped_wide": nn.Conv2d(6, 130, 3, 1, 1, groups=2),
    "transposed": nn.ConvTranspose2d(6, 8, 2, 2),
    "transposed_odd": nn.ConvTranspose2d(6, 8, 3, 2, 1, output_padding=1),
    "transposed_grouped": nn.ConvTranspose2d(6, 8, 3, 3, 1, groups=2, dilation=2),
}


class Joined(nn.Module):
    """Branches that are added, put beside each other, up-sampled, pooled and shuffled."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.third, self.short = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(8, 12, 1, 2)
        self.mix, self.last = nn.Conv2d(28, 8, 3, 1, 1), nn.Conv2d(8, 2, 1)
        self.pool, self.shuffle = nn.AvgPool2d(3, 1, 1), nn.ChannelShuffle(4)
        self.deep = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = F.relu(self.first(x))
        y = F.relu(self.second(x) + x)  # theta of x travels
        z = F.relu(self.third(y) + self.short(y))
        up = F.interpolate(z, scale_factor=2.0)
        both = self.shuffle(torch.cat([up, self.pool(y), x], 1))
        return self.last(F.relu(self.mix(both))), self.deep(z).mean((2, 3))


class PreActivation(nn.Module):
    """Batch norms that stand alone, behind sums of currents."""

    def __init__(self):
        super().__init__()
        self.first, self.one = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.two, self.last = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 4, 1)
        self.norm, self.end = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        for norm in (self.norm, self.end):
            norm.weight.data.uniform_(-1, 1)
            norm.bias.data.uniform_(-0.2, 0.2)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = self.one(x) + x
        x = x + self.two(F.relu(self.norm(x)))
        return self.last(F.relu(self.end(x)))


class Plain(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


NETWORKS = {
    "max_pool": Plain(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1),
        nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(8, 4, 1),
    ),
    "max_pool_of_currents": Plain(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    ),
    "average_of_currents": Plain(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.AvgPool2d(2), nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    ),
    "unlike_divisors": Plain(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4, 1),
    ),
    "linear": Plain(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 40), nn.ReLU(),
        nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 5),
    ),
    "pooled_linear": Plain(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 5),
    ),
    "pixel_shuffle": Plain(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.PixelShuffle(2), nn.ReLU(),
        nn.PixelUnshuffle(2), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1),
    ),
    "one_dimension": Plain(
        nn.Flatten(2), nn.Conv1d(3, 8, 5, 3, 2), nn.ReLU(), nn.Conv1d(8, 12, 3, 1, 1, groups=2),
        nn.ReLU(), nn.MaxPool1d(2), nn.ConvTranspose1d(12, 8, 2, 2), nn.ReLU(), nn.Conv1d(8, 4, 1),
    ),
    "padding": Plain(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, padding_mode="reflect"),
        nn.ReLU(), nn.ConstantPad3d((1, -1, 0, 2, 1, 0), 0.0), nn.ReplicationPad2d((2, 0, 1, 3)),
        nn.Conv2d(9, 8, (3, 5), 2, (1, 2), padding_mode="circular"), nn.ReLU(), nn.Conv2d(8, 4, 1),
    ),
    "up_sampling": Plain(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Upsample((11, 7)), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Upsample(scale_factor=1.5, mode="nearest-exact"), nn.Flatten(2), nn.Conv1d(8, 8, 3),
        nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv1d(8, 6, 3, 2), nn.ReLU(),
        nn.Conv1d(6, 4, 1),
    ),
    "pre_activation": PreActivation(),
    "bottleneck": Plain(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    ),
}  # fmt: skip
