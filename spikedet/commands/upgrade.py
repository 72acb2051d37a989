"""Convert a checkpoint of the old format (spikedet-1) to the current format.

    spikedet upgrade --weights old.safetensors --out new.safetensors

The current format also stores the graph of the network. The tensors keep their values and their
precision. The network gives the same outputs as before. The new file names the old one
(`upgraded_from`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from spikedet.commands import kinds, parse
from spikedet.commands.checks import expect_new
from spikedet.options import option


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    weights: Path = option(help="old checkpoint of any stage", kind=kinds.weights)
    out: Path = parse.written(help="checkpoint to write")


def run(options: Options) -> None:
    from spikedet import networks, task_registry
    from spikedet.checkpoint import load, save, sha256, stored_in_half
    from spikedet.errors import WeightsError

    expect_new(options.out)
    checkpoint = load(options.weights)
    if checkpoint.graph is not None:
        raise WeightsError(f"{options.weights}: this file has the current format already")
    origin = {**checkpoint.origin, "upgraded_from": sha256(options.weights)}
    checkpoint = networks.current(task_registry.of(checkpoint), replace(checkpoint, origin=origin))
    save(checkpoint, options.out, half=stored_in_half(options.weights))
    assert checkpoint.graph is not None
    print(f"{options.out}: {checkpoint.stage}, {len(checkpoint.graph['nodes'])} nodes")
