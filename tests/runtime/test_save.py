"""What `spikedet.save` writes, `spikedet.load` reads, for inputs of any kind."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

import spikedet


def mlp():
    return nn.Sequential(nn.Linear(5000, 4), nn.ReLU(), nn.Linear(4, 2))


def sound():
    return nn.Sequential(
        nn.Conv1d(1, 4, 9, stride=4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip


def small():
    return nn.Sequential(nn.Conv2d(64, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize(
    "net, shape, side",
    [(sound, (1, 8000), 8000), (mlp, (5000,), 5000), (small, (64, 8, 8), 8)],
)
def test_what_is_saved_can_be_loaded(net, shape, side, tmp_path):
    x = torch.rand(2, *shape)
    snn = spikedet.convert(net().eval(), [x], T=2, method="opi", progress=False)
    spikedet.save(snn, tmp_path / "own")
    torch.testing.assert_close(spikedet.load(tmp_path / "own", engine="torch")(x), snn(x))
    with safe_open(tmp_path / "own", framework="pt") as file:
        assert json.loads(file.metadata()["header"])["imgsz"] == side
