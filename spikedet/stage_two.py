"""Stage II of any task: from a checkpoint of stage `qc` to a calibrated one of stage `snn`.

The layer-wise pass is the paper's, the end-to-end pass after it ours. What is made here without any
calibration are the baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikedet.checkpoint import Checkpoint, fingerprint
from spikedet.conversion.calibrate import LayerReport, Options, calibrate, choose
from spikedet.conversion.copied import spiking_copy
from spikedet.conversion.distill import distill
from spikedet.conversion.prepare import prepare
from spikedet.conversion.stored import Stored
from spikedet.engines.rounding import Rounder
from spikedet.errors import DataError, TrainingError, UsageError
from spikedet.graph.graph import INPUT, Graph
from spikedet.precision import device_of, layout, mixed
from spikedet.runtime.network import SpikingNetwork
from spikedet.stage_one import untuned
from spikedet.task import (
    Task,
    as_float,
    expect_stage,
    fitting,
    pooling_of,
)
from spikedet.training import (
    expect_growth,
    growing_side,
    read_state,
    resized,
    save_state,
    seed_generators,
)


@dataclass
class Plan:
    """How much stage II does.

    Attributes:
        layers: Layer-wise calibration.
        pictures, held: Training pictures to fit, and others to judge each layer by.
        batch: Pictures that go through a layer at once.
        end_to_end: Steps of the end-to-end pass, 0 for none.
        end_batch: Pictures a step of it.
        end_grow_from: Their side in pixels at first, growing to that of the network in 3/4 of the
            steps, as half the side is a quarter of the time; always that of the network when None.
            A pass at a smaller side alone leaves a network that is worse at its own.
        end_rate: Its relative learning rate.
        end_batch_norm: Train beside batch norm that is folded afterwards. It helped a classifier at
            T = 4, neither that at T = 8 nor a detector with batches of 8.
        end_workers: Loader processes of it, on which the random numbers of its pictures depend.
        end_temperature: What a classifier's outputs are divided by that it distils.
        end_jpeg: Quality, 1 to 100, that a classifier's pictures of it are compressed with after
            each crop, 0 for none; its tuning pictures are taken as they are.
        int8: Train the end-to-end pass with whole weights, and leave them in the end: a network
            that the events engine runs as it was trained, and whose file is half as large.
        sparsity: Weight of a penalty on the synaptic operations in the end-to-end pass, which are
            counted in units of the float network's multiplications (see `conversion.sparsity`).
        truth: Weight of the task's own loss on the annotations beside the distillation.
        seed: Which pictures are drawn.
    """

    layers: Options = field(default_factory=Options)
    pictures: int = 256
    held: int = 64
    batch: int = 8
    end_to_end: int = 400
    end_batch: int = 8
    end_grow_from: int | None = None
    end_rate: float = 4e-3
    end_batch_norm: bool = False
    end_workers: int = 0
    end_temperature: float = 1.0
    end_jpeg: int = 0
    int8: bool = False
    sparsity: float = 0.0
    truth: float = 1.0
    seed: int = 0


def copied(
    task: Task,
    made: Checkpoint,
    initial: float = 0.5,
    shift: bool = False,
    pictures: Tensor | None = None,
) -> Graph:
    """Spiking graph with the weights and thresholds of stage I, nothing calibrated (eq 16).

    Args:
        task: Of the network.
        made: Stage-I checkpoint.
        initial: Potential before the first step in units of the threshold.
        shift: Add theta / (2 T) to every current (see `shift_currents`).
        pictures: What the copy is checked on, [B, 3, H, W]; noise when None.

    Raises:
        WeightsError: Of another stage, or as `Task.bare`.
        ConversionError: What cannot be converted, or what did not come out right.
    """
    expect_stage(made, "qc")
    pooling = pooling_of(made.model)
    return spiking_copy(task.graph(made), made.T, initial, shift, pooling, pictures=pictures)


def layer_wise(
    task: Task,
    made: Checkpoint,
    network: Graph,
    samples: Sequence,
    plan: Plan,
    report: Callable[[LayerReport, int, int], None] | None = None,
    teacher: Checkpoint | None = None,
) -> tuple[list[LayerReport], int, int]:
    """Stage II, layer by layer (eq 16-21), in place, on the network's device.

    Batches have one size; what is left of the pictures is not used, and of two batches one is held.

    Args:
        task: Of the network.
        made: Stage-I checkpoint.
        network: The spiking network made from it.
        samples: Training samples.
        plan: How much is done.
        report: Called after each layer.
        teacher: Whose activations are the targets, in place of `made`: the float checkpoint.

    Returns:
        A report for each layer, how many pictures they were fitted to, and by how many judged.

    Raises:
        DataError: Too few samples to fit to some and judge by others.
    """
    chosen = task.pick(samples, plan.pictures + plan.held, plan.seed)
    if len(chosen) < 2:
        raise DataError(f"{len(chosen)} pictures to calibrate with; expected 2 or more")
    size = min(plan.batch, plan.pictures, len(chosen) // 2)
    form, device = layout(network), device_of(network)
    pictures = [
        batch.to(device, memory_format=form)
        for batch in task.pictures(chosen, made, size)
        if len(batch) == size
    ]
    held = max(1, round(len(pictures) * plan.held / (plan.pictures + plan.held)))
    held = min(held, len(pictures) - 1)
    target = task.graph(teacher or made)
    if teacher is not None:
        prepare(target, task.example(made.imgsz))
    target.to(device, memory_format=form)
    fit, judge = pictures[:-held], pictures[-held:]
    reports = calibrate(target, network, fit, judge, made.T, plan.layers, report)
    return reports, size * len(fit), size * len(judge)


def expect_end_size(task: Task, made: Checkpoint, plan: Plan, network: Graph) -> None:
    """Refuse pictures of the end-to-end pass that a spiking network cannot take.

    Raises:
        UsageError: Larger than the network's, not a multiple of its stride, too small for its
            layers, or smaller where each neuron has an initial potential of its own.
    """
    size = plan.end_grow_from
    if size in (None, made.imgsz):
        return
    expect_growth("the end-to-end pass", size, made.imgsz, task.stride(made.head))
    single = plan.layers.per_neuron or any(
        tensor.ndim == 3
        for name, tensor in network.layers.state_dict().items()
        if name.endswith("initial")
    )
    if single:
        raise UsageError(
            f"a network with an initial potential for each neuron takes {made.imgsz} pixels; "
            f"the end-to-end pass was told to grow from {size}"
        )
    with fitting(f"the end-to-end pass was told to grow from {size}"), torch.no_grad():
        channels = network.shapes[INPUT][1]
        task.graph(made)(torch.zeros(1, channels, size, size))


def expect_layers(task: Task, made: Checkpoint, samples: Sequence, plan: Plan) -> None:
    """Refuse names of layers that a float network will not have once it is converted.

    Args:
        task: Of the network.
        made: Float checkpoint.
        samples: Training samples.
        plan: What is to be done.

    Raises:
        UsageError: Names the layers that there are.
    """
    if plan.layers.layers is not None:
        roughly = untuned(task, made, task.pick(samples, 1), T=1)
        spiking = Stored(copied(task, roughly), [task.example(made.imgsz)], T=1)
        choose(spiking.names, plan.layers.layers)


def end_to_end(
    task: Task,
    made: Checkpoint,
    network: Graph,
    samples: Sequence,
    plan: Plan,
    teacher: Checkpoint | None = None,
    state: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Distil a teacher into the spiking network, whole, in place, on its device.

    Args:
        task: Of the network.
        made: Stage-I checkpoint that the spiking network was made from.
        network: The calibrated spiking network.
        samples: Training samples, which are augmented.
        plan: How much is done.
        teacher: Float checkpoint; the stage-I network teaches when None.
        state: File that the pass can be taken up from, written after every `distill.ROUND` steps.
            Where it is there already the pass goes on from it, and ends as if it had not been
            interrupted.
        on_step: Called with the step and its loss.

    Returns:
        For the origin of the network: `int8`, and what `distill` returns of the spikes.

    Raises:
        UsageError: As `expect_end_size`, and as `distill`.
        TrainingError: The state is damaged, or of another pass.
    """
    expect_end_size(task, made, plan, network)
    spiking = SpikingNetwork(network, made.T, chunk=plan.end_batch * made.T)
    loss = _end_loss(task, made, spiking, plan, teacher)

    def batches(first: int) -> Iterator[dict[str, Any]]:
        seed = (plan.seed << 32) + first
        seed_generators(seed)  # of augmentation that draws in this process
        how = (plan.end_batch, seed, plan.end_workers, plan.end_jpeg)
        drawn = task.augmented(samples, made, *how)
        for step, batch in enumerate(drawn, first):
            part, stride = step / plan.end_to_end, task.stride(made.head)
            side = growing_side(plan.end_grow_from, made.imgsz, part, stride)
            yield {**batch, "img": resized(batch["img"], side)}

    about = {"T": made.T, "steps": plan.end_to_end, "rate": plan.end_rate, "seed": plan.seed}
    about |= {"batch": plan.end_batch, "grow from": plan.end_grow_from, "truth": plan.truth}
    about |= {"workers": plan.end_workers, "batch norm": plan.end_batch_norm}
    about |= {"temperature": plan.end_temperature, "jpeg": plan.end_jpeg}
    about |= {"int8": plan.int8, "sparsity": plan.sparsity}
    about["begun with"] = fingerprint(network.layers.state_dict())
    about["teacher"] = None if teacher is None else fingerprint(teacher.tensors)
    about["data"] = task.fingerprint(samples)

    def write(reached: dict[str, Any]) -> None:
        save_state({**reached, "about": about}, state)

    spikes = distill(
        spiking,
        batches,
        loss,
        steps=plan.end_to_end,
        rate=plan.end_rate,
        batch_norm=plan.end_batch_norm,
        int8=plan.int8,
        sparsity=plan.sparsity,
        state=_reached(state, about),
        on_step=on_step,
        on_round=write if state else None,
    )
    return {**({"int8": True} if plan.int8 else {}), **spikes}


def whole(network: Graph) -> None:
    """Round a spiking network to what the integer engines make of it, in place.

    Raises:
        NoIntegers: It cannot be computed in whole numbers.
    """
    Rounder(network).write()


def tuning_loss(
    task: Task,
    made: Checkpoint,
    network: Graph,
    samples: Sequence,
    plan: Plan,
    teacher: Checkpoint | None = None,
) -> float:
    """Mean loss of the end-to-end pass on samples that are augmented alike at every call.

    Of two networks the one with the lower loss is the better one with less doubt than by AP or
    accuracy on as few samples: rounding alone moves AP of 300 pictures by a point.

    Args:
        task: Of the network.
        made: Stage-I checkpoint that the spiking network was made from.
        network: The spiking network.
        samples: Kept aside from training.
        plan: How much is done; batches and the weight of the annotations count.
        teacher: As of `end_to_end`.

    Raises:
        WeightsError: A teacher that cannot teach (see `Task.teacher`).
    """
    spiking = SpikingNetwork(network, made.T, chunk=plan.end_batch * made.T)
    loss = _end_loss(task, made, spiking, plan, teacher)
    count = judged(samples, plan) // min(plan.end_batch, len(samples))
    seed_generators(0)  # of augmentation that draws in this process
    drawn = task.augmented(samples, made, plan.end_batch, 0, plan.end_workers, jpeg=0)
    batches = islice(drawn, count)
    with torch.no_grad():
        return sum(loss(batch).item() for batch in batches) / count


def judged(samples: Sequence, plan: Plan) -> int:
    """How many of the samples `tuning_loss` takes: whole batches, or all where they are fewer."""
    return len(samples) - len(samples) % plan.end_batch or len(samples)


def _end_loss(
    task: Task,
    made: Checkpoint,
    spiking: SpikingNetwork,
    plan: Plan,
    teacher: Checkpoint | None,
) -> Callable[[dict[str, Any]], Tensor]:
    """The loss of the end-to-end pass, of a batch of `task.augmented`."""
    guide = task.restore(made).network if teacher is None else task.teacher(made, teacher)

    form, device = layout(spiking), device_of(spiking)
    guide.to(device)

    def loss(batch: dict[str, Any]) -> Tensor:
        pictures = batch["img"].to(device, memory_format=form)
        with mixed(device.type):
            with torch.no_grad():
                wanted = guide(pictures)
            found = spiking(pictures)
        outputs = (as_float(found), as_float(wanted))
        return task.loss(made, spiking.graph, *outputs, batch, plan.truth, plan.end_temperature)

    return loss


def _reached(state: Path | None, about: dict[str, Any]) -> dict[str, Any] | None:
    """What the file of an interrupted end-to-end pass holds, None without one.

    Raises:
        TrainingError: Damaged, or of a pass with other settings.
    """
    if state is None or not state.is_file():
        return None
    reached = read_state(state, "about")
    held = reached["about"]
    if held != about:
        raise TrainingError(f"{state} holds an end-to-end pass with {held}; this one has {about}")
    return reached
