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
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from spikedet.methods import METHODS  # noqa: E402
from spikedet.stages.watcher import Watcher  # noqa: E402
from spikedet.tasks import SETTINGS  # noqa: E402

LOSSES = ("mse", "kl")
OPTIONS = ("pictures", "held", "layer_steps", "loss", "end_to_end")
END = ("end_rate", "end_batch_norm", "end_batch", "end_grow_from", "end_workers")
END += ("end_temperature", "end_jpeg")
OPTIONS += END
FINE = ("layer_steps", "loss")
CHOSEN = ("pictures", "held", "per_neuron", "layers")
LAYERS = ("no_coarse", "no_fine", *CHOSEN, *FINE)

if TYPE_CHECKING:
    from spikedet.settings import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of stage II, shared with tools/convert.py.

    What is left out is as the task has it in its `LayerWise` and `EndToEnd`, or else as shown.
    """
    add = parser.add_argument

    def usual(name: str) -> str:
        part, field = place(name)
        kinds = {task: getattr(settings, part) for task, settings in SETTINGS.items()}
        usual = {task: getattr(k, field) for task, k in kinds.items() if field in fields(k)}
        return "; ".join(f"{'off' if v is None else v} for {task}" for task, v in usual.items())

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
    from spikedet.errors import UsageError
    from spikedet.settings import Plan

    given = {name: getattr(args, name) for name in OPTIONS}  # --batch is stage I's
    given = {name: value for name, value in given.items() if value is not None}
    settings = SETTINGS[task]
    layers: dict[str, Any] = {"coarse": not args.no_coarse, "fine": not args.no_fine}
    layers |= {"per_neuron": args.per_neuron, "layers": args.layers}
    end: dict[str, Any] = {}
    for name, value in given.items():
        part, field = place(name)
        if field not in fields(getattr(settings, part)):
            raise UsageError(f"--{name.replace('_', '-')} is no option of {task}")
        (layers if part == "LayerWise" else end)[field] = value
    end["batch_norm"] = args.end_batch_norm
    seed = args.seed or 0
    return Plan(settings.LayerWise(**layers), settings.EndToEnd(**end), seed)


def place(option: str) -> tuple[str, str]:
    """The part of a plan, and the field in it, that an option of stage II sets."""
    if option == "end_to_end":
        return "EndToEnd", "steps"
    if option.startswith("end_"):
        return "EndToEnd", option.removeprefix("end_")
    return "LayerWise", {"layer_steps": "steps"}.get(option, option)


def fields(kind: type) -> set[str]:
    """Names of the fields of a dataclass."""
    return {field.name for field in dataclasses.fields(kind)}


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


class Shown(Watcher):
    """Progress of both stages as bars and lines."""

    def __init__(self, T: int):
        self.T = T
        self.bar: Any = None

    def _open(self, desc: str, unit: str, total: int) -> None:
        if self.bar is None or self.bar.unit != unit:
            self.close()
            self.bar = cli.progress(desc=f"{desc} T={self.T}", unit=unit, total=total)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def layer(self, report, index: int, count: int) -> None:
        self._open("stage II", "layer", count)
        self.bar.update()
        self.bar.write(
            f"{report.name:24} error {report.before:.5f} -> coarse {report.coarse:.5f} "
            f"-> fine {report.after:.5f}"
        )

    def step(self, done: int, steps: int, loss: float) -> None:
        self._open("end to end", "step", steps)
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self.bar.update(done - self.bar.n)

    def say(self, text: str) -> None:
        self.close()
        print(text)


def is_made(args: argparse.Namespace) -> bool:
    """Whether `--resume` has nothing to do, which is said; refuses what would be written over."""
    from spikedet.stages import pipeline

    cli.expect_writable(args.out)
    done = pipeline.is_made(args.out, args.resume, cli.command_line())
    if done:
        print(f"{args.out}: complete; nothing to resume")
    return done


def main(args: argparse.Namespace) -> None:
    from spikedet import checkpoint, tasks
    from spikedet.errors import TrainingError, UsageError
    from spikedet.networks import current, expect_stage
    from spikedet.stages.pipeline import Calibration, begun_with

    if is_made(args):
        return
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
    made = current(task, made)
    made = replace(made, T=args.T or made.T)
    train, tune = cli.samples(args, task, made.names)
    origin = {"command": cli.command_line(), "parent": checkpoint.sha256(args.weights)}
    teacher = checkpoint.load(args.teacher) if args.teacher else None
    about = (task, made, train, tune, plan(args, task.name), args.out, origin, teacher)
    where = (cli.torch_device(args.device or "cpu"), args.resume, Shown(made.T))
    Calibration(*about, METHODS["two-stage"], args.pooling, *where).run()


if __name__ == "__main__":
    cli.run(main, arguments())
