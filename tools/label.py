#!/usr/bin/env python
"""Label pictures with trained detectors: a folder in, a COCO file with scores out.

    tools/label.py pictures --weights yolo11n_int8_openvino_model --voc --out labels.json
    tools/import_boxes.py --pictures pictures --coco labels.json --least-score 0.35 \\
        --out devkit/LABELLED --split train

--weights are detectors that ultralytics loads (ONNX, OpenVINO, TFLite ..., .pt by its safe reader)
or this project's own. Boxes of several, and with --mirror of the mirrored picture as well, are
fused: what one of n sees alone has an nth of its score. Pictures of sub-folders are labelled, too;
nothing is written beside them. After a kill --resume goes on.

Licences: detectors trained by others may oblige whoever passes on what they taught.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from spikedet.detection.boxes import COCO_NAMES, VOC_CLASSES  # noqa: E402
from spikedet.errors import DataError, PictureError, UsageError  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="folder of pictures")
    add("--weights", type=Path, nargs="+", required=True, help="one detector or several")
    add("--out", type=cli.json_file, required=True, help="COCO file to write")
    add("--voc", action="store_true", help="rename COCO's classes to VOC's, keep VOC's 20 alone")
    add("--rename", nargs="+", default=[], metavar="OLD=NEW", help="other class names")
    add("--classes", nargs="+", help="only these, as they are renamed")
    add("--conf", type=cli.fraction, default=0.1, help="least score of a box, of one detector")
    add("--iou", type=cli.fraction, default=0.7, help="of each detector's own suppression")
    help = "of boxes of any classes that overlap more than this the surest is kept"
    add("--one-class", type=cli.fraction, help=help)
    add("--mirror", action="store_true", help="look at the mirrored picture as well")
    add("--imgsz", type=cli.count, help="input side in pixels; the detector's own if left out")
    cli.add_device(parser)
    add("--resume", action="store_true", help="go on after a kill")
    return parser


def new_names(args: argparse.Namespace) -> dict[str, str]:
    """What `--voc` and `--rename` ask for.

    Raises:
        UsageError: Not of the form OLD=NEW.
    """
    names = dict(COCO_NAMES) if args.voc else {}
    for pair in args.rename:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise UsageError(f"--rename {pair!r}: expected OLD=NEW, as in couch=sofa")
        names[old] = new
    return names


def known(teachers: list, names: dict[str, str], args: argparse.Namespace) -> list[str]:
    """The classes that can be found, in order.

    Raises:
        UsageError: One that is renamed or asked for and no detector knows.
    """
    there = dict.fromkeys(name for teacher in teachers for name in teacher.names)
    for old in (pair.partition("=")[0] for pair in args.rename):
        if old not in there:
            raise UsageError(f"--rename: no detector knows {old!r}; they know {', '.join(there)}")
    found = list(dict.fromkeys(names.get(name, name) for name in there))
    if args.voc:
        found = [name for name in VOC_CLASSES if name in found]
    for name in args.classes or ():
        if name not in found:
            raise UsageError(f"unknown class {name!r}; there are {', '.join(found)}")
    return [name for name in found if not args.classes or name in args.classes]


def settings_of(args: argparse.Namespace, names: dict[str, str], classes: list[str]) -> dict:
    """What makes the boxes what they are."""
    from spikedet.checkpoint import sha256

    digests = {}
    for path in args.weights:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        digests[path.name] = {file.name: sha256(file) for file in files}
    return {
        "weights": digests,
        "classes": classes,
        "rename": names,
        **{key: getattr(args, key) for key in ("conf", "iou", "one_class", "mirror", "imgsz")},
    }


def main(args: argparse.Namespace) -> int:
    from spikedet.detection import label
    from spikedet.files import write_atomic
    from spikedet.pictures import SUFFIXES, read_picture

    cli.expect_new(args.out)
    if not args.folder.is_dir():
        raise DataError(f"{args.folder}: no such folder; expected one of pictures")
    paths = sorted(p for p in args.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"{args.folder}: no pictures in this folder")
    options = (args.conf, args.iou, args.imgsz, args.device)
    teachers = [label.teacher(path, *options) for path in args.weights]
    names = new_names(args)
    classes = known(teachers, names, args)
    settings = settings_of(args, names, classes)
    partial = args.out.with_name(args.out.name + ".partial")
    journal = label.Journal(partial, settings, args.resume)
    views = teachers + [label.mirrored(teacher) for teacher in teachers if args.mirror]
    failed = 0
    names_of = {path: path.relative_to(args.folder).as_posix() for path in paths}
    for path, name in cli.progress(names_of.items(), "pictures", unit="picture"):
        if name in journal.done:
            continue
        try:
            picture = read_picture(path)
        except PictureError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        found = [label.renamed(view(picture), names, classes) for view in views]
        objects = label.fuse(found)
        if args.one_class is not None:
            objects = label.without_doubles(objects, args.one_class)
        journal.add(name, picture.shape[1], picture.shape[0], objects)
    entries = [journal.done[name] for name in names_of.values() if name in journal.done]
    info = {"description": "labelled by detectors", "command": cli.command_line(), **settings}
    made = label.coco(entries, classes, info)
    write_atomic(args.out, (json.dumps(made) + "\n").encode())
    partial.unlink(missing_ok=True)
    print(f"{args.out}: {len(made['annotations'])} boxes in {len(entries)} pictures")
    return DataError.exit_code if failed else 0


if __name__ == "__main__":
    cli.run(main, arguments())
