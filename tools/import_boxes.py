#!/usr/bin/env python
"""Turn pictures with another annotation format into a data set of the VOCdevkit layout.

Two inputs are understood: a list with one picture a line (`path x1,y1,x2,y2,class ...`, classes
numbered as in --names), or a folder of VOC XML files. Boxes of classes that VOC does not have are
dropped, and so are pictures without any VOC object. Pictures are linked, not copied.

    tools/import_boxes.py --pictures coco/val2017 --list val2017.txt --names coco.names \\
        --out devkit/COCO2017 --split voc
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from spikedet.detection.boxes import VOC_CLASSES  # noqa: E402
from spikedet.errors import DataError  # noqa: E402

SYNONYMS = {
    "airplane": "aeroplane",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "couch": "sofa",
    "tv": "tvmonitor",
}


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("--pictures", type=Path, required=True, nargs="+", help="picture folders")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--list", type=Path, help="list of pictures and boxes")
    source.add_argument("--xml", type=Path, help="folder of VOC XML files")
    parser.add_argument("--names", type=Path, help="class names of --list, one a line")
    parser.add_argument("--out", type=Path, required=True, help="data-set folder to make")
    parser.add_argument("--split", default="train", help="name of the split file")
    parser.add_argument(
        "--skip", type=Path, nargs="*", default=[], help="split files of ids to skip"
    )
    return parser


def write_xml(path: Path, size: tuple[int, int], objects: list[tuple[str, list[int]]]) -> None:
    root = ElementTree.Element("annotation")
    node = ElementTree.SubElement(root, "size")
    for key, value in zip(("width", "height", "depth"), (*size, 3), strict=True):
        ElementTree.SubElement(node, key).text = str(value)
    for name, box in objects:
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = name
        ElementTree.SubElement(item, "difficult").text = "0"
        node = ElementTree.SubElement(item, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(node, key).text = str(value)
    ElementTree.ElementTree(root).write(path)


def list_objects(line: str, names: list[str], size: tuple[int, int]) -> list[tuple[str, list[int]]]:
    """Objects of VOC classes in one line of a box list, in VOC's 1-based inclusive pixels."""
    objects = []
    for box in line.split()[1:]:
        x1, y1, x2, y2, label = (float(v) for v in box.split(","))
        name = SYNONYMS.get(names[int(label)], names[int(label)])
        x1, y1 = max(round(x1), 0) + 1, max(round(y1), 0) + 1
        x2, y2 = min(round(x2), size[0]), min(round(y2), size[1])
        if name in VOC_CLASSES and x2 > x1 and y2 > y1:
            objects.append((name, [x1, y1, x2, y2]))
    return objects


def main(args: argparse.Namespace) -> None:
    from PIL import Image

    skip = {line.split()[0] for path in args.skip for line in path.read_text().splitlines() if line}
    pictures = {p.stem: p for d in args.pictures for p in sorted(d.rglob("*.jpg"))}
    if not pictures:
        raise DataError(f"{args.pictures[0]}: no .jpg pictures here")
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    if args.list:
        if args.names is None:
            raise DataError("--list needs --names, the class names its numbers stand for")
        names = [n.strip() for n in args.names.read_text().splitlines()]
        lines = {
            Path(x.split()[0]).stem: x for x in args.list.read_text().splitlines() if x.strip()
        }
        sources = [stem for stem in pictures if stem in lines]
    else:
        sources = [stem for stem in pictures if (args.xml / f"{stem}.xml").is_file()]
    ids = []
    for stem in sorted(sources):
        if stem in skip or re.match("2007_", stem):
            continue
        if args.list:
            with Image.open(pictures[stem]) as picture:
                size = picture.size
            objects = list_objects(lines[stem], names, size)
            if not objects:
                continue
            write_xml(args.out / "Annotations" / f"{stem}.xml", size, objects)
        else:
            xml = args.out / "Annotations" / f"{stem}.xml"
            xml.write_bytes((args.xml / xml.name).read_bytes())
        link = args.out / "JPEGImages" / f"{stem}.jpg"
        if not link.exists():
            os.symlink(pictures[stem].resolve(), link)
        ids.append(stem)
    (args.out / "ImageSets/Main" / f"{args.split}.txt").write_text("\n".join(ids) + "\n")
    print(f"{args.out}: {len(ids)} pictures, split {args.split}")


if __name__ == "__main__":
    cli.run(main, arguments())
