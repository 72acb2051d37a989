"""What converts, in every form it can be written: the graph equals the network, spikes are near.

What does not is refused by name, with advice that fits it.
"""

import threading

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from spikedet.conversion.prepare import prepare
from spikedet.errors import ConversionError
from spikedet.graph.graph import Graph
from spikedet.graph.record import record
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.runtime.network import SpikingNetwork
from support.stages import distance, neurons, quantised, recorded, spiking_copy


@pytest.fixture
def small() -> torch.Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Between(nn.Module):
    """Something between two convolutions, in place of or behind an activation.

    Args:
        function: Of the current and, if it takes them, the activations of two branches.
        spikes: It reads activations, else the current of the first convolution.
        activation: Behind what reads it.
        **modules: That `function(net, ...)` may use.
    """

    def __init__(self, function, spikes=True, features=False, **modules):
        super().__init__()
        torch.manual_seed(0)
        self.function, self.spikes = function, spikes
        self.a, self.b, self.act = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(3, 8, 1), nn.ReLU()
        self.read = nn.LazyLinear(5) if features else nn.LazyConv2d(6, 1)
        self.last = nn.Linear(5, 3) if features else nn.Conv2d(6, 4, 1)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        x, y = self.a(x), self.b(x)
        if self.spikes:
            x, y = self.act(x), self.act(y)
        return self.last(self.act(self.read(self.function(self, x, y))))


def expect(network, pictures, bound=0.03) -> None:
    with torch.no_grad():
        network.eval()(pictures)  # lazy layers get their sizes
    graph = recorded(network, pictures)
    assert distance(graph, pictures) < bound


ACTIVATIONS = {
    "F.relu": lambda net, x, y: F.relu(x),
    "F.relu in place": lambda net, x, y: F.relu(x, inplace=True),
    "F.relu_": lambda net, x, y: F.relu_(x),
    "torch.relu": lambda net, x, y: torch.relu(x),
    "torch.relu_": lambda net, x, y: torch.relu_(x),
    "x.relu()": lambda net, x, y: x.relu(),
    "x.relu_()": lambda net, x, y: x.relu_(),
    "clamp(min=0)": lambda net, x, y: x.clamp(min=0),
    "clamp_(min=0)": lambda net, x, y: x.clamp_(min=0),
    "torch.clamp(x, 0)": lambda net, x, y: torch.clamp(x, 0),
    "clamp_min": lambda net, x, y: x.clamp_min(0),
    "clip": lambda net, x, y: torch.clip(x, min=0.0),
    "threshold": lambda net, x, y: F.threshold(x, 0, 0),
    "maximum": lambda net, x, y: torch.maximum(x, torch.zeros(())),
    "F.relu6": lambda net, x, y: F.relu6(x),
    "F.hardtanh(0, 6)": lambda net, x, y: F.hardtanh(x, 0.0, 6.0),
    "hardtanh_(0, 6)": lambda net, x, y: F.hardtanh(x, 0.0, 6.0, inplace=True),
    "clamp(0, 0.5)": lambda net, x, y: x.clamp(0, 0.5),
}
LEAKY = {
    "F.leaky_relu": lambda net, x, y: F.leaky_relu(x, 0.1),
    "F.leaky_relu_": lambda net, x, y: F.leaky_relu_(x, 0.1),
    "F.prelu": lambda net, x, y: F.prelu(x, torch.tensor(0.25)),
    "nn.PReLU": lambda net, x, y: net.slopes(x),
}


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_every_form_of_an_activation(form, small):
    expect(Between(ACTIVATIONS[form], spikes=False), small)


@pytest.mark.parametrize("form", LEAKY)
def test_every_form_of_a_leaky_activation(form, small):
    slopes = nn.PReLU(8)
    slopes.weight.data = torch.tensor([0, 1, 0.25, 0.5, 0.0, 1.0, 0.9, 0.1])
    expect(Between(LEAKY[form], spikes=False, slopes=slopes), small, 0.1)


def test_neurons_of_one_layer_have_slopes_of_their_own(small):
    slopes = nn.PReLU(8)
    slopes.weight.data = torch.tensor([0, 1, 0.25, 0.5, 0.0, 1.0, 0.9, 0.1])
    network = Between(LEAKY["nn.PReLU"], spikes=False, slopes=slopes)
    network.eval()(small)
    graph = quantised(network, [small], 8)
    spiking = spiking_copy(graph)
    assert spiking.module("slopes").slope == pytest.approx(slopes.weight.tolist())
    with torch.no_grad():
        wanted = graph.module("slopes")(graph.module("a")(small))
        current = spiking.module("a")(small)
        spikes, _ = spiking.module("slopes").advance(current.repeat(8, 1, 1, 1), 4, 8, None)
        rate = spikes.unflatten(0, (8, 4)).mean(0)
        if spiking.module("slopes").folded:
            theta = spiking.module("slopes").threshold
            rate = rate * (theta.view(1, -1, 1, 1) if theta.ndim else theta)
    assert ((rate - wanted).abs() < 1e-4).float().mean() > 0.99
    assert (rate[:, [0, 4]] >= 0).all() and rate[:, [1, 2, 3, 5, 6]].amin((0, 2, 3)).max() < 0


def shuffled(net, x, y):
    B, C, H, W = x.shape
    return x.view(B, 2, C // 2, H, W).transpose(1, 2).reshape(B, C, H, W)


PLACES = {
    "F.max_pool2d": lambda net, x, y: F.max_pool2d(x, 2),
    "F.max_pool2d with padding": lambda net, x, y: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "torch.max_pool2d": lambda net, x, y: torch.max_pool2d(x, 2),
    "max-pooling of currents": lambda net, x, y: F.relu(F.max_pool2d(net.c(x), 2)),
    "F.avg_pool2d": lambda net, x, y: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "F.adaptive_avg_pool2d": lambda net, x, y: F.adaptive_avg_pool2d(x, (2, 3)),
    "F.adaptive_avg_pool2d(1)": lambda net, x, y: F.adaptive_avg_pool2d(x, 1),
    "mean over places": lambda net, x, y: x.mean((2, 3), keepdim=True),
    "torch.mean": lambda net, x, y: torch.mean(x, [-2, -1], keepdim=True),
    "nearest": lambda net, x, y: F.interpolate(x, scale_factor=2, mode="nearest"),
    "nearest-exact": lambda net, x, y: F.interpolate(x, size=(12, 20), mode="nearest-exact"),
    "nn.Upsample": lambda net, x, y: nn.Upsample(scale_factor=2, mode="nearest-exact")(x),
    "F.dropout": lambda net, x, y: F.dropout(x, 0.5, net.training),
    "F.dropout2d in place": lambda net, x, y: F.dropout2d(x, 0.5, net.training, inplace=True),
    "F.pad": lambda net, x, y: F.pad(x, (1, 0, 2, 1)),
}
VALUES = {
    "x * 0.5": lambda net, x, y: x * 0.5,
    "2 * x": lambda net, x, y: 2 * x,
    "x / 4": lambda net, x, y: x / 4,
    "-x": lambda net, x, y: -x,
    "x.mul_": lambda net, x, y: x.mul_(0.3),
    "a constant for each channel": lambda net, x, y: x * net.constant,
    "an untrained weight": lambda net, x, y: net.constant.exp() * x,
    "x - y": lambda net, x, y: x - y,
    "torch.sub(alpha)": lambda net, x, y: torch.sub(x, y, alpha=0.5),
    "torch.add(alpha)": lambda net, x, y: torch.add(x, y, alpha=-0.5),
    "x += y": lambda net, x, y: x.add_(y),
    "1 - x": lambda net, x, y: 1 - x,
    "x + 0.5": lambda net, x, y: x + 0.5,
    "x + constant": lambda net, x, y: x + net.constant,
    "0.25 * x + 0.75 * y": lambda net, x, y: 0.25 * x + 0.75 * y,
    "sum of a list": lambda net, x, y: sum([x, y, net.act(net.c(x))]),
    "torch.cat": lambda net, x, y: torch.cat([x, y], 1),
    "torch.concat": lambda net, x, y: torch.concat((x, y), dim=-3),
    "torch.stack": lambda net, x, y: torch.stack([x, y], 1).flatten(1, 2),
    "stack and sum": lambda net, x, y: torch.stack([x, y], 1).sum(1),
    "stack and mean": lambda net, x, y: torch.stack([x, y, x], 2).mean(2),
    "sum over channels": lambda net, x, y: x.sum(1, keepdim=True),
    "sum over places": lambda net, x, y: x.sum((2, 3), keepdim=True) / 64,
}
ORDER = {
    "torch.transpose": lambda net, x, y: torch.transpose(x, 2, 3),
    "x.transpose": lambda net, x, y: x.transpose(-1, -2),
    "swapaxes": lambda net, x, y: x.swapaxes(2, 3),
    "permute": lambda net, x, y: x.permute(0, 1, 3, 2),
    "torch.permute": lambda net, x, y: torch.permute(x, (0, 2, 1, 3)),
    "mT": lambda net, x, y: x.mT,
    "channel shuffle": shuffled,
    "nn.ChannelShuffle": lambda net, x, y: nn.ChannelShuffle(4)(x),
    "torch.channel_shuffle": lambda net, x, y: torch.channel_shuffle(x, 2),
    "pixel_shuffle": lambda net, x, y: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda net, x, y: F.pixel_unshuffle(x, 2),
    "chunk": lambda net, x, y: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda net, x, y: (parts := torch.split(x, [2, 5, 1], 1))[0] + parts[1][:, :2],
    "narrow": lambda net, x, y: x.narrow(1, 2, 3),
    "slices": lambda net, x, y: torch.cat([x[..., ::2, 1::2], y[..., 1::2, ::2]], 1),
    "unbind": lambda net, x, y: torch.stack(x.unbind(1)[::-1], 1),
    "unflatten": lambda net, x, y: x.unflatten(1, (2, 4))[:, 1],
    "unsqueeze": lambda net, x, y: x.mean(1).unsqueeze(1),
    "contiguous": lambda net, x, y: x.contiguous().clone().detach(),
    "reshape": lambda net, x, y: x.reshape(x.shape[0], -1, 4, 4),
    "size(0)": lambda net, x, y: x.view(x.size(0), 16, 4, 8),
    "view(-1)": lambda net, x, y: x.view(-1, 8, 4, 16),
}
CONSTANT = torch.tensor([-0.5, 1, 2, 0.1, 0, -1, 1, 3]).view(1, 8, 1, 1)


@pytest.mark.parametrize("form", [*PLACES, *VALUES, *ORDER])
def test_every_form_of_what_moves_or_weighs_activations(form, small):
    network = Between((PLACES | VALUES | ORDER)[form], c=nn.Conv2d(8, 8, 1))
    network.register_buffer("constant", CONSTANT)
    expect(network, small)


FEATURES = {
    "x.flatten(1)": lambda net, x, y: x.flatten(1),
    "torch.flatten": lambda net, x, y: torch.flatten(x, 1),
    "view(len)": lambda net, x, y: x.view(x.shape[0], -1),
    "view(-1, n)": lambda net, x, y: x.view(-1, 8 * 8 * 8),
    "mean((2, 3))": lambda net, x, y: x.mean((2, 3)),
    "mean twice": lambda net, x, y: x.mean(3).mean(2),
    "squeeze": lambda net, x, y: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "select": lambda net, x, y: x.mean(3)[:, :, 0],
}


@pytest.mark.parametrize("form", FEATURES)
def test_every_form_of_features(form, small):
    expect(Between(FEATURES[form], features=True), small)


# ------------------------------------------------------------------ weights and norms


def norm(channels, kind=nn.BatchNorm2d):
    module = kind(channels)
    nn.init.uniform_(module.running_mean, -0.3, 0.3)
    nn.init.uniform_(module.running_var, 0.3, 2)
    nn.init.uniform_(module.weight, -1, 1)
    nn.init.uniform_(module.bias, 0, 0.5)
    return module


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(groups, small):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=groups, bias=False), norm(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, (2, 3), (1, 2), (0, 1), dilation=(2, 1), groups=groups), nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 2, 2),
    )  # fmt: skip
    graph = recorded(network, small)
    assert [n.name for n in graph if "transpose" in n.kind] == ["2", "5", "7"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())
    assert distance(graph, small) < 0.03


def test_networks_of_one_dimension():
    torch.manual_seed(0)
    waves = torch.rand(4, 2, 32)
    network = nn.Sequential(
        nn.Conv1d(2, 6, 3, 1, "same"), norm(6, nn.BatchNorm1d), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(6, 6, 4, padding="same", bias=False), norm(6, nn.BatchNorm1d), nn.PReLU(6),
        nn.AvgPool1d(2), nn.ConvTranspose1d(6, 4, 4, 2, 1, groups=2), norm(4, nn.BatchNorm1d),
        nn.ReLU(), nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(12, 8),
        norm(8, nn.BatchNorm1d), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    graph = recorded(network, waves)
    assert distance(graph, waves) < 0.1


class Apart(nn.Module):
    """Batch norms that no weighted layer of their own comes before."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.first, self.sum, self.side = norm(4), norm(4), norm(4)
        self.features, self.fc, self.last = (
            norm(4, nn.BatchNorm1d),
            nn.Linear(4, 4),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        x = F.relu(self.a(x))
        y = self.b(F.relu(self.first(x)))
        z = F.relu(self.sum(x + y))
        current = self.c(z)  # read by a norm and beside it
        z = F.relu(self.side(current)) + F.relu(current)
        return self.last(F.relu(self.fc(F.relu(self.features(z.mean((2, 3)))))))


def test_batch_norm_apart(small):
    network = Apart()
    graph = recorded(network, small)
    assert [graph.node(n).kind for n in ("first", "sum", "side")] == ["conv2d"] * 3
    assert graph.node("features").kind == "linear"
    assert distance(graph, small) < 0.03


def test_a_convolution_that_a_norm_and_another_layer_read_keeps_its_weights(small):
    """Folded, the norm would go into what the other layer reads, too."""

    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm = nn.Conv2d(3, 4, 1), norm(4)
            self.one, self.two = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            current = self.conv(x)
            return self.one(F.relu(self.norm(current))), self.two(F.relu(current))

    network = Fork().eval()
    graph = record(network, small)
    fold_batch_norm(graph)
    assert torch.equal(graph.module("conv").weight, network.conv.weight)
    for output, wanted in zip(graph(small), network(small), strict=True):
        assert torch.allclose(output, wanted, atol=1e-5)
    assert distance(recorded(network, small), small) < 0.03


def test_a_norm_is_not_folded_into_a_layer_that_is_returned_as_well(small):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), norm(4)

        def forward(self, x):
            y = self.b(F.relu(self.a(x)))
            return {"before": y, "after": self.norm(y)}

    graph = recorded(Both(), small)
    assert distance(graph, small) < 0.03


# ------------------------------------------------------------------ never a silent wrong answer


@pytest.mark.parametrize(
    ("pair", "bound"),
    [
        ((nn.ReLU(), nn.ReLU()), 0.03),
        ((nn.LeakyReLU(0.1), nn.ReLU()), 0.1),
        ((nn.ReLU(), nn.LeakyReLU(0.1)), 0.1),
        ((nn.ReLU6(), nn.Dropout(), nn.ReLU()), 0.03),
        ((nn.ReLU(), nn.MaxPool2d(2), nn.ReLU()), 0.03),
    ],
    ids=str,
)
def test_a_neuron_that_feeds_a_neuron_sends_its_threshold(pair, bound, small):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), *pair, nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    network[0].weight.data *= 5  # thresholds far from 1
    graph = quantised(network.eval(), [small], 8)
    nodes = neurons(spiking_copy(graph))
    assert [neuron.folded for neuron in nodes] == [False, True, True]
    graph = recorded(network, small)
    assert distance(graph, small) < bound


class Rows(nn.Module):
    """A forward that reads the batch size."""

    def __init__(self, reshape):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.reshape = nn.Conv2d(3, 8, 1), nn.Conv1d(8, 8, 1), reshape
        self.last = nn.Conv1d(8, 3, 1)

    def forward(self, x):
        y = self.reshape(F.relu(self.a(x)))
        return self.last(F.relu(self.b(y)))


@pytest.mark.parametrize(
    "reshape",
    [
        lambda y: y.view(y.shape[0], 8, -1),
        lambda y: y.reshape(y.size(0), 8, y.size(2) * y.size(3)),
        lambda y: y.view(y.size()[0], y.size()[1], -1),
        lambda y: y.view(-1, 8, 64),
        lambda y: y.flatten(2),
    ],
)
def test_a_forward_that_reads_the_batch_size(reshape, small):
    network = Rows(reshape)
    graph = recorded(network, small)
    assert graph(small[:1]).shape == (1, 3, 64) and graph(small[:2]).shape == (2, 3, 64)
    assert distance(graph, small) < 0.03
    spiking = SpikingNetwork(graph, 8)
    with torch.no_grad():
        whole = spiking(small)
        for chunk in (1, 7, 1000):
            spiking.chunk = chunk
            assert torch.allclose(spiking(small), whole, atol=1e-5)
        for one, wanted in zip(small.split(1), whole.split(1), strict=True):
            assert torch.allclose(spiking(one), wanted, atol=1e-5)


def test_squeeze_that_takes_away_the_batch_of_one_picture(small):
    """Recorded with several pictures it is right for one, too; with one it says what is wrong."""
    network = Between(lambda net, x, y: F.adaptive_avg_pool2d(x, 1).squeeze(), features=True).eval()
    network(small)
    graph = quantised(network, [small], 8)
    spiking = SpikingNetwork(spiking_copy(graph), 8)
    with torch.no_grad():
        assert torch.allclose(spiking(small[:1]), spiking(small)[:1], atol=1e-5)
    refused(network, small[:1], "squeeze|one picture")


def test_modules_whose_options_mean_another_thing(small):
    layers = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()
    refused(nn.Sequential(*layers, nn.Conv2d(4, 2, 1)), small, r"^1 .*track_running_stats=True")

    class Indices(nn.Module):
        def __init__(self, unpool):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.pool = nn.Conv2d(3, 4, 1), nn.MaxPool2d(2, return_indices=True)
            self.up, self.last = nn.MaxUnpool2d(2) if unpool else None, nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x, places = self.pool(F.relu(self.a(x)))
            return self.last(x if self.up is None else self.up(x, places))

    assert distance(recorded(Indices(False), small), small) < 0.03
    refused(Indices(True), small, r"^pool .*return_indices=True|^up .*max_unpool2d")


def test_linear_layers_on_features_in_the_last_place(small):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.mlp, self.back = nn.Conv2d(3, 8, 1), nn.Linear(8, 6), nn.Linear(6, 8)
            self.tokens, self.last = nn.Linear(8, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = F.relu(self.a(x)).permute(0, 2, 3, 1)  # channels last
            x = F.relu(self.back(F.relu(self.mlp(x))))
            x = x.flatten(1, 2)  # tokens [B, N, C]
            return self.last(F.relu(self.tokens(x)))

    network = Last()
    graph = recorded(network, small)
    assert graph(small).shape == (4, 64, 3)
    assert distance(graph, small) < 0.03


# ------------------------------------------------------------------ refused by name


def refused(network, pictures, words):
    with pytest.raises(ConversionError, match=words):
        prepare(network.eval(), pictures)


def behind_a_convolution(*modules, channels=8):
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), *modules, nn.ReLU(), nn.Conv2d(channels, 2, 1)
    )


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (behind_a_convolution(nn.SiLU()), r"^2 \(SiLU\): silu has no .*nn\.ReLU\(\).*fine-tune"),
        (behind_a_convolution(nn.GELU()), r"^2 \(GELU\): gelu has no .*nn\.ReLU\(\).*fine-tune"),
        (
            behind_a_convolution(torchvision.ops.SqueezeExcitation(8, 2)),
            r"^2(\.\w+)? \(\w+\): .*squeeze-and-excitation.*use a network without",
        ),
        (behind_a_convolution(nn.GroupNorm(2, 8)), r"^2 \(GroupNorm\): group_norm .*BatchNorm2d"),
        (
            behind_a_convolution(nn.LayerNorm([8, 8, 8])),
            r"^2 \(LayerNorm\): layer_norm .*BatchNorm2d",
        ),
        (behind_a_convolution(nn.InstanceNorm2d(8)), r"^2 \(InstanceNorm2d\): .*BatchNorm2d"),
        (
            behind_a_convolution(nn.Upsample(scale_factor=2, mode="bilinear")),
            r"^2 \(Upsample\): upsample_bilinear2d .*use mode='nearest'",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Softmax(1)),
            r"^3 \(Softmax\): softmax .*logits",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.LogSoftmax(1)),
            r"^3 \(LogSoftmax\): log_softmax .*logits",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Sigmoid()),
            r"^3 \(Sigmoid\): sigmoid .*logits",
        ),
        (
            torchvision.models.VisionTransformer(8, 4, 1, 2, 16, 16, num_classes=3),
            r"(attention|layer_norm|LayerNorm|MultiheadAttention)",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refused_by_name_with_advice_that_fits(network, words, small):
    refused(network, small, words)


def test_advice_for_one_is_not_given_to_another(small):
    softmax = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Softmax(1))
    for network in (behind_a_convolution(nn.LayerNorm([8, 8, 8])), softmax):
        with pytest.raises(ConversionError) as caught:
            prepare(network.eval(), small)
        assert "LeakyReLU" not in str(caught.value) and "replace it" not in str(caught.value)


class Run(nn.Module):
    """A forward of its own."""

    def __init__(self, run):
        super().__init__()
        self.run, self.a, self.b = run, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.fc = nn.LazyLinear(3)

    def forward(self, x):
        return self.run(self, F.relu(self.a(x)))


def branching(net, y):
    return net.b(y) if y.mean() > 0 else net.b(-y)


def looping(net, y):
    for _ in range(int(y.sum())):
        y = net.b(y)
    return net.b(y)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (branching, r"^Run: its forward branches on values, or reads them as numbers"),
        (looping, r"^Run: its forward branches on values, or reads them as numbers"),
        (lambda net, y: net.b(y.view(4, 4, 8, 8)), r"^Run: .*(one batch size|cannot record)"),
        (lambda net, y: net.b(y + torch.ones(4, 4, 1, 1)), r"^Run"),
        # pictures of a batch, and with them time, would be mixed
        (lambda net, y: net.fc(y.view(-1, 128)), r"^Run \(Run\): .*(picture|mixes)"),
        (lambda net, y: net.b(y.view(-1, 4, 4, 4)), r"^Run \(Run\): .*(picture|mixes)"),
        (lambda net, y: net.b(y.mean(0, keepdim=True)), r"^Run \(Run\): .*over the pictures"),
        (lambda net, y: net.b(y - y.mean()), r"^Run \(Run\): .*over the pictures"),
        (lambda net, y: net.b(y.transpose(0, 1).reshape(y.shape[0], 4, 8, 8)), r"one batch size"),
        (lambda net, y: net.b(torch.cat(y.chunk(2)[::-1])), r"^Run.*(picture|one batch size)"),
        (lambda net, y: net.b(y[:1]), r"^Run \(Run\): the batch is split into its pictures"),
        (lambda net, y: net.b(y.flip(0)), r"^Run \(Run\): flip"),
        (lambda net, y: net.b(torch.cat([y, y])), r"^Run \(Run\): .*picture"),
    ],
)
def test_what_mixes_pictures_or_follows_values_is_refused(run, words, small):
    network = Run(run)
    network.fc = nn.Linear(128, 3)
    refused(network, small, words)


# ------------------------------------------------------------------ threads


def test_one_network_called_from_eight_threads(small):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 1, 1),
        nn.LeakyReLU(0.2), nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    spiking = SpikingNetwork(spiking_copy(quantised(network.eval(), [small], 8)), 8, chunk=8)
    inputs = [torch.rand(1 + k % 4, 3, 8, 8) * (1 + k) for k in range(8)]
    with torch.no_grad():
        wanted = [spiking(x) for x in inputs]
        rates = []
        for x in inputs:
            with spiking.spike_rates() as counted:
                spiking(x)
            rates.append(counted.mean())
    assert len(set(rates)) == 8
    wrong, begin = [], threading.Barrier(8)

    def work(k):
        begin.wait()
        try:
            with torch.no_grad():
                for turn in range(6):
                    if turn % 3 == 2:
                        answer = [output for _, output in spiking.anytime(inputs[k], chunk=4)][-1]
                    else:
                        with spiking.spike_rates() as counted:
                            answer = spiking(inputs[k])
                        if counted.mean() != pytest.approx(rates[k]):
                            wrong.append((k, turn, "rates"))
                    if not torch.allclose(answer, wanted[k], atol=1e-5):
                        wrong.append((k, turn, "outputs"))
        except Exception as error:
            wrong.append((k, repr(error)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_two_batch_norms_in_a_row_are_folded_into_one_layer():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)
    ).eval()
    for norm in network[1:3]:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    pictures = torch.rand(2, 1, 6, 6)
    graph = prepare(network, pictures)
    assert [node.kind for node in graph] == ["conv2d", "relu", "conv2d"]
    assert torch.allclose(graph(pictures), network(pictures), atol=1e-5)


def test_names_of_nodes_are_never_parts_of_others():
    graph = Graph()
    wanted = ["2", "2.scale", "2.scale", "train.x", "a.train.b", "float", "a", "a.b"]
    names = [graph.add(name, nn.ReLU(), ["input"]) for name in wanted]
    assert names == ["2", "2_scale", "2_scale_1", "train_x", "a.train_b", "float_1", "a_1", "a.b"]


@pytest.mark.parametrize("momentum", [0.3, None])
def test_statistics_of_a_recorded_norm_move_in_training(momentum):
    """Also those of a cumulative mean, whose momentum is recorded as 0."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum)).eval()
    graph, x = record(network, torch.rand(2, 3, 8, 8)), torch.rand(2, 3, 8, 8)
    graph.train()(x)
    (norm,) = graph.only(nn.BatchNorm2d)
    mean = network[0](x).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, (0.3 if momentum else 0.1) * mean)
