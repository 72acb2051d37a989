#!/usr/bin/env python
"""Stage II: turn a stage-I network into a calibrated spiking network.

    tools/calibrate.py --weights runs/qc-T8/best.safetensors --T 8 --data VOCdevkit --out W

Each layer is calibrated on the spikes of the layers before it, coarse and fine, and judged on
pictures that were not fitted; then the whole network is trained for a few steps towards the
outputs of the float network (--teacher; of the stage-I network without), which is kept if AP on
the tuning pictures rises.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402

if TYPE_CHECKING:
    from spikedet.checkpoint import Checkpoint
    from spikedet.detection.data import Sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of stage II, shared with tools/convert.py."""
    add = parser.add_argument
    add("--pictures", type=int, default=256, help="training pictures that layers are fitted to")
    add("--held", type=int, default=64, help="other training pictures that judge each layer")
    add("--layer-steps", type=int, default=120, help="most fine-calibration steps a layer")
    add("--no-coarse", action="store_true", help="leave out coarse calibration (eq 18)")
    add("--no-fine", action="store_true", help="leave out fine calibration (eq 19-21)")
    add("--per-neuron", action="store_true", help="initial potentials of neurons, not channels")
    add("--loss", choices=("mse", "kl"), default="mse", help="what fine calibration lowers")
    add("--layers", nargs="+", help="only these, names or patterns like 'model.1.*' (all)")
    add("--pooling", choices=("count", "step"), help="how spikes are max-pooled (count)")
    add("--end-to-end", type=int, default=600, help="steps of the end-to-end pass, 0 for none")
    add("--end-rate", type=float, default=4e-3, help="its learning rate, relative to the weights")


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--weights",
        type=Path,
        required=True,
        help="stage-I checkpoint, or a spiking one to go on with the end-to-end pass",
    )
    parser.add_argument("--seed", type=int, default=0, help="which pictures are drawn")
    parser.add_argument("--T", type=cli.time_steps, help="time steps; those of the weights if left")
    parser.add_argument("--out", type=Path, required=True, help="spiking checkpoint to write")
    parser.add_argument(
        "--teacher", type=Path, help="float checkpoint that the end-to-end pass distils"
    )
    cli.add_data_arguments(parser, split="VOC2007:train+VOC2012:trainval")
    add_arguments(parser)
    return parser


def calibrate(
    made: Checkpoint,
    train: list[Sample],
    tune: list[Sample],
    args: argparse.Namespace,
    origin: dict[str, Any],
    teacher: Checkpoint | None = None,
) -> None:
    """Stage II of a stage-I checkpoint with the options of `add_arguments`; writes `args.out`."""
    import copy

    import torch
    from tqdm import tqdm

    from spikedet.checkpoint import save
    from spikedet.conversion.calibrate import Options
    from spikedet.detection import stages
    from spikedet.detection.measure import measure
    from spikedet.detection.model import bare, restore

    if args.pooling:
        made.model["pooling"] = args.pooling
    layers = Options(
        coarse=not args.no_coarse,
        fine=not args.no_fine,
        steps=args.layer_steps,
        per_neuron=args.per_neuron,
        loss=args.loss,
        layers=args.layers,
    )
    plan = stages.Plan(
        layers,
        args.pictures,
        args.held,
        end_to_end=args.end_to_end,
        end_rate=args.end_rate,
        seed=args.seed,
    )
    goes_on = made.stage == "snn"  # its layers were calibrated, the end-to-end pass goes on
    network = bare(made).to(memory_format=torch.channels_last) if goes_on else stages.copied(made)
    start = time.time()
    if (layers.coarse or layers.fine) and not goes_on:
        with tqdm(desc=f"stage II T={made.T}", unit="layer") as bar:

            def report(layer, index, count):
                bar.total = count
                bar.update()
                bar.write(
                    f"{layer.name:24} error {layer.before:.5f} -> coarse {layer.coarse:.5f} "
                    f"-> fine {layer.after:.5f}"
                )

            reports = stages.layer_wise(made, network, train, plan, report)
        # a layer without error, as the first one with its constant input, has nothing to gain
        gains = [1 - r.after / r.before for r in reports if r.before > 1e-9]
        gain = sum(gains) / max(1, len(gains))
        print(f"error per layer on held-out pictures: {gain:.1%} lower on average")
        origin = {**origin, "layer_wise_gain": gain}
    save(stages.spiking_checkpoint(made, network, {**origin, "end_to_end": goes_on}), args.out)

    def tuning_ap() -> float:
        runner = restore(stages.spiking_checkpoint(made, network, {}))
        return measure(runner, tune)[0].AP

    if plan.end_to_end:
        before = tuning_ap()
        print(f"AP on {len(tune)} tuning pictures, T={made.T}: {before:.4f}")
        kept = copy.deepcopy(network.state_dict())
        with tqdm(total=plan.end_to_end, desc=f"end to end T={made.T}", unit="step") as bar:

            def on_step(step, loss):
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update()

            stages.end_to_end(made, network, train, plan, teacher, on_step)
        after = tuning_ap()
        wins = after > before
        print(f"end to end {after:.4f}: {'kept' if wins else 'not kept'}")
        if not wins:
            network.load_state_dict(kept)
        origin = {**origin, "tuning_AP": max(before, after), "end_to_end": wins or goes_on}
        save(stages.spiking_checkpoint(made, network, origin), args.out)
    print(f"{args.out}: T={made.T}, {(time.time() - start) / 60:.1f} minutes")


def main(args: argparse.Namespace) -> None:
    from spikedet import checkpoint
    from spikedet.detection.data import read_voc, split_off_tuning
    from spikedet.detection.stages import expect_stage
    from spikedet.errors import UsageError

    made = checkpoint.load(args.weights)
    expect_stage(made, "qc", "snn")
    if made.stage == "snn" and args.teacher is None:
        raise UsageError(f"{args.weights}: to go on with spiking weights, name their --teacher")
    made.T = args.T or made.T
    samples = read_voc(args.data, args.split, limit=args.limit, names=made.names)
    train, tune = split_off_tuning(samples, args.tuning)
    origin = {"command": cli.command_line(), "parent": checkpoint.sha256(args.weights)}
    teacher = checkpoint.load(args.teacher) if args.teacher else None
    calibrate(made, train, tune, args, origin, teacher)


if __name__ == "__main__":
    cli.run(main, arguments())
