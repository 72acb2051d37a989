"""Atomic writes, and weights files that are refused."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from spikedet import checkpoint
from spikedet.checkpoint import Checkpoint
from spikedet.errors import WeightsError
from spikedet.files import write_atomic


def test_write_and_replace(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two" and os.listdir(path.parent) == ["file"]


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.fixture
def made():
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


def test_round_trip(tmp_path, made):
    checkpoint.save(made, tmp_path / "w")
    again = checkpoint.load(tmp_path / "w")
    assert again.tensors.keys() == made.tensors.keys()
    assert all(torch.equal(again.tensors[k], v) for k, v in made.tensors.items())
    assert (again.stage, again.T, again.names, again.origin) == ("snn", 8, ("a", "b"), made.origin)


def test_half_precision_spares_thresholds_potentials_and_biases(tmp_path, made):
    checkpoint.save(made, tmp_path / "w", half=True)
    again = checkpoint.load(tmp_path / "w").tensors
    for name in ("bias", "act.threshold", "act.initial"):
        assert torch.equal(again[name], made.tensors[name])
    assert torch.equal(again["weight"], made.tensors["weight"].half().float())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_files_that_are_no_weights_are_refused(tmp_path, made, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(made, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    cases = {
        "empty": (b"", "damaged"),
        "noise": (os.urandom(4000), "damaged"),
        "cut": (good[: len(good) // 2], "damaged"),
        "pickle": (pickle.dumps(Bomb()), "damaged"),
        "text": (b"hello", "damaged"),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=f"{name}: {words}"):
            checkpoint.load(tmp_path / name)
    torch.save({"model": Bomb()}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="model.pt: damaged, or not a safetensors file"):
        checkpoint.load(tmp_path / "model.pt")
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_program_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "w")
    with pytest.raises(WeightsError, match="another program"):
        checkpoint.load(tmp_path / "w")
    with pytest.raises(WeightsError, match="no such weights file"):
        checkpoint.load(tmp_path / "gone")


def test_unknown_stage_is_refused(tmp_path, made):
    made.stage = "magic"
    checkpoint.save(made, tmp_path / "w")
    with pytest.raises(WeightsError):
        checkpoint.load(tmp_path / "w")
