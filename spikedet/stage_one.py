"""Stage I of any task: quantise-clip fine-tuning, from a float checkpoint to one of stage `qc`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from spikedet.checkpoint import Checkpoint, fingerprint, save
from spikedet.conversion.prepare import prepare
from spikedet.conversion.thresholds import thresholds_by
from spikedet.errors import WeightsError
from spikedet.graph.graph import Graph
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.quantise import quantise
from spikedet.neurons.quantize import QuantClip
from spikedet.task import THRESHOLD_PICTURES, Task, expect_stage, with_graph
from spikedet.training import expect_same_run, state_of


def quantized(
    task: Task,
    made: Checkpoint,
    samples: Sequence,
    T: int,
    noise: float = 0.1,
    per_channel: bool = False,
    thresholds: str | Callable[..., Any] = "least-error",
    fold: bool = True,
) -> Graph:
    """The graph of a float network with quantise-clip activations, thresholds from `samples`.

    Stage-I weights of another T keep their thresholds and only change their number of levels.

    Args:
        task: Of the network.
        made: Float or stage-I checkpoint.
        samples: Where thresholds of a float network are estimated.
        T: Time steps.
        noise: Probability that an element is not quantised while training.
        per_channel: One threshold a channel instead of one a layer.
        thresholds: How they are taken from pictures (see `Method`).
        fold: Fold batch norm; else it stays beside the quantisers (see `prepare`).

    Raises:
        WeightsError: Thresholds of each channel from stage-I weights that have one a layer.
    """
    expect_stage(made, "float", "qc")
    graph = task.graph(made)
    if made.stage == "qc":
        quantisers = [node.module for node in graph.of((QuantClip,))]
        if per_channel and any(not module.threshold.ndim for module in quantisers):
            raise WeightsError(
                "these stage-I weights have one threshold a layer; for thresholds of each "
                "channel start from float weights"
            )
        for module in quantisers:
            module.steps, module.noise = T, noise
        return graph
    graph = prepare(graph, task.example(made.imgsz), fold)
    pictures = task.pictures(task.pick(samples, THRESHOLD_PICTURES), made, 8)
    found = thresholds_by(thresholds, graph, pictures, T, per_channel)
    quantise(graph, found, T, noise)
    return graph


def planned(
    task: Task,
    made: Checkpoint,
    train: Sequence,
    T: int,
    *,
    teacher: Checkpoint | None = None,
    clips_rounded: bool = False,
    origin: dict[str, Any] | None = None,
    **options: Any,
) -> Checkpoint:
    """What `finetune` makes of these arguments, without its tensors.

    Its origin says in `run` what a run must agree in with the one that it resumes.
    """
    origin = origin or {}
    run = {"parent": origin.get("parent"), "data": task.fingerprint(train), **options}
    run["qcfs"] = clips_rounded
    run["teacher"] = None if teacher is None else fingerprint(teacher.tensors)
    return replace(made, stage="qc", T=T, origin={**origin, "run": run}, tensors={})


def finetune(
    task: Task,
    made: Checkpoint,
    train: Sequence,
    tune: Sequence,
    T: int,
    out: Path,
    settings: Any,
    *,
    noise: float = 0.1,
    per_channel: bool = False,
    teacher: Checkpoint | None = None,
    distill: float = 1.0,
    clips_rounded: bool = False,
    fold_first: bool = False,
    resume: bool = False,
    origin: dict[str, Any] | None = None,
) -> None:
    """Stage I (eq 12-15): train the quantised network; best and last checkpoint go to `out`.

    Args:
        task: Of the network.
        made: Float checkpoint, or a stage-I checkpoint of another T to go on from.
        train: Samples to fit.
        tune: Samples that choose the best epoch.
        T: Time steps of the quantiser.
        out: Folder of the run.
        settings: How to train.
        noise: Probability that an element is not quantised while training.
        per_channel: One threshold a channel instead of one a layer.
        teacher: Float checkpoint to distil from; `made` itself when it is a float one.
        distill: Weight of the distillation beside the task's loss, 0 for none.
        clips_rounded: Where gradients pass the quantisers (see `QuantClip`).
        fold_first: Fold batch norm of a float network before it is trained, not after. With batch
            norm ten times the learning rate can be borne, which few levels need.
        resume: Go on with the run in `out`.
        origin: Put into the checkpoints.

    Raises:
        TrainingError: The run in `out` is for another T, of another network or of other options.
        WeightsError: A teacher that cannot teach, or as `quantized`.
        ConversionError: A layer that cannot be converted.
    """
    options = {"noise": noise, "per_channel": per_channel, "teacher": teacher, "distill": distill}
    options |= {"clips_rounded": clips_rounded, "fold_first": fold_first, "origin": origin}
    made = task.current(made)
    wanted = planned(task, made, train, T, **options)
    if resume:
        expect_same_run(out, wanted)
    network = quantized(task, made, train, T, noise, per_channel, fold=fold_first)
    for module in network.modules():
        if isinstance(module, QuantClip):
            module.clips_rounded = clips_rounded
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    network.train()

    def write(trained: nn.Module, path: Path) -> None:
        folded = copy.deepcopy(getattr(trained, "graph", trained)).cpu().eval()
        fold_batch_norm(folded)
        save(with_graph(wanted, folded), path)

    if teacher is None and made.stage == "float":
        teacher = made
    guide = task.teacher(made, teacher) if teacher is not None and distill else None
    task.fit(network, train, tune, made, out, settings, write, resume, guide, distill)


def untuned(
    task: Task,
    made: Checkpoint,
    samples: Sequence,
    T: int,
    per_channel: bool = False,
    thresholds: str | Callable[..., Any] = "least-error",
) -> Checkpoint:
    """A stage-I checkpoint without stage I: float weights, thresholds from pictures.

    Its spiking copy is the simplest conversion ("copied weights").
    """
    made = task.current(made)
    graph = quantized(task, made, samples, T, per_channel=per_channel, thresholds=thresholds)
    return with_graph(replace(made, stage="qc", T=T, origin={}), graph)


def finished(folder: Path, wanted: Checkpoint, settings: Any) -> bool:
    """Whether the run in `folder` has done all the epochs that it would be resumed for.

    Args:
        folder: Of the run.
        wanted: What it is to make (see `planned`).
        settings: How.

    Raises:
        TrainingError: It made something else, or had other settings.
    """
    if not (folder / "state.pt").is_file():
        return False
    expect_same_run(folder, wanted)
    settings = replace(settings, imgsz=wanted.imgsz)  # as `Task.fit` trains
    return state_of(folder / "state.pt", settings)["epoch"] + 1 >= settings.epochs
