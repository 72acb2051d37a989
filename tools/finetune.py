#!/usr/bin/env python
"""Stage I: quantise and clip the activations, fine-tune with the task's loss, fold batch norm.

    tools/finetune.py --weights runs/float/best.safetensors --T 8 --data VOCdevkit --out runs/qc-T8

The weights say whether they are a detector's or a classifier's, here as in the other commands.

Thresholds start at the least quantisation error on training pictures and are trained in a group of
their own without decay. --resume goes on after a kill.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from spikedet.settings import StageOne  # noqa: E402
from spikedet.tasks import SETTINGS  # noqa: E402

NOISE, DISTILL = 0.1, 1.0
DISTILLED = ("teacher", "temperature", "unlabelled")


def add_stage_one_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of stage I beside those of every training, shared with tools/convert.py."""
    add = parser.add_argument
    help = f"probability that an element is not quantised in training, eq 14 ({NOISE})"
    add("--noise", type=cli.fraction, help=help)
    add("--per-channel", action="store_true", help="a threshold for each channel, not each layer")
    add("--distill", type=cli.weight, help=f"weight of the float network's outputs ({DISTILL})")
    add("--teacher", type=Path, help="float checkpoint for --distill; --weights if that is one")
    usual = "; ".join(
        f"{'on' if s.StageOne.fold_first else 'off'} for {task}, --rate being "
        f"{s.STAGE_ONE_RATE['folded']} with it, {s.STAGE_ONE_RATE['unfolded']} without"
        for task, s in SETTINGS.items()
    )
    help = f"fold batch norm before stage I, not after it ({usual})"
    add("--fold-first", action=argparse.BooleanOptionalAction, help=help)
    add("--qcfs", action="store_true", help="as QCFS trains: --noise 0 --distill 0, its gradient")


def stage_one_options(args: argparse.Namespace, task: str) -> StageOne:
    """The task's `StageOne` from `add_stage_one_arguments`.

    Raises:
        UsageError: Noise or distillation for QCFS.
    """
    if args.qcfs:
        why = "QCFS trains without noise and distillation"
        cli.refuse(args, ["noise", "distill", *DISTILLED], why)
        noise = distill = 0.0  # whatever a --config file says of our stage I
    else:
        noise = NOISE if args.noise is None else args.noise
        distill = DISTILL if args.distill is None else args.distill
        if not distill:
            cli.refuse(args, DISTILLED, "--distill 0 distils nothing")
    options = SETTINGS[task].StageOne(noise, args.per_channel, distill, args.qcfs)
    if args.fold_first is not None:
        options.fold_first = args.fold_first
    return options


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--weights", type=Path, required=True, help="float checkpoint, or stage I of another T"
    )
    parser.add_argument("--T", type=cli.time_steps, required=True, help="time steps")
    add_stage_one_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    cli.add_data_arguments(parser)
    cli.add_unlabelled(parser)
    cli.add_training_arguments(parser, stage_one=True)
    return parser


def main(args: argparse.Namespace) -> None:
    from spikedet import checkpoint, tasks
    from spikedet.stages.stage_one import FineTuning

    made = checkpoint.load(args.weights)
    task = tasks.of(made)
    options = stage_one_options(args, task.name)
    if made.stage == "qc" and args.teacher is None:
        why = "stage-I weights cannot be distilled from; name a --teacher"
        cli.refuse(args, ["distill", "temperature", "unlabelled"], why)
    if made.stage == "qc":
        cli.refuse(args, ["fold_first"], "batch norm of stage-I weights is folded already")
    folded = options.fold_first or made.stage == "qc"
    settings = cli.training_settings(args, task.name, stage_one=True, folded=folded)
    train, tune = cli.samples(args, task, made.names)
    teacher = checkpoint.load(args.teacher) if args.teacher else None
    origin = {"command": cli.command_line(), "parent": checkpoint.sha256(args.weights)}
    about = (task, made, train, tune, args.T, settings, options, teacher, origin)
    FineTuning(*about).run(args.out, args.resume)


if __name__ == "__main__":
    cli.run(main, arguments(), several=True)
