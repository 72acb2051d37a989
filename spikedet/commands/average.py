"""Mean of spiking networks that several end-to-end passes made from one.

    spikedet average --weights pass1.safetensors pass2.safetensors --out mean.safetensors

What each pass ends with is scattered around what they have in common, and the mean of their weights
is closer to that (Wortsman et al. 2022, "Model soups"). Of networks that did not begin alike it is
none: measure what --out holds, on tuning pictures first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spikedet.commands import parse
from spikedet.commands.checks import expect_new
from spikedet.commands.main import command_line
from spikedet.settings import option


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    weights: list[Path] = option(help="spiking checkpoints of one network and T")
    out: Path = option(help="checkpoint to write")


def run(options: Options) -> None:
    import torch

    from spikedet import networks, task_registry
    from spikedet.checkpoint import load, save, sha256
    from spikedet.errors import UsageError, WeightsError
    from spikedet.networks import expect_same_network, expect_stage
    from spikedet.stages.pipeline import RECORD

    expect_new(options.out)
    if len(options.weights) < 2:
        raise UsageError("--weights: expected two checkpoints or more")
    found = [load(path) for path in options.weights]
    found = [networks.current(task_registry.of(made), made) for made in found]
    first = found[0]
    shapes = {name: tensor.shape for name, tensor in first.tensors.items()}
    for path, made in zip(options.weights, found, strict=True):
        expect_stage(made, "snn")
        expect_same_network(path, made, options.weights[0], first)
        if made.T != first.T:
            raise WeightsError(
                f"{path}: of T={made.T}; expected T={first.T} of {options.weights[0]}"
            )
        if {name: tensor.shape for name, tensor in made.tensors.items()} != shapes:
            raise WeightsError(f"{path}: other tensors than {options.weights[0]}")
    first.tensors = {
        name: torch.stack([made.tensors[name].float() for made in found]).mean(0) for name in shapes
    }
    kept = {name: first.origin[name] for name in RECORD if name in first.origin}
    parents = [sha256(path) for path in options.weights]
    first.origin = {**kept, "command": command_line(), "parents": parents}
    save(first, options.out)
    print(f"{options.out}: mean of {len(found)}, T={first.T}")
