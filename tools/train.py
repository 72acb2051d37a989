#!/usr/bin/env python
"""Train a float network: the detector on PASCAL VOC, or a classifier on folders of pictures.

    tools/train.py --data VOCdevkit --split VOC2007:train+VOC2012:trainval --out runs/float
    tools/train.py --model configs/models/cifar-resnet20.yaml --data cifar10 --out runs/resnet20

The network description says which of the two it is. Writes last.safetensors and best.safetensors
(best on the tuning pictures), results.csv and state.pt into --out after every epoch; --resume goes
on from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spikedet import cli  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    cli.add_data_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--model",
        type=Path,
        default=ROOT / "configs/models/tiny-yolo.yaml",
        help="network description, or one of ultralytics' by its name (yolov8n.yaml)",
    )
    parser.add_argument("--width", help="a detector's scale, n s m l; a classifier's factor, 0.5")
    parser.add_argument(
        "--activation",
        help="instead of the description's: a detector's 'torch.nn.ReLU()'; a classifier's relu or "
        "leaky",
    )
    parser.add_argument(
        "--pretrained",
        type=Path,
        help="start from these layers: a backbone (tools/pretrain.py) or a float network of the "
        "same description",
    )
    parser.add_argument(
        "--fresh-heads",
        type=cli.count,
        nargs="+",
        metavar="STRIDE",
        help="leave the heads of these output strides out of --pretrained (detection)",
    )
    parser.add_argument(
        "--teacher", type=Path, help="float network of the same classes to distil from as well"
    )
    parser.add_argument("--distill", type=cli.weight, help="weight of --teacher's outputs (1.0)")
    cli.add_unlabelled(parser)
    cli.add_training_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    import torch

    from spikedet import tasks
    from spikedet.checkpoint import Checkpoint, fingerprint, load, load_plain_into, save
    from spikedet.networks import expect_convertible, float_checkpoint, teacher_of
    from spikedet.task import Run
    from spikedet.training import expect_same_run

    if args.teacher is None:
        why = "name the --teacher to distil from"
        cli.refuse(args, ["distill", "temperature", "unlabelled"], why)
    if args.distill == 0:
        cli.refuse(args, ["teacher", "temperature", "unlabelled"], "--distill 0 distils nothing")
    if args.pretrained is None:
        cli.refuse(args, ["fresh_heads"], "all layers are fresh without --pretrained")
    task = tasks.of_description(args.model)
    settings = cli.training_settings(args, task.name)
    torch.manual_seed(settings.seed)
    description = task.describe(args.model, args.width, args.activation)
    if args.imgsz is None:
        settings.imgsz = task.usual_side(description) or settings.imgsz
    expect_convertible(task, description, 2, settings.imgsz)
    train, tune = cli.samples(args, task)
    names = train.names
    network = task.network(description, len(names)).train()
    if args.pretrained:
        fresh = task.fresh(network, args.fresh_heads) if args.fresh_heads else ()
        load_plain_into(network, args.pretrained, fresh)
    origin = {"command": cli.command_line(), "pictures": len(train)}
    taught = load(args.teacher) if args.teacher else None
    distill = 1.0 if args.distill is None else args.distill
    origin["run"] = {"data": train.fingerprint(), "distill": distill}
    origin["run"]["teacher"] = taught and fingerprint(taught.tensors)
    made = Checkpoint("float", task.name, description, names, settings.imgsz, {}, origin=origin)
    made = float_checkpoint(task, made, network)
    teacher = teacher_of(task, made, taught) if taught else None

    def write(trained: torch.nn.Module, path: Path) -> None:
        made.tensors = trained.state_dict()
        save(made, path)

    if args.resume:
        expect_same_run(args.out, made)
    how = (args.out, settings, write, args.resume, teacher, distill)
    task.fit(network, Run(made, train, tune, *how))


if __name__ == "__main__":
    cli.run(main, arguments(), several=True)
