"""Mixed precision only where it is faster."""

import pytest
import torch

from spikedet import precision


@pytest.mark.parametrize(("known", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_without_bfloat16_trains_in_float32(monkeypatch, known, wanted):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: known)
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with precision.mixed("cpu"):
        assert layer(x).dtype == wanted
    with precision.mixed("cpu", enabled=False):
        assert layer(x).dtype == torch.float32
    if torch.cuda.is_available():
        with precision.mixed("cuda"):
            assert torch.is_autocast_enabled("cuda")


@pytest.mark.parametrize(
    ("channels", "size", "stride", "safe"),
    [(4, 1, 2, False), (16, 1, 2, True), (4, 1, 1, True), (4, 3, 2, True)],
)
def test_networks_train_in_a_layout_that_is_safe(channels, size, stride, safe):
    network = torch.nn.Sequential(torch.nn.Conv2d(channels, 8, size, stride))
    wanted = torch.channels_last if safe else torch.contiguous_format
    assert precision.layout(network) == wanted
