"""Inputs of another size than the recording: right, or refused, and never computed wrongly."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spikedet
from spikedet.errors import UsageError
from spikedet.graph.record import record
from spikedet.graph.serialise import build, describe


class Net(nn.Module):
    """Convolutions, with a forward that is given."""

    def __init__(self, forward, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.steps = forward

    def forward(self, x):
        return self.steps(self, x)

    def features(self, x):
        return F.relu(self.first(x))


def focus(net, x):
    parts = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return net.head(net.features(sum(parts)))


ANY = {
    "focus": focus,
    "crop": lambda net, x: net.head(net.features(x[:, :, 1:, 1:])),
    "crop the end": lambda net, x: net.head(net.features(x[..., :-1, -7:])),
    "the last row": lambda net, x: net.head(net.features(x)[:, :, -1:])[..., -1],
    "narrow": lambda net, x: net.head(net.features(x).narrow(3, -4, 4)),
    "parts of channels": lambda net, x: net.head(torch.cat(net.features(x).chunk(2, 1)[::-1], 1)),
    "twice": lambda net, x: F.interpolate(net.head(net.features(x)), scale_factor=2),
}
ONE = {  # with the dimensions whose size the recorded graph holds
    "map": (lambda net, x: net.head(F.avg_pool2d(net.features(x), x.shape[2:])), (1, 2, 3)),
    "size": (
        lambda net, x: F.interpolate(net.head(F.max_pool2d(net.features(x), 2)), size=x.shape[2:]),
        (1, 2, 3),
    ),
    "halves": (lambda net, x: net.head(sum(net.features(x).chunk(2, 3))), (1, 3)),
    "a half": (lambda net, x: net.head(net.features(x)[:, :, : x.shape[2] // 2]), (1, 2)),
    "even": (
        lambda net, x: net.head(net.features(F.pad(x, (0, x.shape[3] % 2, 0, 0)))),
        (1, 3),
    ),
    "a number": (lambda net, x: (net.head(net.features(x)), x.shape[2]), (1, 2)),
    "the shorter side": (
        lambda net, x: net.head(F.adaptive_avg_pool2d(net.features(x), min(x.shape[2:]) // 2)),
        (1, 2, 3),
    ),
    "square": (lambda net, x: net.head(net.features(x + x.transpose(2, 3))), (1, 2, 3)),
}


@pytest.mark.parametrize("name", ANY)
def test_what_reaches_to_the_end_does_so_at_any_size(name):
    net = Net(ANY[name]).eval()
    graph = record(net, torch.rand(2, 3, 16, 16))
    assert graph.fixed == (1,)
    for size in ((32, 32), (18, 16), (16, 22)):
        x = torch.rand(1, 3, *size)
        torch.testing.assert_close(graph(x), net(x))


@pytest.mark.parametrize("name", ONE)
def test_a_size_that_the_graph_holds_is_the_only_one(name):
    forward, fixed = ONE[name]
    graph = record(Net(forward).eval(), torch.rand(2, 3, 16, 16))
    assert graph.fixed == fixed
    graph(torch.rand(1, 3, 16, 16))
    other = [32 if d in fixed else 16 for d in (2, 3)]
    with pytest.raises(UsageError, match=r"the input is \[1, 3, .*recorded for \[B, 3, "):
        graph(torch.rand(1, 3, *other))


@pytest.mark.parametrize("shape, fixed", [([2, 5], (1,)), ([2, 7, 5], (2,))])
def test_features_are_fixed_and_places_are_not(shape, fixed):
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    assert record(net, torch.rand(shape)).fixed == fixed


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_a_spiking_network_takes_other_sizes_or_refuses_them(engine, tmp_path):
    pictures = torch.rand(4, 3, 16, 16)
    free = spikedet.convert(Net(focus).eval(), [pictures], T=64, method="opi", progress=False)
    held = spikedet.convert(Net(ONE["map"][0]).eval(), [pictures], T=4, progress=False)
    spikedet.save(free, tmp_path / "free")
    spikedet.save(held, tmp_path / "held")
    other = torch.rand(1, 3, 32, 32)
    for snn in (free, spikedet.load(tmp_path / "free", engine="torch")):
        snn.use_engine(engine)
        wanted = Net(focus)(other)
        assert snn(other).shape == wanted.shape
        assert (snn(other) - wanted).abs().max() < 0.2 * wanted.abs().max()
    for snn in (held, spikedet.load(tmp_path / "held", engine="torch")):
        snn.use_engine(engine)
        snn(pictures)
        for run in (snn, lambda x, s=snn: s.after(x, [2]), lambda x, s=snn: next(s.anytime(x))):
            with pytest.raises(UsageError, match="takes no other size"):
                run(other)


def test_files_of_earlier_versions_and_damaged_ones():
    graph = record(Net(ONE["map"][0]).eval(), torch.rand(2, 3, 16, 16))
    described = describe(graph)
    assert described.pop("fixed") == [1, 2, 3]
    assert build(described).fixed == ()  # nothing is known, so nothing is refused
    for damaged in ([0], [4], ["2"], 2, [True], None):
        with pytest.raises(ValueError, match="fixed"):
            build({**described, "fixed": damaged})


def test_the_network_is_as_before():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.seen = nn.Conv2d(3, 4, 3), None

        def forward(self, x):
            self.seen = tuple(x.shape[1:])
            return F.relu(self.first(x)).mean((2, 3))

    net = Remembers().eval()
    assert record(net, torch.rand(2, 3, 16, 16)).fixed == (1,)
    assert net.seen == (3, 16, 16)
