"""Store the weight matrices of a checkpoint in half precision, which halves the file.

    spikedet halve --weights snn-T8.safetensors --out half.safetensors

The released weights are stored this way. Biases, thresholds, initial potentials and norms stay in
float32. Measure the new checkpoint: deep spiking networks can be sensitive to the rounding.
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

    weights: Path = option(help="checkpoint of any stage", kind=kinds.weights)
    out: Path = parse.written(help="checkpoint to write")


def run(options: Options) -> None:
    from spikedet import networks, task_registry
    from spikedet.checkpoint import load, save, sha256

    expect_new(options.out)
    checkpoint = load(options.weights)
    checkpoint = networks.current(task_registry.of(checkpoint), checkpoint)
    origin = {**checkpoint.origin, "in_full": sha256(options.weights)}
    save(replace(checkpoint, origin=origin), options.out, half=True)
    sizes = (path.stat().st_size / 1e6 for path in (options.weights, options.out))
    print(f"{options.out}: {' -> '.join(f'{size:.1f}' for size in sizes)} MB")
