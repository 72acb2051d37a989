#!/usr/bin/env python
"""Classify pictures with a spiking network.

    tools/classify.py --T 8 image.jpg

Takes files, folders and glob patterns. Prints one line a picture: its most probable classes with
their probabilities. Without --weights the released CIFAR-10 classifier for that T answers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from spikedet.errors import DataError  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("sources", nargs="+", help="pictures, folders or glob patterns")
    add(
        "--T",
        type=cli.time_steps,
        help="time steps; those of the weights if left out (8 of the released ones)",
    )
    add("--weights", type=Path, help="classifier of any stage; the released one if left out")
    add("--top", type=cli.count, default=5, help="classes named for each picture")
    cli.add_device(parser)
    cli.add_half(parser, default=None)
    add("--json", type=cli.json_file, help="write all answers to this file")
    return parser


def main(args: argparse.Namespace) -> int:
    from spikedet.classification.predict import Classifier
    from spikedet.files import write_atomic
    from spikedet.pictures import find_pictures
    from spikedet.released import default_weights

    cli.expect_writable(args.json)
    path = args.weights or default_weights(args.T, "classification")
    classifier = Classifier(path, args.T, args.device, args.half)
    paths, errors = find_pictures(args.sources)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    entries, failed = [], len(errors)
    for picture in paths:
        try:
            found = classifier(picture, top=args.top)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        pairs = list(zip(found.names, found.probabilities.tolist(), strict=True))
        print(f"{picture}: " + ", ".join(f"{name} {value:.3f}" for name, value in pairs))
        classes = [{"class": name, "probability": value} for name, value in pairs]
        entries.append({"file": str(picture), "T": found.T, "classes": classes})
    if args.json:
        write_atomic(args.json, (json.dumps(entries, indent=2) + "\n").encode())
    return DataError.exit_code if failed else 0


if __name__ == "__main__":
    cli.run(main, arguments())
