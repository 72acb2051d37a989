"""Pre-train the backbone of a detector on classified pictures.

    spikedet pretrain --data tiny-imagenet-200 --out runs/backbone
    spikedet train --pretrained runs/backbone/best.safetensors \\
        --data VOCdevkit --out runs/float

The backbone is trained as a classifier. For this, average pooling and a linear layer are added
behind it. They are not kept. A detector that starts from a pre-trained backbone is much better than
one that starts from random weights (see the model card in weights/). After every epoch, the command
writes last.safetensors, best.safetensors (best on the tuning pictures), results.csv and state.pt to
--out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spikedet.commands import plotting, shared
from spikedet.commands.main import command_line
from spikedet.commands.training import network_file, resume, run_folder, training, training_settings
from spikedet.detection.defaults import BACKBONE
from spikedet.errors import UsageError
from spikedet.options import option

SEVERAL = True  # torchrun may start it
WITHOUT = ("threshold_rate", "temperature")  # there are no thresholds, and nothing is distilled


@dataclass(kw_only=True)
class Options(shared.Classified):
    """Options of the command."""

    out: Path = run_folder()
    model: Path = network_file("description of the detector")
    width: str | None = option(None, "scale of the description (n s m l)")
    activation: str | None = option(
        None, "replaces that of the description, for example 'torch.nn.ReLU()'"
    )
    resume: bool = resume()
    training: dict[str, Any] = training(usual={"classification": BACKBONE}, without=WITHOUT)


def run(options: Options) -> None:
    import torch
    from torch import nn

    from spikedet import task_registry
    from spikedet.checkpoint import Checkpoint, save
    from spikedet.detection.description import build, read_description
    from spikedet.networks import expect_convertible
    from spikedet.task import Run
    from spikedet.training.run import expect_same_run

    task = task_registry.named("classification")
    settings = training_settings(options.training, task.name, usual=BACKBONE)
    torch.manual_seed(settings.seed)
    if "grow_from" not in options.training and settings.imgsz <= BACKBONE["grow_from"]:
        settings = replace(settings, grow_from=None)
    detector = read_description(options.model, options.width, options.activation)
    expect_convertible(task_registry.named("detection"), detector, 1, settings.imgsz)
    train, tune = shared.samples(options, task)
    names = train.names
    whole = build(detector, 1)
    backbone = whole.model[: len(detector["backbone"])]
    if any(layer.f != -1 for layer in backbone[1:]):
        raise UsageError(f"{options.model}: the backbone has branches; expected a chain of layers")
    with torch.no_grad():
        channels = backbone.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    parts = {"model": backbone, "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    network = nn.Sequential(OrderedDict(parts, classifier=nn.Linear(channels, len(names)))).train()
    description: dict[str, Any] = {"arch": "backbone", "form": "imagenet"}
    description |= {"mean": [0.0] * 3, "std": [1.0] * 3}  # as the detector takes its pictures
    origin: dict[str, Any] = {"command": command_line(), "pictures": len(train)}
    origin["run"] = {"data": train.fingerprint(), "detector": detector}
    planned = Checkpoint("float", task.name, description, names, settings.imgsz, {}, origin=origin)

    def write(trained: nn.Module, path: Path) -> None:
        state = trained.state_dict()
        tensors = {key: state[key] for key in state if key.startswith("model.")}
        save(replace(planned, tensors=tensors), path)

    if options.resume:
        expect_same_run(options.out, planned)
    task.fit(network, Run(planned, train, tune, options.out, settings, write, options.resume))
    plotting.training(options.out, train, tune, shared.split(options, task.name))
