"""Count spikes and synaptic operations of a spiking network, and estimate its energy.

    spikedet energy --data VOCdevkit --split VOC2007:spikedet-val --T 8
    spikedet energy --weights W --data cifar10

Each spike costs one accumulate (AC) for every weight that reads it. Layers on analog values cost
multiply-accumulates (MAC): the first layer, and the readouts on the mean rates. Both are computed
once, not in every time step. `ours` prices each operation as what it is. `paper` prices all of them
as accumulates (table VII). The float network is that of --float, or the same layers on analog
values. The table gives mean and standard deviation over the pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import warn_of_training_pictures
from spikedet.commands.main import progress
from spikedet.commands.result import write_json
from spikedet.errors import counted
from spikedet.options import option
from spikedet.terminal import Table, note

if TYPE_CHECKING:
    from torch import Tensor

    from spikedet.analysis.operations import Cost
    from spikedet.checkpoint import Checkpoint
    from spikedet.task import Task


@dataclass(kw_only=True)
class Options(shared.TestData):
    """Options of the command."""

    limit: int = option(100, "use only N pictures, always the same ones", least=1)
    weights: Path | None = option(
        None, "spiking checkpoint (default: the released one for T)", kind=kinds.weights
    )
    reference: Path | None = option(
        None, "float checkpoint to compare the operations with", name="float", kind=kinds.weights
    )
    T: int | None = shared.steps()
    batch: int = shared.batch(4)
    device: str = shared.device()
    engine: str = shared.engine("torch")
    pj_ac: float = option(0.9, "energy of an accumulate, in pJ", above=0)
    pj_mac: float = option(4.6, "energy of a multiply-accumulate, in pJ", above=0)
    json: Path | None = parse.written(None, "write all numbers to this file", kind=kinds.json_file)


def statistics(values: Tensor) -> dict[str, float | None]:
    """Mean and standard deviation over the pictures. The deviation of a single picture is None."""
    deviation = values.std().item() if len(values) > 1 else None
    return {"mean": values.mean().item(), "std": deviation}


def energies(cost: Cost, reference: int, options: Options) -> dict[str, Any]:
    """The total energy by both accountings, and that of the float network."""
    import torch

    from spikedet.analysis.operations import picojoules as energy

    accumulates, multiplies = (
        sum(each.values(), torch.zeros(())) for each in (cost.accumulates, cost.multiplies)
    )
    float_pj = energy(0, reference, options.pj_ac, options.pj_mac)
    totals: dict[str, Any] = {
        "accumulates": statistics(accumulates),
        "multiply_accumulates": statistics(multiplies),
        "float": {"multiply_accumulates": reference, "pJ": float_pj},
    }
    prices = {"ours": options.pj_mac, "paper": options.pj_ac}
    for name, price in prices.items():
        spent = torch.as_tensor(energy(accumulates, multiplies, options.pj_ac, price))
        totals[name] = {"pJ": statistics(spent), "ratio": statistics(spent / float_pj)}
    return totals


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


def pair(value: dict[str, Any], scale: float = 1.0, digits: int = 2) -> str:
    """Format a value as `mean +- deviation`. One picture has no deviation."""
    deviation = "" if value["std"] is None else f" +- {value['std'] * scale:.{digits}f}"
    return f"{value['mean'] * scale:.{digits}f}{deviation}"


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    table = Table([("layer of neurons", 28), ("neurons", 10), ("spikes per neuron and step", 28)])
    table.head()
    for name, row in result["neurons"].items():
        table.row(name, str(row["neurons"]), pair(row["spike_rate"], digits=4))
    table.row("all", "", pair(result["spike_rate"], digits=4))
    print()
    columns = [("millions of operations", 28), ("accumulates", 20), ("MAC", 10), ("float MAC", 12)]
    table = Table(columns)
    table.head()
    for name, row in result["operations"].items():
        mac = row["multiply_accumulates"]["mean"] / 1e6
        reference = row["float_multiply_accumulates"] / 1e6
        table.row(name, pair(row["accumulates"], 1e-6), f"{mac:.2f}", f"{reference:.2f}")
    totals = result["totals"]
    mac, reference = totals["multiply_accumulates"]["mean"], totals["float"]["multiply_accumulates"]
    sums = f"{mac / 1e6:.2f}", f"{reference / 1e6:.2f}"
    table.row("all", pair(totals["accumulates"], 1e-6), *sums)
    print()
    ac, each = result["pj_ac"], result["pj_mac"]
    print(f"energy per picture at {ac} pJ an accumulate, {each} pJ a multiply-accumulate")
    scale, unit = (1e-9, "mJ") if totals["float"]["pJ"] >= 1e9 else (1e-6, "uJ")
    print(f"float          {totals['float']['pJ'] * scale:.3f} {unit}")
    for name, words in (("ours", "ours"), ("paper", "paper's")):
        energy, ratio = pair(totals[name]["pJ"], scale, 3), pair(totals[name]["ratio"], 100)
        print(f"{words:8} T={result['T']:<4} {energy} {unit}, {ratio} % of float")


def float_multiplies(task: Task, path: Path, spiking: Path, checkpoint: Checkpoint) -> int:
    """Multiply-accumulates of the float network for one picture."""
    import torch

    from spikedet.analysis.operations import multiply_accumulates
    from spikedet.checkpoint import load
    from spikedet.networks import expect_same_network, expect_stage, restore

    reference = load(path)
    expect_stage(reference, "float")
    expect_same_network(path, reference, spiking, checkpoint)
    network = restore(task, reference).network
    picture = torch.zeros(1, 3, checkpoint.imgsz, checkpoint.imgsz)
    return sum(multiply_accumulates(network, picture).values())


def run(options: Options) -> None:
    from spikedet import task_registry
    from spikedet.analysis.operations import measure_cost
    from spikedet.checkpoint import identity, load
    from spikedet.networks import expect_stage, restore
    from spikedet.released import default_weights

    path = options.weights or default_weights(options.T, task_registry.of_data(options.data))
    checkpoint = load(path)
    expect_stage(checkpoint, "snn")
    T = options.T or checkpoint.time_steps
    task = task_registry.of(checkpoint)
    reference = None
    if options.reference:
        reference = float_multiplies(task, options.reference, path, checkpoint)
    split = shared.split(options, task.name, test=True)
    samples = shared.read(options, task, split, options.limit, checkpoint.names)
    digest, data = identity(path), samples.fingerprint()
    warn_of_training_pictures(task, samples, {digest})
    pictures = samples.pictures(checkpoint, options.batch)
    steps = progress(pictures, desc=f"T={T}", unit="batch", leave=False)
    network = restore(task, checkpoint).to(options.device).network
    if options.engine != "torch":
        note(f"engine {network.use_engine(options.engine)}")
    cost = measure_cost(network, (batch.to(options.device) for batch in steps), T)
    reference = reference or sum(cost.float_multiplies.values())
    result: dict[str, Any] = {"T": T, "images": len(samples), "split": split}
    result["imgsz"] = checkpoint.imgsz
    result |= {
        "weights": path.name,
        "weights_sha256": digest,
        "weights_T": checkpoint.T,
        "data": data,
    }
    result["engine"] = network.engine
    result |= {
        "pj_ac": options.pj_ac,
        "pj_mac": options.pj_mac,
        "spike_rate": statistics(cost.rate()),
    }
    result |= {**by_layer(cost), "totals": energies(cost, reference, options)}
    print(
        f"{path.name}, T={T}: {counted(len(samples), 'picture')} of {split}, "
        f"{checkpoint.imgsz} pixels, "
        f"{network.engine} engine"
    )
    show(result)
    write_json(options, result)
