"""Build, restore and check the networks of checkpoints, for any stage and task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.checkpoint import Checkpoint, of_graph, restore_graph
from spikedet.conversion.prepare import prepare
from spikedet.errors import UsageError, WeightsError, message_of, wrong_task
from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.record import record
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.graph.serialise import describe
from spikedet.methods import label
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.neurons.registry import NEURONS
from spikedet.runtime.network import SpikingNetwork
from spikedet.task import Task
from spikedet.upgrade import upgraded


def example(imgsz: int) -> Tensor:
    """An example picture [1, 3, H, W] for a network with the input side `imgsz`."""
    return torch.zeros(1, 3, imgsz, imgsz)


def module_of(task: Task, checkpoint: Checkpoint) -> nn.Module:
    """Build the module of a float checkpoint from its description, and load its weights.

    It is in evaluation mode, without gradients.

    Raises:
        WeightsError: The checkpoint is of another task, or its tensors do not fit its description.
    """
    expect_stage(checkpoint, "float")
    expect_task(task, checkpoint)
    network = _described(task, checkpoint)
    try:
        network.load_state_dict(checkpoint.tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"tensors do not fit the network description: {reason}") from None
    for name, tensor in checkpoint.tensors.items():
        if name.endswith("running_var") and not bool((tensor >= 0).all()):
            raise WeightsError(f"{name[:80]}: a variance below 0")
    return network.requires_grad_(False)


def _described(task: Task, checkpoint: Checkpoint) -> nn.Module:
    """Build a network with new weights from the description of a checkpoint."""
    try:
        return task.network(checkpoint.model, len(checkpoint.names))
    except Exception as error:
        raise WeightsError(
            f"the network description in the weights is damaged: {message_of(error)}"
        ) from None


def graph_of(task: Task, checkpoint: Checkpoint) -> Graph:
    """The graph of a checkpoint of any stage, as it was saved.

    The graph of a float network has its batch norms.

    Raises:
        WeightsError: The checkpoint is of another task, is damaged, or its outputs do not fit its
            task.
    """
    checkpoint = current(task, checkpoint)
    graph = restore_graph(checkpoint)
    task.expect_outputs(graph, checkpoint)
    return graph


def current(task: Task, checkpoint: Checkpoint) -> Checkpoint:
    """Convert a checkpoint to the current format, with its graph and its output description.

    Raises:
        WeightsError: The checkpoint is of another task, or its tensors do not fit its description.
    """
    expect_task(task, checkpoint)
    if checkpoint.graph is not None:
        return checkpoint
    if checkpoint.stage == "float":
        return float_checkpoint(task, checkpoint, module_of(task, checkpoint))
    network = _described(task, checkpoint)
    try:
        pooling = pooling_of(checkpoint.model)
    except UsageError as error:
        raise WeightsError(str(error)) from None
    head = task.head_of(network)
    return upgraded(checkpoint, network, example(checkpoint.imgsz), pooling, head)


def float_checkpoint(task: Task, checkpoint: Checkpoint, network: nn.Module) -> Checkpoint:
    """Add the graph of its network to a float checkpoint, so that it runs without the class.

    Args:
        task: Task of the network.
        checkpoint: The float checkpoint. Its tensors are kept.
        network: The network built from its description.

    Raises:
        WeightsError: A layer has a tensor that is not a tensor of the network, for example a weight
            that `forward` computes. The file could not hold both.
    """
    graph = record(network, example(checkpoint.imgsz))
    described = describe(graph)
    described["tensors"] = {}
    stored = network.state_dict()
    for name, tensor in graph.layers.state_dict().items():
        layer, _, key = name.rpartition(".")
        source = graph.sources.get(name)
        if key == "num_batches_tracked":  # which no operation reads
            mean = graph.sources.get(f"{layer}.running_mean", "")
            source = mean.removesuffix("running_mean") + key
        if source not in stored or stored[source].shape != tensor.shape:
            raise WeightsError(
                f"{name} is computed in forward, and not a tensor of the network; a float "
                "checkpoint cannot hold such a network"
            )
        if source != name:  # the layer or its weight is used in several places
            described["tensors"][name] = source
    return replace(checkpoint, graph=described, head=task.head_of(network))


def restore(task: Task, checkpoint: Checkpoint, half: bool = False) -> Any:
    """Restore the network of a checkpoint.

    Args:
        task: Task of the network.
        checkpoint: Checkpoint of any stage.
        half: Compute a spiking network in bfloat16 (see `SpikingNetwork.use_bfloat16`).

    Returns:
        The task's runner (see `Task.runner`).

    Raises:
        WeightsError: See `graph_of`.
    """
    checkpoint = current(task, checkpoint)
    graph = graph_of(task, checkpoint)
    if checkpoint.stage == "float":
        fold_batch_norm(graph)
        graph.requires_grad_(False)  # those that folding made, too
    graph.to(memory_format=torch.channels_last)
    if checkpoint.stage != "snn":
        return task.runner(graph, checkpoint)
    network = SpikingNetwork(graph, checkpoint.time_steps, chunk=4 * task.batch)
    if half:
        network.use_bfloat16()
    return task.runner(network, checkpoint)


def teacher_of(task: Task, checkpoint: Checkpoint, teacher: Checkpoint) -> nn.Module:
    """Restore the teacher of a network that is made from `checkpoint`.

    Raises:
        WeightsError: The teacher is not a float network, or its outputs or classes differ.
    """
    expect_stage(teacher, "float")
    if teacher.names != checkpoint.names:
        raise WeightsError(
            f"the teacher has {len(teacher.names)} classes, {', '.join(teacher.names[:3])}, "
            f"...; expected the {len(checkpoint.names)} classes of the network that is trained"
        )
    return restore(task, teacher).network


def expect_convertible(task: Task, description: dict[str, Any], classes: int, imgsz: int) -> None:
    """Check before the training that a network can be converted afterwards.

    For this, a network with new weights is built and converted once.

    Raises:
        UsageError: The network cannot take pictures of this size, or its description is wrong.
        ConversionError: A layer cannot be converted. The message names it and says what to do.
    """
    network = task.network(description, classes)
    stride = task.stride(task.head_of(network))
    if imgsz < stride or imgsz % stride:
        raise UsageError(f"imgsz is {imgsz}; expected a multiple of {stride}")
    with fitting(f"imgsz is {imgsz}"):
        graph = prepare(network, example(imgsz))
    quantise(graph, {n.name: torch.ones(()) for n in graph.of(ACTIVATIONS)}, 1)
    make_spiking(graph, pooling=pooling_of(description))


@contextmanager
def fitting(size: str) -> Iterator[None]:
    """Convert a `RuntimeError` of torch inside the block to an error about the picture size.

    Args:
        size: The size in words, for the message.

    Raises:
        UsageError: The network cannot take this size.
    """
    try:
        yield
    except RuntimeError as error:
        raise UsageError(f"{size}, which the network cannot take: {message_of(error)}") from None


def expect_task(task: Task, checkpoint: Checkpoint) -> None:
    """Check the task of a checkpoint.

    Raises:
        WeightsError: It is another task.
    """
    if checkpoint.task != task.name:
        raise wrong_task(checkpoint.task, f"{task.name} weights")


def expect_stage(checkpoint: Any, *stages: str) -> None:
    """Check the stage of a checkpoint or of a runner.

    Raises:
        WeightsError: It is another stage. The message names the expected stages.
    """
    if checkpoint.stage not in stages:
        raise WeightsError(
            f"these are {checkpoint.stage} weights; expected {' or '.join(stages)} weights"
        )


def expect_same_network(
    path: Path, checkpoint: Checkpoint, other: Path, expected: Checkpoint
) -> None:
    """Check that two checkpoints are of the same network. Their stages may differ.

    Args:
        path: Path of the first checkpoint.
        checkpoint: The first checkpoint.
        other: Path of the second checkpoint.
        expected: The second checkpoint.

    Raises:
        WeightsError: Their tasks, networks, input sides or classes differ.
    """

    def identity(one: Checkpoint) -> dict[str, Any]:
        # the conversion chooses how spikes are pooled
        model = {key: value for key, value in one.model.items() if key != "spike_pooling"}
        return {
            "task": one.task, "list of classes": one.names, "network description": model,
            "input size": one.imgsz,
        }  # fmt: skip

    wanted = identity(expected)
    for key, value in identity(checkpoint).items():
        if value != wanted[key]:
            raise WeightsError(
                f"{path}: its {key} differs from that of {other}; expected the same network"
            )


def with_graph(checkpoint: Checkpoint, graph: Graph) -> Checkpoint:
    """A checkpoint with another graph."""
    fields = {k: v for k, v in vars(checkpoint).items() if k not in ("tensors", "graph")}
    return of_graph(graph, **fields)


def spiking_checkpoint(checkpoint: Checkpoint, graph: Graph, origin: dict[str, Any]) -> Checkpoint:
    """Make the checkpoint of a spiking graph that was made from a stage-I checkpoint."""
    return with_graph(replace(checkpoint, stage="snn", origin=origin), graph)


def neuron_kinds(checkpoint: Checkpoint) -> list[str]:
    """The kinds of neurons in a checkpoint, sorted: names in `neurons.registry`."""
    nodes = (checkpoint.graph or {}).get("nodes")
    named = (
        [node for node in nodes if isinstance(node, list | tuple)]
        if isinstance(nodes, list | tuple)
        else []
    )
    found = {node[1] for node in named if len(node) > 1 and isinstance(node[1], str)}
    return sorted(found & set(NEURONS))


def is_correcting(checkpoint: Checkpoint) -> bool:
    """Whether the network is spiking and has neurons that take back spikes."""
    return "correcting" in neuron_kinds(checkpoint)


def can_run_longer(graph: Graph) -> bool:
    """Whether a spiking network may run for more steps than it was made for, without loss.

    This holds for neurons that take back spikes: with more steps their rates approach the
    activations before rounding.
    """
    return any(node.kind == "correcting" for node in graph)


def margins_of(graph: Graph) -> list[float]:
    """The margins of the neurons that take back spikes (see `neurons.correcting`), each once."""
    return sorted({neuron.margin for neuron in graph.only(CorrectingNeuron)})


def method_name(checkpoint: Checkpoint) -> str:
    """The name of a network in tables.

    It is the method, with `sparse` if stage I had a penalty on operations, and `correcting` if the
    neurons take back spikes.
    """
    kind = ", sparse" if checkpoint.origin.get("stage1_sparsity") else ""
    kind += ", correcting" if is_correcting(checkpoint) else ""
    return label(checkpoint.stage, checkpoint.origin) + kind


def pooling_of(description: dict[str, Any]) -> str:
    """The max-pooling of spikes in a description: `spike_pooling: count` (default) or `step`.

    Raises:
        UsageError: The description has another value.
    """
    pooling = description.get("spike_pooling", "count")
    if pooling not in ("count", "step"):
        raise UsageError(
            f"the network description has spike_pooling: {pooling}; expected count or step"
        )
    return pooling
