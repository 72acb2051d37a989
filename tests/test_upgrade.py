"""Files of the old form (spikedet-1) load, and compute what they did."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from spikedet import networks
from spikedet.checkpoint import Checkpoint, identity, load, restore_graph, sha256
from spikedet.classification.task import CLASSIFICATION
from spikedet.commands import upgrade
from spikedet.conversion.prepare import prepare
from spikedet.errors import WeightsError
from spikedet.graph.operations import ACTIVATIONS, WEIGHTED
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.time import CONSTANT, phases, readouts
from spikedet.networks import spiking_checkpoint, with_graph
from spikedet.neurons.layers import MeanOverTime
from spikedet.stages import stage_two


@pytest.fixture(scope="module", params=["resnet20", "mobilenetv2"])
def spiking(request):
    """A spiking checkpoint of today with step weights and shifted potentials."""
    torch.manual_seed(0)
    description = {"arch": request.param, "width": 0.25}
    network = CLASSIFICATION.network(description, 3)
    graph = prepare(network, torch.rand(1, 3, 32, 32))
    thresholds = {n.name: torch.tensor(0.5 + i / 9) for i, n in enumerate(graph.of(ACTIVATIONS))}
    quantise(graph, thresholds, 4)
    checkpoint = Checkpoint("qc", "classification", description, ("a", "b", "c"), 32, {}, 4)
    checkpoint = with_graph(checkpoint, graph.eval())
    copied = stage_two.copied(CLASSIFICATION, checkpoint)
    for node in copied.of((MeanOverTime,)):
        weighed = MeanOverTime(4)
        weighed.log_weights.data = torch.tensor([0.0, 0.5, 1.0, 1.5])
        copied.replace(node.name, weighed)
    return spiking_checkpoint(checkpoint, copied, {"note": "mine"})


def old_name(graph, name):
    """The name that a tensor had before there were graphs."""
    module, _, key = name.rpartition(".")
    when = phases(graph)
    if module.endswith("_mean"):
        return f"{module.removesuffix('_mean')}.{key}"
    if module.endswith("_spikes"):  # in the place of the batch norm that was folded
        parent, _, number = module.removesuffix("_spikes").rpartition(".")
        return f"{parent}.{int(number) + 1}.{key}"
    node = graph.node(module)
    if isinstance(node.module, WEIGHTED):
        first = when[module] == CONSTANT
        return f"{module}.layer.{key}" if first or module in readouts(graph) else name
    base, _, turn = module.rpartition("_")
    if turn.isdigit():
        return f"{base}.neurons.{turn}.{key}"
    return f"{module}.neurons.0.{key}" if f"{module}_1" in graph else name


@pytest.fixture
def old(spiking, tmp_path):
    graph = restore_graph(spiking)
    tensors = {old_name(graph, k): v.contiguous() for k, v in spiking.tensors.items()}
    header = {
        "stage": "snn", "task": "classification", "model": spiking.model, "names": ["a", "b", "c"],
        "imgsz": 32, "T": 4, "origin": {"note": "mine"},
    }  # fmt: skip
    path = tmp_path / "old.safetensors"
    save_file(tensors, path, {"format": "spikedet-1", "header": json.dumps(header)})
    return path


def test_an_old_file_computes_what_it_did(spiking, old):
    checkpoint = load(old)
    assert checkpoint.graph is None
    x = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        wanted = networks.restore(CLASSIFICATION, spiking)(x)
        assert torch.equal(networks.restore(CLASSIFICATION, checkpoint)(x), wanted)
    assert any("log_weights" in name for name in checkpoint.tensors)


def test_the_tool_writes_the_form_of_today(spiking, old, tmp_path):
    out = tmp_path / "new.safetensors"
    upgrade.run(SimpleNamespace(weights=old, out=out))
    checkpoint = load(out)
    assert checkpoint.graph == spiking.graph
    assert checkpoint.tensors.keys() == spiking.tensors.keys()
    assert all(torch.equal(checkpoint.tensors[k], v) for k, v in spiking.tensors.items())
    assert checkpoint.origin == {"note": "mine", "upgraded_from": sha256(old)}
    assert identity(out) == sha256(old) == identity(old)
    with pytest.raises(WeightsError, match="this file has the current format already"):
        upgrade.run(SimpleNamespace(weights=out, out=tmp_path / "again.safetensors"))
