"""`spikedet info` and `spikedet export` of released weights."""

import json
import re
from pathlib import Path

import pytest
import torch

import spikedet
from spikedet import resources
from spikedet.checkpoint import load, sha256
from spikedet.exporting import reference
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.released import released
from spikedet.runtime.network import SpikingNetwork
from support.commands import command
from support.engines import CORRECTING, Joined, spiking

SPIKING = released("snn", 4, "classification")
pytestmark = pytest.mark.skipif(SPIKING is None, reason="no released weights")


def told(monkeypatch, tmp_path, path):
    out = tmp_path / "info.json"
    assert command(monkeypatch, "info", path, "--json", out) == 0
    return json.loads(out.read_text())


def test_info_says_what_spiking_weights_are(tmp_path, monkeypatch, capsys):
    result, checkpoint = told(monkeypatch, tmp_path, SPIKING), load(SPIKING)
    thresholds = [t for name, t in checkpoint.tensors.items() if name.endswith("threshold")]
    assert result["stage"] == "spiking" and result["T"] == 4 and result["task"] == "classification"
    assert result["network"].startswith("resnet20") and result["classes"] == list(checkpoint.names)
    assert result["thresholds"] == {
        "layers": len(thresholds),
        "least": min(float(t.min()) for t in thresholds),
        "greatest": max(float(t.max()) for t in thresholds),
    }
    floats = [t for t in checkpoint.tensors.values() if t.is_floating_point()]
    assert result["parameters"] == sum(t.numel() for t in floats)
    assert result["sha256"] == sha256(SPIKING) and result["engines"]["torch"]
    shown = " ".join(capsys.readouterr().out.split())
    assert result["neurons"] == {"neuron": len(thresholds)} and result["margins"] == []
    assert f"T 4 thresholds {result['thresholds']['least']:.3g} to" in shown
    assert "airplane, automobile" in shown and "32 x 32 pixels" in shown


def test_info_lists_the_released_weights(tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.json"
    assert command(monkeypatch, "info", "--json", rows) == 0
    rows, shown = json.loads(rows.read_text()), capsys.readouterr().out
    assert [row["name"] for row in rows] == resources.all_weights()
    for row in rows:
        path = resources.weights(row["name"])
        (line,) = re.findall(f"^{row['name']} .*", shown, re.MULTILINE)
        checkpoint = load(path)
        assert (row["T"], row["task"]) == (checkpoint.T, checkpoint.task)
        assert row["megabytes"] == pytest.approx(path.stat().st_size / 1e6, abs=0.051)
        assert f" {row['T'] or '-'} " in line and f" {row['stage']} " in line
    (float_row,) = (row for row in rows if row["name"] == "tiny-yolo-s-float")
    assert f"AP {100 * float_row['AP']:.1f}, AP50 {100 * float_row['AP50']:.1f}" in shown
    assert command(monkeypatch, "info", "--layers") == 2
    capsys.readouterr()
    monkeypatch.setattr(resources, "folder", lambda name: tmp_path / name)
    assert command(monkeypatch, "info") == 4
    told = capsys.readouterr()
    assert "no released weights in this folder" in told.err and not told.out


def test_info_names_margins(tmp_path, monkeypatch, capsys):
    network = SpikingNetwork(spiking(Joined(), torch.rand(2, 3, 16, 16), slope=CORRECTING), 4)
    spikedet.save(network, tmp_path / "a.safetensors")
    result = told(monkeypatch, tmp_path, tmp_path / "a.safetensors")
    margins = {neuron.margin for neuron in network.graph.only(CorrectingNeuron)}
    assert result["margins"] == sorted(margins) and len(margins) > 1
    assert "margins" in capsys.readouterr().out


def test_info_says_which_layer_an_engine_does_not_take(tmp_path, monkeypatch):
    from spikedet.engines import registry
    from spikedet.engines.program import NoIntegers

    def refuse(graph):
        raise NoIntegers("conv1: its weights are complex")

    monkeypatch.setitem(registry.ENGINES, "events", refuse)
    result = told(monkeypatch, tmp_path, SPIKING)
    assert result["engines"]["events"] == "no: conv1: its weights are complex"


def test_info_of_a_float_network_has_no_steps(tmp_path, monkeypatch, capsys):
    result = told(monkeypatch, tmp_path, released("float", task="classification"))
    assert result["stage"] == "float" and result["T"] is result["thresholds"] is None
    assert "engines" not in result and "thresholds" not in capsys.readouterr().out


def test_info_of_what_is_no_weights_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "w.safetensors").write_text("no weights")
    assert command(monkeypatch, "info", tmp_path / "w.safetensors") == 4
    assert capsys.readouterr().err.count("\n") == 1


def test_export_writes_and_says_what_the_file_does_not(tmp_path, monkeypatch, capsys):
    out = tmp_path / "w.int8.safetensors"
    assert command(monkeypatch, "export", SPIKING, out, "--T", 4) == 0
    shown = capsys.readouterr().out.splitlines()
    assert out.is_file() and shown[0].startswith(f"{out}: int8, T=4, ")
    assert all(line.startswith("note: ") for line in shown[1:])
    assert command(monkeypatch, "export", SPIKING, tmp_path / "w.doc") == 2
    assert "this ending sets no format" in capsys.readouterr().err
    assert command(monkeypatch, "export", SPIKING) == 2
    assert command(monkeypatch, "export", SPIKING, tmp_path / "a", "--out", tmp_path / "b") == 2
    assert capsys.readouterr().err.count("expected") == 2
    assert [path.name for path in Path(tmp_path).iterdir()] == [out.name]
    named = ("--format", "int8", "--T", 4, "--out", tmp_path / "named")
    assert command(monkeypatch, "export", SPIKING, *named) == 0
    assert reference.read(tmp_path / "named")[0] == reference.read(out)[0]


def test_info_names_what_was_measured_of_these_weights(tmp_path, monkeypatch, capsys):
    from spikedet.commands.info import measured

    rows = [
        {"stage": "snn", "T": 4, "top1": 0.875, "top5": 0.99, "images": 100, "spike_rate": 0.1,
         "data": "d", "weights_sha256": "a"},
        {"stage": "snn", "T": 4, "top1": 0.5, "images": 900, "spike_rate": None,
         "data": "d", "weights_sha256": "a"},
        {"stage": "qc", "T": 4, "top1": 0.1, "images": 9, "data": "d", "weights_sha256": "a"},
        {"stage": "snn", "T": 4, "top1": 0.1, "images": 9, "data": "d", "weights_sha256": "b"},
    ]  # fmt: skip
    (tmp_path / "in").mkdir()
    (tmp_path / "in/rows.json").write_text(json.dumps(rows))
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "energy.json").write_text("{}")
    entries = measured("a", "snn", tmp_path)
    assert [(row["images"], row["top1"]) for row in entries] == [(900, 0.5), (100, 0.875)]
    assert {(row["file"], row["engine"]) for row in entries} == {("in/rows.json", "torch")}
    other = [{**row, "engine": "events"} for row in rows]
    (tmp_path / "in/rows.json").write_text(json.dumps(other))
    assert {row["engine"] for row in measured("a", "snn", tmp_path)} == {"events"}
    told(monkeypatch, tmp_path, SPIKING)
    shown = " ".join(capsys.readouterr().out.split())
    assert "measured T=4: top1 87.9 %" in shown and "10000 pictures" in shown


def test_info_by_layer(tmp_path, monkeypatch, capsys):
    out = tmp_path / "info.json"
    assert command(monkeypatch, "info", SPIKING, "--layers", "--json", out) == 0
    rows = json.loads(out.read_text())["by_layer"]
    checkpoint = load(SPIKING)
    assert len(rows) == sum(name.endswith("threshold") for name in checkpoint.tensors)
    assert all(0 <= r["rate"] <= 1 and 0 < r["least"] <= r["greatest"] for r in rows)
    assert "least threshold" in capsys.readouterr().out
    assert command(monkeypatch, "info", released("float"), "--layers") == 2
    assert "expected spiking weights" in capsys.readouterr().err
