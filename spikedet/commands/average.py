"""Average spiking networks of several end-to-end passes that started from one network.

    spikedet average --weights W1 W2 --out mean.safetensors

The passes end at different weights around a common optimum. Their mean is often better than each of
them (Wortsman et al. 2022, "Model soups"). This does not work for networks that started from
different weights. Measure the result, first on tuning pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from spikedet.commands import kinds, parse
from spikedet.commands.checks import expect_new
from spikedet.commands.main import command_line
from spikedet.options import option


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    weights: list[Path] = option(
        help="spiking checkpoints of the same network and T", kind=kinds.weights
    )
    out: Path = parse.written(help="checkpoint to write")


def run(options: Options) -> None:
    import torch

    from spikedet import networks, task_registry
    from spikedet.checkpoint import load, save, sha256
    from spikedet.errors import UsageError, WeightsError
    from spikedet.networks import expect_same_network, expect_stage
    from spikedet.stages.calibration import RECORD

    expect_new(options.out)
    if len(options.weights) < 2:
        raise UsageError("--weights: expected two checkpoints or more")
    loaded = [load(path) for path in options.weights]
    checkpoints = [networks.current(task_registry.of(each), each) for each in loaded]
    first = checkpoints[0]
    shapes = {name: tensor.shape for name, tensor in first.tensors.items()}
    for path, checkpoint in zip(options.weights, checkpoints, strict=True):
        expect_stage(checkpoint, "snn")
        expect_same_network(path, checkpoint, options.weights[0], first)
        if checkpoint.T != first.T:
            raise WeightsError(
                f"{path}: made for T={checkpoint.T}; expected T={first.T}, as {options.weights[0]}"
            )
        if {name: tensor.shape for name, tensor in checkpoint.tensors.items()} != shapes:
            raise WeightsError(
                f"{path}: its tensors have other names or shapes than those of {options.weights[0]}"
            )
        if checkpoint.graph != first.graph:
            raise WeightsError(
                f"{path}: its layers have other settings than those of {options.weights[0]}; "
                "expected passes that started from one network"
            )
    means = {
        name: torch.stack([each.tensors[name].float() for each in checkpoints]).mean(0)
        for name in shapes
    }
    kept = {name: first.origin[name] for name in RECORD if name in first.origin}
    parents = [sha256(path) for path in options.weights]
    origin = {**kept, "command": command_line(), "parents": parents}
    save(replace(first, tensors=means, origin=origin), options.out)
    print(f"{options.out}: mean of {len(checkpoints)}, T={first.T}")
