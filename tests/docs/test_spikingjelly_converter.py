"""The example that lets SpikingJelly convert a float network."""

import importlib.util
import json

import pytest
import torch
from PIL import Image

from spikedet import checkpoint, networks, task_registry
from spikedet.graph.structure import fill
from spikedet.released import released
from support.places import ROOT


@pytest.fixture(scope="module")
def example():
    path = ROOT / "examples/spikingjelly_converter.py"
    spec = importlib.util.spec_from_file_location("spikingjelly_converter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "side"), [("detection", 64), ("classification", 32)])
def test_the_graph_of_fx_computes_the_same(example, name, side):
    floats = checkpoint.load(released("float", None, name))
    graph = networks.graph_of(task_registry.named(name), floats).eval()
    pictures = torch.rand(2, 3, side, side)
    with torch.no_grad():
        values = example.as_fx(graph)(pictures)
        same = fill(graph.output, dict(zip(graph.outputs, values, strict=True)))
        torch.testing.assert_close(same, graph(pictures))


def test_more_steps_come_nearer_to_the_float_network(example):
    pytest.importorskip("spikingjelly.activation_based")
    floats = checkpoint.load(released("float", None, "classification"))
    graph = networks.graph_of(task_registry.named("classification"), floats).eval()
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(16, 3, 32, 32, generator=generator) * 2 - 1
    with torch.no_grad():
        wanted = graph(pictures)
        spiking = example.converted(example.as_fx(graph), "rate", [pictures])
        errors = [
            (example.OverTime(spiking, T, 0, graph)(pictures) - wanted).square().mean().item()
            for T in (4, 64)
        ]
    assert errors[1] < errors[0] / 2


def test_rows_are_written(example, tmp_path, capsys):
    pytest.importorskip("spikingjelly.activation_based")
    from spikedet.checkpoint import load

    names = load(released("float", None, "classification")).names
    for split in ("train", "test"):
        for number, name in enumerate(names):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (number * 20, 90, 200)).save(folder / "a.png")
    words = ["--weights", str(released("float", None, "classification")), "--T", "2", "3"]
    words += ["--data", str(tmp_path / "data"), "--pictures", "8", "--limit", "6"]
    rows = example.main([*words, "--json", str(tmp_path / "rows.json")])
    assert [(row["T"], row["images"]) for row in rows] == [(2, 6), (3, 6)]
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
