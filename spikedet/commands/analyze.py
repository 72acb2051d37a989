"""Show the errors of a spiking network, layer by layer (figures 4 and 5 of the paper).

    spikedet analyze --data VOCdevkit --T 8 --out analysis-T8
    spikedet analyze --weights W --stage1 QC --float FLOAT --data cifar10 \\
        --out analysis

Writes CSV files and plots to --out. Without --weights, the released networks of all stages are
compared. With --weights, only the given checkpoints are used. Tables that need a checkpoint you did
not give are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import refuse
from spikedet.commands.main import progress
from spikedet.errors import UsageError, counted
from spikedet.options import option
from spikedet.settings import Plan
from spikedet.terminal import Table

if TYPE_CHECKING:
    from spikedet.analysis.compare import Comparison, ReadoutError
    from spikedet.checkpoint import Checkpoint
    from spikedet.task import Samples, Task

MORE = """
The command uses the tuning pictures of the training split. With --all, it uses all pictures of the
split. It writes these tables, each as a CSV file and a plot:

    residual    figure 4: share of neurons whose spike rate differs from the
                quantised mean current
    periodic    figure 5a: quantiser and neuron compared
    similarity  figure 5b: cosine of spike rates and stage-I activations
    gap         figure 5c: error of the outputs after each time step of one
                run (spikedet evaluate measures AP or accuracy over T)
    layers      error of each layer before and after stage II, in units of
                its squared threshold
    rates       spike rate and error of each layer
    raster      spikes of some neurons of each layer, at one place of the
                first picture
"""
ENDINGS = (".csv", ".png")
Rows = list[dict[str, Any]]


@dataclass(kw_only=True)
class Options(shared.TrainingData):
    """Options of the command."""

    out: Path = parse.written_folder(help="folder for CSV files and plots")
    limit: int = option(64, "use only N pictures, always the same ones", least=1)
    weights: Path | None = option(
        None, "spiking checkpoint (default: the released one for T)", kind=kinds.weights
    )
    stage1: Path | None = option(
        None, "stage-I checkpoint that --weights was made from", kind=kinds.weights
    )
    source: Path | None = option(None, "float checkpoint", name="float", kind=kinds.weights)
    all: bool = option(False, "use all pictures, not only the tuning pictures")
    T: int | None = shared.steps()
    place: list[float] = option(
        [0.5, 0.5], "place of the raster: row and column, as fractions of the picture",
        least=0, most=1, nargs=2, metavar="PART", group="raster",
    )  # fmt: skip
    batch: int = shared.batch(4)
    device: str = shared.device()
    engine: str = shared.engine("torch")


def shipped(T: int | None, task: str) -> tuple[Path, Path | None, Path | None]:
    """The released spiking weights of a task for T, with their stage-I and float weights."""
    from spikedet.released import default_weights

    path = default_weights(T, task)
    beside = path.name.replace("-snn-", "-qc-"), re.sub(r"-snn-T\d+", "-float", path.name)
    stage1, source = (path.with_name(name) for name in beside)
    return path, stage1 if stage1.is_file() else None, source if source.is_file() else None


def load(options: Options) -> tuple[Checkpoint, Checkpoint | None, Checkpoint | None]:
    """Load the spiking, the stage-I and the float checkpoint. They are of one network."""
    from spikedet import task_registry
    from spikedet.checkpoint import load as load_checkpoint
    from spikedet.networks import expect_same_network, expect_stage

    weights, *others = options.weights, options.stage1, options.source
    if weights is None:
        weights, *defaults = shipped(options.T, task_registry.of_data(options.data))
        others = [other or own for other, own in zip(others, defaults, strict=True)]
    spiking = load_checkpoint(weights)
    expect_stage(spiking, "snn")
    pooling = spiking.model.get("spike_pooling", "count")
    checkpoints: list[Checkpoint | None] = []
    for path, stage in zip(others, ("qc", "float"), strict=True):
        checkpoint = None if path is None else load_checkpoint(path)
        if checkpoint is not None and path is not None:
            expect_stage(checkpoint, stage)
            expect_same_network(path, checkpoint, weights, spiking)
            # a copy of stage I pools spikes as the conversion chose
            model = {**checkpoint.model, "spike_pooling": pooling}
            checkpoint = replace(checkpoint, model=model)
        checkpoints.append(checkpoint)
    stage1, source = checkpoints
    return spiking, stage1, source


def samples(options: Options, task: Task, checkpoint: Checkpoint) -> Samples:
    """Read the pictures to run on."""
    read = shared.read(options, task, shared.split(options, task.name), names=checkpoint.names)
    if options.all:
        refuse(options, ["tuning"], "--all uses all pictures, so there are no tuning pictures")
    chosen = read if options.all else read.split_off_tuning(options.tuning)[1]
    return chosen.pick(options.limit)  # at random: classes may come one after another


def compare(
    options: Options,
    task: Task,
    checkpoints: tuple[Checkpoint, Checkpoint | None, Checkpoint | None],
    pictures: Samples,
    T: int,
) -> tuple[dict[str, Comparison], ReadoutError]:
    """Run all networks on the pictures.

    Returns:
        Comparisons by name of the network, and the error of stage I to the float network.
    """
    import torch

    from spikedet.analysis.compare import Comparison, ReadoutError, Reference
    from spikedet.networks import (
        is_correcting,
        margins_of,
        method_name,
        restore,
        spiking_checkpoint,
    )
    from spikedet.runtime.network import SpikingNetwork
    from spikedet.stages import stage_two

    spiking, *others = checkpoints

    def restored(checkpoint: Checkpoint) -> Any:
        return restore(task, checkpoint).to(options.device).network

    stage1, source = (None if o is None else Reference(restored(o)) for o in others)
    network = restored(spiking)
    comparisons = {method_name(spiking): Comparison(network, T)}
    if others[0] is not None:
        neuron = "correcting" if is_correcting(spiking) else Plan.neuron
        margins = margins_of(network.graph)
        margin = margins[0] if len(margins) == 1 else 0.0
        graph = stage_two.copied(task, others[0], neuron=neuron, margin=margin)
        alone = method_name(spiking_checkpoint(others[0], graph, {"method": "stage1"}))
        if alone not in comparisons:
            copied = SpikingNetwork(graph, T).to(options.device)
            comparisons = {alone: Comparison(copied, T), **comparisons}
    between = ReadoutError()
    with progress(total=len(pictures), desc=f"T={T}", unit="picture", leave=False) as bar:
        for batch in pictures.pictures(spiking, options.batch):
            batch = batch.to(options.device, memory_format=torch.channels_last)
            for reference in (stage1, source):
                if reference is not None:
                    reference.run(batch)
            if stage1 and source:
                between.add(stage1.results, source.results)
            for comparison in comparisons.values():
                comparison.add(batch, stage1, source)
            bar.update(len(batch))
    return comparisons, between


def residual_rows(comparisons: dict[str, Comparison], T: int) -> Rows:
    """Rows of figure 4: the mean over the pictures, and the worst picture."""
    rows = []
    for network, comparison in comparisons.items():
        for name, layer in comparison.layers.items():
            share = [a + b for a, b in zip(layer.above, layer.below, strict=True)]
            row = {"network": network, "layer": name, "T": T, "neurons": layer.neurons}
            row |= {"share": mean(share), "above": mean(layer.above), "below": mean(layer.below)}
            rows.append(row | {"share_max": max(share), "images": len(share)})
    return rows


def similarity_rows(comparisons: dict[str, Comparison], T: int) -> Rows:
    """Rows of figure 5b: the mean cosine similarity over the pictures."""
    return [
        {"network": network, "layer": name, "T": T, "cosine": mean(layer.cosine)}
        | {"images": len(layer.cosine)}
        for network, comparison in comparisons.items()
        for name, layer in comparison.layers.items()
        if layer.cosine
    ]


def layer_rows(comparisons: dict[str, Comparison], T: int) -> Rows:
    """Rows with the error of every layer and readout before and after stage II."""
    if len(comparisons) < 2:
        return []
    before, after = (layer_errors(comparison, T) for comparison in comparisons.values())
    return [
        {"layer": name, "T": T, "before": value, "after": after[name]}
        for name, value in before.items()
    ]


def layer_errors(comparison: Comparison, T: int) -> dict[str, float]:
    """The error of every layer and readout to stage I."""
    errors = {name: mean(layer.error) for name, layer in comparison.layers.items()}
    last = comparison.to_stage1[T].each()
    return errors | dict(zip(comparison.readouts, last, strict=True))


def rate_rows(comparisons: dict[str, Comparison], T: int) -> Rows:
    """Rows with the firing rate of each layer (spikes per neuron and step), and its error."""
    return [
        {"network": network, "layer": name, "T": T, "rate": mean(layer.rate)}
        | {"error": mean(layer.error) if layer.error else None, "images": len(layer.rate)}
        for network, comparison in comparisons.items()
        for name, layer in comparison.layers.items()
    ]


def raster_rows(options: Options, comparison: Comparison, pictures: Samples,
                checkpoint: Checkpoint, T: int) -> Rows:  # fmt: skip
    """Rows with the spikes of some neurons at the position `--place` of the first picture."""
    from spikedet.analysis.raster import raster

    first = next(iter(pictures.pictures(checkpoint, 1))).to(options.device)
    row, column = options.place
    return raster(comparison.recorder.spiking, first, T, (row, column))


def gap_rows(comparisons: dict[str, Comparison], between: ReadoutError, T: int) -> Rows:
    """Rows of figure 5c: the error of the outputs after each step, and that of stage I."""
    rows = []
    for network, comparison in comparisons.items():
        gaps = {"float": comparison.to_float, "stage I": comparison.to_stage1}
        for reference, steps in gaps.items():
            rows += [
                {"network": network, "reference": reference, "T": t, "error": error.mean()}
                for t, error in steps.items()
            ]
    if between.sums:
        row = {"network": "stage I", "reference": "float", "error": between.mean()}
        rows += [row | {"T": t} for t in range(1, T + 1)]
    return rows


def periodic_rows(T: int) -> Rows:
    """Rows of figure 5a."""
    from spikedet.analysis.residual import periodic

    return [
        {"course": answer.course, "T": T, "mean_current": x, "quantiser": g, "rate": r}
        for answer in periodic(T)
        for x, g, r in zip(
            answer.mean.tolist(), answer.quantiser.tolist(), answer.rate.tolist(), strict=True
        )
    ]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def show(tables: dict[str, Rows]) -> None:
    """Print a line for each layer and network."""
    cosines = {(r["network"], r["layer"]): r["cosine"] for r in tables["similarity"]}
    first, last = (tables["residual"][index]["network"] for index in (0, -1))
    errors = {r["layer"]: {first: r["before"], last: r["after"]} for r in tables["layers"]}
    width = max(len(row["network"]) for row in tables["residual"]) + 2
    columns = [("RPE", 8), ("worst", 8), ("cosine", 8), ("error", 10)]
    table = Table([("", width), ("layer", 26), *columns], left=2)
    table.head()
    for row in tables["residual"]:
        network, layer = row["network"], row["layer"]
        likeness, error = cosines.get((network, layer)), errors.get(layer, {}).get(network)
        table.row(
            network,
            layer,
            f"{row['share']:.4f}",
            f"{row['share_max']:.4f}",
            "-" if likeness is None else f"{likeness:.4f}",
            "-" if error is None else f"{error:.5f}",
        )
    last = max((row["T"] for row in tables["gap"]), default=None)
    for row in tables["gap"]:
        if row["T"] == last:
            name = f"{row['network']} to {row['reference']}"
            print(f"outputs, T={last}: {name:38} error {row['error']:.4f}")


def run(options: Options) -> None:
    from spikedet import task_registry
    from spikedet.plots import About, analysis, write
    from spikedet.released import default_weights

    if options.engine not in ("auto", "torch"):
        raise UsageError(
            f"--engine {options.engine}: analyze needs input currents, which only the torch "
            "engine gives; use --engine torch"
        )
    checkpoints = load(options)
    T = options.T or checkpoints[0].time_steps
    task = task_registry.of(checkpoints[0])
    pictures = samples(options, task, checkpoints[0])
    comparisons, between = compare(options, task, checkpoints, pictures, T)
    tables = {
        "residual": residual_rows(comparisons, T),
        "periodic": periodic_rows(T),
        "similarity": similarity_rows(comparisons, T),
        "layers": layer_rows(comparisons, T),
        "gap": gap_rows(comparisons, between, T),
        "rates": rate_rows(comparisons, T),
        "raster": raster_rows(options, list(comparisons.values())[-1], pictures, checkpoints[0], T),
    }
    data = f"{counted(len(pictures), 'picture')} of {shared.split(options, task.name)}"
    print(f"T={T}, weights of T={checkpoints[0].T}: {data}")
    weights = options.weights or default_weights(options.T, task.name)
    about = About(weights.name, data, T)
    show(tables)
    for name, rows in tables.items():
        if rows:
            write(options.out, name, rows, getattr(analysis, name), about)
        else:
            for ending in ENDINGS:  # of an earlier run, maybe of other weights
                (options.out / f"{name}{ending}").unlink(missing_ok=True)
            needed = "--stage1 or --float" if name == "gap" else "--stage1"
            print(f"{name}: left out, because it needs {needed}")
    print(f"{options.out}: CSV files and plots")
