"""What a spiking network is called with is checked, whatever engine runs it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import spikedet
from spikedet.errors import ConversionError, UsageError


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    float_network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip
    batches = [torch.rand(4, 1, 8, 8) for _ in range(2)]
    return spikedet.convert(float_network.eval(), batches, T=4, progress=False)


X = torch.rand(2, 1, 8, 8)


@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize(
    "wrong, message",
    [
        (X * torch.nan, "the input has values that are not finite"),
        (X / 0, "the input has values that are not finite"),
        ((X * 255).byte(), "the input is of type torch.uint8; expected a tensor of float32"),
        (X.numpy(), "the input is of type ndarray; expected a tensor of float32"),
        (X.double(), r"the input is in float64; call .float\(\) on it"),
        (X.half(), r"the input is in float16; call .float\(\) on it"),
        (X.bfloat16(), r"the input is in bfloat16; call .float\(\) on it"),
        (X[0], r"the input is \[1, 8, 8\]; expected as many dimensions as \[B, 1, 8, 8\]"),
        (X.repeat(1, 3, 1, 1), "the input is"),
    ],
)
def test_wrong_inputs_are_one_sentence(network, engine, wrong, message):
    network.use_engine(engine)
    with pytest.raises(UsageError, match=message):
        network(wrong)
    with pytest.raises(UsageError, match=message):
        list(network.anytime(wrong, 2))
    assert isinstance(X.numpy(), np.ndarray) and bool(network(X).isfinite().all())


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("same", [False, True])
def test_a_network_in_another_format_is_one_sentence(network, kind, same):
    wide, x = copy.deepcopy(network).to(kind), X.to(kind) if same else X
    wide.use_engine("torch")
    words = rf"(this network|the input) is in {str(kind)[6:]}; call .float\(\) on it"
    with pytest.raises(UsageError, match=words):
        wide(x)
    with pytest.raises(UsageError, match=words):
        list(wide.anytime(x))


def test_a_float_network_with_buffers_in_float64_is_one_sentence():
    norm = nn.BatchNorm2d(4)
    norm.running_mean = norm.running_mean.double()
    network = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with pytest.raises(ConversionError, match="1.running_mean in float64; expected float32, so"):
        spikedet.convert(network, [torch.rand(4, 1, 8, 8)] * 2, T=2, progress=False)
