#!/usr/bin/env python
"""Weights in half the bytes, as the released ones are: matrices in half precision.

    tools/halve.py --weights runs/snn-T8.safetensors --out snn-T8-half.safetensors

Biases, thresholds, initial potentials and norms stay in float32. Measure what --out holds: deep
spiking networks answer to the rounding.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint of any stage")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    return parser


def main(args: argparse.Namespace) -> None:
    from spikedet import checkpoint, networks, tasks

    cli.expect_new(args.out)
    made = checkpoint.load(args.weights)
    made = networks.current(tasks.of(made), made)
    made.origin["in_full"] = checkpoint.sha256(args.weights)
    checkpoint.save(made, args.out, half=True)
    sizes = (path.stat().st_size / 1e6 for path in (args.weights, args.out))
    print(f"{args.out}: {' -> '.join(f'{size:.1f}' for size in sizes)} MB")


if __name__ == "__main__":
    cli.run(main, arguments())
