#!/usr/bin/env python
"""Weights of the old form (spikedet-1) in the form of today, which holds the network as a graph.

    tools/upgrade.py --weights old.safetensors --out new.safetensors

The network is converted once more and gets the tensors of the old file, in the precision that they
are stored in. It computes what it did. The new file names the old one (`upgraded_from`).
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
    from spikedet.errors import WeightsError

    cli.expect_new(args.out)
    made = checkpoint.load(args.weights)
    if made.graph is not None:
        raise WeightsError(f"{args.weights}: of the form of today already")
    made.origin["upgraded_from"] = checkpoint.sha256(args.weights)
    made = networks.current(tasks.of(made), made)
    checkpoint.save(made, args.out, half=checkpoint.stored_in_half(args.weights))
    print(f"{args.out}: {made.stage}, {len(made.graph['nodes'])} nodes")


if __name__ == "__main__":
    cli.run(main, arguments())
