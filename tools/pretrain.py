#!/usr/bin/env python
"""Pre-train the detector's backbone on classified pictures, before it is trained on boxes.

    tools/pretrain.py --data tiny-imagenet-200 --out runs/backbone
    tools/train.py --data VOCdevkit --pretrained runs/backbone/best.safetensors --out runs/float

It is trained as a classifier is, behind it the mean of its features and a linear layer, which are
not kept. A detector that starts from it is far ahead of one from scratch (see the model card in
weights/). Writes last.safetensors and best.safetensors (best on pictures kept aside), results.csv
and state.pt into --out after every epoch; --resume goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spikedet import cli  # noqa: E402
from spikedet.detection.settings import BACKBONE  # noqa: E402
from spikedet.errors import UsageError  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    cli.add_data_arguments(parser, tasks=["classification"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--model",
        type=Path,
        default=ROOT / "configs/models/tiny-yolo.yaml",
        help="description of the detector",
    )
    parser.add_argument("--width", help="one of the description's scales, n s m l")
    help = "instead of the description's, as in 'torch.nn.ReLU()'"
    parser.add_argument("--activation", help=help)
    without = ("threshold_rate", "temperature")  # there are no thresholds, and nothing is distilled
    cli.add_training_arguments(parser, usual={"classification": BACKBONE}, without=without)
    return parser


def main(args: argparse.Namespace) -> None:
    import torch
    from torch import nn

    from spikedet import tasks
    from spikedet.checkpoint import Checkpoint, save
    from spikedet.detection import model
    from spikedet.networks import expect_convertible
    from spikedet.task import Run
    from spikedet.training import expect_same_run

    task = tasks.named("classification")
    settings = cli.training_settings(args, task.name, usual=BACKBONE)
    torch.manual_seed(settings.seed)
    if args.grow_from is None and settings.imgsz <= BACKBONE["grow_from"]:
        settings.grow_from = None
    detector = model.read_description(args.model, args.width, args.activation)
    expect_convertible(tasks.named("detection"), detector, 1, settings.imgsz)
    train, tune = cli.samples(args, task)
    names = train.names
    network = model.build(detector, 1)
    backbone = network.model[: len(network.yaml["backbone"])]
    if any(layer.f != -1 for layer in backbone[1:]):
        raise UsageError(f"{args.model}: its backbone branches; only a chain of layers is trained")
    with torch.no_grad():
        channels = backbone.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    parts = {"model": backbone, "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    network = nn.Sequential(OrderedDict(parts, classifier=nn.Linear(channels, len(names)))).train()
    description = {"arch": "backbone", "form": "imagenet"}
    description |= {"mean": [0.0] * 3, "std": [1.0] * 3}  # as the detector takes its pictures
    origin = {"command": cli.command_line(), "pictures": len(train)}
    origin["run"] = {"data": train.fingerprint(), "detector": detector}
    made = Checkpoint("float", task.name, description, names, settings.imgsz, {}, origin=origin)

    def write(trained: nn.Module, path: Path) -> None:
        state = trained.state_dict()
        made.tensors = {key: state[key] for key in state if key.startswith("model.")}
        save(made, path)

    if args.resume:
        expect_same_run(args.out, made)
    task.fit(network, Run(made, train, tune, args.out, settings, write, args.resume))


if __name__ == "__main__":
    cli.run(main, arguments(), several=True)
