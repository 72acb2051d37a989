"""Networks of checkpoints of any stage and task: what they are built from, restored and refused."""

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
from spikedet.errors import UsageError, WeightsError, said
from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS, NORMS, WEIGHTED
from spikedet.graph.record import record
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.graph.serialise import describe
from spikedet.runtime.network import SpikingNetwork
from spikedet.task import Task
from spikedet.upgrade import upgraded


def example(imgsz: int) -> Tensor:
    """A picture [1, 3, H, W] for tracing a network made for `imgsz` pixels."""
    return torch.zeros(1, 3, imgsz, imgsz)


def module_of(task: Task, checkpoint: Checkpoint) -> nn.Module:
    """The module that the description in a float checkpoint builds, with its weights.

    It is in evaluation mode, without gradients.

    Raises:
        WeightsError: Of another task, or its tensors do not fit its description.
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
    """A network with fresh weights, as the description in a checkpoint has it."""
    try:
        return task.network(checkpoint.model, len(checkpoint.names))
    except Exception as error:
        raise WeightsError(
            f"the network description in the weights is damaged: {said(error)}"
        ) from None


def graph_of(task: Task, checkpoint: Checkpoint) -> Graph:
    """The graph of a checkpoint of any stage, as it was written.

    That of a float network has its batch norms.

    Raises:
        WeightsError: Of another task, damaged, or its outputs are not what its task takes them for.
    """
    checkpoint = current(task, checkpoint)
    graph = restore_graph(checkpoint)
    task.expect_outputs(graph, checkpoint)
    return graph


def current(task: Task, checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint in the form of today, with its graph and what its outputs mean.

    Raises:
        WeightsError: Of another task, or its tensors do not fit its description.
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
    """A float checkpoint with the graph of its network, so that it runs without the class.

    Args:
        task: Of the network.
        checkpoint: Its tensors are kept.
        network: Built from its description.
    """
    graph = record(network, example(checkpoint.imgsz))
    described = describe(graph)
    names, described["tensors"] = dict(network.named_modules(remove_duplicate=False)), {}
    for node in graph.of(WEIGHTED + NORMS):
        if node.name not in names:  # another call of a layer that several places share
            source = node.name.rpartition("_")[0]
            for key in node.module.state_dict():
                described["tensors"][f"{node.name}.{key}"] = f"{source}.{key}"
    return replace(checkpoint, graph=described, head=task.head_of(network))


def restore(task: Task, checkpoint: Checkpoint, half: bool = False) -> Any:
    """The network of a checkpoint, ready to run.

    Args:
        task: Of the network.
        checkpoint: Of any stage.
        half: Let a spiking network compute in bfloat16 (see `SpikingNetwork.use_bfloat16`).

    Returns:
        The task's runner (see `Task.runner`).

    Raises:
        WeightsError: As `graph_of`.
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
    """The network of a float checkpoint whose outputs one made from `checkpoint` comes near to.

    Raises:
        WeightsError: It is not a float network, or its outputs mean something else.
    """
    expect_stage(teacher, "float")
    if teacher.names != checkpoint.names:
        raise WeightsError(
            f"the teacher has {len(teacher.names)} classes, {', '.join(teacher.names[:3])}, "
            f"...; expected the {len(checkpoint.names)} classes of the network that is trained"
        )
    return restore(task, teacher).network


def expect_convertible(task: Task, description: dict[str, Any], classes: int, imgsz: int) -> None:
    """Refuse a network before it is trained which could not be used or converted afterwards.

    One with fresh weights is converted, and thrown away.

    Raises:
        UsageError: Its pictures are of a size that it cannot take, or its description asks for
            what conversion does not know.
        ConversionError: Names the layer, and says what to put in its place.
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
    """Say of a size of pictures, in words, that the layers of a network do not fit it.

    Raises:
        UsageError: In place of torch's `RuntimeError`.
    """
    try:
        yield
    except RuntimeError as error:
        raise UsageError(f"{size}, which the network cannot take: {said(error)}") from None


def expect_task(task: Task, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of another task.

    Raises:
        WeightsError: Says of which it is.
    """
    if checkpoint.task != task.name:
        raise WeightsError(f"these weights are for {checkpoint.task}; expected {task.name} weights")


def expect_stage(checkpoint: Any, *stages: str) -> None:
    """Refuse a checkpoint, or what runs it, of another stage.

    Raises:
        WeightsError: Says what it is and what was expected.
    """
    if checkpoint.stage not in stages:
        raise WeightsError(
            f"these are {checkpoint.stage} weights; expected {' or '.join(stages)} weights"
        )


def expect_same_network(
    path: Path, checkpoint: Checkpoint, other: Path, expected: Checkpoint
) -> None:
    """Refuse a checkpoint that is not of the network of another, whatever their stages.

    Args:
        path: Of the first one.
        checkpoint: The first one.
        other: Path of the second one.
        expected: The second one.

    Raises:
        WeightsError: Of another task, network or input side, or of other classes.
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
    """A checkpoint of the spiking graph that was made from a stage-I checkpoint."""
    return with_graph(replace(checkpoint, stage="snn", origin=origin), graph)


def pooling_of(description: dict[str, Any]) -> str:
    """How spikes are max-pooled: `spike_pooling: count` (the default) or `step`.

    Raises:
        UsageError: The description says something else.
    """
    pooling = description.get("spike_pooling", "count")
    if pooling not in ("count", "step"):
        raise UsageError(
            f"the network description has spike_pooling: {pooling}; expected count or step"
        )
    return pooling
