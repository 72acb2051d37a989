"""Show what a checkpoint holds: its network, T, thresholds, size, classes and origin.

    spikedet info
    spikedet info weights.safetensors
    spikedet info weights.safetensors --json info.json
    spikedet info weights.safetensors --layers

Without a checkpoint, it lists the released weights, which every command finds by their names. For a
spiking network, it also shows which engines can run it. If an engine cannot, it names the
layer and the reason. "left out" lists the layers that an engine leaves to torch. For released
weights, it shows what was measured with them. --layers runs a spiking network on the street picture
that comes with ultralytics. It prints the thresholds and the spike rate of each layer.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.commands import kinds, parse
from spikedet.commands.result import write_json
from spikedet.errors import UsageError, counted, shorten
from spikedet.options import option
from spikedet.terminal import Table, beside

if TYPE_CHECKING:
    from spikedet.checkpoint import Checkpoint
    from spikedet.graph.graph import Graph

STAGES = {"float": "float", "qc": "quantised (stage I)", "snn": "spiking"}
VALUES = ("AP", "AP50", "top1", "top5")  # that are measured
NOT_SHOWN = ("run",)  # fingerprints, which a resumed run compares


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    weights: Path | None = option(
        None, "checkpoint of any stage", positional=True, metavar="WEIGHTS", kind=kinds.weights
    )
    layers: bool = option(False, "also show the thresholds and the spike rate of each layer")
    json: Path | None = parse.written(
        None, "write all of this to a JSON file", kind=kinds.json_file
    )


def run(options: Options) -> None:
    from spikedet.checkpoint import load

    if options.weights is None:
        if options.layers:
            raise UsageError("--layers: name the weights")
        write_json(options, all_released())
        return
    checkpoint = load(options.weights)
    entries = facts(checkpoint, options.weights)
    if options.layers:
        entries["by_layer"] = by_layer(checkpoint, options.weights)
    for name, value in entries.items():
        if name == "by_layer":
            table = Table([("layer", 28), ("least threshold", 18), ("greatest", 12), ("rate", 10)])
            table.head()
            for row in value:
                numbers = (row["least"], row["greatest"], row["rate"])
                table.row(row["layer"], *(f"{number:.4g}" for number in numbers))
        elif value not in (None, [], {}):
            print(beside(f"{name.replace('_', ' '):14}", text(value)))
    write_json(options, entries)


def all_released() -> list[dict[str, Any]]:
    """Print a table of the released weights, and return its rows.

    Raises:
        WeightsError: There are none.
    """
    from spikedet.checkpoint import identity, load
    from spikedet.released import weights_folder
    from spikedet.resources import all_weights

    folder = weights_folder()
    columns = [("name", 30), ("task", 16), ("stage", 20), ("T", 2), ("MB", 7), ("measured", 24)]
    paths = [folder / f"{name}.safetensors" for name in all_weights()]
    table, rows = Table(columns, left=3), []
    table.head()
    for path in paths:
        checkpoint = load(path)
        row: dict[str, Any] = {
            "name": path.stem, "task": checkpoint.task, "stage": STAGES[checkpoint.stage],
            "T": checkpoint.T, "megabytes": round(path.stat().st_size / 1e6, 1),
        }  # fmt: skip
        own = [r for r in measured(identity(path), checkpoint.stage) if r["T"] == checkpoint.T]
        row |= {value: own[0][value] for value in VALUES if own and value in own[0]}
        rows.append(row)
        values = (f"{value} {100 * row[value]:.1f}" for value in VALUES if value in row)
        first = path.stem, row["task"], row["stage"], str(row["T"] or "-"), str(row["megabytes"])
        table.row(*first, ", ".join(values))
    return rows


def facts(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """Collect the properties of a checkpoint by name.

    Args:
        checkpoint: The checkpoint.
        path: Its file.
    """
    from spikedet.checkpoint import identity as identity_checkpoint
    from spikedet.checkpoint import sha256, stored_in_half
    from spikedet.networks import margins_of

    graph = graph_of(checkpoint)
    thresholds = thresholds_of(checkpoint)
    weights = [t for t in checkpoint.tensors.values() if t.is_floating_point()]
    sizes = f"{path.stat().st_size / 1e6:.1f} MB"
    halved = " (matrices in half precision)" if stored_in_half(path) else ""
    entries: dict[str, Any] = {
        "file": str(path),
        "task": checkpoint.task,
        "stage": STAGES[checkpoint.stage],
        "network": named(checkpoint.model),
        "T": checkpoint.T,
        "thresholds": thresholds,
        "input": f"{checkpoint.imgsz} x {checkpoint.imgsz} pixels",
        "parameters": sum(tensor.numel() for tensor in weights),
        "size": sizes + halved,
        "layers": len(graph) if graph is not None else None,
        "classes": list(checkpoint.names),
        "sha256": sha256(path),
        "origin": {key: value for key, value in checkpoint.origin.items() if key not in NOT_SHOWN},
    }
    if checkpoint.stage == "snn" and graph is not None:
        entries["neurons"] = neurons(graph)
        entries["margins"] = margins_of(graph)
        entries["engines"], entries["left_out"] = engines(graph)
    entries["measured"] = measured(identity_checkpoint(path), checkpoint.stage)
    return entries


def measured(identity: str, stage: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """Find the rows of `weights/results` that were measured with some weights, most pictures first.

    Args:
        identity: Identity of the weights file (see `checkpoint.identity`).
        stage: Stage of the weights. Rows of other stages may be made from the same file.
        folder: Folder to read. None: `weights/results`.

    Returns:
        For each row `T`, the value (`AP` or `top1`), `spike_rate`, `images`, `data` (fingerprint of
        the pictures), `engine` and `file`.
    """
    from spikedet import resources

    folder = folder or resources.folder("weights") / "results"
    entries = []
    for path in sorted(folder.rglob("*.json")):
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for row in rows if isinstance(rows, list) else []:
            if row.get("weights_sha256") != identity or row.get("stage") != stage:
                continue
            values = {name: row[name] for name in VALUES if row.get(name) is not None}
            about = {name: row.get(name) for name in ("spike_rate", "images", "data")}
            about["engine"] = row.get("engine", "torch")  # older rows name none
            name = path.relative_to(folder).as_posix()
            entries.append({"T": row["T"], **values, **about, "file": name})
    return sorted(entries, key=lambda row: (row["T"] or 0, -row["images"]))


def by_layer(checkpoint: Checkpoint, path: Path) -> list[dict[str, Any]]:
    """The threshold and the firing rate (spikes per neuron and step) of each layer on one picture.

    Raises:
        UsageError: The network is not spiking, or no example picture fits it.
    """
    import spikedet
    from spikedet.detection.ultra import SAMPLE
    from spikedet.runtime.network import SpikingNetwork

    if checkpoint.stage != "snn" or checkpoint.task == "none":
        raise UsageError("--layers: expected spiking weights of a detector or classifier")
    loaded: Any = spikedet.load(path, half=False)
    network = loaded.runner.network
    assert isinstance(network, SpikingNetwork)
    with network.spike_rates() as rates:
        loaded(SAMPLE)
    layers = []
    for name, rate in rates.by_layer().items():
        threshold: Any = network.graph.module(name).threshold
        least, greatest = float(threshold.min()), float(threshold.max())
        layers.append({"layer": name, "least": least, "greatest": greatest, "rate": rate})
    return layers


def graph_of(checkpoint: Checkpoint) -> Graph | None:
    """The graph of a checkpoint. None if the file has no graph (old float networks)."""
    from spikedet.checkpoint import restore_graph

    return None if checkpoint.graph is None else restore_graph(checkpoint)


def thresholds_of(checkpoint: Checkpoint) -> dict[str, float] | None:
    """The number of layers with thresholds, and the smallest and the largest threshold."""
    thresholds = [t for name, t in checkpoint.tensors.items() if name.endswith("threshold")]
    if not thresholds:
        return None
    least = min(float(t.min()) for t in thresholds)
    greatest = max(float(t.max()) for t in thresholds)
    return {"layers": len(thresholds), "least": least, "greatest": greatest}


def neurons(graph: Graph) -> dict[str, int]:
    """Number of layers of neurons of each kind, by its name in `neurons.registry`."""
    from spikedet.neurons.layers import IFNeuron

    return dict(Counter(node.kind for node in graph.of((IFNeuron,))))


def named(model: dict[str, Any]) -> str:
    """The name of the network in a network description."""
    name = model.get("arch") or model.get("yaml_file") or "described by layers"
    more = [f"{key} {model[key]}" for key in ("width", "scale", "activation") if model.get(key)]
    return ", ".join([shorten(name), *map(shorten, more)])


def engines(graph: Graph) -> tuple[dict[str, str], dict[str, str]]:
    """Check which engines can run a spiking graph.

    Returns:
        For each engine, how it runs the graph or why it cannot; and for each `engine, layer`, why
        the engine leaves the layer to torch.
    """
    from spikedet.engines import registry

    reasons: dict[str, str] = {}
    left: dict[str, str] = {}
    for name in registry.names():
        try:
            chosen, engine, why = registry.make(name, graph)
            reasons[name] = why if engine is None else engine.describe()[0]
            if chosen != name:
                reasons[name] = f"{chosen}, {reasons[name]}"
            else:
                left |= {f"{name}, {k}": why for k, why in registry.left_out(engine).items()}
        except UsageError as error:
            reasons[name] = f"no: {error}"
    return reasons, left


def _row(row: dict[str, Any]) -> str:
    """Describe a measured row in a few words."""
    values = ", ".join(f"{name} {100 * row[name]:.1f} %" for name in VALUES if name in row)
    T = f"T={row['T']}: " if row["T"] else ""
    rate = row["spike_rate"]
    fires = "" if rate is None else f", {rate:.3f} spikes a neuron and step"
    pictures = counted(row["images"], "picture")
    return f"{T}{values}, {pictures}{fires}, {row['engine']} ({row['file']})"


def text(value: Any) -> str:
    """Convert a value to a short text."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"\n{' ' * 14}".join(map(_row, value))
    if isinstance(value, dict) and value.keys() == {"layers", "least", "greatest"}:
        return f"{value['least']:.3g} to {value['greatest']:.3g} in {value['layers']} layers"
    if isinstance(value, dict):
        return "\n".join(
            f"{'' if n == 0 else ' ' * 14}{key}: {shorten(item, 200)}"
            for n, (key, item) in enumerate(value.items())
        )
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        return ", ".join(f"{item:g}" for item in value)
    if isinstance(value, list):
        return shorten(f"{len(value)}: {', '.join(map(str, value))}", 400)
    return f"{value:,}" if isinstance(value, int) else shorten(value, 200)
