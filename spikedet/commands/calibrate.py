"""Run stage II: turn a stage-I network into a calibrated spiking network.

    spikedet calibrate --weights runs/qc-T8/best.safetensors --T 8 \\
        --data VOCdevkit --out W

First, each layer is calibrated on the spikes of the layers before it: coarse, then fine. Held-out
pictures decide what is kept. Then the end-to-end pass trains the whole network for a few steps. Its
targets are the outputs of the float network (--teacher), or of the stage-I network without
--teacher. The result is kept only if the loss on the tuning pictures falls. Until the pass ends,
the files .layers.safetensors and .state.pt are kept beside --out for --resume.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import refuse
from spikedet.commands.main import command_line
from spikedet.commands.training import (
    END,
    LAYERS,
    Shown,
    StageTwoOptions,
    expect_halves,
    is_finished,
    plan,
    resume,
)
from spikedet.methods import METHODS
from spikedet.options import option


@dataclass(kw_only=True)
class Options(StageTwoOptions, shared.TrainingData):
    """Options of the command."""

    weights: Path = option(
        help="stage-I checkpoint, or a spiking one to continue the end-to-end pass",
        kind=kinds.weights,
    )
    out: Path = parse.written(help="spiking checkpoint to write")
    T: int | None = shared.steps()
    teacher: Path | None = option(
        None, "float checkpoint that the end-to-end pass distils from", kind=kinds.weights
    )
    resume: bool = resume("continue an interrupted end-to-end pass")
    seed: int = option(0, "seed that chooses the pictures", least=0, most=(1 << 31) - 1)
    device: str = shared.device()
    unlabelled: list[Path] | None = shared.unlabelled()


def run(options: Options) -> None:
    from spikedet import task_registry
    from spikedet.checkpoint import load, sha256
    from spikedet.errors import TrainingError, UsageError
    from spikedet.networks import current, expect_stage
    from spikedet.stages.calibration import Calibration
    from spikedet.stages.run_files import layers_file

    out = options.out
    if is_finished(out, options.resume, options.weights):
        return
    checkpoint = load(options.weights)
    expect_stage(checkpoint, "qc", "snn")
    if options.resume and not layers_file(out).is_file():
        raise TrainingError(f"{out}: no end-to-end pass to resume here; run without --resume")
    if checkpoint.stage == "snn" and options.teacher is None:
        raise UsageError(
            f"{options.weights}: to continue with spiking weights, name their float network with "
            "--teacher"
        )
    if checkpoint.stage == "snn":
        refuse(
            options, (*LAYERS, "neuron"), "spiking weights only continue with the end-to-end pass"
        )
    expect_halves(options)
    if options.end.get("steps") == 0:
        useless = (*END, "unlabelled", "teacher")
        useless = END if options.resume else useless  # else it repeats its own
        refuse(options, useless, "has no effect with --end-to-end 0")
    task = task_registry.of(checkpoint)
    checkpoint = current(task, checkpoint)
    checkpoint = replace(checkpoint, T=options.T or checkpoint.T)
    train, tune = shared.samples(options, task, checkpoint.names)
    origin = {"command": command_line(), "parent": sha256(options.weights)}
    teacher = load(options.teacher) if options.teacher else None
    calibration = Calibration(
        task,
        checkpoint,
        train,
        tune,
        plan=plan(options, task.name, options.seed),
        out=out,
        origin=origin,
        teacher=teacher,
        method=METHODS["two-stage"],
        pooling=options.pooling,
        device=kinds.torch_device(options.device),
        resume=options.resume,
        watcher=Shown(checkpoint.time_steps),
    )
    calibration.run()
