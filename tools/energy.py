#!/usr/bin/env python
"""Spikes, synaptic operations and energy of a spiking network, beside the float network.

    tools/energy.py --data VOCdevkit --split VOC2007:spikedet-val --limit 100 --T 8
    tools/energy.py --weights W --data cifar10

Accumulates are counted for every spike and every weight that reads it, exact at the borders.
Layers on analog values are multiply-accumulates: the first (computed once), and the readouts (once,
on the mean rate). Two accountings: `ours` prices each operation as what it is; the `paper's` prices
every operation of the spiking network as an accumulate (its table VII). Without --float the float
network is the same layers on analog values. Mean and standard deviation are over the pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from spikedet.analysis.operations import Cost
    from spikedet.checkpoint import Checkpoint
    from spikedet.task import Task


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--weights", type=Path, help="spiking checkpoint; the shipped one for T if left out")
    add("--float", type=Path, help="float checkpoint whose operations are the reference")
    cli.add_data_arguments(parser, test=True)
    parser.set_defaults(limit=100)
    add("--T", type=cli.time_steps, help="time steps; those of the weights if left out")
    add("--batch", type=cli.count, default=4, help="pictures at a time")
    cli.add_device(parser)
    add("--pj-ac", type=cli.positive, default=0.9, help="pJ of an accumulate")
    add("--pj-mac", type=cli.positive, default=4.6, help="pJ of a multiply-accumulate")
    add("--json", type=cli.json_file, help="write everything to this file")
    return parser


def statistics(values: Tensor) -> dict[str, float | None]:
    """Mean and standard deviation over pictures; the deviation of one picture is None."""
    deviation = values.std().item() if len(values) > 1 else None
    return {"mean": values.mean().item(), "std": deviation}


def energies(cost: Cost, reference: int, args: argparse.Namespace) -> dict[str, Any]:
    """Totals of both accountings, and of the float network."""
    from spikedet.analysis.operations import picojoules as energy

    accumulates, multiplies = sum(cost.accumulates.values()), sum(cost.multiplies.values())
    float_pj = energy(0, reference, args.pj_ac, args.pj_mac)
    found: dict[str, Any] = {
        "accumulates": statistics(accumulates),
        "multiply_accumulates": statistics(multiplies),
        "float": {"multiply_accumulates": reference, "pJ": float_pj},
    }
    prices = {"ours": args.pj_mac, "paper": args.pj_ac}
    for name, price in prices.items():
        spent = energy(accumulates, multiplies, args.pj_ac, price)
        found[name] = {"pJ": statistics(spent), "ratio": statistics(spent / float_pj)}
    return found


def by_layer(cost: Cost) -> dict[str, Any]:
    """Statistics of each layer of neurons, and of each layer that reads spikes or analog values."""
    rates = {
        name: {"neurons": cost.neurons[name], "spike_rate": statistics(rate)}
        for name, rate in cost.rates.items()
    }
    operations = {
        name: {
            "accumulates": statistics(cost.accumulates[name]),
            "multiply_accumulates": statistics(cost.multiplies[name]),
            "float_multiply_accumulates": cost.float_multiplies.get(name, 0),
        }
        for name in cost.accumulates
    }
    return {"neurons": rates, "operations": operations}


def pair(value: dict[str, float | None], scale: float = 1.0, digits: int = 2) -> str:
    """`mean +- deviation`."""
    deviation = "-" if value["std"] is None else f"{value['std'] * scale:.{digits}f}"
    return f"{value['mean'] * scale:.{digits}f} +- {deviation}"


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"{'layer of neurons':28}{'neurons':>10}  spikes per neuron and step")
    for name, row in result["neurons"].items():
        print(f"{name:28}{row['neurons']:>10}  {pair(row['spike_rate'], digits=4)}")
    print(f"{'all':28}{'':>10}  {pair(result['spike_rate'], digits=4)}\n")
    print(f"{'millions of operations':28}{'accumulates':>20}{'MAC':>10}{'float MAC':>12}")
    for name, row in result["operations"].items():
        mac = row["multiply_accumulates"]["mean"] / 1e6
        reference = row["float_multiply_accumulates"] / 1e6
        print(f"{name:28}{pair(row['accumulates'], 1e-6):>20}{mac:>10.2f}{reference:>12.2f}")
    totals = result["totals"]
    mac, reference = totals["multiply_accumulates"]["mean"], totals["float"]["multiply_accumulates"]
    print(
        f"{'all':28}{pair(totals['accumulates'], 1e-6):>20}{mac / 1e6:>10.2f}"
        f"{reference / 1e6:>12.2f}\n"
    )
    ac, each = result["pj_ac"], result["pj_mac"]
    print(f"energy per picture at {ac} pJ an accumulate, {each} pJ a multiply-accumulate")
    scale, unit = (1e-9, "mJ") if totals["float"]["pJ"] >= 1e9 else (1e-6, "uJ")
    print(f"float          {totals['float']['pJ'] * scale:.3f} {unit}")
    for name, words in (("ours", "ours"), ("paper", "paper's")):
        energy, ratio = pair(totals[name]["pJ"], scale, 3), pair(totals[name]["ratio"], 100)
        print(f"{words:8} T={result['T']:<4} {energy} {unit}, {ratio} % of float")


def float_multiplies(task: Task, path: Path, spiking: Path, made: Checkpoint) -> int:
    """Multiply-accumulates of the float network of spiking weights, for one picture."""
    import torch

    from spikedet import checkpoint
    from spikedet.analysis.operations import multiply_accumulates
    from spikedet.networks import expect_same_network, expect_stage, restore

    reference = checkpoint.load(path)
    expect_stage(reference, "float")
    expect_same_network(path, reference, spiking, made)
    network = restore(task, reference).network
    picture = torch.zeros(1, 3, made.imgsz, made.imgsz)
    return sum(multiply_accumulates(network, picture).values())


def main(args: argparse.Namespace) -> None:
    from spikedet import checkpoint, tasks
    from spikedet.analysis.operations import measure_cost
    from spikedet.files import write_atomic
    from spikedet.networks import expect_stage, restore
    from spikedet.released import default_weights

    cli.expect_writable(args.json)
    path = args.weights or default_weights(args.T, tasks.of_data(args.data))
    made = checkpoint.load(path)
    expect_stage(made, "snn")
    T = args.T or made.T
    task = tasks.of(made)
    reference = float_multiplies(task, args.float, path, made) if args.float else None
    split = cli.split(args, task.name, test=True)
    samples = cli.read(args, task, split, args.limit, made.names)
    digest, data = checkpoint.identity(path), samples.fingerprint()
    cli.warn_of_training_pictures(task, samples, {digest})
    pictures = samples.pictures(made, args.batch)
    steps = cli.progress(pictures, desc=f"T={T}", unit="batch", leave=False)
    network = restore(task, made).to(args.device).network
    cost = measure_cost(network, (batch.to(args.device) for batch in steps), T)
    reference = reference or sum(cost.float_multiplies.values())
    result = {"T": T, "images": len(samples), "split": split, "imgsz": made.imgsz}
    result |= {"weights_sha256": digest, "weights_T": made.T, "data": data}
    result |= {"pj_ac": args.pj_ac, "pj_mac": args.pj_mac, "spike_rate": statistics(cost.rate())}
    result |= {**by_layer(cost), "totals": energies(cost, reference, args)}
    print(f"{path.name}, T={T}: {len(samples)} pictures of {split}, {made.imgsz} pixels")
    show(result)
    if args.json:
        write_atomic(args.json, (json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    cli.run(main, arguments())
