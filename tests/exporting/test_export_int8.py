"""The int8 file: numpy alone gives the spikes of our integer engine."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F

import spikedet
from spikedet.engines.program import Current
from spikedet.engines.reference import rounded
from spikedet.engines.reference_engine import ReferenceEngine
from spikedet.exporting import reference
from spikedet.exporting.registry import ExportError
from spikedet.neurons.layers import MeanOverTime
from spikedet.runtime.network import SpikingNetwork
from support.engines import CONVOLUTIONS, CORRECTING, NETWORKS, Joined, Layer, spiking
from support.exported import dyadic, fresh
from support.stages import leaves


@torch.no_grad()
def expect_equal(graph, pictures, path, steps=5):
    """From the same currents on, every spike is that of the integer engine; so are the results."""
    network = SpikingNetwork(graph, steps)
    spikedet.export(network, path)
    engine = ReferenceEngine(graph)
    _, currents = engine._before_time(pictures)
    wanted = engine._start(currents, len(pictures)).advance(steps)
    whole = {
        op.name: rounded(op, currents[op.node]).numpy().astype(np.int32)
        for op in engine.program.ops.values()
        if isinstance(op, Current)
    }
    header, tensors = reference.read(path)
    results, spikes = reference.run(header, tensors, pictures.numpy(), currents=whole)
    assert spikes
    for name, value in spikes.items():
        assert value.dtype == np.int32
        truth = wanted[name].unflatten(0, (steps, len(pictures))).numpy()
        assert np.array_equal(value, truth), name
        assert 0 < np.abs(value).mean() < 1
    network.use_engine("integers")
    outputs = leaves(network(pictures))
    for value, truth in zip(results.values(), outputs, strict=True):
        assert np.allclose(value, truth.numpy(), rtol=1e-4, atol=1e-5 * truth.abs().max().item())
    return header, tensors


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, CORRECTING])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, slope, tmp_path):
    torch.manual_seed(3)
    pictures = torch.rand(2, 3, 16, 16)
    graph = spiking(fresh(NETWORKS[name]), pictures, 4, slope, each_channel=slope != 1.0)
    expect_equal(graph, pictures, tmp_path / "a.int8.safetensors")


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, tmp_path):
    torch.manual_seed(1)
    middle = fresh(CONVOLUTIONS[name])
    pictures = torch.rand(2, 3, 22, 26)
    graph = spiking(Layer(middle, out=middle.out_channels), pictures, free=True)
    expect_equal(graph, pictures, tmp_path / "a.safetensors")


def test_branches_and_weighted_means(tmp_path):
    torch.manual_seed(4)
    pictures = torch.rand(3, 3, 16, 24)
    graph = spiking(Joined(), pictures, each_channel=True)
    for node in graph.of((MeanOverTime,)):
        node.module.log_weights = nn.Parameter(torch.randn(3))
    header, tensors = expect_equal(graph, pictures, tmp_path / "a.safetensors")
    assert list(header["results"]) == ["0", "1"]
    weights = [t for name, t in tensors.items() if name.endswith(".weight") and t.dtype == np.int8]
    assert len(weights) == 4 and all(np.abs(w.astype(int)).max() <= 127 for w in weights)
    ints = {n["name"] for n in header["steps"]}
    for name, tensor in tensors.items():
        node, _, what = name.rpartition(".")
        if node in ints and what not in ("inverse", "limit", "scale"):
            assert tensor.dtype in (np.int8, np.int32), name


class Ends(nn.Module):
    """First and last layers of every kind that computes in float32."""

    def __init__(self):
        super().__init__()
        self.before, self.first = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.tokens, self.up = nn.Linear(8, 5), nn.ConvTranspose2d(8, 4, 3, 2, 1, 1, groups=2)

    def forward(self, x):
        x = self.before(F.avg_pool2d(F.max_pool2d(x * 2 - 1, 3, 1, 1), 2) + 0.5)
        x = x - F.pad(x, (1, 0, 2, 0), "replicate")[:, :, :-2, :-1]
        x = F.relu(self.first(x))
        up = F.pixel_unshuffle(F.interpolate(self.up(x), scale_factor=2), 2)
        return self.tokens(x.flatten(2).permute(0, 2, 1)), up, up.sum((2, 3)) + up.mean((2, 3)) * 4


def test_what_computes_in_float(tmp_path):
    torch.manual_seed(6)
    pictures = torch.rand(2, 3, 16, 24)
    header, _ = expect_equal(spiking(Ends(), pictures), pictures, tmp_path / "a.safetensors")
    assert len(header["before"]) > 5 and len(header["behind"]) > 5


def test_pictures_to_spikes_where_no_order_of_sums_can_matter(tmp_path):
    torch.manual_seed(5)
    pictures = (torch.rand(2, 3, 16, 16) * 16).round() / 16
    graph = dyadic(spiking(fresh(NETWORKS["max_pool"]), pictures))
    network = SpikingNetwork(graph, 6)
    spikedet.export(network, tmp_path / "a.safetensors")
    engine = ReferenceEngine(graph)
    wanted = engine._start(engine._before_time(pictures)[1], 2).advance(6)
    header, tensors = reference.read(tmp_path / "a.safetensors")
    _, spikes = reference.run(header, tensors, pictures.numpy())
    for name, value in spikes.items():
        assert np.array_equal(value.reshape(12, *value.shape[2:]), wanted[name].numpy()), name


def test_what_the_file_refuses(tmp_path, small_net, pictures):
    path = tmp_path / "a.safetensors"
    network = SpikingNetwork(spiking(small_net, pictures), 4)
    spikedet.export(network, path)
    header, tensors = reference.read(path)
    assert header["T"] == 4 and header["size"] == [3, 16, 16]
    for shape in ((1, 3, 8, 8), (3, 16, 16), (0, 3, 16, 16)):
        with pytest.raises(ValueError, match=r"pictures are .*; expected \[B, \*\[3, 16, 16\]\]"):
            reference.run(header, tensors, np.zeros(shape, np.float32))
    for T in (header["steps_most"] + 1, 0, -1, "4", 2.5):
        with pytest.raises(ValueError, match="T is .*; expected 1 or more, at most"):
            reference.run(header, tensors, pictures.numpy(), T=T)
    spikedet.save(network, path)
    with pytest.raises(ValueError, match="format spikedet-2; expected spikedet-int8-1"):
        reference.read(path)


def test_damaged_and_foreign_files_are_one_sentence(tmp_path, small_net, pictures):
    path, bad = tmp_path / "a.safetensors", tmp_path / "bad.safetensors"
    spikedet.export(SpikingNetwork(spiking(small_net, pictures), 4), path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:-1], whole[: len(whole) // 2]):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="bad.safetensors: no safetensors file, or damaged"):
            reference.read(bad)
    header, tensors = reference.read(path)
    fewer = {key: value for key, value in header.items() if key != "steps"}
    others = {**tensors, "nobody.weight": np.zeros(1, np.int8)}
    for text, kept in (
        ("{", tensors), ("[]", tensors), (json.dumps(fewer), tensors), (json.dumps(header), others),
    ):  # fmt: skip
        save_file(kept, bad, {"format": "spikedet-int8-1", "header": text})
        with pytest.raises(ValueError, match="the header is damaged, or does not fit"):
            reference.read(bad)


def test_a_network_without_integers_is_refused_by_name(tmp_path):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1)

        def forward(self, x):
            return self.last(nn.functional.max_pool2d(self.a(x).relu() + self.b(x).relu(), 2))

    pictures = torch.rand(1, 3, 8, 8)
    network = SpikingNetwork(spiking(Sum(), pictures), 4)
    with pytest.raises(ExportError, match="max_pool2d.*different thresholds"):
        spikedet.export(network, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
