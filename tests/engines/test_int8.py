"""Networks whose weights are integers: rounding, training, files."""

import copy

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import spikedet
from spikedet.engines.integers import compile_integers
from spikedet.engines.program import Neuron, Times, Weighted
from spikedet.engines.reference_engine import ReferenceEngine
from spikedet.engines.rounding import Rounder
from spikedet.errors import UsageError, WeightsError
from spikedet.graph.operations import WEIGHTED
from spikedet.neurons.layers import IFNeuron
from spikedet.runtime.network import SpikingNetwork
from spikedet.runtime.watch import watching
from support.engines import CONVOLUTIONS, NETWORKS, Joined, Layer, ran, spiking


def numbers(graph):
    """All integers of a graph, and the scales of its neurons."""
    tensors = {}
    for name, op in compile_integers(graph).ops.items():
        if isinstance(op, Weighted):
            tensors[name] = [op.weight]
        elif isinstance(op, Times):
            tensors[name] = [op.factor]
        elif isinstance(op, Neuron):
            tensors[name] = [op.bias, op.threshold, op.initial, op.scale]
    return tensors


def expect_same(outputs, wanted):
    assert outputs.keys() == wanted.keys()
    for name, tensors in wanted.items():
        for a, b in zip(outputs[name], tensors, strict=True):
            assert torch.equal(a, b), name


CASES = {**NETWORKS, "joined": Joined()}
CASES |= {f"conv_{n}": Layer(c, out=c.out_channels) for n, c in CONVOLUTIONS.items()}


def fresh(name):
    network = copy.deepcopy(CASES[name])
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network


@pytest.mark.parametrize("each_channel", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_rounded_networks_compile_to_the_same_numbers(name, each_channel):
    torch.manual_seed(3)
    pictures = torch.rand(2, 3, 16, 24 if name == "joined" else 16)
    graph = spiking(fresh(name), pictures, each_channel=each_channel)
    before = numbers(graph)
    rounder = Rounder(graph)
    rounder.write()
    after = numbers(graph)
    if name != "pre_activation":  # a batch norm alone is rounded to half precision first
        expect_same(after, before)
    state = copy.deepcopy(graph.state_dict())
    Rounder(graph).write()
    assert all(torch.equal(state[key], value) for key, value in graph.state_dict().items())
    expect_same(numbers(graph), after)
    for node, whole in Rounder(graph).integer_weights().items():
        assert torch.equal(whole.value(), graph.module(node).weight), node
        shared = name in ("joined", "pre_activation")  # several layers have one scale
        assert whole.numbers.abs().max() == 127 or (shared and whole.numbers.any())


PLAIN = [n for n in CASES if n.startswith("conv_")] + ["max_pool", "linear", "one_dimension"]


@pytest.mark.parametrize("name", PLAIN)
def test_torch_in_float32_makes_the_same_spikes_of_a_rounded_network(name):
    """Below 2**16 units every sum is exact in float32, and nothing here is larger."""
    torch.manual_seed(5)
    pictures = (torch.rand(2, 3, 16, 16) * 16).round() / 16
    graph = spiking(fresh(name), pictures, each_channel=True)
    layer, neuron = graph.of(WEIGHTED)[0].module, graph.of((IFNeuron,))[0].module
    for tensor in (layer.weight.data, layer.bias.data):  # a constant current without any rounding
        tensor.mul_(64).round_().div_(64)
    neuron.threshold.fill_(0.25)
    neuron.initial.data.fill_(0.125)
    Rounder(graph).write()
    program = compile_integers(graph)
    assert max(op.threshold.max() for op in program.neurons[1:]) < 2**16
    network, spikes = SpikingNetwork(graph, 12), {}

    def watch(now, node, inputs, output):
        if isinstance(node.module, IFNeuron):
            spikes[node.name] = output.reshape(12, -1).abs().sum(1).tolist()

    with watching(graph, watch):
        network(pictures)
    _, counts = ran(ReferenceEngine(graph), pictures, [12])
    assert spikes == counts


def test_shortcuts_are_rounded_by_the_engine_alone():
    """A threshold that travels is no multiple of the scale where it is added."""
    torch.manual_seed(5)
    pictures = torch.rand(2, 3, 16, 24)
    graph = spiking(Joined(), pictures)
    Rounder(graph).write()
    plain = SpikingNetwork(graph, 12)(pictures)
    whole = ran(ReferenceEngine(graph), pictures, [12])[0][0]
    for a, b in zip(plain, whole, strict=True):
        assert (a - b).abs().mean() < 0.02 * a.std()


def test_weights_are_those_of_before_behind_the_block(small_net, pictures):
    graph = spiking(small_net, pictures)
    rounder = Rounder(graph)
    rounder.expand_parameters()
    before = copy.deepcopy(graph.state_dict())
    with rounder.applied():
        inside = copy.deepcopy(graph.state_dict())
    for name, value in graph.state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.equal(inside["layers.deep.weight"], before["layers.deep.weight"])
    rounder.write()
    assert all(torch.equal(inside[name], value) for name, value in graph.state_dict().items())


@pytest.mark.parametrize("name", ["joined", "conv_grouped", "conv_transposed_grouped", "linear"])
def test_files_hold_int8_and_give_the_same_numbers(name, tmp_path):
    torch.manual_seed(3)
    pictures = torch.rand(2, 3, 16, 24 if name == "joined" else 16)
    graph = spiking(fresh(name), pictures)
    plain, path = tmp_path / "plain", tmp_path / "whole"
    spikedet.save(SpikingNetwork(graph, 4), plain, half=True)
    Rounder(graph).write()
    spikedet.save(SpikingNetwork(graph, 4), path, half=True)
    types = {name: tensor.dtype for name, tensor in load_file(path).items()}
    whole = {f"{node}.weight" for node in Rounder(graph).integer_weights()}
    assert {name for name, kind in types.items() if kind == torch.int8} == whole
    assert torch.int8 not in {tensor.dtype for tensor in load_file(plain).values()}
    loaded = spikedet.load(path, engine="integers")
    for key, value in loaded.graph.state_dict().items():
        assert torch.equal(value, graph.state_dict()[key])  # nothing is lost, half or not
    expect_same(numbers(loaded.graph), numbers(graph))
    again = tmp_path / "again"
    spikedet.save(loaded, again, half=True)
    assert again.read_bytes() == path.read_bytes()


def test_files_with_scales_that_do_not_fit_are_refused(tmp_path, small_net, pictures):
    graph = spiking(small_net, pictures)
    Rounder(graph).write()
    path = tmp_path / "w"
    spikedet.save(SpikingNetwork(graph, 4), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    good = load_file(path)
    name = next(key for key in good if key.endswith(".weight.scale"))
    weight = name.removesuffix(".scale")
    for broken in (
        {name: torch.ones(7, 1, 1, 1)},
        {name: torch.zeros_like(good[name])},
        {name: torch.full_like(good[name], torch.inf)},
        {name: torch.ones(good[name].shape, dtype=torch.int32)},
        {weight: good[weight].float()},
        {weight + ".amplitude": torch.full((1,), 1e-45)},
    ):
        save_file({**good, **broken}, path, metadata)
        with pytest.raises(WeightsError, match="the scales of|int8 weight|not finite"):
            spikedet.load(path)
    save_file({key: value for key, value in good.items() if key != name}, path, metadata)
    with pytest.raises(WeightsError, match="int8; expected"):
        spikedet.load(path)


@pytest.fixture(scope="module")
def float_network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(12, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 2, 1),
    )  # fmt: skip


@torch.no_grad()
def apart(network, snn, batches):
    return sum((network(x) - snn(x)).square().mean().item() for x in batches[20:24])


def test_the_pass_trains_what_the_engine_runs(float_network, batches):
    options = {"T": 4, "layer_steps": 10, "progress": False, "int8": True}
    rounded = spikedet.convert(float_network, batches[:20], **options)
    trained = spikedet.convert(float_network, batches[:20], end_to_end=60, **options)
    for snn in (rounded, trained):
        assert snn.origin["int8"] is True
        before = copy.deepcopy(snn.graph.state_dict())
        Rounder(snn.graph).write()
        assert all(torch.equal(before[k], v) for k, v in snn.graph.state_dict().items())
        snn.use_engine("integers")
    losses = [apart(float_network, snn, batches) for snn in (rounded, trained)]
    assert losses[1] < 0.9 * losses[0]


def test_int8_and_batch_norm_are_refused(float_network, batches):
    with pytest.raises(UsageError, match="both int8 and batch_norm"):
        spikedet.convert(
            float_network, batches[:2], 2, layer_steps=0, end_to_end=1, end_batch_norm=True,
            int8=True, progress=False,
        )  # fmt: skip
