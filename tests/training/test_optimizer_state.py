"""States of optimisers are loaded by the names of parameters, not by their places."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from spikedet.conversion.distill import relative_adam
from spikedet.errors import TrainingError
from spikedet.training.optimizer import parameter_groups, restore_optimizer
from spikedet.training.run import expect_alike


def network(*names):
    """Layers of equal shapes, so that a state at the wrong place raises nothing by itself."""
    return nn.Sequential(OrderedDict((name, nn.Linear(3, 3)) for name in names))


def sgd(layers):
    return torch.optim.SGD(parameter_groups(layers, 0.1, 1e-4, 0.5), momentum=0.9)


def adam(layers):
    return relative_adam(layers, 0.1)


def filled(optimizer, layers):
    """Give each parameter a gradient of its own, and take a step."""
    for number, (_, parameter) in enumerate(layers.named_parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    optimizer.step()
    return optimizer


def moments(optimizer, layers):
    """What the optimiser remembers of each parameter, by name."""
    names = {id(parameter): name for name, parameter in layers.named_parameters()}
    return {
        names[id(parameter)]: {key: value.clone() for key, value in kept.items()}
        for parameter, kept in optimizer.state.items()
    }


@pytest.mark.parametrize("make", [sgd, adam])
def test_another_order_of_layers_changes_nothing(make):
    before, after = network("a", "b", "c"), network("c", "a", "b")
    saved = filled(make(before), before)
    restored = make(after)
    restore_optimizer(restored, saved.state_dict())
    expected, found = moments(saved, before), moments(restored, after)
    assert expected.keys() == found.keys() and len(expected) == 6
    for name, kept in expected.items():
        assert all(torch.equal(value, found[name][key]) for key, value in kept.items())
    filled(restored, after)  # and it can go on


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "d"), ("a", "b", "c", "d")])
def test_a_state_of_other_parameters_is_refused(make, names):
    before, after = network("a", "b", "c"), network(*names)
    saved = filled(make(before), before)
    with pytest.raises((KeyError, ValueError)):
        restore_optimizer(make(after), saved.state_dict())


def test_a_network_without_biases_has_no_empty_group():
    before, after = (nn.Sequential(nn.Linear(3, 3, bias=False)) for _ in range(2))
    saved = filled(sgd(before), before)
    assert [group["param_group"] for group in saved.param_groups] == ["weight"]
    restored = sgd(after)
    restore_optimizer(restored, saved.state_dict())
    assert len(moments(restored, after)) == 1


def test_settings_are_compared_as_files_store_them():
    expect_alike(Path("run"), {"names": {"0": "a"}, "also": [1]}, {"names": {0: "a"}, "also": (1,)})
    with pytest.raises(TrainingError, match=r"also=\[1\]; this run has also=\[2\]"):
        expect_alike(Path("run"), {"also": [1]}, {"also": (2,)})


def test_a_state_without_names_is_loaded_by_place_or_refused():
    layers = network("a", "b")
    saved = filled(sgd(layers), layers).state_dict()
    for group in saved["param_groups"]:
        del group["param_names"]
    restored = sgd(layers)
    restore_optimizer(restored, saved)
    assert len(moments(restored, layers)) == 4
    with pytest.raises(KeyError):
        restore_optimizer(sgd(layers), saved, by_place=False)
