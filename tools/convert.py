#!/usr/bin/env python
"""Float checkpoint -> spiking network, by the two-stage method, a part of it, or a baseline.

    tools/convert.py --model runs/float/best.safetensors --T 8 --data VOCdevkit --out W
    tools/convert.py --model FLOAT --method stage1-coarse --stage1 QC --T 8 --data VOCdevkit --out W
    tools/convert.py --model runs/resnet20/best.safetensors --T 8 --data cifar10 --out W

    two-stage       stage I, then stage II layer by layer and end to end
    stage1          stage I, its weights copied into spiking neurons
    stage2          stage II of the float network with estimated thresholds; its targets are the
                    activations of that network, rounded and clipped, as after stage I
    stage1-coarse   stage I and the coarse half of stage II (initial potentials)
    stage1-fine     stage I and the fine half of stage II (weights and potentials)
    copy            float weights and estimated thresholds, nothing trained
    spiking-yolo    channel-wise normalisation (Kim et al. 2020); signed neurons for leaky ReLU
    rmp             float weights, the largest activation of a layer is its threshold (Han et al.
                    2020); potentials start at 0
    opt             as rmp, and theta / (2 T) more current in every step (Deng and Gu 2021)
    opi             as rmp, but potentials start at theta / 2 (Bu et al. 2022a)
    qcfs            as stage1, without noise and distillation (Bu et al. 2022b); --stage1 may have
                    been trained for another number of levels than T
    cap             float weights, thresholds of least error, currents as in opt, then biases are
                    corrected layer by layer (Li et al. 2021)

All neurons reset by subtraction. opt and cap keep the shift of --T when they are run for another T.
The run of stage I is kept beside --out (folder `<out>.stage1`); --resume goes on after a kill;
--stage1 takes stage-I weights that are there already, of T or of another number of levels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from spikedet.methods import METHODS, Method  # noqa: E402
from tools.calibrate import (  # noqa: E402
    END,
    FINE,
    LAYERS,
    Shown,
    add_arguments,
    expect_halves,
    is_made,
    plan,
)
from tools.finetune import add_stage_one_arguments, stage_one_options  # noqa: E402

STAGE_ONE = ("noise", "distill", "qcfs", "teacher", "fold_first")


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--model", "--weights", dest="weights", type=Path, required=True, help="float checkpoint")
    add("--method", choices=tuple(METHODS), default="two-stage", help="how to convert")
    add("--T", type=cli.time_steps, required=True, help="time steps")
    add("--stage1", type=Path, help="stage-I checkpoint, instead of a run of stage I")
    add_stage_one_arguments(parser)
    add("--out", type=Path, required=True, help="spiking checkpoint to write")
    cli.add_data_arguments(parser)
    cli.add_unlabelled(parser)
    cli.add_training_arguments(parser, stage_one=True)
    add_arguments(parser)
    return parser


def expect_used(args: argparse.Namespace, method: Method) -> None:
    """Refuse options that this method would ignore, or that make another method of it.

    Raises:
        UsageError: Names the option.
    """
    name = args.method
    training = [n for n in cli.training_options() if n not in ("seed", "device", "imgsz")]
    if method.thresholds == "channels":
        why = f"{name} has neither stage"
        ignored = ("stage1", "per_channel", *STAGE_ONE, *training, *LAYERS, *END, "end_to_end")
        ignored += ("device", "resume", "unlabelled")
        cli.refuse(args, ignored, why)
        return
    if not method.finetuned:
        cli.refuse(args, ["stage1", *STAGE_ONE, *training, "resume"], f"{name} has no stage I")
    elif args.stage1:
        cli.refuse(args, [*STAGE_ONE, *training, "per_channel"], "--stage1 is trained already")
    if not method.calibrated:
        cli.refuse(args, LAYERS, f"{name} calibrates no layers")
    if not method.fine:
        cli.refuse(args, FINE, f"{name} has no fine calibration")
    if not (method.coarse or method.fine):
        cli.refuse(args, ["per_neuron"], f"{name} leaves initial potentials as they are")
    if not (method.coarse and method.fine):
        cli.refuse(args, ["no_coarse", "no_fine"], f"{name} says which half of stage II there is")
    expect_halves(args)
    if not method.end_to_end and args.end_to_end:
        cli.refuse(args, ["end_to_end"], f"{name} has no end-to-end pass")
    if not method.end_to_end or args.end_to_end == 0:
        cli.refuse(args, END, "there is no end-to-end pass")
        if args.stage1 or not method.finetuned:
            cli.refuse(args, ["unlabelled"], "nothing is distilled")


def main(args: argparse.Namespace) -> None:
    from spikedet import checkpoint, tasks
    from spikedet.networks import expect_stage
    from spikedet.stages.pipeline import Conversion
    from spikedet.training import check_devices

    if is_made(args):
        return
    check_devices(args.device or "cpu")
    made = checkpoint.load(args.weights)
    expect_stage(made, "float")
    task = tasks.of(made)
    method = METHODS[args.method]
    expect_used(args, method)
    train, tune = cli.samples(args, task, made.names)
    origin = {"command": cli.command_line(), "parent": checkpoint.sha256(args.weights)}
    origin["method"] = args.method
    args.qcfs |= method.plain
    options = stage_one_options(args, task.name)
    settings = cli.training_settings(args, task.name, stage_one=True, folded=options.fold_first)
    teacher = checkpoint.load(args.teacher) if args.teacher else None
    about = (task, args.weights, train, tune, args.T, method, settings, options)
    how = (plan(args, task.name), args.out, origin, args.stage1, teacher, args.pooling)
    device = cli.torch_device(args.device or "cpu")
    Conversion(*about, *how, device, args.resume, Shown(args.T)).run()


if __name__ == "__main__":
    cli.run(main, arguments())
