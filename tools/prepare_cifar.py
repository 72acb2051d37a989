#!/usr/bin/env python
"""Download CIFAR-10 or CIFAR-100 from its authors, verify and unpack it.

    tools/prepare_cifar.py cifar10 data/cifar10

Nothing is downloaded again that is there and intact. FOLDER is what the other commands take as
--data; they read the same pictures as JPEG or PNG from SPLIT/CLASS/ folders, too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("name", choices=("cifar10", "cifar100"), help="data set")
    parser.add_argument("folder", type=Path, help="where it is or will be")
    return parser


def main(args: argparse.Namespace) -> None:
    from spikedet.classification.data import download, read

    files = download(args.name, args.folder)
    for split in ("train", "test"):
        samples = read([files], split)
        print(f"{args.folder}: {split}, {len(samples)} pictures of {len(samples.names)} classes")


if __name__ == "__main__":
    cli.run(main, arguments())
