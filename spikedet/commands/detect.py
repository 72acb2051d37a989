"""Detect objects in pictures with a spiking network.

    spikedet detect --T 20 image.jpg

Takes files, folders and glob patterns; without any, the street picture that ultralytics brings.
Prints one line an object, `file: class score x1 y1 x2 y2` in pixels of the original picture, and
writes annotated pictures to --out. With --each-step the pictures are NAME-t01.jpg, NAME-t02.jpg ...
and the JSON has an entry for each step; the lines printed are those of the last one.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import expect_writable
from spikedet.errors import DataError, PictureError, UsageError
from spikedet.settings import option


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    sources: list[str] = option(
        [], "pictures, folders or glob patterns", positional=True, metavar="SOURCE"
    )
    T: int | None = shared.steps(
        "time steps; those of the weights if left out (20 of the released ones)"
    )
    weights: Path | None = option(None, "weights of any stage; the released ones if left out")
    conf: float = option(0.25, "confidence threshold", least=0, most=1)
    iou: float = option(0.6, "IoU threshold of non-maximum suppression", least=0, most=1)
    classes: list[str] | None = option(None, "only these classes")
    device: str = shared.device()
    half: bool | None = shared.half(None)
    each_step: bool = option(False, "the detections after every step up to T as well")
    out: Path = option(Path("detections"), "folder of annotated pictures")
    json: Path | None = option(None, "write all detections to this file", kind=kinds.json_file)


def target(folder: Path, source: Path, taken: set[Path], step: str = "") -> Path:
    """Where the annotated copy goes: the same name, a number added when it is taken already."""
    suffix = source.suffix if source.suffix.lower() in {".jpg", ".jpeg", ".png", ".bmp"} else ".png"
    path, number = folder / f"{source.stem}{step}{suffix}", 1
    while path in taken:
        number += 1
        path = folder / f"{source.stem}-{number}{step}{suffix}"
    taken.add(path)
    return path


def write_picture(path: Path, picture, inputs: set[str]) -> None:
    """Write an annotated picture; an input is never overwritten."""
    import cv2

    from spikedet.files import write_atomic

    if os.path.realpath(path) in inputs:
        raise UsageError(f"{path}: is one of the inputs; choose another --out")
    done, data = cv2.imencode(path.suffix, picture)
    if not done:
        raise PictureError(f"{path}: cannot be written as {path.suffix}")
    try:
        write_atomic(path, data.tobytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def rows_of(found) -> list[tuple[str, float, list[float]]]:
    """Class, score and box of each object."""
    return list(zip(found.classes, found.scores.tolist(), found.boxes.tolist(), strict=True))


def entry(path: Path, found) -> dict:
    """What the JSON says of a picture, or of a picture after found.T steps."""
    listed = [{"class": n, "score": s, "xyxy": b} for n, s, b in rows_of(found)]
    return {"file": str(path), "T": found.T, "detections": listed}


def run(options: Options) -> int:
    from spikedet.detection.predict import Predictor
    from spikedet.detection.ultra import SAMPLE
    from spikedet.files import write_atomic
    from spikedet.pictures import find_pictures
    from spikedet.released import default_weights

    path = options.weights or default_weights(options.T)
    detector = Predictor(path, options.T, options.device, options.half)
    if options.each_step and detector.T is None:
        raise UsageError(
            f"{detector.weights.name}: no time steps to show; expected spiking weights"
        )
    unknown = [name for name in options.classes or () if name not in detector.names]
    if unknown:
        known = ", ".join(detector.names)
        raise UsageError(f"unknown class {unknown[0]!r}; these weights know {known}")
    expect_writable(options.json)
    paths, errors = find_pictures(options.sources or [SAMPLE])
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    inputs = {os.path.realpath(path) for path in paths}  # `resolve` raises at a link to itself
    taken: set[Path] = set()
    entries, objects, done, failed = [], 0, 0, len(errors)
    for path in paths:
        try:
            if options.each_step:
                steps = list(detector.steps(path, conf=options.conf, iou=options.iou))
            else:
                whole = detector(path, conf=options.conf, iou=options.iou)
                steps = whole if isinstance(whole, list) else [whole]
            if options.classes:
                steps = [found.only(options.classes) for found in steps]
            for found in steps:
                step = f"-t{found.T:02}" if options.each_step else ""
                write_picture(target(options.out, path, taken, step), found.plot(), inputs)
        except (DataError, UsageError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        rows = rows_of(steps[-1])
        for name, score, box in rows:
            print(f"{path}: {name} {score:.3f} " + " ".join(f"{v:.1f}" for v in box))
        if not rows:
            print(f"{path}: no objects")
        objects, done = objects + len(rows), done + 1
        entries += [entry(path, found) for found in steps]
    if options.json:
        write_atomic(options.json, (json.dumps(entries, indent=2) + "\n").encode())
    told = "" if detector.T is None else f", T={detector.T}"
    print(
        f"{objects} objects in {done} pictures{told}, {detector.weights.name}; "
        f"annotated pictures in {options.out}"
    )
    return DataError.exit_code if failed else 0
