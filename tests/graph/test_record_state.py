"""What recording leaves alone, and the number formats that it takes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikedet.errors import ConversionError
from spikedet.graph.record import record


class Net(nn.Module):
    """A convolution behind a function, and a mean."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.function = function

    def forward(self, x):
        return self.function(self, x).mean((2, 3))


def shifted(net, x):
    x -= 0.5
    return F.relu(net.first(x))


def another_name(view):
    def function(net, x):
        y = net.first(x)
        other = view(y)
        y.relu_()
        return net.second(other)

    return function


VIEWS = {
    "swapdims": lambda y: y.swapdims(2, 3),
    "moveaxis": lambda y: y.moveaxis(2, 3),
    "view_as": lambda y: y.view_as(y),
    "expand_as": lambda y: y.expand_as(y),
    "float": lambda y: y.float(),
    "to": lambda y: y.to(torch.float32),
    "type_as": lambda y: y.type_as(y),
}


def test_a_network_that_changes_its_input():
    net, x = Net(shifted).eval(), torch.rand(2, 1, 8, 8)
    before = x.clone()
    graph = record(net, x)
    assert torch.equal(x, before)
    torch.testing.assert_close(graph(x.clone()), net(x.clone()))


@pytest.mark.parametrize("name", VIEWS)
def test_memory_that_is_changed_under_another_name(name):
    net, x = Net(another_name(VIEWS[name])).eval(), torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(record(net, x)(x), net(x))


def test_buffers_are_as_before():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 2, 3)
            self.register_buffer("in_place", torch.zeros(()))
            self.register_buffer("anew", torch.zeros(()))

        def forward(self, x):
            self.in_place += 1
            self.anew = self.anew + 1
            return F.relu(self.first(x)).mean((2, 3))

    net = Counts().eval()
    own = net.anew
    record(net, torch.rand(2, 1, 8, 8))
    assert net.in_place == 0 and net.anew == 0 and net.anew is own


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_number_formats_are_refused_in_one_sentence(kind):
    net, x = Net(lambda net, x: F.relu(net.first(x))).eval(), torch.rand(2, 1, 8, 8)
    name = str(kind).partition(".")[2]
    with pytest.raises(ConversionError, match=f"Net: pictures in {name}; expected float32"):
        record(net, x.to(kind))
    with pytest.raises(ConversionError, match=f"Net: first.weight in {name}; expected float32"):
        record(net.to(kind), x)
