"""Repeat the paper's tables and figures with our networks, and compare with the paper.

    spikedet reproduce table10 --data VOCdevkit --out results
    spikedet reproduce table2 --model FLOAT --data cifar10 --T 4 8

NAME is a table or figure of the paper. For classifiers: table2 to table9,
figure4, figure5, figure7. For detectors: table6, table10, figure7 to figure9.
NAME may also be sparsity, which is our own. --help-all describes each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import refuse
from spikedet.errors import UsageError
from spikedet.options import option
from spikedet.reproduction import classification, detection, sparsity

MORE = """
For classifiers (each float checkpoint of --model is one network of the tables; a row without its
network, data set or method says "not run"):

    table2    accuracy over T on CIFAR, compared with other conversion methods
    table3    relative loss of accuracy
    table4    accuracy over T on ImageNet
    table5    compared with networks that were trained directly as spiking ones
    table6    accuracy over the number of calibration pictures
    table7    synaptic operations and energy
    table8    ResNeXt and MobileNetV2
    table9    leaky ReLU
    figure4   share of neurons with residual potential error
    figure5   effects of that error on a neuron, a layer and the outputs
    figure7   ablation: copied weights, each stage alone, coarse, fine, both

For detectors:

    table10   AP by object size, for every method and T (table X)
    figure7   ablation, if --model (or --data) is for detection
    table6    AP over the number of calibration pictures, if --model (or
              --data) is for detection
    figure8   one picture after several time steps of one run
    figure9   AP of every class at T = 30

For both:

    sparsity  loss of accuracy, and savings in energy and time, by a penalty
              on spikes

Released weights are used as they are, whatever --pictures, --layer-steps and --end-to-end say.
Weights that are not released are made in --out, with one folder for each float network. The command
runs spikedet finetune and spikedet convert to make them, and spikedet evaluate and spikedet energy
to measure them. It prints each of these commands first. Weights that exist already are not made
again, so you can run an interrupted command again. If they were made with other settings, the
command stops with an error. NAME.csv and NAME.png are written after every row. They also contain
rows of earlier runs on the same pictures. Figures 4 and 5 are drawn again each time.
"""
NAMES = {
    "detection": ("table10", "table6", "figure7", "figure8", "figure9", "sparsity"),
    "classification": (*classification.TABLES, *classification.FIGURES, "sparsity"),
}


@dataclass(kw_only=True)
class Options(shared.Measured):
    """Options of the command."""

    name: str = option(
        help="table or figure to make",
        positional=True,
        choices=sorted({name for names in NAMES.values() for name in names}),
        metavar="NAME",
    )
    tuning: Path | None = option(
        None, "file that lists the tuning pictures", group="detectors", metavar="FILE"
    )
    train_split: str | None = option(
        None,
        "pictures for the conversion (default: those of the training commands)",
        group="conversion",
    )
    model: list[Path] | None = option(
        None, "float checkpoints (default: the released one)", kind=kinds.weights
    )
    leaky: Path | None = option(
        None,
        "float detector with leaky ReLU for the Spiking-YOLO rows (default: the released one)",
        group="detectors",
        kind=kinds.weights,
    )
    out: Path = parse.written_folder(Path("results"), "folder for the results and the new weights")
    T: list[int] | None = option(None, "only rows with these T", kind=kinds.time_steps)
    methods: list[str] | None = option(None, "only rows of these methods", metavar="METHOD")
    made_for: list[int] | None = option(
        None,
        "T to make networks for; a row with another T uses the network of the next larger T",
        kind=kinds.time_steps,
        shown="default: " + " ".join(map(str, detection.MADE_FOR)),
        group="detectors",
    )
    long_limit: int | None = option(
        None,
        "pictures for the rows with T >= 500",
        least=1,
        shown=f"default: {detection.LONG_LIMIT}",
        group="detectors",
    )
    epochs: int | None = option(
        None,
        "epochs of stage I, if it must be run",
        least=1,
        shown=f"{detection.EPOCHS} for detection; as spikedet finetune for classification",
        group="conversion",
    )
    pictures: int = option(256, "calibration pictures", least=1, group="conversion")
    layer_steps: int = option(
        120, "most fine-calibration steps for each layer", least=1, group="conversion"
    )
    end_to_end: int = option(400, "steps of the end-to-end pass", least=0, group="conversion")
    sparsity: list[float] | None = option(
        None,
        "weights of the penalty on spikes",
        least=0.0,
        group="conversion",
        shown="default: " + " ".join(f"{weight:g}" for weight in sparsity.WEIGHTS),
    )
    picture: Path | None = option(
        None, "picture of figure8 (default: a street scene)", group="detectors"
    )
    boxes_only: bool = option(
        False,
        "draw figure8 without its picture, if you may not publish the picture",
        group="detectors",
    )
    device: str = shared.device()
    engine: str = shared.engine("torch")
    half: bool = shared.half(False)


def task_of(name: str, models: list[Path], folders: list[Path]) -> str:
    """Find the task of a table or figure: by its name, else by the checkpoints, else by the data.

    Raises:
        UsageError: The checkpoints have different tasks, or another task than the table or figure.
    """
    from spikedet import task_registry
    from spikedet.checkpoint import load
    from spikedet.networks import expect_stage

    tasks = [task for task, names in NAMES.items() if name in names]
    if not models and len(tasks) > 1:
        return task_registry.of_data(folders)
    for path in models:
        checkpoint = load(path)
        expect_stage(checkpoint, "float")
        if checkpoint.task not in tasks:
            raise UsageError(
                f"{path}: these weights are for {checkpoint.task}, but {name} is for "
                f"{' or '.join(tasks)}"
            )
        tasks = [checkpoint.task]
    return tasks[0]


def run(options: Options) -> None:
    shared.expect_half(options)
    if options.name != "sparsity":
        refuse(options, ["sparsity"], "only sparsity trains with a penalty")
    models = options.model or []
    task = task_of(options.name, models, options.data)
    make = {"detection": detection.make, "classification": classification.make}[task]
    make(options, models)
    print(f"results are in {options.out}")
