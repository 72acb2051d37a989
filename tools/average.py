#!/usr/bin/env python
"""Mean of spiking networks that several end-to-end passes made from one.

    tools/average.py --weights pass1.safetensors pass2.safetensors --out mean.safetensors

What each pass ends with is scattered around what they have in common, and the mean of their weights
is closer to that (Wortsman et al. 2022, "Model soups"). Of networks that did not begin alike it is
none: measure what --out holds, on tuning pictures first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from tools.calibrate import RECORD  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    help = "spiking checkpoints of one network and T"
    parser.add_argument("--weights", type=Path, nargs="+", required=True, help=help)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    return parser


def main(args: argparse.Namespace) -> None:
    import torch

    from spikedet import checkpoint, networks, tasks
    from spikedet.errors import UsageError, WeightsError
    from spikedet.networks import expect_same_network, expect_stage

    cli.expect_new(args.out)
    if len(args.weights) < 2:
        raise UsageError("--weights: expected two checkpoints or more")
    found = [checkpoint.load(path) for path in args.weights]
    found = [networks.current(tasks.of(made), made) for made in found]
    first = found[0]
    shapes = {name: tensor.shape for name, tensor in first.tensors.items()}
    for path, made in zip(args.weights, found, strict=True):
        expect_stage(made, "snn")
        expect_same_network(path, made, args.weights[0], first)
        if made.T != first.T:
            raise WeightsError(f"{path}: of T={made.T}; expected T={first.T} of {args.weights[0]}")
        if {name: tensor.shape for name, tensor in made.tensors.items()} != shapes:
            raise WeightsError(f"{path}: other tensors than {args.weights[0]}")
    first.tensors = {
        name: torch.stack([made.tensors[name].float() for made in found]).mean(0) for name in shapes
    }
    kept = {name: first.origin[name] for name in RECORD if name in first.origin}
    parents = [checkpoint.sha256(path) for path in args.weights]
    first.origin = {**kept, "command": cli.command_line(), "parents": parents}
    checkpoint.save(first, args.out)
    print(f"{args.out}: mean of {len(found)}, T={first.T}")


if __name__ == "__main__":
    cli.run(main, arguments())
