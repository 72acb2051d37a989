"""Say what a file of weights holds: its network, T, thresholds, size, classes and where it is from.

    spikedet info weights.safetensors
    spikedet info weights.safetensors --json info.json

Of a spiking network it says as well which engines run it, and of one that does not which layer it
does not take and why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.commands import kinds, parse
from spikedet.commands.checks import expect_writable
from spikedet.errors import UsageError, cut
from spikedet.settings import option

if TYPE_CHECKING:
    from spikedet.checkpoint import Checkpoint
    from spikedet.graph.graph import Graph

STAGES = {"float": "float", "qc": "quantised (stage I)", "snn": "spiking"}
NOT_SHOWN = ("run",)  # fingerprints, which a resumed run compares


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    weights: Path = option(help="checkpoint of any stage", positional=True, metavar="WEIGHTS")
    json: Path | None = option(None, "write all of it to this file", kind=kinds.json_file)


def run(options: Options) -> None:
    from spikedet.checkpoint import load
    from spikedet.files import write_atomic

    expect_writable(options.json)
    checkpoint = load(options.weights)
    entries = facts(checkpoint, options.weights)
    for name, value in entries.items():
        if value not in (None, [], {}):
            print(f"{name.replace('_', ' '):14}{text(value)}")
    if options.json:
        write_atomic(options.json, (json.dumps(entries, indent=2, default=str) + "\n").encode())


def facts(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """What there is to say about a checkpoint, by name.

    Args:
        checkpoint: The checkpoint.
        path: Its file.
    """
    from spikedet.checkpoint import sha256, stored_in_half

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
        entries["engines"] = engines(graph)
    return entries


def graph_of(checkpoint: Checkpoint) -> Graph | None:
    """The graph of a checkpoint, None where the file has none, as old float networks."""
    from spikedet.checkpoint import restore_graph

    return None if checkpoint.graph is None else restore_graph(checkpoint)


def thresholds_of(checkpoint: Checkpoint) -> dict[str, float] | None:
    """Number of layers that have thresholds, least and greatest of them."""
    thresholds = [t for name, t in checkpoint.tensors.items() if name.endswith("threshold")]
    if not thresholds:
        return None
    least = min(float(t.min()) for t in thresholds)
    greatest = max(float(t.max()) for t in thresholds)
    return {"layers": len(thresholds), "least": least, "greatest": greatest}


def named(model: dict[str, Any]) -> str:
    """What a network description calls its network."""
    name = model.get("arch") or model.get("yaml_file") or "described by layers"
    more = [f"{key} {model[key]}" for key in ("width", "scale", "activation") if model.get(key)]
    return ", ".join([cut(name), *map(cut, more)])


def engines(graph: Graph) -> dict[str, str]:
    """Why each engine runs a spiking graph, or does not."""
    from spikedet.engines import registry

    reasons = {}
    for name in registry.names():
        try:
            _, _, why = registry.make(name, graph)
            reasons[name] = why
        except UsageError as error:
            reasons[name] = f"no: {error}"
    return reasons


def text(value: Any) -> str:
    """A value as a few words."""
    if isinstance(value, dict) and value.keys() == {"layers", "least", "greatest"}:
        return f"{value['least']:.3g} to {value['greatest']:.3g} in {value['layers']} layers"
    if isinstance(value, dict):
        return "\n".join(
            f"{'' if n == 0 else ' ' * 14}{key}: {cut(item, 200)}"
            for n, (key, item) in enumerate(value.items())
        )
    if isinstance(value, list):
        return cut(f"{len(value)}: {', '.join(map(str, value))}", 400)
    return f"{value:,}" if isinstance(value, int) else cut(value, 200)
