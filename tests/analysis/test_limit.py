"""The limit of additions."""

import pytest
import torch
from torch import nn

from spikedet.analysis import limit
from spikedet.kernels import library
from spikedet.runtime.network import SpikingNetwork
from support.engines import KERNELS, Plain, needs_kernels, spiking


def test_work_is_that_of_the_mean_picture():
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 16, 16)
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1)
    network = SpikingNetwork(spiking(Plain(*layers), pictures), 4)
    with network.spike_rates() as rates:
        network(pictures, 6)
    work = limit.work_of(network, pictures.split(1), 6)
    first, second = rates.by_layer(6).values()
    first, second = 6 * 64 * 8 * first, 6 * 64 * 5 * second  # spikes of a picture
    assert work.spikes == pytest.approx(first + second)
    assert work.additions == pytest.approx(5 * first)  # readouts read the mean
    assert limit.work_of(network, pictures[:1].split(1), 6) != work


@needs_kernels
@pytest.mark.parametrize("kernels", KERNELS)
def test_additions_are_counted_by_the_lanes_of_the_kernels(kernels):
    loaded, number = library.library(), KERNELS.index(kernels)
    lanes = 2 * loaded.sd_kernels_half(number)
    assert loaded.sd_add(number, 5) == 5 * 8 * lanes and loaded.sd_add(number, 0) == 0


@needs_kernels
def test_a_rate_that_a_processor_can_have(monkeypatch):
    monkeypatch.setattr(limit, "TRIES", 2)
    assert 1e9 < limit.additions_a_second(1) < 1e13
    with library.choosing(KERNELS[-1]):
        assert 1e9 < limit.additions_a_second(2) < 1e13


def test_no_rate_without_kernels(monkeypatch):
    def none():
        raise library.NoLibrary("no compiler")

    monkeypatch.setattr(library, "library", none)
    assert limit.additions_a_second() is None
