#!/usr/bin/env python
"""Both stages: float checkpoint -> quantised and fine-tuned -> calibrated spiking network.

    tools/convert.py --weights runs/float/best.safetensors --T 8 --data VOCdevkit --out W

The run of stage I is kept beside --out (folder `<out>.stage1`); --resume goes on after a kill.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from tools.calibrate import add_arguments, calibrate  # noqa: E402
from tools.finetune import DEFAULTS, add_stage_one_arguments  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="float checkpoint")
    parser.add_argument("--T", type=cli.time_steps, required=True, help="time steps")
    add_stage_one_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="spiking checkpoint to write")
    cli.add_data_arguments(parser, split="VOC2007:train+VOC2012:trainval")
    cli.add_training_arguments(parser, **DEFAULTS)
    add_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from spikedet import checkpoint
    from spikedet.detection import stages
    from spikedet.detection.data import read_voc, split_off_tuning

    made = checkpoint.load(args.weights)
    samples = read_voc(args.data, args.split, limit=args.limit, names=made.names)
    train, tune = split_off_tuning(samples, args.tuning)
    settings = cli.training_settings(args)
    settings.imgsz = made.imgsz
    origin = {"command": cli.command_line(), "parent": checkpoint.sha256(args.weights)}
    folder = args.out.with_name(args.out.name + ".stage1")
    teacher = checkpoint.load(args.teacher) if args.teacher else None
    options = {"noise": args.noise, "teacher": teacher, "distill": args.distill}
    options |= {"resume": args.resume, "origin": origin}
    if not stages.finished(folder, args.resume):
        stages.finetune(made, train, tune, args.T, folder, settings, **options)
    stage_one = checkpoint.load(folder / "best.safetensors")
    calibrate(stage_one, train, tune, args, origin, teacher or made)


if __name__ == "__main__":
    cli.run(main, arguments())
