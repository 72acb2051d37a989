"""Stage II for any task: from stage `qc` to a calibrated checkpoint of stage `snn`.

The layer-wise pass is from the paper. The end-to-end pass after it is ours. Baselines use spiking
networks without calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikedet.checkpoint import Checkpoint, fingerprint
from spikedet.conversion.calibrate import LayerReport, calibrate, choose
from spikedet.conversion.copied import spiking_copy
from spikedet.conversion.distill import distill
from spikedet.conversion.features import Features, taught, watched
from spikedet.conversion.prepare import prepare
from spikedet.conversion.stored import StoredOutputs
from spikedet.engines.rounding import Rounder
from spikedet.errors import UsageError
from spikedet.graph.graph import INPUT, Graph
from spikedet.networks import (
    example,
    expect_stage,
    fitting,
    graph_of,
    pooling_of,
    restore,
    teacher_of,
)
from spikedet.precision import as_float, device_of, layout, mixed
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import EndToEnd, Plan
from spikedet.stages.stage_one import untuned
from spikedet.task import Samples, Task
from spikedet.training.run import expect_alike, read_state, save_state
from spikedet.training.seeds import seed_generators, seed_of
from spikedet.training.sides import expect_growth, growing_side, resized


def copied(
    task: Task,
    checkpoint: Checkpoint,
    initial: float = 0.5,
    shift: bool = False,
    pictures: Tensor | None = None,
    neuron: str = "neuron",
    margin: float = 0.0,
) -> Graph:
    """Copy the weights and thresholds of stage I into a spiking graph, without calibration (eq 16).

    Args:
        task: Task of the network.
        checkpoint: Stage-I checkpoint.
        initial: Initial potential in units of the threshold.
        shift: Add theta / (2 T) to every current (see `shift_currents`).
        pictures: Pictures for the check of the copy, [B, 3, H, W]. None: noise.
        neuron: Name of a neuron in `neurons.registry`.
        margin: Margin of neurons that take back spikes.

    Raises:
        WeightsError: The checkpoint is of another stage, or see `networks.graph_of`.
        ConversionError: The graph cannot be converted, or the check of the copy fails.
    """
    expect_stage(checkpoint, "qc")
    pooling = pooling_of(checkpoint.model)
    graph = graph_of(task, checkpoint)
    T = checkpoint.time_steps
    return spiking_copy(graph, T, initial, shift, pooling, neuron, pictures, margin)


def layer_wise(
    task: Task,
    checkpoint: Checkpoint,
    network: Graph,
    samples: Samples,
    plan: Plan,
    report: Callable[[LayerReport, int, int], None] | None = None,
    teacher: Checkpoint | None = None,
) -> tuple[list[LayerReport], int, int]:
    """Run stage II layer by layer (eq 16-21), in place, on the device of the network.

    All batches have the same size. Pictures that do not fill a batch are not used. At least one
    batch is held out.

    Args:
        task: Task of the network.
        checkpoint: Stage-I checkpoint.
        network: The spiking network made from `checkpoint`.
        samples: Training samples.
        plan: Settings of stage II.
        report: Function that is called after each layer.
        teacher: Float checkpoint whose activations are the targets. None: those of `checkpoint`.

    Returns:
        A report for each layer, the number of pictures that were fitted, and the number of held-out
        pictures.

    Raises:
        DataError: There are too few samples to fit some and hold out others.
    """
    layers = plan.layers
    chosen = samples.pick(layers.pictures + layers.held, plan.seed)
    size = layers.size_of_group(len(chosen))
    form, device = layout(network), device_of(network)
    pictures = [
        batch.to(device, memory_format=form)
        for batch in chosen.pictures(checkpoint, size)
        if len(batch) == size
    ]
    target = graph_of(task, teacher or checkpoint)
    if teacher is not None:
        prepare(target, example(checkpoint.imgsz))
    target.to(device).to(memory_format=form)
    fit, held_out = layers.divided(pictures)
    reports = calibrate(target, network, fit, held_out, checkpoint.time_steps, layers, report)
    return reports, size * len(fit), size * len(held_out)


def _spiking(network: Graph, checkpoint: Checkpoint, plan: Plan) -> SpikingNetwork:
    """The spiking network for the end-to-end pass: all time steps of a batch run at once."""
    T = checkpoint.time_steps
    return SpikingNetwork(network, T, chunk=plan.end.batch * T)


def expect_end_size(task: Task, checkpoint: Checkpoint, plan: Plan, network: Graph) -> None:
    """Check that the spiking network can take the picture sizes of the end-to-end pass.

    Raises:
        UsageError: The size is larger than that of the network, not a multiple of its stride, too
            small for its layers, or another size when each neuron has its own initial potential.
        TrainingError: The size is too small for the loss.
    """
    size = plan.end.grow_from
    if size in (None, checkpoint.imgsz):
        return
    expect_growth("the end-to-end pass", size, checkpoint.imgsz, task.stride(checkpoint.head))
    single = plan.layers.per_neuron or any(
        tensor.ndim == 3
        for name, tensor in network.layers.state_dict().items()
        if name.endswith("initial")
    )
    if single:
        raise UsageError(
            f"a network with one initial potential per neuron takes {checkpoint.imgsz} pixels "
            "only, "
            f"but grow_from of the end-to-end pass is {size}; leave it out"
        )
    if plan.end.truth:
        task.expect_side(checkpoint.head, size)
    with fitting(f"the end-to-end pass was told to grow from {size}"), torch.no_grad():
        channels = network.shapes[INPUT][1]
        graph_of(task, checkpoint)(torch.zeros(1, channels, size, size))


def expect_layers(task: Task, checkpoint: Checkpoint, samples: Samples, plan: Plan) -> None:
    """Check that the converted network will have the layers that the plan names.

    Args:
        task: Task of the network.
        checkpoint: Float checkpoint.
        samples: Training samples.
        plan: Settings of stage II.

    Raises:
        UsageError: A layer does not exist. The message lists the layers.
    """
    if plan.layers.layers is not None:
        roughly = untuned(task, checkpoint, samples.pick(1), T=1)
        spiking = StoredOutputs(copied(task, roughly), [example(checkpoint.imgsz)], T=1)
        choose(spiking.names, plan.layers.layers)


def end_to_end(
    task: Task,
    checkpoint: Checkpoint,
    network: Graph,
    samples: Samples,
    plan: Plan,
    teacher: Checkpoint | None = None,
    state: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Run the end-to-end pass: distil a teacher into the whole spiking network, in place.

    Args:
        task: Task of the network.
        checkpoint: Stage-I checkpoint that the spiking network was made from.
        network: The calibrated spiking network.
        samples: Training samples. They are augmented.
        plan: Settings of stage II.
        teacher: Float checkpoint to distil from. None: the stage-I network.
        state: File for the state of the pass, written after every `distill.ROUND` training steps.
            If the file exists, the pass continues from it. The result is the same as without the
            interruption.
        on_step: Function that is called with each training step and its loss.

    Returns:
        Entries for the origin of the network: `int8`, `also_for`, and the result of `distill`.

    Raises:
        UsageError: See `expect_end_size` and `distill`.
        TrainingError: The state is damaged, or belongs to another pass.
    """
    expect_end_size(task, checkpoint, plan, network)
    spiking = _spiking(network, checkpoint, plan)
    agreed = _resume_settings(checkpoint, network, samples, plan, teacher)

    def write(reached: dict[str, Any]) -> None:
        if state is not None:
            save_state({**reached, "about": agreed}, state)

    spikes = distill(
        spiking,
        lambda first: _round(task, checkpoint, samples, plan, first),
        _end_loss(task, checkpoint, spiking, plan, teacher),
        plan.end,
        state=_reached(state, agreed),
        on_step=on_step,
        on_round=write if state else None,
    )
    return {**plan.end.origin(spiking.T), **spikes}


def _resume_settings(
    checkpoint: Checkpoint,
    network: Graph,
    samples: Samples,
    plan: Plan,
    teacher: Checkpoint | None,
) -> dict[str, Any]:
    """The settings that must be equal in a resumed end-to-end pass."""
    agreed = {"T": checkpoint.T, "seed": plan.seed, **vars(plan.end)}
    agreed["begun with"] = fingerprint(network.layers.state_dict())
    agreed["teacher"] = None if teacher is None else fingerprint(teacher.tensors)
    agreed["data"] = samples.fingerprint()
    return agreed


def _round(
    task: Task, checkpoint: Checkpoint, samples: Samples, plan: Plan, first: int
) -> Iterator[dict[str, Any]]:
    """Batches of the end-to-end pass from training step `first` on; their pictures may grow."""
    seed_generators(plan.seed, first)  # of augmentation that draws in this process
    drawn = samples.augmented(checkpoint, plan.end, seed_of(plan.seed, first))
    stride = task.stride(checkpoint.head)
    for step, batch in enumerate(drawn, first):
        part = step / plan.end.steps
        side = growing_side(plan.end.grow_from, checkpoint.imgsz, part, stride)
        yield {**batch, "img": resized(batch["img"], side)}


def round_weights(network: Graph) -> None:
    """Round the weights of a spiking network in place, as the integer engines round them.

    Raises:
        NoIntegers: The integer engines do not support the network.
    """
    Rounder(network).write()


def tuning_loss(
    task: Task,
    checkpoint: Checkpoint,
    network: Graph,
    samples: Samples,
    plan: Plan,
    teacher: Checkpoint | None = None,
) -> float:
    """Mean loss of the end-to-end pass on tuning samples.

    The samples are augmented in the same way at every call. With few samples, this loss compares
    two networks more reliably than AP or accuracy: rounding alone changes the AP of 300 pictures by
    a point.

    Args:
        task: Task of the network.
        checkpoint: Stage-I checkpoint that the spiking network was made from.
        network: The spiking network.
        samples: Tuning samples.
        plan: Settings of stage II. The batch size and the weight of the annotations are used.
        teacher: See `end_to_end`.

    Raises:
        WeightsError: The teacher does not fit the network (see `networks.teacher_of`).
    """
    spiking = _spiking(network, checkpoint, plan)
    plan = replace(plan, end=replace(plan.end, features=0.0))  # the outputs are what counts
    loss = _end_loss(task, checkpoint, spiking, plan, teacher)
    count = tuning_count(samples, plan) // min(plan.end.batch, len(samples))
    seed_generators(0)  # of augmentation that draws in this process
    drawn = samples.augmented(checkpoint, plan.end, 0, for_evaluation=True)
    batches = islice(drawn, count)
    with torch.no_grad():
        return sum(loss(batch).item() for batch in batches) / count


def tuning_count(samples: Sized, plan: Plan) -> int:
    """Number of samples that `tuning_loss` uses: full batches, or all if they fill none."""
    return len(samples) - len(samples) % plan.end.batch or len(samples)


def _end_loss(
    task: Task,
    checkpoint: Checkpoint,
    spiking: SpikingNetwork,
    plan: Plan,
    teacher: Checkpoint | None,
) -> Callable[[dict[str, Any]], Tensor]:
    """Make the loss function of the end-to-end pass, for a batch of `Samples.augmented`."""
    if teacher is None:
        guide = restore(task, checkpoint).network
    else:
        guide = teacher_of(task, checkpoint, teacher)
    form, device = layout(spiking), device_of(spiking)
    guide.to(device)
    steps = plan.end.read_after(spiking.T)
    weight = plan.end.features
    features = Features(spiking.graph, guide, weight) if weight else None

    def loss(batch: dict[str, Any]) -> Tensor:
        pictures = batch["img"].to(device, memory_format=form)
        with mixed(device.type):
            with torch.no_grad():
                targets, wanted = taught(features, guide, pictures)
            with watched(features) as rates:
                several = spiking.after(pictures, steps)
        targets = as_float(targets)
        pairs = [(as_float(outputs), targets) for outputs in several]
        losses = [task.loss(checkpoint, spiking.graph, p, batch, plan.end) for p in pairs]
        total = torch.stack(losses).mean()
        if features is None:
            return total
        return total + features.loss(rates, wanted)

    return loss


def _reached(state: Path | None, agreed: dict[str, Any]) -> dict[str, Any] | None:
    """Read the state of an interrupted end-to-end pass. None if there is no file.

    Raises:
        TrainingError: The file is damaged, or belongs to a pass with other settings.
    """
    if state is None or not state.is_file():
        return None
    reached = read_state(state, "about")
    # options that an older version did not have were what they are by default
    expect_alike(state, {**vars(EndToEnd()), **reached["about"]}, agreed)
    return reached
