"""The graph of a checkpoint: describe it, and build it from its description with checks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikedet.checkpoint.checkpoint import Checkpoint
from spikedet.errors import WeightsError
from spikedet.graph.graph import Graph
from spikedet.graph.operations import FLOAT_ACTIVATIONS
from spikedet.graph.serialise import build, describe
from spikedet.graph.time import STEPWISE, phases
from spikedet.neurons.layers import IFNeuron, MeanOverTime
from spikedet.neurons.quantize import QuantClip

MOST_LOG_WEIGHT = 60.0  # largest log weight of a step: sums of exponentials stay finite, not 0


def of_graph(graph: Graph, **fields: Any) -> Checkpoint:
    """Make a checkpoint of a graph. `fields` are the other fields of the checkpoint.

    Raises:
        WeightsError: The network returns something other than dictionaries, lists and tuples of
            tensors.
    """
    try:
        described = describe(graph)
    except TypeError as error:
        raise WeightsError(
            f"the network returns {error}; only dictionaries, lists and tuples of tensors can be "
            "saved"
        ) from None
    return Checkpoint(**fields, tensors=graph.layers.state_dict(), graph=described)


def restore_graph(checkpoint: Checkpoint) -> Graph:
    """Build the graph of a checkpoint, in evaluation mode and without gradients.

    Raises:
        WeightsError: The graph is damaged, or its tensors do not fit.
    """
    try:
        graph = build(checkpoint.graph)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    _expect_stage(graph, checkpoint.stage)
    declared = graph.layers.state_dict()
    assert checkpoint.graph is not None  # or `build` refuses it
    files = checkpoint.graph.get("tensors") or {}  # of layers that several places share
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise WeightsError("the graph does not list the tensors that its layers share")
    tensors = {}
    for name, wanted in declared.items():
        tensor = checkpoint.tensors.get(files.get(name, name))
        if tensor is None:
            raise WeightsError(f"the tensor {name[:80]} of the graph is not in the file")
        if tensor.shape != wanted.shape:
            raise WeightsError(
                f"{name[:80]} is {list(tensor.shape)}; the graph declares {list(wanted.shape)}"
            )
        if tensor.is_floating_point() != wanted.is_floating_point():
            raise WeightsError(f"{name[:80]} is {tensor.dtype}; expected {wanted.dtype}")
        tensors[name] = tensor.clone()
    known = {files.get(name, name) for name in declared}
    if checkpoint.stage != "float" and (more := checkpoint.tensors.keys() - known):
        raise WeightsError(f"the tensor {min(more)[:80]} of the file is not in the graph")
    graph.layers.load_state_dict(tensors, assign=True)
    for quantiser in graph.only(QuantClip):
        quantiser.steps = checkpoint.time_steps
    expect_sound(graph)
    graph.requires_grad_(False)
    return graph.eval()


def _expect_stage(graph: Graph, stage: str) -> None:
    """Check that a graph has the operations of its stage.

    Raises:
        WeightsError: It has operations of another stage, or lacks those of its own.
    """
    kinds = {
        "an activation": FLOAT_ACTIVATIONS,
        "a quantiser": (QuantClip,),
        "a neuron": (IFNeuron,),
        "a mean over time": (MeanOverTime,),
    }
    has = {kind for kind, modules in kinds.items() if graph.of(modules)}
    needs = {"qc": {"a quantiser"}, "snn": {"a neuron", "a mean over time"}}.get(stage, set())
    allowed = needs or {"an activation"}
    if has - allowed or needs - has:
        wrong = f"has {min(has - allowed)}" if has - allowed else f"lacks {min(needs - has)}"
        raise WeightsError(f"the stage is {stage}, but the graph {wrong}; one of them is wrong")
    when = phases(graph)
    for name in graph.outputs:
        if stage == "snn" and when[name] == STEPWISE:
            raise WeightsError(f"the output {name[:80]} of the graph is not a mean over time")


def expect_sound(graph: Graph) -> None:
    """Check that the values of a graph are possible.

    Raises:
        WeightsError: A threshold is not above 0, a variance is below 0, or a step weight is too
            large.
    """
    for node in graph:
        threshold = getattr(node.module, "threshold", None)
        if isinstance(threshold, Tensor):
            size = threshold.detach().abs() if isinstance(node.module, QuantClip) else threshold
            if not bool((size > 0).all()):
                least = threshold.min().item()
                raise WeightsError(f"{node.name}: a threshold of {least:.4g}; expected more than 0")
        variance = getattr(node.module, "running_var", None)
        if variance is not None and not bool((variance >= 0).all()):
            raise WeightsError(f"{node.name}: a variance below 0")
        weights = getattr(node.module, "log_weights", None)
        if weights is not None and not bool((weights.abs() <= MOST_LOG_WEIGHT).all()):
            raise WeightsError(
                f"{node.name}: a time step has the weight exp({weights.abs().max().item():.4g}); "
                f"expected exponents up to {MOST_LOG_WEIGHT}"
            )
