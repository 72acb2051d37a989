"""Convert a float checkpoint to a spiking network.

    spikedet convert --model FLOAT --T 8 --data VOCdevkit --out W
    spikedet convert --model FLOAT --T 8 --data cifar10 --out W --method stage1
    spikedet convert --model FLOAT --T 20 --data VOCdevkit --out W \\
        --method copy --neuron correcting --per-channel

The last of these commands trains nothing, and takes seconds.

--method is two-stage, one of its parts (stage1, stage2, stage1-coarse, stage1-fine, copy), or a
baseline (rmp, opt, opi, spiking-yolo, qcfs, cap). --help-all describes each method.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import refuse
from spikedet.commands.main import command_line
from spikedet.commands.training import (
    END,
    FINE,
    LAYERS,
    Shown,
    StageOneOptions,
    StageTwoOptions,
    expect_halves,
    is_finished,
    names_of,
    plan,
    resume,
    stage_one_options,
    training,
    training_settings,
)
from spikedet.methods import METHODS, Method
from spikedet.options import option
from spikedet.settings import Plan

MORE = """
Methods:

    two-stage       stage I, then stage II: layer by layer, then end to end
    stage1          stage I; its weights are copied into spiking neurons
    stage2          stage II on the float network, with estimated thresholds;
                    the targets are the activations of the float network
    stage1-coarse   stage I and coarse calibration (initial potentials only)
    stage1-fine     stage I and fine calibration (weights and initial
                    potentials)
    copy            float weights and estimated thresholds; no training
    spiking-yolo    channel-wise normalisation (Kim et al. 2020); signed neurons
                    for leaky ReLU
    rmp             float weights; the threshold of a layer is its largest
                    activation (Han et al. 2020); potentials start at 0
    opt             like rmp, with an extra current of theta / (2 T) in every
                    step (Deng and Gu 2021)
    opi             like rmp, but potentials start at theta / 2 (Bu et al.
                    2022a)
    qcfs            like stage1, without noise and distillation (Bu et al.
                    2022b); --stage1 may have another number of levels than T
    cap             float weights, thresholds of least quantisation error,
                    extra current as in opt, then bias correction (Li et al.
                    2021)

All neurons reset by subtraction. Networks of opt and cap keep the extra current of --T when you run
them with another T. The run of stage I is kept beside --out, in the folder `<out>.stage1`. --resume
continues an interrupted run. --stage1 takes a stage-I checkpoint that you already have. It may be
for T, or for another number of levels.
"""
STAGE_ONE = (
    "noise", "distill", "qcfs", "teacher", "fold_first", "stage1_features", "stage1_sparsity",
)  # fmt: skip


@dataclass(kw_only=True)
class Options(StageOneOptions, StageTwoOptions, shared.TrainingData):
    """Options of the command."""

    weights: Path = option(help="float checkpoint", aliases=["--model"], kind=kinds.weights)
    T: int = option(help="time steps", kind=kinds.time_steps)
    out: Path = parse.written(help="spiking checkpoint to write")
    method: str = option("two-stage", "conversion method", choices=tuple(METHODS), metavar="METHOD")
    stage1: Path | None = option(
        None, "use this stage-I checkpoint and skip stage I", kind=kinds.weights
    )
    resume: bool = resume()
    training: dict[str, Any] = training(stage_one=True)
    unlabelled: list[Path] | None = shared.unlabelled()


def expect_used(options: Options, method: Method) -> None:
    """Refuse options that this method would ignore, or that would change it to another method.

    Raises:
        UsageError: The message names the option.
    """
    name = options.method
    training = [n for n in names_of() if n not in ("seed", "device", "imgsz")]
    if method.thresholds == "channels":
        why = f"{name} has neither stage"
        ignored = ("stage1", "per_channel", *STAGE_ONE, *training, *LAYERS, *END, "end_to_end")
        ignored += ("device", "resume", "unlabelled")
        refuse(options, ignored, why)
        return
    if not method.finetuned:
        refuse(options, ["stage1", *STAGE_ONE, *training, "resume"], f"{name} has no stage I")
    elif options.stage1:
        refuse(
            options, [*STAGE_ONE, *training, "per_channel"], "stage I does not run with --stage1"
        )
    if not method.calibrated:
        refuse(options, LAYERS, f"{name} calibrates no layers")
    if not method.fine:
        refuse(options, FINE, f"{name} has no fine calibration")
    if not (method.coarse or method.fine):
        refuse(options, ["per_neuron"], f"{name} does not change initial potentials")
    if not (method.coarse and method.fine):
        refuse(
            options,
            ["no_coarse", "no_fine"],
            f"the method {name} already sets which parts of stage II run",
        )
    expect_halves(options)
    if options.neuron == Plan.neuron and options.margin:
        refuse(options, ["margin"], "only neurons that take back spikes have a margin")
    if not method.end_to_end and options.end.get("steps"):
        refuse(options, ["end_to_end"], f"{name} has no end-to-end pass")
    if not method.end_to_end or options.end.get("steps") == 0:
        refuse(options, END, "there is no end-to-end pass")
        if options.stage1 or not method.finetuned:
            refuse(options, ["unlabelled"], "has no effect, as this run distils nothing")


def run(options: Options) -> None:
    from spikedet import task_registry
    from spikedet.checkpoint import load, sha256
    from spikedet.networks import expect_stage
    from spikedet.stages.conversion import Conversion

    if is_finished(options.out, options.resume, options.weights):
        return
    device, seed = options.training.get("device", "cpu"), options.training.get("seed", 0)
    checkpoint = load(options.weights)
    expect_stage(checkpoint, "float")
    task = task_registry.of(checkpoint)
    method = METHODS[options.method]
    expect_used(options, method)
    train, tune = shared.samples(options, task, checkpoint.names)
    origin = {"command": command_line(), "parent": sha256(options.weights)}
    origin["method"] = options.method
    stage_one = stage_one_options(options, task.name, options.qcfs or method.plain)
    folded = stage_one.fold_first
    settings = training_settings(options.training, task.name, stage_one=True, folded=folded)
    teacher = load(options.teacher) if options.teacher else None
    conversion = Conversion(
        task,
        options.weights,
        train,
        tune,
        T=options.T,
        method=method,
        settings=settings,
        options=stage_one,
        plan=plan(options, task.name, seed),
        out=options.out,
        origin=origin,
        stage1=options.stage1,
        teacher=teacher,
        pooling=options.pooling,
        device=kinds.torch_device(device),
        resume=options.resume,
        watcher=Shown(options.T),
    )
    conversion.run()
