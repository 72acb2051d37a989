"""Files of the old form (spikedet-1) as those of today.

An old file had no graph: the network was built from its description, converted once more, and its
tensors were put into what came out. So it is here, one last time. Names of tensors changed:

    X.layer.weight         first layers and readouts were wrapped        X.weight
    X.log_weights          what a step counts in a readout               X_mean.log_weights
    X.neurons.2.threshold  an activation that is called several times    X_2.threshold
    X.0.weight             a linear bottleneck                           X.weight
    X.1.threshold          and the neurons behind it                     X_spikes.threshold
    N.threshold            or in place of its batch norm N               X_spikes.threshold

`spikedet upgrade --weights OLD --out NEW` stores the new form.
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
    """A quantised or spiking checkpoint of the old form with a graph.

    Args:
        checkpoint: The checkpoint.
        network: Built from its description, with any weights.
        example: A picture [1, 3, H, W] of its size.
        pooling: How its spikes are max-pooled.
        head: What its outputs mean.

    Raises:
        WeightsError: The network does not convert.
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
    """Tensors under the names of today, without those that no output depends on.

    Args:
        tensors: Under their old names.
        graph: What they are for.
        norms: The layer before each batch norm that was folded; the neurons of a linear bottleneck
            had its place.
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
    """Give what the description leaves open the shapes that the tensors have."""
    for node in graph.of((QuantClip, IFNeuron)):
        for key in ("threshold", "initial"):
            tensor = tensors.get(f"{node.name}.{key}")
            if tensor is not None and hasattr(node.module, key):
                getattr(node.module, key).data = torch.ones_like(tensor)
    for node in graph.of((MeanOverTime,)):
        weights = tensors.get(f"{node.name}.log_weights")
        if weights is not None:
            graph.replace(node.name, MeanOverTime(weights.numel()))
