#!/usr/bin/env python
"""Train the float detector on PASCAL VOC.

    tools/train.py --data VOCdevkit --split VOC2007:train+VOC2012:trainval --out runs/float

Writes last.safetensors and best.safetensors (averaged weights; best on the tuning pictures),
results.csv, curves and state.pt into --out after every epoch; --resume goes on from there.
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
    cli.add_data_arguments(parser, split="VOC2007:train+VOC2012:trainval")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--model",
        type=Path,
        default=ROOT / "configs/models/tiny-yolo.yaml",
        help="network description, or one of ultralytics' by its name (yolov8n.yaml)",
    )
    parser.add_argument("--width", help="one of the description's scales, n s m l")
    parser.add_argument("--activation", help="instead of the description's: 'torch.nn.ReLU()'")
    parser.add_argument("--pretrained", type=Path, help="backbone of tools/pretrain.py")
    cli.add_training_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    import torch

    from spikedet import checkpoint
    from spikedet.detection import model
    from spikedet.detection.boxes import VOC_CLASSES
    from spikedet.detection.data import read_voc, split_off_tuning
    from spikedet.detection.train import Trainer

    torch.manual_seed(args.seed)
    description = model.read_description(args.model, args.width, args.activation)
    network = model.build(description, len(VOC_CLASSES))
    model.expect_convertible(network)
    if args.pretrained:
        model.load_backbone(network, args.pretrained)
    samples = read_voc(args.data, args.split, limit=args.limit)
    train, tune = split_off_tuning(samples, args.tuning)
    origin = {"command": cli.command_line(), "pictures": len(train)}

    def save(averaged, path):
        tensors = averaged.state_dict()
        made = checkpoint.Checkpoint(
            "float", "detection", description, VOC_CLASSES, args.imgsz, tensors, origin=origin
        )
        checkpoint.save(made, path)

    settings = cli.training_settings(args)
    Trainer(network, train, tune, VOC_CLASSES, args.out, settings, save, args.resume).train()


if __name__ == "__main__":
    cli.run(main, arguments())
