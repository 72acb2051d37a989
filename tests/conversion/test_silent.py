"""A layer that never fires in the calibration is named."""

import warnings

import pytest
import torch
from torch import nn

import spikedet


class Deep(nn.Sequential):
    """Layers of neurons; a bias of -100 silences one."""

    def __init__(self, *silent, depth=3):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 1), nn.ReLU()]
        for _ in range(1, depth):
            layers += [nn.Conv2d(4, 4, 1), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(4, 2, 1))
        for number in range(depth):
            nn.init.constant_(self[2 * number].bias, -100.0 if number in silent else 1.0)
        self.eval()


def warned(network):
    pictures = [torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        spikedet.convert(network, pictures, 4, layer_steps=1, progress=False)
    return [str(one.message) for one in seen if "fired" in str(one.message)]


@pytest.mark.parametrize(
    ("silent", "depth", "named"),
    [
        ((1,), 3, "3"),
        ((0, 2), 3, "1, 5"),
        (range(5), 5, "1, 3, 5 and of 2 more layers"),
    ],
)
def test_layers_that_never_fire_are_named(silent, depth, named):
    assert warned(Deep(*silent, depth=depth)) == [
        f"no neuron of {named} fired on any of the 8 calibration pictures; check that the "
        "pictures are scaled as in training"
    ]


def test_layers_that_fire_are_not_named():
    assert not warned(Deep())
