"""Label the pictures of a folder with trained detectors, as a COCO file with scores.

    spikedet label pictures --weights yolo11n.onnx --voc --out labels.json
    spikedet import-boxes --pictures pictures --coco labels.json \\
        --out devkit/LABELLED --split train

--weights are detectors of spikedet, or of ultralytics (ONNX, OpenVINO, TFLite and others; .pt files
are read safely). The boxes of several detectors are fused. With --mirror, those of the mirrored
picture are fused too. A box that only one of n views found gets 1/n of its score. Pictures in
sub-folders are labelled as well. Nothing is written beside the pictures.

Licence: the licence of a detector may also apply to the labels it makes and to networks trained
on them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import expect_new
from spikedet.commands.main import command_line, progress
from spikedet.detection.boxes import COCO_NAMES, VOC_CLASSES
from spikedet.errors import DataError, PictureError, UsageError, counted, list_choices, shorten
from spikedet.options import option


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    folder: Path = option(help="folder of pictures", positional=True, metavar="FOLDER")
    weights: list[Path] = option(help="one or more detectors", kind=kinds.weights)
    out: Path = parse.written(help="COCO file to write", kind=kinds.json_file)
    voc: bool = option(False, "rename the classes of COCO to those of VOC, and keep only VOC's 20")
    rename: list[str] = option([], "rename classes", metavar="OLD=NEW")
    classes: list[str] | None = option(None, "keep only these classes (new names)")
    conf: float = option(0.1, "confidence threshold of each detector", least=0, most=1)
    iou: float = option(
        0.7, "IoU threshold of each detector's non-maximum suppression", least=0, most=1,
        group="box",
    )  # fmt: skip
    one_class: float | None = option(
        None,
        "where boxes of any class overlap with a greater IoU, keep only the highest score",
        least=0,
        most=1,
        group="box",
    )
    mirror: bool = option(False, "also use the mirrored picture")
    imgsz: int | None = option(
        None, "input side in pixels (default: that of the detector)", least=1
    )
    device: str = shared.device()
    resume: bool = option(False, "continue an interrupted run")


def new_names(options: Options) -> dict[str, str]:
    """The new class names by old class name, from `--voc` and `--rename`.

    Raises:
        UsageError: An argument does not have the form OLD=NEW.
    """
    names = dict(COCO_NAMES) if options.voc else {}
    for pair in options.rename:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise UsageError(f"--rename {pair!r}: expected OLD=NEW, as in couch=sofa")
        names[old] = new
    return names


def class_names(teachers: list, names: dict[str, str], options: Options) -> list[str]:
    """The names of all classes that can be found, in order.

    Raises:
        UsageError: A renamed or requested class is not known to any detector.
    """
    available = dict.fromkeys(name for teacher in teachers for name in teacher.names)
    for old in (pair.partition("=")[0] for pair in options.rename):
        if old not in available:
            raise UsageError(
                f"--rename: no detector knows {shorten(old)!r}; "
                f"they know {list_choices(old, available)}"
            )
    classes = list(dict.fromkeys(names.get(name, name) for name in available))
    if options.voc:
        classes = [name for name in VOC_CLASSES if name in classes]
    for name in options.classes or ():
        if name not in classes:
            raise UsageError(
                f"unknown class {shorten(name)!r}; there are {list_choices(name, classes)}"
            )
    return [name for name in classes if not options.classes or name in options.classes]


def settings_of(options: Options, names: dict[str, str], classes: list[str]) -> dict:
    """The settings that determine the boxes. They must be equal in a resumed run."""
    from spikedet.checkpoint import sha256

    weights = []  # several may have one name, such as best.safetensors
    for path in options.weights:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        names_of = {file: file.relative_to(path.parent).as_posix() for file in files}
        weights.append({name: sha256(file) for file, name in names_of.items()})
    return {
        "weights": weights,
        "classes": classes,
        "rename": names,
        **{key: getattr(options, key) for key in ("conf", "iou", "one_class", "mirror", "imgsz")},
    }


def run(options: Options) -> int:
    from spikedet.detection import label
    from spikedet.files import write_atomic
    from spikedet.picture_files import pictures_in
    from spikedet.pictures import read_picture

    expect_new(options.out)
    if not options.folder.is_dir():
        raise DataError(f"{options.folder}: no such folder; expected a folder of pictures")
    paths, unreadable = pictures_in(options.folder, deep=True)
    if not paths:
        raise unreadable or DataError(f"{options.folder}: no pictures in this folder")
    teachers = [
        label.teacher(path, options.conf, options.iou, options.imgsz, options.device)
        for path in options.weights
    ]
    names = new_names(options)
    classes = class_names(teachers, names, options)
    settings = settings_of(options, names, classes)
    partial = options.out.with_name(options.out.name + ".partial")
    journal = label.Journal(partial, settings, options.resume)
    views = teachers + [label.mirrored(teacher) for teacher in teachers if options.mirror]
    failed = 0
    if unreadable:
        print(f"error: {unreadable}", file=sys.stderr)
        failed += 1
    names_of = {path: path.relative_to(options.folder).as_posix() for path in paths}
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    journal.forget_changed({names_of[path]: size for path, size in sizes.items()})
    left = {path: name for path, name in names_of.items() if name not in journal.done}
    done = len(names_of) - len(left)
    shown = {"unit": "picture", "total": len(names_of), "initial": done}
    for path, name in progress(left.items(), "pictures", **shown):
        try:
            picture = read_picture(path)
        except PictureError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        by_view = [label.rename_classes(view(picture), names, classes) for view in views]
        objects = label.fuse(by_view)
        if options.one_class is not None:
            objects = label.remove_duplicates(objects, options.one_class)
        journal.add(name, picture.shape[1], picture.shape[0], objects, sizes[path])
    entries = [journal.done[name] for name in names_of.values() if name in journal.done]
    info = {"description": "labelled by detectors", "command": command_line(), **settings}
    results = label.coco(entries, classes, info)
    write_atomic(options.out, (json.dumps(results) + "\n").encode())
    partial.unlink(missing_ok=True)
    boxes = counted(len(results["annotations"]), "box")
    print(f"{options.out}: {boxes} in {counted(len(entries), 'picture')}")
    return DataError.exit_code if failed else 0
