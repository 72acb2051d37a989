"""Detect objects in pictures, videos, cameras and streams with a spiking network.

    spikedet detect --T 20 image.jpg holiday/ film.mp4 0 rtsp://10.0.0.7/live

Prints one line for each object: `file: class score x1 y1 x2 y2`. The box is in pixels of the
original picture. Annotated pictures and videos are written to --out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import refuse
from spikedet.commands.frames import Failures, FrameOptions, opened, shown, where
from spikedet.errors import DataError, UsageError, counted, list_choices, shorten
from spikedet.files import expect_folder
from spikedet.options import option
from spikedet.terminal import note

if TYPE_CHECKING:
    from spikedet.detection.boxes import Detections
    from spikedet.detection.predict import Predictor
    from spikedet.detection.track import Tracker
    from spikedet.outputs import Outputs
    from spikedet.sources import Frame, Sources

MORE = """
A source is a file, a folder, a glob pattern, a .txt file with a list of these, numbered pictures
(f%04d.png), the number of a camera, or an address. Without a source, the command uses the street
picture that comes with ultralytics.

With --each-step the pictures are named NAME-t01.jpg, NAME-t02.jpg and so on. The files of --json,
--jsonl and --csv then have entries for each time step. The printed lines and the file of --coco
are those of the last time step.

--strip draws all time steps of a picture side by side in one picture, NAME-strip-T20.png. The
boxes are written beside it as CSV.
"""
SAVED = ("pictures", "frames", "crops", "labels", "none")
STRIP_COLUMNS = ("T", "class", "score", "x1", "y1", "x2", "y2")


@dataclass(kw_only=True)
class Options(FrameOptions):
    """Options of the command."""

    sources: list[str] = option(
        [], "pictures, videos, folders, patterns, lists, cameras, addresses",
        positional=True, metavar="SOURCE",
    )  # fmt: skip
    T: int | None = shared.steps(
        "time steps (default: the T of the weights; 8 for the released weights)"
    )
    weights: Path | None = option(
        None, "weights of any stage (default: the released weights)", kind=kinds.weights
    )
    conf: float = option(0.25, "confidence threshold", least=0, most=1)
    iou: float = option(
        0.6, "IoU threshold of non-maximum suppression", least=0, most=1, group="box"
    )
    classes: list[str] | None = option(None, "show only these classes")
    device: str = shared.device()
    engine: str = shared.engine()
    half: bool | None = shared.half(None)
    patience: int | None = option(
        None, "stop a picture early when its detections agree in N readouts in a row", least=1,
        group="speed",
    )  # fmt: skip
    every: int = option(4, "time steps between two readouts of --patience", least=1, group="speed")
    each_step: bool = option(False, "also give the detections after every step up to T")
    strip: bool = option(False, "draw all steps of a picture side by side, into --out")
    track: bool = option(False, "number the objects of a video (pip install spikedet[tracking])")
    out: Path = option(Path("detections"), "folder for the files that --save names")
    save: list[str] = option(
        ["pictures"],
        "pictures: annotated pictures and videos; frames: each video frame; crops: each object; "
        "labels: YOLO labels",
        choices=SAVED,
    )
    json: Path | None = parse.written(
        None, "write all detections to this file", kind=kinds.json_file
    )
    jsonl: Path | None = parse.written(
        None, "write all detections to this file, one JSON object on each line", group="output"
    )
    csv: Path | None = parse.written(
        None, "write a table with one row for each object", group="output"
    )
    coco: Path | None = parse.written(
        None, "write results in the format of COCO's evaluation", kind=kinds.json_file,
        group="output",
    )  # fmt: skip
    coco_annotations: Path | None = option(
        None, "instances_*.json; --coco uses its picture ids and class ids", group="output"
    )
    one_class: bool = option(
        False, "keep only the best of boxes that overlap by more than --iou, across all classes",
        group="box",
    )  # fmt: skip


def run(options: Options) -> int:
    from spikedet.detection.predict import Predictor
    from spikedet.detection.ultra import SAMPLE
    from spikedet.outputs import Outputs
    from spikedet.released import default_weights

    stepwise = options.each_step or options.strip
    which = "--each-step" if options.each_step else "--strip"
    if options.track and stepwise:
        raise UsageError(f"--track: needs one result for each frame; leave out {which}")
    if stepwise:
        refuse(options, ["patience"], f"{which} shows every step up to T")
    if options.patience is None:
        refuse(options, ["every"], "has no effect without --patience")
    if options.coco_annotations and not options.coco:
        raise UsageError("--coco-annotations: has no effect without --coco")
    if options.strip or set(options.save) != {"none"}:
        expect_folder(options.out)
    path = options.weights or default_weights(options.T)
    detector = Predictor(path, options.T, options.device, options.half, options.engine)
    note(f"engine {detector.why_engine}")
    if stepwise and detector.T is None:
        raise UsageError(
            f"{detector.weights.name}: these weights have no time steps; expected spiking weights"
        )
    unknown = [name for name in options.classes or () if name not in detector.names]
    if unknown:
        known = list_choices(unknown[0], detector.names)
        raise UsageError(f"unknown class {shorten(unknown[0])!r}; these weights know {known}")
    failures = Failures()
    sources = opened(options, options.sources or [SAMPLE], failures, [options.out])
    strips = _Strips(options, detector, sources.files) if options.strip else None
    with Outputs(_save(options), sources.files) as outputs:
        try:
            _detect(options, detector, sources, outputs, failures, strips)
        finally:
            print(_summary(options, detector, outputs))
    return DataError.exit_code if failures.count else 0


def _save(options: Options):
    """The outputs to write."""
    from spikedet.commands.result import head
    from spikedet.outputs import Save

    wanted = set(options.save) - {"none"}
    if wanted and "none" in options.save:
        raise UsageError("--save: none cannot be combined with other values")
    return Save(
        options.out, "pictures" in wanted, "frames" in wanted, "crops" in wanted,
        "labels" in wanted, options.json, options.jsonl, options.csv, options.coco,
        options.coco_annotations, head("detect"),
    )  # fmt: skip


def _detect(
    options: Options, detector: Predictor, sources: Sources, outputs: Outputs,
    failures: Failures, strips: _Strips | None,
) -> None:  # fmt: skip
    """Detect objects in every frame; print and write them."""
    tracker, tracked = None, ""
    for frame in shown(sources, "detect"):
        if options.track and frame.video and tracked != frame.source:
            from spikedet.detection.track import Tracker

            tracker, tracked = Tracker(options.conf), frame.source
        steps = _detections(options, detector, frame, tracker if frame.video else None)
        try:
            outputs.write(frame, steps if options.each_step else steps[-1])
            if strips is not None:
                strips.write(frame, steps)
        except (DataError, UsageError) as error:
            failures.tell(error)
            continue
        for line in _lines(frame, steps[-1]):
            print(line)


class _Strips:
    """Writes the time-step strip of each picture, `NAME-strip-T8.png`, and its boxes as CSV."""

    def __init__(self, options: Options, detector: Predictor, inputs: Sequence[Path]):
        from spikedet.outputs.names import Names

        self.folder, self.detector, self.names = options.out, detector, Names(inputs)
        self.left_out: set[str] = set()

    def write(self, frame: Frame, steps: Sequence[Detections]) -> None:
        """Write the strip of a picture. For a video, print a warning once.

        Raises:
            UsageError: The strip would overwrite an input.
        """
        from spikedet.detection.draw import draw
        from spikedet.outputs.names import frame_suffix, stem_of
        from spikedet.plots import About, pictures, write

        if frame.video:
            if frame.source not in self.left_out:
                self.left_out.add(frame.source)
                print(f"warning: {frame.source}: --strip is not for videos", file=sys.stderr)
            return
        end = f"{frame_suffix(frame)}-strip-T{steps[-1].T}.png"
        path = self.names.new(self.folder, stem_of(frame), end)
        self.names.expect_free(path.with_suffix(".csv"))
        small, scale = pictures.shrink(frame.picture)
        titled = [
            (
                f"t={one.T}, {counted(len(one), 'object')}",
                draw(replace(one, picture=small, boxes=one.boxes * scale), enlarge=True),
            )
            for one in steps
        ]
        rows = [
            {"T": one.T, "class": name, "score": score}
            | dict(zip(STRIP_COLUMNS[3:], box, strict=True))
            for one in steps
            for name, score, box in zip(
                one.classes, one.scores.tolist(), one.boxes.tolist(), strict=True
            )
        ]
        about = About(self.detector.weights.name, Path(frame.source).name, steps[-1].T)

        def panels(_: Any, about: About) -> bytes:
            return pictures.strip(titled, about)

        write(self.folder, path.stem, rows, panels, about, STRIP_COLUMNS)


def _detections(
    options: Options, detector: Predictor, frame: Frame, tracker: Tracker | None
) -> list[Detections]:
    """Detect objects in a frame: after each step, or after the last step only."""
    from spikedet.detection.track import LOW

    conf = options.conf if tracker is None else min(options.conf, LOW)
    if options.each_step or (options.strip and not frame.video):
        steps = list(detector.steps(frame.picture, conf=conf, iou=options.iou))
    else:
        early = {"patience": options.patience, "every": options.every} if options.patience else {}
        whole = detector(frame.picture, conf=conf, iou=options.iou, **early)
        steps = whole if isinstance(whole, list) else [whole]
    if options.one_class:
        steps = [detections.one_class_each(options.iou) for detections in steps]
    if options.classes:
        steps = [detections.only(options.classes) for detections in steps]
    return steps if tracker is None else [tracker.update(steps[0], frame.time)]


def _lines(frame: Frame, detections: Detections) -> Iterator[str]:
    """Yield a line for each object. For videos, it contains the time."""
    for number, (name, score, box) in enumerate(
        zip(detections.classes, detections.scores.tolist(), detections.boxes.tolist(), strict=True)
    ):
        known = detections.number_of(number)
        name += f" #{known}" if known else ""
        yield f"{where(frame)}: {name} {score:.3f} " + " ".join(f"{v:.1f}" for v in box)
    if not len(detections) and not frame.video:
        yield f"{where(frame)}: no objects"


def _summary(options: Options, detector: Predictor, outputs: Outputs) -> str:
    """Describe what was done and where the results are."""
    counts = outputs.counts
    seen = [counted(counts.pictures, "picture")] if counts.pictures or not counts.frames else []
    seen += [counted(counts.frames, "frame")] if counts.frames else []
    steps = "" if detector.T is None else f", T={detector.T}"
    steps += " or fewer" if options.patience else ""
    written = "pictures" in options.save and (counts.pictures or counts.frames)
    where = f"; annotated pictures in {options.out}" if written else ""
    classes = ", ".join(f"{count} {name}" for name, count in counts.objects.most_common())
    return (
        f"{counted(sum(counts.objects.values()), 'object')} in {' and '.join(seen)}{steps}, "
        f"{detector.weights.name}{where}" + (f" ({classes})" if classes else "")
    )
