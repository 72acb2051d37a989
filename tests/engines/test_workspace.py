"""Where the events of a run lie."""

import random

import pytest
import torch
from torch import nn

import spikedet
from spikedet.engines.events_engine import EventsEngine
from spikedet.engines.integers import constant_nodes
from spikedet.engines.workspace import arranged
from spikedet.runtime.network import SpikingNetwork
from spikedet.runtime.watch import EachSpike, watching
from support.engines import needs_kernels


def spread(arrangement, sizes, t):
    return range(arrangement.starts[t], arrangement.starts[t] + sizes[t])


@pytest.mark.parametrize("seed", range(200))
def test_nothing_is_overwritten_before_its_last_reader_is_done(seed):
    draw = random.Random(seed)
    number = draw.randint(1, 12)
    sizes = [64 * draw.randint(0, 9) for _ in range(number)]
    users = [
        [t, *(later for later in range(t + 1, number) if draw.random() < 0.3)]
        for t in range(number)
    ]
    place = arranged(sizes, users, shared=True)
    for t in range(number):
        for before in range(t):
            mine, its = spread(place, sizes, t), spread(place, sizes, before)
            if mine and its and max(mine.start, its.start) < min(mine.stop, its.stop):
                assert max(users[before]) <= t - 2
                assert set(users[before]) <= set(place.after[t])
        assert all(layer < t for layer in place.after[t])
        assert spread(place, sizes, t).stop <= place.total


def test_events_that_are_kept_have_places_of_their_own():
    sizes = [128, 64, 64, 192]
    place = arranged(sizes, [[]] * 4, shared=False)
    assert place.total == sum(sizes)
    assert sorted(place.starts) == [0, 128, 192, 256]
    assert place.after == [[], [], [], []]


def deep(layers=7, inside=3):
    torch.manual_seed(0)
    parts = []
    for i in range(layers):
        parts += [nn.Conv2d(8 if i else inside, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*parts, nn.Conv2d(8, 4, 1)).eval()


class Pooled(nn.Module):
    """A readout of what is pooled early, and layers behind it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        first = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 1)]
        self.first, self.early = nn.Sequential(*first), nn.Conv2d(8, 4, 1)
        self.rest = deep(layers=6, inside=8)

    def forward(self, x):
        x = self.first(x)
        return self.early(x), self.rest(x)


@pytest.fixture(scope="module", params=[deep, Pooled])
def either(request) -> SpikingNetwork:
    pictures = [torch.rand(4, 3, 20, 24) for _ in range(2)]
    return spikedet.convert(request.param().eval(), pictures, T=6, layer_steps=2, progress=False)


def listed(outputs):
    return outputs if isinstance(outputs, tuple) else [outputs]


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_kept_or_not_the_outputs_are_equal(either, threads):
    snn = either
    pictures = torch.rand(3, 3, 20, 24)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        snn.use_engine("events")
        spikes = []
        for _ in range(20):
            shared = snn(pictures)
            seen = EachSpike(lambda name, first, sent: spikes.append(sent))
            with watching(snn.graph, seen):
                for a, b in zip(listed(snn(pictures)), listed(shared), strict=True):
                    assert torch.equal(a, b)
        assert sum(s.abs().sum() for s in spikes) > 0
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_memory_is_that_of_a_few_layers(either):
    memory = EventsEngine(either.graph).plan(_sizes(either)).memory
    assert memory.bytes_of_a_step[False] < 0.65 * memory.bytes_of_a_step[True]


def _sizes(snn):
    values = {name: snn.graph.shapes[name] for name in constant_nodes(snn.graph)}
    return {name: (1, *shape[1:]) for name, shape in values.items()}
