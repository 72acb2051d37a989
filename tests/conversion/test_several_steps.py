"""One network for several numbers of time steps."""

import pytest
import torch
from torch import nn

import spikedet
from spikedet.errors import UsageError
from spikedet.settings import EndToEnd


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(12, 2, 1),
    )  # fmt: skip


def test_outputs_after_fewer_steps_are_trained_as_well(batches):
    float_network, apart = network(), {}
    wanted = float_network(batches[30]).detach()
    for also in (None, [2]):
        snn = spikedet.convert(
            float_network, batches[:20], 6, layer_steps=0, end_to_end=60, end_also=also,
            progress=False,
        )  # fmt: skip
        apart[bool(also)] = (snn(batches[30], T=2) - wanted).square().mean().item()
        assert snn.origin.get("also_for") == also
    assert apart[True] < 0.9 * apart[False]


def test_steps_that_are_read_out():
    assert EndToEnd().read_after(8) == [8]
    assert EndToEnd(also=[4, 2, 4]).read_after(8) == [2, 4, 8]
    with pytest.raises(UsageError, match="expected none, as T is 1"):
        EndToEnd(also=[1]).read_after(1)


@pytest.mark.parametrize("steps", [0, 4, 5, 1.0, True, "2"])
def test_steps_that_cannot_be(batches, steps):
    with pytest.raises(UsageError, match="expected integers from 1 to 3"):
        spikedet.convert(
            network(), batches[:2], 4, layer_steps=0, end_to_end=1, end_also=[steps], progress=False
        )


def test_outputs_to_train_without_a_pass(batches):
    with pytest.raises(UsageError, match="without the end-to-end pass; set end_to_end"):
        spikedet.convert(network(), batches[:2], 4, layer_steps=0, end_also=[2], progress=False)
