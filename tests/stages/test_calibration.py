"""What the last lines of a conversion say."""

from types import SimpleNamespace

import pytest
from torch import nn

from spikedet.settings import EndToEnd, LayerWise, Plan
from spikedet.stages import calibration, stage_two
from spikedet.stages.watcher import Watcher


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([0.5, 0.25], "snn.safetensors is the network after the end-to-end pass"),
        (
            [0.25, 0.5],
            "snn.safetensors is the network before the end-to-end pass, which did not lower the "
            "loss; snn.last.safetensors is the one after it",
        ),
    ],
)
def test_it_says_which_network_was_written(losses, said, tmp_path, monkeypatch):
    lines, written, losses = [], [], iter(losses)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage_two, "tuning_loss", lambda *_: next(losses))
    monkeypatch.setattr(stage_two, "end_to_end", lambda *_: {})
    monkeypatch.setattr(calibration, "spiking_checkpoint", lambda *_: None)
    monkeypatch.setattr(calibration, "save", lambda _, path: written.append(path.name))
    watcher = Watcher()
    monkeypatch.setattr(watcher, "say", lines.append)
    plan = Plan(LayerWise(), EndToEnd(1))
    begun = calibration.Calibration(
        SimpleNamespace(), SimpleNamespace(), [], [None] * 4, plan, tmp_path / "snn.safetensors",
        {}, watcher=watcher,
    )  # fmt: skip
    begun._end_to_end(nn.ReLU(), {})
    assert lines[0].startswith("loss on 4 tuning pictures: 0.")
    assert lines[1].replace(f"{tmp_path}/", "") == said
    assert written[-1] == "snn.safetensors"
