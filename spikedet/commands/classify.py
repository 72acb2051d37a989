"""Classify pictures with a spiking network.

    spikedet classify --T 8 image.jpg holiday/ film.mp4

The sources are the same as those of spikedet detect: files, folders, glob patterns, videos, cameras
and addresses. Prints one line for each picture: its most probable classes with their probabilities.
Without --weights, the released CIFAR-10 classifier for this T is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import refuse
from spikedet.commands.frames import Failures, FrameOptions, opened, shown, where
from spikedet.commands.result import headed
from spikedet.errors import DataError
from spikedet.options import option
from spikedet.terminal import note

if TYPE_CHECKING:
    from spikedet.sources import Frame


@dataclass(kw_only=True)
class Options(FrameOptions):
    """Options of the command."""

    sources: list[str] = option(
        help="pictures, videos, folders, patterns, lists, cameras, addresses",
        positional=True,
        metavar="SOURCE",
    )
    T: int | None = shared.steps(
        "time steps (default: the T of the weights; 8 for the released weights)"
    )
    weights: Path | None = option(
        None, "classifier of any stage (default: the released one)", kind=kinds.weights
    )
    top: int = option(5, "number of classes to print for each picture", least=1)
    device: str = shared.device()
    engine: str = shared.engine()
    half: bool | None = shared.half(None)
    patience: int | None = option(
        None,
        "stop a picture early when its most probable class is the same in N readouts in a row",
        least=1,
        group="speed",
    )
    every: int = option(1, "time steps between two readouts of --patience", least=1, group="speed")
    json: Path | None = parse.written(None, "write all results to this file", kind=kinds.json_file)


def run(options: Options) -> int:
    from spikedet.classification.predict import Classifier
    from spikedet.outputs.text import json_list, json_text
    from spikedet.released import default_weights

    if options.patience is None:
        refuse(options, ["every"], "has no effect without --patience")
    path = options.weights or default_weights(options.T, "classification")
    classifier = Classifier(path, options.T, options.device, options.half, options.engine)
    note(f"engine {classifier.why_engine}")
    failures = Failures()
    sources = opened(options, options.sources, failures)
    entries = json_list(options.json) if options.json else None
    try:
        for frame in shown(sources, "classify"):
            answer = classifier(
                frame.picture, top=options.top, patience=options.patience, every=options.every
            )
            assert not isinstance(answer, list)  # of one picture
            pairs = list(zip(answer.names, answer.probabilities.tolist(), strict=True))
            print(f"{where(frame)}: " + ", ".join(f"{name} {value:.3f}" for name, value in pairs))
            if entries is not None:  # written at once: a camera has no end
                entry = headed(options.command, entry_of(frame, answer.T, pairs))
                entries.add(json_text(entry))
    finally:  # of a run that is stopped what there is
        if entries is not None:
            entries.close()
    return DataError.exit_code if failures.count else 0


def entry_of(frame: Frame, T: int | None, pairs: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Make the JSON entry of a frame: its most probable classes with their probabilities."""
    classes = [{"class": name, "probability": value} for name, value in pairs]
    return {
        "file": frame.source, "frame": frame.index, "time": round(frame.time, 6), "T": T,
        "classes": classes,
    }  # fmt: skip
