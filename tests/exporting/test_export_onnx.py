"""ONNX files, run by onnxruntime beside our own runtime."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spikedet
from spikedet.conversion.prepare import prepare
from spikedet.errors import UsageError
from spikedet.exporting.registry import ExportError
from spikedet.graph.operations import WEIGHTED
from spikedet.graph.structure import Name
from spikedet.neurons import registry
from spikedet.neurons.layers import IFNeuron, MeanOverTime
from spikedet.runtime.network import SpikingNetwork
from spikedet.runtime.watch import watching
from support.engines import CONVOLUTIONS, CORRECTING, NETWORKS, Joined, Layer, Plain, spiking
from support.exported import dyadic, fresh
from support.stages import leaves, quantised

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def facts(path):
    return json.loads(session(path).get_modelmeta().custom_metadata_map["spikedet"])


def close(outputs, wanted):
    wanted = wanted.detach().numpy()
    scale = max(1.0, np.abs(wanted).max())
    return outputs.shape == wanted.shape and np.allclose(
        outputs, wanted, rtol=1e-4, atol=1e-5 * scale
    )


class Shapes(nn.Module):
    """Everything that moves values, and uneven windows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 1, 1)
        self.third, self.fourth = nn.Conv2d(16, 8, 1), nn.Linear(8, 5)
        self.tokens, self.long = nn.Linear(8, 6), nn.Conv1d(6, 4, 3, 1, 1)

    def forward(self, x):
        x = F.relu(self.first(F.pad(x, (1, 2, 0, 1), "reflect") * 0.5 + 0.25))
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)[:, :, 1:-1, ::2]
        x = F.relu(self.second(F.pad(x, (2, 0, 1, 3))))
        x = F.interpolate(x, size=(13, 11))
        a = F.adaptive_avg_pool2d(x, (4, 4))
        b = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)[:, :, 1:5, 2:6]
        x = F.relu(self.third(a - b * 0.5 + F.avg_pool2d(x, 4, 3)[:, :, :1, :1]))
        x = F.pixel_shuffle(F.pixel_unshuffle(x[:, :, :, :4], 2), 2)
        y = torch.stack([x.mean((2, 3)), x.sum((2, 3)) / 16], 1)[:, 0]
        z = self.tokens(x.flatten(2).permute(0, 2, 1)).permute(0, 2, 1)
        z = F.relu(self.long(z)).unsqueeze(2).squeeze(2)
        return {"classes": self.fourth(y), "lines": [z.mean(2), F.channel_shuffle(x, 4).mean(3)]}


@pytest.mark.parametrize("stage", ["float", "quantised"])
def test_float_and_quantised(stage, tmp_path):
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 16, 18)
    network = Shapes().eval()
    graph = prepare(network, pictures[:1])
    if stage == "quantised":
        graph = quantised(network, [pictures], 8, per_channel=True)
    spikedet.export(graph, tmp_path / "a.onnx")
    run = session(tmp_path / "a.onnx")
    assert [output.name for output in run.get_outputs()] == ["classes", "lines.0", "lines.1"]
    for number in (1, 3):
        outputs = run.run(None, {"input": pictures[:number].numpy()})
        for one, truth in zip(outputs, leaves(graph(pictures[:number])), strict=True):
            assert close(one, truth)


@pytest.mark.parametrize("slope", [0.2, 1.0, (0.0, 0.3, 1.0, 0.5, 0.0, 0.1)])
def test_quantisers_with_a_slope(slope, tmp_path):
    torch.manual_seed(2)
    pictures = torch.rand(2, 3, 16, 12) - 0.5
    graph = quantised(Layer(nn.Conv2d(6, 6, 3, 1, 1), out=6).eval(), [pictures], 4)
    for node in graph.of((type(graph.of((nn.Module,))[1].module),)):
        if node.kind == "quantise_clip":
            node.module.slope = slope
    spikedet.export(graph, tmp_path / "a.onnx")
    (output,) = session(tmp_path / "a.onnx").run(None, {"input": pictures.numpy()})
    assert close(output, graph(pictures))


def test_float_activations(tmp_path):
    from spikedet.graph.operations import ClippedReLU, Leaky

    torch.manual_seed(2)
    pictures = torch.rand(2, 3, 8, 8) - 0.5
    graph = prepare(Layer(nn.Conv2d(6, 6, 3, 1, 1), out=6).eval(), pictures[:1])
    first, second = [node.name for node in graph if node.kind == "relu"]
    for one, other in (
        (Leaky(0.1), Leaky((0.1, 0.0, 1.0, 0.2, 0.3, 0.4))),
        (ClippedReLU(0.1),) * 2,
    ):
        graph.replace(first, one)
        graph.replace(second, other)
        spikedet.export(graph, tmp_path / "a.onnx")
        (output,) = session(tmp_path / "a.onnx").run(None, {"input": pictures.numpy()})
        assert close(output, graph(pictures))


# ---------------------------------------------------------------------- spiking


def stepped(run, pictures, steps):
    """Outputs after each step, and the states after it."""
    states = {
        i.name: np.full([len(pictures), *i.shape[1:]], np.nan, np.float32)  # not read at t = 0
        for i in run.get_inputs()[2:]
    }
    names = [output.name for output in run.get_outputs()]
    for t in range(steps):
        values = run.run(None, {"input": pictures.numpy(), "t": np.array(t), **states})
        results = dict(zip(names, values, strict=True))
        states = {name: results.pop(f"{name}_next") for name in states}
        yield list(results.values()), states


def potentials(network, pictures, steps):
    """Outputs and potentials of our own runtime after each step."""
    now = {}

    def watch(running, node, inputs, output):
        if isinstance(node.module, IFNeuron):
            state = running.memory[node.name]
            potential, *counts = (state,) if isinstance(state, torch.Tensor) else state
            now[f"{node.name}.potential"] = potential.clone()
            now.update({f"{node.name}.counts": value.clone() for value in counts})

    with watching(network.graph, watch):
        for _, output in network.run(pictures, steps):
            yield leaves(output), dict(now)


@torch.no_grad()
def expect_equal(graph, pictures, folder, steps=4, exact=False):
    """Outputs and potentials of both forms after every step are ours.

    Where a neuron fires once more or less, its potential is a threshold away: potentials that are
    close say that all spikes are equal.
    """
    network = SpikingNetwork(graph, steps)
    spikedet.export(network, folder / "a.onnx", form="step")
    spikedet.export(network, folder / "b.onnx")

    def same(output, wanted):
        return np.array_equal(output, wanted.numpy()) if exact else close(output, wanted)

    run = session(folder / "a.onnx")
    ours = potentials(network, pictures, steps)
    fired = 0
    for (outputs, states), (wanted, ends) in zip(stepped(run, pictures, steps), ours, strict=True):
        for output, truth in zip(outputs, wanted, strict=True):
            assert close(output, truth)
        assert ends and set(ends) <= set(states)
        for name, truth in ends.items():
            assert same(states[name], truth), name
        fired += sum(float(np.abs(states[name]).sum()) for name in states if name.endswith(".sum"))
    assert fired > 0
    whole = session(folder / "b.onnx")
    for number in (len(pictures), 1):
        output = whole.run(None, {"input": pictures[:number].numpy()})
        for one, wanted in zip(output, leaves(network(pictures[:number])), strict=True):
            assert same(one, wanted)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, CORRECTING])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, slope, tmp_path):
    torch.manual_seed(3)
    pictures = torch.rand(2, 3, 16, 16)
    graph = spiking(fresh(NETWORKS[name]), pictures, 4, slope, each_channel=slope != 1.0)
    expect_equal(graph, pictures, tmp_path)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, tmp_path):
    torch.manual_seed(1)
    middle = fresh(CONVOLUTIONS[name])
    pictures = torch.rand(2, 3, 22, 26)
    expect_equal(spiking(Layer(middle, out=middle.out_channels), pictures, free=True), pictures,
                 tmp_path)  # fmt: skip


def test_pooling_whose_last_window_is_nearly_outside(tmp_path):
    network = Plain(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2, 2, 1, dilation=2, ceil_mode=True),
        nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 5, 6)
    expect_equal(spiking(network, pictures), pictures, tmp_path)


def test_all_that_moves(tmp_path):
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 16, 18)
    expect_equal(spiking(Shapes(), pictures), pictures, tmp_path, 3)


def test_branches_and_weighted_means(tmp_path):
    torch.manual_seed(4)
    pictures = torch.rand(3, 3, 16, 24)
    graph = spiking(Joined(), pictures, 4, 0.3, each_channel=True)
    for node in graph.of((MeanOverTime,)):
        node.module.log_weights = nn.Parameter(torch.randn(3))
    expect_equal(graph, pictures, tmp_path, 6)


def test_where_no_order_of_sums_can_matter_all_is_equal_to_the_last_bit(tmp_path):
    torch.manual_seed(5)
    pictures = (torch.rand(2, 3, 16, 16) * 16).round() / 16
    plain = NETWORKS["max_pool"]
    for slope in (0.0, 0.25, 1.0):
        graph = dyadic(spiking(fresh(plain), pictures, 4, slope))
        expect_equal(graph, pictures, tmp_path, 4, exact=True)


def test_one_step(tmp_path):
    torch.manual_seed(6)
    pictures = torch.rand(2, 3, 16, 16)
    expect_equal(spiking(fresh(NETWORKS["max_pool"]), pictures), pictures, tmp_path, 1)


def test_the_file_says_what_a_user_needs(tmp_path, small_net, pictures):
    network = SpikingNetwork(spiking(small_net, pictures), 4)
    done = spikedet.export(network, tmp_path / "a.onnx", T=6, form="step")
    assert done.T == 6 and done.format == "onnx" and done.path == tmp_path / "a.onnx"
    assert any("calibrated for T=4, not T=6" in note for note in done.notes)
    told = facts(tmp_path / "a.onnx")
    assert told["T"] == 6 and told["opset"] == 18 and told["form"] == "step"
    assert told["input"]["shape"] == [None, 3, 16, 16]
    names = {i.name for i in session(tmp_path / "a.onnx").get_inputs()}
    assert {state["name"] for state in told["states"]} == names - {"input", "t"}
    model = onnx.load(tmp_path / "a.onnx")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.ir_version == 10


def test_equal_networks_are_equal_files(tmp_path, small_net, pictures):
    network = SpikingNetwork(spiking(small_net, pictures), 4)
    for name in ("a.onnx", "b.onnx"):
        spikedet.export(network, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_what_onnx_cannot_say_is_refused_node_by_node(tmp_path, pictures, monkeypatch):
    class Other(IFNeuron):
        pass

    monkeypatch.setitem(registry.NEURONS, "other", Other)
    layers = Plain(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    graph = spiking(layers, pictures)
    for node in graph.of((IFNeuron,)):
        graph.replace(node.name, Other(node.module.threshold))
    names = [node.name for node in graph.of((IFNeuron,))]
    with pytest.raises(ExportError, match=r"nothing was written.*kind \(Other\)") as error:
        spikedet.export(SpikingNetwork(graph, 4), tmp_path / "a.onnx")
    assert all(name in str(error.value) for name in names)
    assert not list(tmp_path.iterdir())


def test_forms(tmp_path, small_net, pictures):
    network = SpikingNetwork(spiking(small_net, pictures), 4)
    with pytest.raises(UsageError, match="form is 'loop'; expected unrolled or step"):
        spikedet.export(network, tmp_path / "a.onnx", form="loop")
    graph = prepare(small_net, pictures[:1])
    with pytest.raises(UsageError, match="stage float has no time steps"):
        spikedet.export(graph, tmp_path / "a.onnx", form="step")
    assert isinstance(graph.output, Name) and graph.of(WEIGHTED)
