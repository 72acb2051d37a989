"""Stage II: turn a stage-I network into a calibrated spiking network.

    spikedet calibrate --weights runs/qc-T8/best.safetensors --T 8 --data VOCdevkit --out W

Each layer is calibrated on the spikes of the layers before it, coarse and fine, and judged on
pictures that were not fitted; then the whole network is trained for a few steps towards the
outputs of the float network (--teacher; of the stage-I network without), which is kept if the loss
on the tuning pictures falls. Until then the layer-wise result and what the pass has reached stand
beside --out (.layers.safetensors, .state.pt): --resume goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.commands import checks, shared
from spikedet.commands.checks import refuse
from spikedet.commands.kinds import torch_device
from spikedet.commands.main import command_line, progress
from spikedet.commands.training import END, LAYERS, StageTwo, expect_halves, plan, resume
from spikedet.methods import METHODS, Method
from spikedet.settings import option

# what the record of weights goes on to say after another end-to-end pass
RECORD = ("method", "coarse", "fine", "calibration_pictures", "layer_wise_gain", "end_to_end")
RECORD += ("end_to_end_steps",)

if TYPE_CHECKING:
    from spikedet.checkpoint import Checkpoint
    from spikedet.graph.graph import Graph
    from spikedet.stage_two import Plan
    from spikedet.task import Task


@dataclass(kw_only=True)
class Options(StageTwo, shared.TrainingData):
    """Options of the command."""

    weights: Path = option(
        help="stage-I checkpoint, or a spiking one to go on with the end-to-end pass"
    )
    out: Path = option(help="spiking checkpoint to write")
    T: int | None = shared.steps("time steps; those of the weights if left")
    teacher: Path | None = option(None, "float checkpoint that the end-to-end pass distils")
    resume: bool = resume("go on with the end-to-end pass of a killed run")
    seed: int = option(0, "which pictures are drawn", least=0, most=(1 << 31) - 1)
    device: str = shared.device()
    unlabelled: list[Path] | None = shared.unlabelled()


def calibrate(
    task: Task,
    made: Checkpoint,
    train: Sequence,
    tune: Sequence,
    options: Any,
    origin: dict[str, Any],
    teacher: Checkpoint | None = None,
    method: Method = METHODS["two-stage"],
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Stage II of a stage-I checkpoint with the options of `StageTwo`; writes `options.out`.

    Of the method counts how neurons start and whether biases are corrected. With `options.resume`
    an end-to-end pass that was interrupted goes on; where there is none stage II is done anew.
    """

    from spikedet import checkpoint, stage_two
    from spikedet.errors import TrainingError
    from spikedet.neurons.layers import SpikingMaxPool
    from spikedet.precision import layout
    from spikedet.task import spiking_checkpoint

    if options.pooling:
        made.model["spike_pooling"] = options.pooling
    planned = plan(options, task.name, seed)
    planned.layers.bias = method.bias
    goes_on = made.stage == "snn"  # its layers were calibrated, the end-to-end pass goes on
    told = {"weights": checkpoint.fingerprint(made.tensors), "data": task.fingerprint(train)}
    told |= {"T": made.T, "network": made.model, "seed": planned.seed}
    if not goes_on:
        told |= {**vars(planned.layers), "pictures": planned.pictures, "held": planned.held}
    start = time.time()
    begun = begun_with(options.out)
    resumed = begun.is_file()
    if resumed:
        if not options.resume:
            raise TrainingError(f"{begun}: a killed run; add --resume, or choose another --out")
        calibrated = checkpoint.load(begun)
        before = calibrated.origin.get("run", {})
        other = ", ".join(key for key in told | before if told.get(key) != before.get(key))
        if other:
            raise TrainingError(f"{begun}: a run with other {other}; choose another --out")
        network = task.graph(calibrated)
        origin = {**calibrated.origin, "command": origin["command"]}  # how the pass is done now
    elif goes_on:
        network = task.graph(made)
        kept = {name: made.origin[name] for name in RECORD if name in made.origin}
        origin = {**kept, **origin}
    else:
        pictures = next(iter(task.pictures(task.pick(train, 2), made, 2)))
        network = stage_two.copied(task, made, method.initial, method.shift, pictures)
    for node in network.of((SpikingMaxPool,)):
        node.module.mode = options.pooling or node.module.mode
    stage_two.expect_end_size(task, made, planned, network)
    if teacher is not None:
        task.teacher(made, teacher)  # refuses one that cannot teach, before the layers are fitted
    network.to(torch_device(device), memory_format=layout(network))
    if not resumed:
        layers = planned.layers
        if (layers.coarse or layers.fine or layers.bias) and not goes_on:
            targets = teacher if layers.bias else None
            gain, fitted = layer_wise(task, made, network, train, planned, targets)
            origin = {**origin, "layer_wise_gain": gain, "calibration_pictures": fitted}
        elif not goes_on:
            origin = {**origin, "calibration_pictures": 0}
        if not goes_on:
            origin |= {"coarse": layers.coarse, "fine": layers.fine, "end_to_end": False}
        origin["run"] = told
        target = begun if planned.end_to_end else options.out
        checkpoint.save(spiking_checkpoint(made, network, origin), target)
    if planned.end_to_end:
        end_to_end(task, made, network, train, tune, planned, options.out, origin, teacher)
    elif resumed:
        checkpoint.save(calibrated, options.out)
        forget(options.out)
    print(f"{options.out}: T={made.T}, {(time.time() - start) / 60:.1f} minutes")


def beside(out: Path, ending: str) -> Path:
    """A file of the run that makes `out`."""
    return out.with_name(out.name.removesuffix(".safetensors") + ending)


def last_of(out: Path) -> Path:
    """What the end-to-end pass made where that is not what it keeps."""
    return beside(out, ".last.safetensors")


def expect_new(out: Path) -> None:
    """Refuse an output that would be written over (see `checks.expect_new`)."""
    for path in (out, last_of(out)):
        checks.expect_new(path)


def begun_with(out: Path) -> Path:
    """Where the network before the end-to-end pass stands until that is over."""
    return beside(out, ".layers.safetensors")


def state_of(out: Path) -> Path:
    """What the end-to-end pass has reached until it is over."""
    return beside(out, ".state.pt")


def forget(out: Path) -> None:
    """Delete what an end-to-end pass would go on from."""
    for path in (state_of(out), begun_with(out)):
        path.unlink(missing_ok=True)


def layer_wise(
    task: Task,
    made: Checkpoint,
    network: Graph,
    train: Sequence,
    planned: Plan,
    teacher: Checkpoint | None,
) -> tuple[float, int]:
    """The layer-wise pass, in place.

    Returns:
        By which part the error of a layer fell on average, and how many pictures were fitted.
    """
    from spikedet import stage_two

    with progress(desc=f"stage II T={made.T}", unit="layer") as bar:

        def report(layer, index, count):
            bar.total = count
            bar.update()
            bar.write(
                f"{layer.name:24} error {layer.before:.5f} -> coarse {layer.coarse:.5f} "
                f"-> fine {layer.after:.5f}"
            )

        how = (planned, report, teacher)
        reports, fitted, held = stage_two.layer_wise(task, made, network, train, *how)
    # a layer without error, as the first one with its constant input, has nothing to gain
    gains = [1 - r.after / r.before for r in reports if r.before > 1e-9]
    gain = sum(gains) / max(1, len(gains))
    print(
        f"error per layer on held-out pictures: {gain:.1%} lower on average; {fitted} fitted, "
        f"{held} held out"
    )
    return gain, fitted


def end_to_end(
    task: Task,
    made: Checkpoint,
    network: Graph,
    train: Sequence,
    tune: Sequence,
    planned: Plan,
    out: Path,
    origin: dict[str, Any],
    teacher: Checkpoint | None,
) -> None:
    """The end-to-end pass; writes what has the lower loss on the tuning samples to `out`."""
    import copy

    from spikedet import stage_two
    from spikedet.checkpoint import save
    from spikedet.task import spiking_checkpoint

    def loss() -> float:
        return stage_two.tuning_loss(task, made, network, tune, planned, teacher)

    before = loss()
    kept = copy.deepcopy(network)
    with progress(total=planned.end_to_end, desc=f"end to end T={made.T}", unit="step") as bar:

        def on_step(step, loss):
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(step + 1 - bar.n)

        stage_two.end_to_end(task, made, network, train, planned, teacher, state_of(out), on_step)
    after = loss()
    wins = after < before
    path = out if wins else last_of(out)
    judged = stage_two.judged(tune, planned)
    print(f"loss on {judged} tuning pictures: {before:.4f} before, {after:.4f} after")
    print("kept" if wins else f"not kept, but written to {path}")
    losses = {"tuning_loss": after, "tuning_loss_before": before}
    passed = {"end_to_end": True}
    passed["end_to_end_steps"] = origin.get("end_to_end_steps", 0) + planned.end_to_end
    save(spiking_checkpoint(made, network, {**origin, **losses, **passed}), path)
    if not wins:
        save(spiking_checkpoint(made, kept, {**origin, **losses}), out)
    forget(out)


def run(options: Options) -> None:
    from spikedet import checkpoint, tasks
    from spikedet.errors import TrainingError, UsageError
    from spikedet.task import expect_stage

    expect_new(options.out)
    made = checkpoint.load(options.weights)
    expect_stage(made, "qc", "snn")
    if options.resume and not begun_with(options.out).is_file():
        raise TrainingError(
            f"{options.out}: no end-to-end pass to resume here; run without --resume"
        )
    if made.stage == "snn" and options.teacher is None:
        raise UsageError(f"{options.weights}: to go on with spiking weights, name their --teacher")
    if made.stage == "snn":
        refuse(options, LAYERS, "spiking weights only go on with the end-to-end pass")
    expect_halves(options)
    if options.stage_two.get("end_to_end") == 0:
        useless = (
            END if options.resume else (*END, "unlabelled", "teacher")
        )  # else it repeats its own
        refuse(options, useless, "--end-to-end 0 leaves the end-to-end pass out")
    task = tasks.of(made)
    made = task.current(made)
    made.T = options.T or made.T
    train, tune = shared.samples(options, task, made.names)
    origin = {"command": command_line(), "parent": checkpoint.sha256(options.weights)}
    teacher = checkpoint.load(options.teacher) if options.teacher else None
    how = {"seed": options.seed, "device": options.device}
    calibrate(task, made, train, tune, options, origin, teacher, **how)
