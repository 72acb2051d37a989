"""Make the paper's results with our networks, and print them beside the paper's.

    spikedet reproduce table10 --data VOCdevkit --out results
    spikedet reproduce table2 --model FLOAT --data cifar10 --T 4 8

NAME is a table or figure of the paper: table2 to table9 and figure4, 5 and 7 of
classifiers; table10, table6 and figure7 to figure9 of detectors. sparsity is
our own. --help-all says what each shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import refuse
from spikedet.errors import UsageError
from spikedet.reproduction import classification, detection, sparsity
from spikedet.settings import option

MORE = """
Classifiers (every float checkpoint of --model is a network of the tables; a row of a network, data
set or method that is not there says "not run"):

    table2    accuracy over T on CIFAR, beside other ways of conversion
    table3    relative loss of accuracy
    table4    accuracy over T on ImageNet
    table5    beside networks that were trained as spiking ones
    table6    accuracy over the number of calibration pictures
    table7    synaptic operations and energy
    table8    ResNeXt and MobileNetV2
    table9    leaky ReLU
    figure4   share of neurons with residual potential error
    figure5   what that error does: neuron, layer, outputs
    figure7   the ablation: copied weights, either stage, coarse, fine, both

The detector:

    table10   every method over T: AP by object size (table X)
    figure7   the ablation, where --model (or --data) is for detection
    table6    AP over the number of calibration pictures, likewise
    figure8   one picture after several time steps of one run
    figure9   AP of every class at T = 30

Either:

    sparsity  what a penalty on spikes costs, and saves in energy and time

Weights that are not released are made in --out, in a folder of their float network, by
spikedet finetune and spikedet convert, and measured by spikedet evaluate and spikedet energy; each
command is printed before it runs. What is there already is not made again, so an interrupted run
goes on where it stopped; with other settings it is refused. NAME.csv and NAME.png are written after
every row, with the rows that earlier runs measured on the same pictures; figures 4 and 5 are drawn
anew each time.
"""
NAMES = {
    "detection": ("table10", "table6", "figure7", "figure8", "figure9", "sparsity"),
    "classification": (*classification.TABLES, *classification.FIGURES, "sparsity"),
}


@dataclass(kw_only=True)
class Options(shared.Measured):
    """Options of the command."""

    name: str = option(
        help="what to make",
        positional=True,
        choices=sorted({name for names in NAMES.values() for name in names}),
        metavar="NAME",
    )
    tuning: Path | None = option(
        None, "list of training pictures kept aside", group="detectors", metavar="FILE"
    )
    train_split: str | None = option(
        None,
        "pictures to convert with; those of the training commands if left out",
        group="conversion",
    )
    model: list[Path] | None = option(None, "float checkpoints; the released one if left out")
    leaky: Path | None = option(
        None,
        "leaky ReLU float detector of the Spiking-YOLO rows; the released one",
        group="detectors",
    )
    out: Path = parse.written_folder(Path("results"), "folder of results, made weights inside")
    T: list[int] | None = option(None, "only these time steps", kind=kinds.time_steps)
    methods: list[str] | None = option(None, "only these methods", metavar="METHOD")
    made_for: list[int] | None = option(
        None,
        "T that networks are made for; rows of others are read out of the next greater one's run",
        kind=kinds.time_steps,
        shown="default: " + " ".join(map(str, detection.MADE_FOR)),
        group="detectors",
    )
    long_limit: int | None = option(
        None,
        "pictures of the rows with T >= 500",
        least=1,
        shown=f"default: {detection.LONG_LIMIT}",
        group="detectors",
    )
    epochs: int | None = option(
        None,
        "epochs of stage I where it must be run",
        least=1,
        shown=f"{detection.EPOCHS} for detection; as spikedet finetune for classification",
        group="conversion",
    )
    pictures: int = option(256, "calibration pictures", least=1, group="conversion")
    layer_steps: int = option(
        120, "most fine-calibration steps of a layer", least=1, group="conversion"
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
        None, "picture of figure8; a street scene if left out", group="detectors"
    )
    boxes_only: bool = option(
        False,
        "draw figure8 on an empty canvas, where its picture is not yours to publish",
        group="detectors",
    )
    device: str = shared.device()
    engine: str = shared.engine("torch")
    half: bool = shared.half(False)


def task_of(name: str, models: list[Path], folders: list[Path]) -> str:
    """The task that is meant: by the name, or else by the checkpoints, or else by the pictures.

    Raises:
        UsageError: The checkpoints are not of one task, or not of that of the name.
    """
    from spikedet import task_registry
    from spikedet.checkpoint import load
    from spikedet.networks import expect_stage

    there = [task for task, names in NAMES.items() if name in names]
    if not models and len(there) > 1:
        return task_registry.of_data(folders)
    for path in models:
        checkpoint = load(path)
        expect_stage(checkpoint, "float")
        if checkpoint.task not in there:
            raise UsageError(f"{path}: for {checkpoint.task}; {name} is of {' or '.join(there)}")
        there = [checkpoint.task]
    return there[0]


def run(options: Options) -> None:
    shared.expect_half(options)
    if options.name != "sparsity":
        refuse(options, ["sparsity"], "only sparsity trains with a penalty")
    models = options.model or []
    task = task_of(options.name, models, options.data)
    make = {"detection": detection.make, "classification": classification.make}[task]
    make(options, models)
    print(f"results are in {options.out}")
