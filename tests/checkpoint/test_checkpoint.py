"""Weights files: what comes back, and what is refused."""

import json
import os
import pickle
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spikedet.checkpoint import FORMAT, Checkpoint, load, load_plain, save, sha256
from spikedet.errors import WeightsError
from spikedet.networks import with_graph
from support.commands import command
from support.stages import quantised, spiking_copy

HEADER = {"stage": "snn", "task": "detection", "model": {}, "names": ["a"], "imgsz": 320, "T": 8}


@pytest.fixture
def checkpoint():
    tensors = {
        "weight": torch.randn(3, 4),
        "bias": torch.randn(3),
        "act.threshold": torch.tensor(0.123456789),
        "act.initial": torch.randn(3, 4, 4),
        "count": torch.tensor(7),
    }
    return Checkpoint(
        "snn", "detection", {"nc": 2}, ("a", "b"), 320, tensors, T=8, origin={"command": "x"}
    )


def test_round_trip(tmp_path, checkpoint):
    save(checkpoint, tmp_path / "w")
    again = load(tmp_path / "w")
    assert again.tensors.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(again.tensors[k], v) for k, v in checkpoint.tensors.items())
    for name in ("stage", "task", "model", "names", "imgsz", "T", "origin"):
        assert getattr(again, name) == getattr(checkpoint, name)


def test_half_precision_spares_thresholds_potentials_and_biases(tmp_path, checkpoint):
    save(checkpoint, tmp_path / "w", half=True)
    again = load(tmp_path / "w").tensors
    for name in ("bias", "act.threshold", "act.initial", "count"):
        assert torch.equal(again[name], checkpoint.tensors[name])
    assert again["weight"].dtype == torch.float32
    assert torch.equal(again["weight"], checkpoint.tensors["weight"].half().float())


def test_weights_too_large_for_half_precision_stay_as_they_are(tmp_path, checkpoint):
    checkpoint.tensors["weight"][0, 0] = 1e5
    save(checkpoint, tmp_path / "w", half=True)
    assert torch.equal(load(tmp_path / "w").tensors["weight"], checkpoint.tensors["weight"])


def test_the_command_that_halves(tmp_path, checkpoint, small_net, pictures, monkeypatch):
    checkpoint = with_graph(checkpoint, spiking_copy(quantised(small_net, [pictures], 8)))
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save(checkpoint, full)
    words = ["halve", "--weights", full, "--out", half]
    assert command(monkeypatch, *words) == 0
    again = load(half)
    assert again.origin == {"command": "x", "in_full": sha256(full)}
    assert torch.equal(again.tensors["mix.weight"], checkpoint.tensors["mix.weight"].half().float())
    assert torch.equal(again.tensors["relu.threshold"], checkpoint.tensors["relu.threshold"])
    before = half.read_bytes()
    assert command(monkeypatch, *words) == 2 and half.read_bytes() == before


def test_saving_leaves_the_network_alone(tmp_path, checkpoint):
    before = checkpoint.tensors["weight"].clone()
    save(checkpoint, tmp_path / "w", half=True)
    assert torch.equal(checkpoint.tensors["weight"], before)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def save_bytes(data):
    return lambda path, good: path.write_bytes(data)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(save_bytes(b""), id="empty"),
        pytest.param(save_bytes(random.Random(0).randbytes(4000)), id="noise"),
        pytest.param(save_bytes(b"hello"), id="text"),
        pytest.param(save_bytes(b"\xff" * 8 + b"{}"), id="endless header"),
        pytest.param(save_bytes(pickle.dumps(Bomb())), id="pickle"),
        pytest.param(lambda path, good: torch.save({"model": Bomb()}, path), id="torch"),
        pytest.param(lambda path, good: path.write_bytes(good[: len(good) // 2]), id="half"),
        pytest.param(lambda path, good: path.write_bytes(good[:-1]), id="last byte"),
    ],
)
def test_files_that_are_no_weights_are_refused_unopened(tmp_path, checkpoint, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    save(checkpoint, tmp_path / "good")
    write(tmp_path / "w.pt", (tmp_path / "good").read_bytes())
    with pytest.raises(WeightsError, match="w.pt: damaged, or not a safetensors file"):
        load(tmp_path / "w.pt")
    assert not (tmp_path / "exploded").exists()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match="gone: no such weights file"):
        load(tmp_path / "gone")
    with pytest.raises(WeightsError, match="cannot be read"):
        load(tmp_path)


def test_equal_contents_are_equal_bytes(tmp_path, checkpoint):
    """safetensors itself writes its metadata in a random order."""
    backwards = replace(checkpoint, tensors=dict(reversed(checkpoint.tensors.items())))
    for number in range(16):
        save(checkpoint if number % 2 else backwards, tmp_path / f"{number}")
    assert len({sha256(tmp_path / f"{number}") for number in range(16)}) == 1


def test_plain_files(tmp_path, checkpoint):
    save_file(checkpoint.tensors, tmp_path / "w")
    again = load_plain(tmp_path / "w")
    assert all(torch.equal(again[k], v) for k, v in checkpoint.tensors.items())
    with pytest.raises(WeightsError, match="another program"):
        load(tmp_path / "w")


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({"format": "pt"}, id="another program"),
        pytest.param({"format": "spikedet-3", "header": json.dumps(HEADER)}, id="newer"),
        pytest.param({"format": FORMAT}, id="no header"),
        pytest.param({"format": FORMAT, "header": "no JSON"}, id="damaged header"),
        pytest.param({"format": FORMAT, "header": "[]"}, id="no fields"),
        pytest.param({"format": FORMAT, "header": json.dumps({"names": []})}, id="fields missing"),
        pytest.param(
            {"format": FORMAT, "header": json.dumps(HEADER | {"x": 1})}, id="unknown field"
        ),
        pytest.param(
            {"format": FORMAT, "header": json.dumps(HEADER | {"stage": "magic"})},
            id="unknown stage",
        ),
        *(
            pytest.param({"format": FORMAT, "header": json.dumps(HEADER | {key: value})}, id=key)
            for key, value in {
                "T": "x",
                "imgsz": -1,
                "names": [1],
                "model": 3,
                "task": None,
            }.items()
        ),
        pytest.param({"format": FORMAT, "header": "[" * 100_000}, id="nested too deeply"),
    ],
)
def test_headers_that_are_not_ours_are_refused(tmp_path, metadata):
    save_file({"weight": torch.zeros(2)}, tmp_path / "w", metadata)
    with pytest.raises(WeightsError, match="w: .*expected weights written by spikedet"):
        load(tmp_path / "w")


def test_a_file_without_metadata_is_refused(tmp_path):
    header = b'{"__metadata__": null}'
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="expected weights written by spikedet"):
        load(tmp_path / "w")


def test_the_header_of_these_tests_is_a_good_one(tmp_path):
    metadata = {"format": FORMAT, "header": json.dumps(HEADER)}
    save_file({"weight": torch.zeros(2)}, tmp_path / "w", metadata)
    assert load(tmp_path / "w").T == 8


class Sized(nn.Module):
    """Takes pictures of 16 x 16 pixels only."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4 * 8 * 8, 2)

    def forward(self, x):
        return self.last(nn.functional.relu(self.first(x)).flatten(1))


def test_a_side_that_the_graph_cannot_take_is_not_written(tmp_path, checkpoint, pictures):
    graph = spiking_copy(quantised(Sized().eval(), [pictures], 4))
    checkpoint = with_graph(replace(checkpoint, T=4), graph)
    assert checkpoint.graph["fixed"]
    for task in ("detection", "none"):
        words = r"imgsz is 320 pixels, but the graph was recorded for \[3, 16, 16\]"
        with pytest.raises(WeightsError, match=words):
            save(replace(checkpoint, task=task), tmp_path / "w")
        assert not list(tmp_path.iterdir())
        save(replace(checkpoint, task=task, imgsz=16), tmp_path / task)
        (tmp_path / task).unlink()


def test_one_potential_for_each_neuron_fixes_the_side(tmp_path, checkpoint, small_net, pictures):
    graph = spiking_copy(quantised(small_net, [pictures], 4))
    save(with_graph(replace(checkpoint, T=4), graph), tmp_path / "any")  # any size will do
    neuron = graph.module("relu")
    neuron.initial.data = torch.zeros(graph.shapes["relu"][1:])
    with pytest.raises(WeightsError, match="and takes no other size"):
        save(with_graph(replace(checkpoint, T=4), graph), tmp_path / "w")
    assert [path.name for path in tmp_path.iterdir()] == ["any"]
