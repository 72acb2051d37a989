"""Train a float network: a detector or a classifier.

    spikedet train --data VOCdevkit --out runs/float
    spikedet train --model configs/models/cifar-resnet20.yaml --data cifar10 \\
        --out runs/resnet20

The network description (--model) says which of the two it is. After every epoch, the command writes
last.safetensors, best.safetensors (best on the tuning pictures), results.csv and state.pt to --out.
At the end it draws curves.png.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spikedet.commands import kinds, plotting, shared
from spikedet.commands.checks import refuse
from spikedet.commands.main import command_line
from spikedet.commands.training import network_file, resume, run_folder, training, training_settings
from spikedet.options import option

SEVERAL = True  # torchrun may start it


@dataclass(kw_only=True)
class Options(shared.TrainingData):
    """Options of the command."""

    out: Path = run_folder()
    model: Path = network_file(
        "network description; a file, or a name of ultralytics (yolov8n.yaml)"
    )
    width: str | None = option(
        None, "scale of a detector (n s m l), or width factor of a classifier"
    )
    activation: str | None = option(
        None,
        "replaces that of the description: 'torch.nn.ReLU()' (detector), relu or leaky "
        "(classifier)",
    )
    pretrained: Path | None = option(
        None,
        "start from these weights: a backbone (spikedet pretrain), or a float network of the same "
        "description",
        kind=kinds.weights,
    )
    resume: bool = resume()
    training: dict[str, Any] = training()
    fresh_heads: list[int] | None = option(
        None,
        "start the heads of these output strides from new weights, not from --pretrained",
        least=1,
        metavar="STRIDE",
        group="detectors",
    )
    teacher: Path | None = option(
        None,
        "float network with the same classes, to distil from",
        group="distillation",
        kind=kinds.weights,
    )
    distill: float | None = option(
        None, "weight of the distillation loss", least=0, shown="default: 1.0", group="distillation"
    )
    unlabelled: list[Path] | None = shared.unlabelled()


def expect_used(options: Options) -> None:
    """Refuse options of distillation without a teacher, and of pretrained layers without weights.

    Raises:
        UsageError: The message names the option.
    """
    if options.teacher is None:
        why = "has no effect without --teacher"
        refuse(options, ["distill", "temperature", "unlabelled"], why)
    if options.distill == 0:
        refuse(options, ["teacher", "temperature", "unlabelled"], "has no effect with --distill 0")
    if options.pretrained is None:
        refuse(options, ["fresh_heads"], "has no effect without --pretrained")


def run(options: Options) -> None:
    import torch

    from spikedet import task_registry
    from spikedet.checkpoint import Checkpoint, fingerprint, load, load_plain_into, save
    from spikedet.networks import expect_convertible, float_checkpoint, teacher_of
    from spikedet.task import Run
    from spikedet.training.run import expect_same_run

    expect_used(options)
    task = task_registry.of_description(options.model)
    settings = training_settings(options.training, task.name)
    torch.manual_seed(settings.seed)
    description = task.describe(options.model, options.width, options.activation)
    if "imgsz" not in options.training:
        settings = replace(settings, imgsz=task.usual_side(description) or settings.imgsz)
    expect_convertible(task, description, 2, settings.imgsz)
    train, tune = shared.samples(options, task)
    names = train.names
    network = task.network(description, len(names)).train()
    if options.pretrained:
        fresh = task.fresh(network, options.fresh_heads) if options.fresh_heads else ()
        load_plain_into(network, options.pretrained, fresh)
    origin: dict[str, Any] = {"command": command_line(), "pictures": len(train)}
    taught = load(options.teacher) if options.teacher else None
    distill = 1.0 if options.distill is None else options.distill
    origin["run"] = {"data": train.fingerprint(), "distill": distill}
    origin["run"]["teacher"] = taught and fingerprint(taught.tensors)
    planned = Checkpoint("float", task.name, description, names, settings.imgsz, {}, origin=origin)
    checkpoint = float_checkpoint(task, planned, network)
    teacher = teacher_of(task, checkpoint, taught) if taught else None

    def write(trained: torch.nn.Module, path: Path) -> None:
        save(replace(checkpoint, tensors=trained.state_dict()), path)

    if options.resume:
        expect_same_run(options.out, checkpoint)
    plan = Run(
        checkpoint,
        train,
        tune,
        folder=options.out,
        settings=settings,
        write=write,
        resume=options.resume,
        teacher=teacher,
        distill=distill,
    )
    task.fit(network, plan)
    plotting.training(options.out, train, tune, shared.split(options, task.name))
