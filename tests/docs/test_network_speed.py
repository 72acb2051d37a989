"""examples/network_speed.py measures networks of torchvision."""

import runpy

import pytest

from support.places import ROOT


@pytest.mark.slow
def test_a_row_for_each_network(capsys):
    example = runpy.run_path(str(ROOT / "examples/network_speed.py"))
    example["main"](["resnet18", "mobilenet_v2", "--T", "2", "--side", "64", "--rounds", "1"])
    head, titles, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("T = 2, ") and titles.split()[-1] == "passes"
    assert [row.split()[0] for row in rows] == ["resnet18", "mobilenet_v2"]
    for row in rows:
        rate, analog, spiking, passes = map(float, row.split()[1:])
        assert 0.01 < rate < 1 and min(analog, spiking) > 0
        assert passes == pytest.approx(spiking / analog, rel=0.1, abs=0.02)
