"""Networks of other people that would be converted silently wrong: refused by name, or right."""

import pytest
import torch
from torch import nn

import spikedet
from spikedet.analysis.operations import measure_cost
from spikedet.errors import ConversionError
from spikedet.runtime.network import SpikingNetwork
from support.stages import distance, quantised, recorded, spiking_copy

T = 64


def conv(inputs, outputs=4):
    return nn.Conv2d(inputs, outputs, 1)


class Net(nn.Module):
    """Some modules by name, and a forward pass that gets them."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


def stages(network, pictures, T):
    """(quantised, spiking) networks."""
    graph = quantised(network, [pictures], T)
    return graph, SpikingNetwork(spiking_copy(graph), T)


def expect_near(network, pictures):
    """Recorded as it is, and at 256 steps within a part of the spread of the outputs."""
    assert distance(recorded(network, pictures), pictures, maxima=False) < 0.03


def refuse(network, pictures, words):
    with pytest.raises(ConversionError, match=words):
        stages(network, pictures, T)


def gate(x):
    return x * torch.relu(x)


def scripted(x):
    return torch.jit.script(gate)(x)


def assigned(net, x):
    y = net.b(net.relu(net.a(x)))
    z = torch.zeros(len(y), 4, 16, 16)
    z[:, :4] = y
    return z


def halves(net, x):
    y = net.b(net.relu(net.a(x)))
    return torch.cat([y[:, :2], y[:, 2:]], 1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize(
    ("run", "words"),
    [
        # what an activation sends may be an output: its mean over time is returned
        (lambda net, x: net.relu(net.b(net.relu(net.a(x)))).mean(2), None),
        (lambda net, x: (net.b(net.relu(net.a(x))), net.a(x).flatten(2)), None),
        (lambda net, x: {"a": net.b(net.relu(net.a(x))), "b": [net.relu(net.a(x)) + 1]}, None),
        (lambda net, x: (y := net.b(net.relu(net.a(x))), net.b(net.relu(y))), None),
        (assigned, r"^Net: its forward works for one batch size only"),
        (halves, None),
        (lambda net, x: scripted(net.b(net.relu(net.a(x)))), r"^Net \(Net\): mul has no"),
        (
            lambda net, x: net.b(net.relu(net.a(x)) + float(net.a(x).mean())),
            r"^Net: .* reads them as numbers",
        ),
        (lambda net, x: net.b(scripted(net.relu(net.a(x)))), r"^Net \(Net\): mul has no"),
        (
            lambda net, x: net.b(scripted(net.a(x)) + net.relu(net.a(x))),
            r"^Net \(Net\): mul has no",
        ),
        (lambda net, x: net.b(net.relu(net.a(x)) + net.shift), None),
    ],
)
def test_outputs_are_readouts_and_everything_is_followed(run, words, pictures):
    torch.manual_seed(1)  # with others a layer may be silent, and there is nothing to compare
    network = Net(run, a=conv(3), b=conv(4), relu=nn.ReLU(), shift=torch.ones(1, 4, 1, 1))
    if words is None:
        expect_near(network, pictures)
    else:
        refuse(network.eval(), pictures, words)


class Squaring(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) ** 2


class Named(nn.Conv2d):
    """As torch computes it."""


class Halving(nn.Conv2d):
    """Its own forward, of operations that convert."""

    def forward(self, x):
        return 0.5 * super().forward(x)


class NormAct(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).sigmoid()


def patched():
    layer = conv(4)
    layer.forward = lambda x: -x
    return layer


def hooked():
    layer = conv(4)
    layer.register_forward_hook(lambda module, inputs, output: output * 2)
    return layer


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Squaring(4, 4, 1), r"^2 \(Squaring\): pow"),
        (nn.Sequential(conv(4), NormAct(4)), r"^2\.1 \(NormAct\): sigmoid"),
        (nn.utils.spectral_norm(conv(4)), None),
        (nn.utils.parametrizations.weight_norm(conv(4)), None),
        (nn.utils.parametrizations.spectral_norm(conv(4)), None),
        (patched(), None),
        (hooked(), None),
        (Halving(4, 4, 1), None),
        (Named(4, 4, 1), None),
    ],
    ids=lambda value: getattr(type(value), "__name__", "") if value else "",
)
def test_a_layer_is_what_it_computes_and_not_what_it_is_called(layer, words, pictures):
    network = nn.Sequential(conv(3), nn.ReLU(), layer, nn.ReLU(), conv(4)).eval()
    if words is None:
        expect_near(network, pictures)
    else:
        refuse(network, pictures, words)


def added_to_a_part(net, x):
    whole = torch.zeros(len(x), 4, 16, 16)
    whole[:, 2:].add_(net.relu(net.a(x))[:, 2:])
    return net.b(whole)


def read_before_and_after(net, x):
    current = net.a(x)
    part = current[:, 2:]
    spikes = net.inplace(current)
    return net.b(spikes), net.c(net.relu(net.d(part)))


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda net, x: net.b(net.inplace(net.a(x)) + net.relu(net.a(x))), None),
        (lambda net, x: (y := net.a(x), net.b(net.inplace(y)), net.c(y))[1:], None),
        (lambda net, x: (y := net.a(x), net.b(net.inplace(y) + y))[1], None),
        (lambda net, x: (y := net.a(x), net.c(net.relu(y)), net.b(net.inplace(y)))[1:], None),
        (read_before_and_after, None),
        (added_to_a_part, r"^Net: its forward works for one batch size only"),
        (lambda net, x: (y := net.relu(net.a(x)), y.add_(net.relu(net.a(x))), net.b(y))[2], None),
    ],
)
def test_what_an_activation_overwrites_is_read_as_it_is_then(run, words, pictures):
    """As torch has it: whoever reads afterwards, reads what was put there."""
    torch.manual_seed(0)
    layers = {"a": conv(3), "b": conv(4), "c": conv(4), "d": conv(2)}
    network = Net(run, **layers, relu=nn.ReLU(), inplace=nn.ReLU(inplace=True)).eval()
    if words is None:
        expect_near(network, pictures)
        assert network.inplace.inplace
    else:
        refuse(network, pictures, words)


def test_a_layer_behind_the_readout_works_on_the_mean(pictures):
    """Whatever the chunk: every rate is its quantised level, the neurons' currents are constant."""
    torch.manual_seed(0)
    network = nn.Sequential(conv(3), nn.ReLU(), conv(4), nn.AvgPool2d(2), conv(4, 3)).eval()
    quantised, spiking = stages(network, pictures, T)
    with torch.no_grad():
        wanted = quantised(pictures)
        for chunk in (4, 20, 1000):
            spiking.chunk = chunk
            assert torch.allclose(spiking(pictures), wanted, atol=1e-5)
        for t, output in spiking.anytime(pictures, 9):
            assert torch.allclose(output, spiking(pictures, t), atol=1e-5)
        cost = measure_cost(spiking, [pictures], 8)
        spiking.use_bfloat16()
        assert torch.allclose(spiking(pictures), wanted, atol=1e-5)
    assert list(spiking.graph.edges) == ["0", "1", "2_mean", "2", "3", "4"]
    assert type(spiking.graph.module("4")) is nn.Conv2d
    assert cost.multiplies["4"].tolist() == [4 * 3 * 64] * 4  # once, not in every step


def norm():
    module = nn.BatchNorm2d(4)
    nn.init.uniform_(module.running_mean, -0.3, 0.3)
    nn.init.uniform_(module.running_var, 0.3, 2)
    nn.init.uniform_(module.bias)
    return module


def tied():
    first, second = conv(4), conv(4)
    second.weight = first.weight
    return first, second


def flipped(x):
    return x.transpose(2, 3)


SHARED = {
    "block": lambda net, x: net.last(net.block(net.block(net.relu(net.first(x))))),
    "two norms": lambda net, x: net.last(
        net.relu(net.m(net.c(net.relu(net.n(net.c(net.relu(net.first(x))))))))
    ),
    "first": lambda net, x: net.last(net.relu(net.first(x)) + net.relu(net.first(flipped(x)))),
    "readout": lambda net, x: (y := net.relu(net.first(x)), net.last(y), net.last(flipped(y)))[1:],
    "weight": lambda net, x: net.last(net.relu(net.e(net.relu(net.d(net.relu(net.first(x))))))),
    "name": lambda net, x: net.last(net.relu(net.again(net.relu(net.c(net.relu(net.first(x))))))),
}


@pytest.mark.parametrize("name", SHARED)
def test_what_several_places_share_is_converted_for_each(name, pictures):
    torch.manual_seed(0)
    c, (d, e) = conv(4), tied()
    block = nn.Sequential(conv(4), norm(), nn.ReLU())
    network = Net(
        SHARED[name], first=nn.Conv2d(3, 4, 3, padding=1), block=block, c=c, again=c, d=d, e=e,
        n=norm(), m=norm(), relu=nn.ReLU(), last=conv(4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        wanted = network(pictures)
        quantised, spiking = stages(network, pictures, T)
        outputs = spiking(pictures, 512), spiking(pictures, 512)
        spiking.chunk = 4
        steps = spiking(pictures, 512)
    for one, again, other, truth in zip(*outputs, steps, wanted, strict=True):
        assert torch.equal(one, again) and torch.allclose(one, other, atol=1e-4)
        assert (one - truth).abs().mean() < 0.03 * truth.std()


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda x: x / x.shape[0], "div computes with the number of pictures in the batch"),
        (lambda x: x.shape[0] - x, "rsub computes with the number of pictures"),
        (lambda x: x * (1 / x.shape[0]), "mul computes with the number of pictures"),
        (lambda x: x.clamp(0, x.shape[0]), "clamp computes with the number of pictures"),
        (lambda x: nn.functional.pad(x, (0, x.shape[0])), "pad computes with the number of"),
        (lambda x: x / torch.tensor(x.shape[0]), "a constant is made with the number of pictures"),
    ],
)
def test_numbers_that_depend_on_the_batch_are_named_in_plain_words(pictures, compute, words):
    network = Net(lambda net, x: net.b(torch.relu(compute(net.a(x)))), a=conv(3), b=conv(4))
    with pytest.raises(ConversionError, match=words) as error:
        recorded(network, pictures)
    assert "Sym" not in str(error.value) and "use a fixed number" in str(error.value)


def test_a_view_may_be_told_the_size_of_the_batch(pictures):
    network = Net(lambda net, x: net.b(torch.relu(net.a(x)).view(x.shape[0], -1)),
                  a=conv(3), b=nn.Linear(4 * 16 * 16, 2))  # fmt: skip
    recorded(network, pictures)


LIMITS = torch.tensor([0.5, 0.6, 0.7, 0.8]).view(4, 1, 1)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda net, x: net.b(net.a(x).clamp(torch.zeros(4, 1, 1), net.high)), "several values"),
        (lambda net, x: net.b(net.a(x).maximum(net.high)), "several values"),
        (lambda net, x: net.b(net.a(x).maximum(net.zeros)), None),
        (lambda net, x: net.b(net.a(x).clamp(min=net.zeros)), None),
        (lambda net, x: net.b(net.a(x).clamp(net.zeros, net.zeros + 0.5)), None),
    ],
)
def test_limits_of_an_activation_may_be_tensors_of_one_value(run, words, pictures):
    torch.manual_seed(1)
    network = Net(run, a=conv(3), b=conv(4))
    network.register_buffer("high", LIMITS)
    network.register_buffer("zeros", torch.zeros(4, 1, 1))
    if words is None:
        expect_near(network, pictures)
    else:
        refuse(network, pictures, words)


def test_a_pooling_that_takes_the_batch_for_channels_is_refused():
    def run(net, x):
        y = torch.relu(net.a(x)).mean(1)  # [B, H, W]
        return nn.functional.max_pool2d(y, 2).flatten(1)

    refuse(Net(run, a=conv(3)), torch.rand(2, 3, 8, 8), "its input has 3 dimensions; expected 4")


@pytest.mark.parametrize(
    "product", [torch.addmm, lambda b, x, w: nn.functional.linear(x, w.t(), b)]
)
def test_a_bias_may_have_a_batch_dimension(product, tmp_path):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.weight = nn.Linear(5, 4), nn.Parameter(torch.rand(4, 6))
            self.bias = nn.Parameter(torch.rand(1, 6))

        def forward(self, x):
            return product(self.bias, torch.relu(self.first(x)), self.weight)

    x, network = torch.rand(8, 5), Layer()
    snn = spikedet.convert(network, [x], T=256, method="opi", progress=False)
    spikedet.save(snn, tmp_path / "w")
    for one in (snn, spikedet.load(tmp_path / "w")):
        assert (one(x) - network(x)).abs().max() < 0.05
