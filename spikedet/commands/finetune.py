"""Run stage I: quantise and clip the activations, and fine-tune with the task's loss.

    spikedet finetune --weights runs/float/best.safetensors --T 8 \\
        --data VOCdevkit --out runs/qc-T8

The task (detection or classification) is read from the weights.

The thresholds start at the values of least quantisation error on training pictures. They are
trained without weight decay. Batch norm is folded into the convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikedet.commands import kinds, plotting, shared
from spikedet.commands.checks import refuse
from spikedet.commands.main import command_line
from spikedet.commands.training import (
    StageOneOptions,
    resume,
    run_folder,
    stage_one_options,
    training,
    training_settings,
)
from spikedet.options import option

SEVERAL = True  # torchrun may start it


@dataclass(kw_only=True)
class Options(StageOneOptions, shared.TrainingData):
    """Options of the command."""

    weights: Path = option(
        help="float checkpoint, or stage-I checkpoint for another T", kind=kinds.weights
    )
    T: int = option(help="time steps", kind=kinds.time_steps)
    out: Path = run_folder()
    resume: bool = resume()
    training: dict[str, Any] = training(stage_one=True)
    unlabelled: list[Path] | None = shared.unlabelled()


def run(options: Options) -> None:
    from spikedet import task_registry
    from spikedet.checkpoint import load, sha256
    from spikedet.stages.stage_one import FineTuning

    checkpoint = load(options.weights)
    task = task_registry.of(checkpoint)
    stage_one = stage_one_options(options, task.name, options.qcfs)
    if checkpoint.stage == "qc" and options.teacher is None:
        why = "stage-I weights cannot be a teacher; name a float --teacher"
        refuse(options, ["distill", "temperature", "unlabelled", "stage1_features"], why)
    if checkpoint.stage == "qc":
        refuse(options, ["fold_first"], "batch norm of stage-I weights is folded already")
    folded = stage_one.fold_first or checkpoint.stage == "qc"
    settings = training_settings(options.training, task.name, stage_one=True, folded=folded)
    train, tune = shared.samples(options, task, checkpoint.names)
    teacher = load(options.teacher) if options.teacher else None
    origin = {"command": command_line(), "parent": sha256(options.weights)}
    tuning = FineTuning(
        task,
        checkpoint,
        train,
        tune,
        T=options.T,
        settings=settings,
        options=stage_one,
        teacher=teacher,
        origin=origin,
    )
    tuning.run(options.out, options.resume)
    plotting.training(options.out, train, tune, shared.split(options, task.name), options.T)
