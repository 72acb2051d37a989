#!/usr/bin/env python
"""Pre-train the detector's backbone on a folder of classified pictures.

    tools/pretrain.py --pictures tiny-imagenet-200/train --out runs/pretrained.safetensors

Any folder with one sub-folder a class will do. A detector that starts from it is far ahead of one
from scratch (see the model card in weights/).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCHEDULE = [(9, 64), (6, 96), (1, 128)]
sys.path.insert(0, str(ROOT))

from spikedet import cli  # noqa: E402


def phase(text: str) -> tuple[int, int]:
    """`9x64`: 9 epochs at 64 pixels."""
    epochs, _, side = text.partition("x")
    if not (epochs.isdigit() and side.isdigit() and int(epochs) > 0 and int(side) >= 32):
        raise argparse.ArgumentTypeError(f"{text!r}: expected EPOCHSxPIXELS, as in 9x64")
    return int(epochs), int(side)


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    held = "folder of class folders; kept in memory at the side of the first phase"
    parser.add_argument("--pictures", type=Path, required=True, help=held)
    parser.add_argument("--out", type=Path, required=True, help="backbone to write")
    parser.add_argument(
        "--model",
        type=Path,
        default=ROOT / "configs/models/tiny-yolo.yaml",
        help="network description",
    )
    parser.add_argument("--width", help="one of the description's scales, n s m l")
    parser.add_argument(
        "--schedule",
        type=phase,
        nargs="+",
        help=f"phases, each EPOCHSxPIXELS ({' '.join(f'{e}x{side}' for e, side in SCHEDULE)})",
    )
    parser.add_argument("--rate", type=cli.positive, default=0.2, help="learning rate at its peak")
    parser.add_argument("--batch", type=cli.count, default=128, help="pictures a step")
    parser.add_argument("--seed", type=cli.seed, default=0, help="seed of everything random")
    return parser


def main(args: argparse.Namespace) -> None:
    import torch

    from spikedet import checkpoint
    from spikedet.detection import model
    from spikedet.detection.boxes import VOC_CLASSES
    from spikedet.detection.pretrain import load_class_folder, pretrain

    cli.expect_new(args.out)
    schedule = args.schedule or SCHEDULE
    torch.manual_seed(args.seed)
    network = model.build(model.read_description(args.model, args.width), len(VOC_CLASSES))
    layers = len(network.yaml["backbone"])
    pictures, labels, classes = load_class_folder(args.pictures, schedule[0][1])
    print(f"{len(pictures)} pictures of {len(classes)} classes")

    def after_epoch(line: str) -> None:
        print(line, flush=True)
        state = network.state_dict()
        backbone = {k: v for k, v in state.items() if int(k.split(".")[1]) < layers}
        checkpoint.save_plain(backbone, args.out)

    pretrain(
        torch.nn.Sequential(*network.model[:layers]),
        pictures,
        labels,
        schedule=schedule,
        batch=args.batch,
        rate=args.rate,
        seed=args.seed,
        on_epoch=after_epoch,
    )


if __name__ == "__main__":
    cli.run(main, arguments())
