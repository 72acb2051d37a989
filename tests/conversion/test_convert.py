"""`convert`: what it refuses, what it keeps, and what it records of that."""

import pytest
import torch
from torch import nn

import spikedet
from spikedet.errors import TrainingError


def base(*more):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), *more,
    ).eval()  # fmt: skip


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(8, 1, 8, 8, generator=generator) for _ in range(3)]


def convert(network, batches, T=2, **options):
    options = {"layer_steps": 1, **options}
    return spikedet.convert(network, batches, T, progress=False, **options)


@pytest.mark.parametrize("sparsity", [0.0, 0.1])
def test_a_pass_that_diverges_is_an_error(pictures, sparsity):
    with pytest.raises(TrainingError, match="the loss became nan; lower the learning rate"):
        convert(base(), pictures, method="copy", end_to_end=30, end_rate=1e30, sparsity=sparsity)


def test_a_network_that_is_not_finite_is_not_kept(pictures):
    """Its last step broke it, so no loss shows it."""
    snn = convert(base(), pictures, end_to_end=1, end_rate=1e30, sparsity=0.1)
    assert snn(pictures[0]).isfinite().all()


@pytest.mark.parametrize("kept", [True, False])
def test_the_origin_has_the_pass_only_if_it_was_kept(pictures, kept):
    rate = 4e-3 if kept else 50.0
    snn = convert(base(), pictures, 4, end_to_end=20 * kept + 3, end_rate=rate, end_also=[2])
    steps, also = (23, [2]) if kept else (0, None)
    assert snn.origin["end_to_end"] is kept and snn.origin["end_to_end_steps"] == steps
    assert snn.origin.get("also_for") == also
