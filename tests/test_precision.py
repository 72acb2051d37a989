"""Mixed precision only where it is faster, and a layout that convolutions recognise."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from spikedet import precision
from spikedet.precision import channels_last


@pytest.mark.parametrize(("known", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_without_fast_bfloat16_trains_in_float32(monkeypatch, known, wanted):
    monkeypatch.setattr(precision, "fast_bfloat16", lambda: known)
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    with precision.mixed("cpu"):
        assert layer(x).dtype == wanted
    with precision.mixed("cpu", enabled=False):
        assert layer(x).dtype == torch.float32
    if torch.cuda.is_available():
        with precision.mixed("cuda"):
            assert torch.is_autocast_enabled("cuda")


@pytest.mark.parametrize(
    ("known", "seconds", "wanted"), [(True, 1, True), (True, 3, False), (False, 1, False)]
)
def test_bfloat16_is_fast_if_a_convolution_is_faster_in_it(monkeypatch, known, seconds, wanted):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: known)
    times = {torch.bfloat16: seconds, torch.float32: 2}
    monkeypatch.setattr(precision, "_time_of", times.__getitem__)
    assert precision.fast_bfloat16.__wrapped__() is wanted


def test_timing_a_format_changes_no_random_numbers():
    before = torch.get_rng_state()
    with FakeTensorMode():
        seconds = precision._time_of(torch.float32)
    assert 0 < seconds < 10
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("channels", "size", "stride", "safe"),
    [(4, 1, 2, False), (16, 1, 2, True), (4, 1, 1, True), (4, 3, 2, True)],
)
def test_networks_train_in_a_layout_that_is_safe(channels, size, stride, safe):
    network = torch.nn.Sequential(torch.nn.Conv2d(channels, 8, size, stride))
    wanted = torch.channels_last if safe else torch.contiguous_format
    assert precision.layout(network) == wanted


def test_one_picture_gets_the_strides_that_convolutions_recognise():
    picture = torch.rand(6, 8, 3).movedim(-1, 0)[None]
    assert picture.stride() == (3, 1, 24, 3)  # torch calls it contiguous in channels-last
    for x in (picture, picture.contiguous(), torch.rand(2, 3, 6, 8)):
        exact = channels_last(x)
        assert exact.stride() == (144, 1, 24, 3) and torch.equal(exact, x)
    assert channels_last(picture).data_ptr() == picture.data_ptr()
    assert nn.Conv2d(3, 4, 3)(channels_last(picture)).stride(1) == 1
    vectors = torch.rand(2, 5)
    assert channels_last(vectors) is vectors
