"""Convert checkpoints of the old format (spikedet-1) to the current format.

An old file has no graph. So the network is built from its description and converted again. Then the
old tensors are copied into the new graph. The names of some tensors have changed:

    old name               what it is                                    new name
    X.layer.weight         a first layer or readout (it had a wrapper)   X.weight
    X.log_weights          the step weights of a readout                 X_mean.log_weights
    X.neurons.2.threshold  an activation that is called several times    X_2.threshold
    X.0.weight             a linear bottleneck                           X.weight
    X.1.threshold          the neurons after a linear bottleneck         X_spikes.threshold
    N.threshold            the same, in place of its batch norm N        X_spikes.threshold

`spikedet upgrade --weights OLD --out NEW` writes a file in the current format.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.checkpoint import Checkpoint
from spikedet.conversion.prepare import prepare
from spikedet.errors import ConversionError, WeightsError
from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS, NORMS
from spikedet.graph.record import record
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.graph.serialise import describe
from spikedet.neurons.layers import IFNeuron, MeanOverTime
from spikedet.neurons.quantize import QuantClip


def upgraded(
    checkpoint: Checkpoint, network: nn.Module, example: Tensor, pooling: str, head: dict[str, Any]
) -> Checkpoint:
    """Add a graph to a quantised or spiking checkpoint of the old format.

    Args:
        checkpoint: The old checkpoint.
        network: Network built from its description, with any weights.
        example: A picture [1, 3, H, W] of the input size.
        pooling: Max-pooling of spikes: `count` or `step`.
        head: Description of the outputs.

    Raises:
        WeightsError: The network cannot be converted.
    """
    try:
        graph = record(network, example)
        norms = {node.name: node.inputs[0] for node in graph.of(NORMS)}
        graph = prepare(graph, example)
    except ConversionError as error:
        raise WeightsError(f"the network of this old file cannot be converted: {error}") from None
    quantise(graph, {n.name: torch.ones(()) for n in graph.of(ACTIVATIONS)}, checkpoint.time_steps)
    if checkpoint.stage == "snn":
        make_spiking(graph, pooling=pooling)
    tensors = _renamed(checkpoint.tensors, graph, norms)
    _resize(graph, tensors)
    return replace(checkpoint, tensors=tensors, graph=describe(graph), head=head)


def _renamed(tensors: dict[str, Tensor], graph: Graph, norms: dict[str, str]) -> dict[str, Tensor]:
    """Rename old tensors, and remove those that no output depends on.

    Args:
        tensors: Tensors with their old names.
        graph: The new graph.
        norms: The layer before each folded batch norm. The neurons of a linear bottleneck had the
            name of that batch norm.
    """
    renamed = {}
    for name, tensor in tensors.items():
        module, _, key = name.rpartition(".")
        module = module.removesuffix(".layer")
        if key == "log_weights":
            module = f"{module}_mean"
        turn = re.fullmatch(r"(.*)\.neurons\.(\d+)", module)
        if turn:
            module = turn[1] if turn[2] == "0" else f"{turn[1]}_{turn[2]}"
        if module not in graph and module.endswith(".0") and module[:-2] in graph:
            module = module[:-2]
        if module not in graph and module.endswith(".1") and f"{module[:-2]}_spikes" in graph:
            module = f"{module[:-2]}_spikes"
        if module not in graph and f"{norms.get(module)}_spikes" in graph:
            module = f"{norms[module]}_spikes"
        if module in graph:
            renamed[f"{module}.{key}"] = tensor
    return renamed


def _resize(graph: Graph, tensors: dict[str, Tensor]) -> None:
    """Set shapes that the description does not determine to those of the tensors."""
    for node in graph.of((QuantClip, IFNeuron)):
        for key in ("threshold", "initial"):
            tensor = tensors.get(f"{node.name}.{key}")
            if tensor is not None and hasattr(node.module, key):
                getattr(node.module, key).data = torch.ones_like(tensor)
    for node in graph.of((MeanOverTime,)):
        weights = tensors.get(f"{node.name}.log_weights")
        if weights is not None:
            graph.replace(node.name, MeanOverTime(weights.numel()))
