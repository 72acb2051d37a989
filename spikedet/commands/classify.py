"""Classify pictures with a spiking network.

    spikedet classify --T 8 image.jpg

Takes files, folders and glob patterns. Prints one line a picture: its most probable classes with
their probabilities. Without --weights the released CIFAR-10 classifier for that T answers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import refuse
from spikedet.commands.result import write_json
from spikedet.errors import DataError
from spikedet.settings import option
from spikedet.terminal import note


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    sources: list[str] = option(
        help="pictures, folders or glob patterns", positional=True, metavar="SOURCE"
    )
    T: int | None = shared.steps(
        "time steps; those of the weights if left out (8 of the released ones)"
    )
    weights: Path | None = option(None, "classifier of any stage; the released one if left out")
    top: int = option(5, "classes named for each picture", least=1)
    device: str = shared.device()
    engine: str = shared.engine()
    half: bool | None = shared.half(None)
    patience: int | None = option(
        None,
        "stop a picture whose most probable class was the same in so many readouts in a row",
        least=1,
        group="speed",
    )
    every: int = option(1, "time steps between two readouts of --patience", least=1, group="speed")
    json: Path | None = parse.written(None, "write all answers to this file", kind=kinds.json_file)


def run(options: Options) -> int:
    from spikedet.classification.predict import Classifier
    from spikedet.pictures import find_pictures
    from spikedet.released import default_weights

    if options.patience is None:
        refuse(options, ["every"], "is for --patience, which is missing")
    path = options.weights or default_weights(options.T, "classification")
    classifier = Classifier(path, options.T, options.device, options.half, options.engine)
    note(f"engine {classifier.why_engine}")
    paths, errors = find_pictures(options.sources)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    entries, failed = [], len(errors)
    for picture in paths:
        try:
            answer = classifier(
                picture, top=options.top, patience=options.patience, every=options.every
            )
            assert not isinstance(answer, list)  # of one picture
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        pairs = list(zip(answer.names, answer.probabilities.tolist(), strict=True))
        print(f"{picture}: " + ", ".join(f"{name} {value:.3f}" for name, value in pairs))
        classes = [{"class": name, "probability": value} for name, value in pairs]
        entries.append({"file": str(picture), "T": answer.T, "classes": classes})
    write_json(options, entries)
    return DataError.exit_code if failed else 0
