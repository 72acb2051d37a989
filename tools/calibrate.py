#!/usr/bin/env python
"""Stage II: turn a stage-I network into a calibrated spiking network.

    tools/calibrate.py --weights runs/qc-T8/best.safetensors --T 8 --data VOCdevkit --out W

Each layer is calibrated on the spikes of the layers before it, coarse and fine, and judged on
pictures that were not fitted; then the whole network is trained for a few steps towards the
outputs of the float network (--teacher; of the stage-I network without), which is kept if the loss
on the tuning pictures falls. Until then the layer-wise result and what the pass has reached stand
beside --out (.layers.safetensors, .state.pt): --resume goes on from there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from spikedet.methods import METHODS, Method  # noqa: E402
from spikedet.tasks import SETTINGS  # noqa: E402

LOSSES = ("mse", "kl")
OPTIONS = ("pictures", "held", "layer_steps", "loss", "end_to_end")
END = ("end_rate", "end_batch_norm", "end_batch", "end_grow_from", "end_workers")
END += ("end_temperature", "end_jpeg")
OPTIONS += END
FINE = ("layer_steps", "loss")
# what the record of weights goes on to say after another end-to-end pass
RECORD = ("method", "coarse", "fine", "calibration_pictures", "layer_wise_gain", "end_to_end")
RECORD += ("end_to_end_steps",)
CHOSEN = ("pictures", "held", "per_neuron", "layers")
LAYERS = ("no_coarse", "no_fine", *CHOSEN, *FINE)

if TYPE_CHECKING:
    from spikedet.checkpoint import Checkpoint
    from spikedet.graph.graph import Graph
    from spikedet.stage_two import Plan
    from spikedet.task import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of stage II, shared with tools/convert.py.

    What is left out is as the task has it in its `STAGE_TWO`, or else as shown.
    """
    add = parser.add_argument

    def usual(name: str) -> str:
        found = {t: s.STAGE_TWO[name] for t, s in SETTINGS.items() if name in s.STAGE_TWO}
        return "; ".join(f"{'off' if v is None else v} for {task}" for task, v in found.items())

    def number(option: str, kind: Callable[[str], Any], help: str) -> None:
        add(option, type=kind, help=f"{help} ({usual(option[2:].replace('-', '_'))})")

    number("--pictures", cli.count, "training pictures that layers are fitted to")
    number("--held", cli.count, "other training pictures that judge each layer")
    number("--layer-steps", cli.whole, "most fine-calibration steps a layer")
    add("--no-coarse", action="store_true", help="leave out coarse calibration (eq 18)")
    add("--no-fine", action="store_true", help="leave out fine calibration (eq 19-21)")
    add("--per-neuron", action="store_true", help="initial potentials of neurons, not channels")
    add("--loss", choices=LOSSES, help=f"what fine calibration lowers ({usual('loss')})")
    add("--layers", nargs="+", help="only these, names or patterns like 'model.1.*' (all)")
    add("--pooling", choices=("count", "step"), help="how spikes are max-pooled (count)")
    number("--end-to-end", cli.whole, "steps of the end-to-end pass, 0 for none")
    number("--end-rate", cli.positive, "its learning rate, relative to the weights")
    help = "train beside batch norm in it, and fold it afterwards"
    add("--end-batch-norm", action="store_true", help=help)
    number("--end-batch", cli.count, "pictures a step of it")
    number("--end-workers", cli.whole, "loader processes of it")
    number("--end-grow-from", cli.count, "side in pixels of its first pictures")
    number("--end-temperature", cli.temperature, "as --temperature of stage I, in this pass")
    number("--end-jpeg", cli.quality, "as --jpeg of stage I, in this pass")


def expect_halves(args: argparse.Namespace) -> None:
    """Refuse options of the halves of layer-wise calibration that are left out.

    Raises:
        UsageError: Names the option.
    """
    if args.no_fine:
        cli.refuse(args, FINE, "--no-fine leaves fine calibration out")
    if args.no_coarse and args.no_fine:
        cli.refuse(args, CHOSEN, "--no-coarse and --no-fine leave all layers as they are")


def plan(args: argparse.Namespace, task: str) -> Plan:
    """What `add_arguments` parsed.

    Raises:
        UsageError: An option of another task.
    """
    from spikedet.conversion.calibrate import Options
    from spikedet.errors import UsageError
    from spikedet.stage_two import Plan

    chosen = dict(SETTINGS[task].STAGE_TWO)
    given = {name: getattr(args, name) for name in OPTIONS}  # --batch is stage I's
    given = {name: value for name, value in given.items() if value is not None}
    elsewhere = {name for other in SETTINGS.values() for name in other.STAGE_TWO}
    for name in given:
        if name in elsewhere - chosen.keys():
            raise UsageError(f"--{name.replace('_', '-')} is no option of {task}")
    chosen |= given
    steps, loss = chosen.pop("layer_steps"), chosen.pop("loss")
    layers = Options(
        coarse=not args.no_coarse,
        fine=not args.no_fine,
        steps=steps,
        per_neuron=args.per_neuron,
        loss=loss,
        layers=args.layers,
    )
    return Plan(layers, seed=args.seed or 0, **chosen)


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--weights",
        type=Path,
        required=True,
        help="stage-I checkpoint, or a spiking one to go on with the end-to-end pass",
    )
    parser.add_argument("--seed", type=cli.seed, default=0, help="which pictures are drawn")
    parser.add_argument("--T", type=cli.time_steps, help="time steps; those of the weights if left")
    parser.add_argument("--out", type=Path, required=True, help="spiking checkpoint to write")
    parser.add_argument(
        "--teacher", type=Path, help="float checkpoint that the end-to-end pass distils"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the end-to-end pass of a killed run"
    )
    cli.add_device(parser)
    cli.add_data_arguments(parser)
    cli.add_unlabelled(parser)
    add_arguments(parser)
    return parser


def calibrate(
    task: Task,
    made: Checkpoint,
    train: Sequence,
    tune: Sequence,
    args: argparse.Namespace,
    origin: dict[str, Any],
    teacher: Checkpoint | None = None,
    method: Method = METHODS["two-stage"],
) -> None:
    """Stage II of a stage-I checkpoint with the options of `add_arguments`; writes `args.out`.

    Of the method counts how neurons start and whether biases are corrected. With `args.resume` an
    end-to-end pass that was interrupted goes on; where there is none stage II is done anew.
    """

    from spikedet import checkpoint, stage_two
    from spikedet.errors import TrainingError
    from spikedet.neurons.layers import SpikingMaxPool
    from spikedet.precision import layout
    from spikedet.task import spiking_checkpoint

    if args.pooling:
        made.model["spike_pooling"] = args.pooling
    planned = plan(args, task.name)
    planned.layers.bias = method.bias
    goes_on = made.stage == "snn"  # its layers were calibrated, the end-to-end pass goes on
    told = {"weights": checkpoint.fingerprint(made.tensors), "data": task.fingerprint(train)}
    told |= {"T": made.T, "network": made.model, "seed": planned.seed}
    if not goes_on:
        told |= {**vars(planned.layers), "pictures": planned.pictures, "held": planned.held}
    start = time.time()
    begun = begun_with(args.out)
    resumed = begun.is_file()
    if resumed:
        if not args.resume:
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
        node.module.mode = args.pooling or node.module.mode
    stage_two.expect_end_size(task, made, planned, network)
    if teacher is not None:
        task.teacher(made, teacher)  # refuses one that cannot teach, before the layers are fitted
    network.to(cli.torch_device(args.device or "cpu"), memory_format=layout(network))
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
        target = begun if planned.end_to_end else args.out
        checkpoint.save(spiking_checkpoint(made, network, origin), target)
    if planned.end_to_end:
        end_to_end(task, made, network, train, tune, planned, args.out, origin, teacher)
    elif resumed:
        checkpoint.save(calibrated, args.out)
        forget(args.out)
    print(f"{args.out}: T={made.T}, {(time.time() - start) / 60:.1f} minutes")


def beside(out: Path, ending: str) -> Path:
    """A file of the run that makes `out`."""
    return out.with_name(out.name.removesuffix(".safetensors") + ending)


def last_of(out: Path) -> Path:
    """What the end-to-end pass made where that is not what it keeps."""
    return beside(out, ".last.safetensors")


def expect_new(out: Path) -> None:
    """Refuse an output that would be written over (see `cli.expect_new`)."""
    for path in (out, last_of(out)):
        cli.expect_new(path)


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

    with cli.progress(desc=f"stage II T={made.T}", unit="layer") as bar:

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

    if planned.int8:
        stage_two.whole(network)  # what is kept is whole in any case
    before = loss()
    kept = copy.deepcopy(network)
    with cli.progress(total=planned.end_to_end, desc=f"end to end T={made.T}", unit="step") as bar:

        def on_step(step, loss):
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(step + 1 - bar.n)

        how = (planned, teacher, state_of(out), on_step)
        told = stage_two.end_to_end(task, made, network, train, *how)
    after = loss()
    wins = after < before or planned.sparsity > 0  # fewer spikes cost some of the loss
    path = out if wins else last_of(out)
    judged = stage_two.judged(tune, planned)
    print(f"loss on {judged} tuning pictures: {before:.4f} before, {after:.4f} after")
    print("kept" if wins else f"not kept, but written to {path}")
    losses = {"tuning_loss": after, "tuning_loss_before": before}
    passed = {"end_to_end": True, **told}
    passed["end_to_end_steps"] = origin.get("end_to_end_steps", 0) + planned.end_to_end
    save(spiking_checkpoint(made, network, {**origin, **losses, **passed}), path)
    if not wins:
        rounded = {"int8": True} if planned.int8 else {}
        save(spiking_checkpoint(made, kept, {**origin, **losses, **rounded}), out)
    forget(out)


def main(args: argparse.Namespace) -> None:
    from spikedet import checkpoint, tasks
    from spikedet.errors import TrainingError, UsageError
    from spikedet.task import expect_stage

    expect_new(args.out)
    made = checkpoint.load(args.weights)
    expect_stage(made, "qc", "snn")
    if args.resume and not begun_with(args.out).is_file():
        raise TrainingError(f"{args.out}: no end-to-end pass to resume here; run without --resume")
    if made.stage == "snn" and args.teacher is None:
        raise UsageError(f"{args.weights}: to go on with spiking weights, name their --teacher")
    if made.stage == "snn":
        cli.refuse(args, LAYERS, "spiking weights only go on with the end-to-end pass")
    expect_halves(args)
    if args.end_to_end == 0:
        useless = END if args.resume else (*END, "unlabelled", "teacher")  # else it repeats its own
        cli.refuse(args, useless, "--end-to-end 0 leaves the end-to-end pass out")
    task = tasks.of(made)
    made = task.current(made)
    made.T = args.T or made.T
    train, tune = cli.samples(args, task, made.names)
    origin = {"command": cli.command_line(), "parent": checkpoint.sha256(args.weights)}
    teacher = checkpoint.load(args.teacher) if args.teacher else None
    calibrate(task, made, train, tune, args, origin, teacher)


if __name__ == "__main__":
    cli.run(main, arguments())
