#!/usr/bin/env python
"""Make the paper's results with our networks, and print them beside the paper's.

    tools/reproduce.py table10 --data VOCdevkit --out results
    tools/reproduce.py table2 --model runs/resnet20/best.safetensors --data cifar10 --T 4 8

Classifiers (every float checkpoint of --model is a network of the tables; a row of a network, data
set or method that is not there says "not run"):

    table2    accuracy over T on CIFAR-10 and CIFAR-100, beside other ways of conversion
    table3    relative loss of accuracy
    table4    accuracy over T on ImageNet
    table5    beside networks that were trained as spiking ones
    table6    accuracy over the number of calibration pictures
    table7    synaptic operations and energy
    table8    ResNeXt and MobileNetV2
    table9    leaky ReLU
    figure4   share of neurons with residual potential error
    figure5   what that error does: neuron, layer, outputs
    figure7   the ablation: copied weights, either stage alone, coarse, fine, both

The detector:

    table10   every method over T: AP by object size (table X), with the float and quantised rows
    figure7   the ablation, where --model (without it, --data) is for detection
    table6    AP over the number of calibration pictures, likewise
    figure8   one picture after several time steps of one run
    figure9   AP of every class at T = 30

Weights that are not released are made in --out, in a folder of their float network, by
tools/finetune.py and tools/convert.py, and measured by tools/evaluate.py and tools/energy.py; each
command is printed before it runs. What is there already is not made again, so an interrupted run
goes on where it stopped; with other settings it is refused. NAME.csv and NAME.png are written after
every row, with the rows that earlier runs measured on the same pictures; figures 4 and 5 are drawn
anew each time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from spikedet.errors import UsageError  # noqa: E402
from tools.reproduction import classification, detection  # noqa: E402

NAMES = {
    "detection": ("table10", "table6", "figure7", "figure8", "figure9"),
    "classification": (*classification.TABLES, *classification.FIGURES),
}


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    choices = sorted({name for names in NAMES.values() for name in names})
    add("name", choices=choices, help="what to make")
    cli.add_data_arguments(parser, test=True, own=False)
    add("--tuning", type=Path, help="list of training pictures kept aside (detection)")
    add("--train-split", help="pictures to convert with; those of the training tools if left out")
    add("--model", type=Path, nargs="+", help="float checkpoints; the released one if left out")
    add(
        "--leaky",
        type=Path,
        help="leaky ReLU float detector of the Spiking-YOLO rows; the released one",
    )
    add("--out", type=Path, default=Path("results"), help="folder of results, made weights inside")
    add("--T", type=cli.time_steps, nargs="+", help="only these time steps")
    add("--methods", nargs="+", help="only these methods")
    made = "T that networks are made for; rows of others are read out of the next greater one's run"
    default = " ".join(map(str, detection.MADE_FOR))
    add("--made-for", type=cli.time_steps, nargs="+", help=f"{made} (detection: {default})")
    few = f"pictures of the rows with T >= 500 (detection: {detection.LONG_LIMIT})"
    add("--long-limit", type=cli.count, help=few)
    usual = f"{detection.EPOCHS} for detection; as tools/finetune.py for classification"
    add("--epochs", type=cli.count, help=f"epochs of stage I where it must be run ({usual})")
    new = "of what is not released"
    add("--pictures", type=cli.count, default=256, help=f"calibration pictures {new}")
    most = f"most fine-calibration steps of a layer {new}"
    add("--layer-steps", type=cli.count, default=120, help=most)
    add("--end-to-end", type=cli.whole, default=400, help=f"steps of the end-to-end pass {new}")
    add("--picture", type=Path, help="picture of figure8; a street scene if left out")
    hidden = "draw figure8 on an empty canvas, where its picture is not yours to publish"
    add("--boxes-only", action="store_true", help=hidden)
    cli.add_device(parser)
    cli.add_half(parser, default=False)
    return parser


def task_of(name: str, models: list[Path], folders: list[Path]) -> str:
    """The task that is meant: by the name, or else by the checkpoints, or else by the pictures.

    Raises:
        UsageError: The checkpoints are not of one task, or not of that of the name.
    """
    from spikedet import checkpoint, tasks
    from spikedet.networks import expect_stage

    there = [task for task, names in NAMES.items() if name in names]
    if not models and len(there) > 1:
        return tasks.of_data(folders)
    for path in models:
        made = checkpoint.load(path)
        expect_stage(made, "float")
        if made.task not in there:
            raise UsageError(f"{path}: for {made.task}; {name} is of {' or '.join(there)}")
        there = [made.task]
    return there[0]


def main(args: argparse.Namespace) -> None:
    models = args.model or []
    task = task_of(args.name, models, args.data)
    make = {"detection": detection.make, "classification": classification.make}[task]
    make(args, models)
    print(f"results are in {args.out}")


if __name__ == "__main__":
    cli.run(main, arguments())
