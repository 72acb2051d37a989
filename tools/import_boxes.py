#!/usr/bin/env python
"""Turn pictures with another annotation format into a data set of the VOCdevkit layout.

Two inputs are understood: a list with one picture a line (`path x1,y1,x2,y2,class ...`, classes
numbered as in --names), or a folder of VOC XML files. Objects of classes that VOC does not have are
left out, and so are pictures without any other object; how many is printed. Pictures are JPEG
files; they are linked, not copied. No file that is there is written over: what is the same is left
alone, anything else is refused before anything is written.

    tools/import_boxes.py --pictures coco/val2017 --list val2017.txt --names coco.names \\
        --out devkit/COCO2017 --split voc
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from spikedet.data.formats.voc import VOC_CLASSES, is_copy_of_2007, parse_xml  # noqa: E402
from spikedet.errors import DataError, UsageError  # noqa: E402
from spikedet.files import read_lines, write_atomic  # noqa: E402
from spikedet.pictures import read_header  # noqa: E402

JPEG = {".jpg", ".jpeg"}
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


Objects = list[tuple[str, list[int]]]


def xml_of_boxes(size: tuple[int, int], objects: Objects) -> bytes:
    """VOC XML of a picture of `size` (width, height) with these objects."""
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
    return ElementTree.tostring(root)


def list_objects(line: str, names: dict[float, str], size: tuple[int, int]) -> Objects:
    """Objects of VOC classes in one line of a box list, in VOC's 1-based inclusive pixels.

    Raises:
        DataError: A box that is not of that form.
    """
    objects = []
    for box in line.split()[1:]:
        try:
            x1, y1, x2, y2, label = (float(v) for v in box.split(","))
            x1, y1 = max(round(x1), 0) + 1, max(round(y1), 0) + 1
            x2, y2 = min(round(x2), size[0]), min(round(y2), size[1])
            name = names[label]
        except (ValueError, OverflowError, KeyError):
            raise DataError(
                f"{line.split()[0]}: box {box!r}; expected x1,y1,x2,y2,class with a class of 0 to "
                f"{len(names) - 1}"
            ) from None
        name = SYNONYMS.get(name, name)
        if name in VOC_CLASSES and x2 >= x1 and y2 >= y1:
            objects.append((name, [x1, y1, x2, y2]))
    return objects


def annotations_of_list(
    path: Path, names: Path, pictures: dict[str, Path], skip: set[str]
) -> Iterator[tuple[str, bytes | None]]:
    """Stem and XML of every picture in a box list; None where no VOC object is left."""
    classes = dict(enumerate(read_lines(names)))
    for line in filter(None, read_lines(path)):
        stem = Path(line.split()[0]).stem
        if stem in skip:
            continue
        if stem not in pictures:
            raise DataError(f"{path}: {line.split()[0]}: no such picture in --pictures")
        size = read_header(pictures[stem])[:2]
        objects = list_objects(line, classes, size)
        yield stem, xml_of_boxes(size, objects) if objects else None


def annotations_of_folder(
    folder: Path, pictures: dict[str, Path], skip: set[str]
) -> Iterator[tuple[str, bytes | None]]:
    """Stem and XML of every picture with a VOC XML; None where no VOC object is left."""
    for stem in pictures.keys() - skip:
        path = folder / f"{stem}.xml"
        if not path.is_file():
            continue
        root = parse_xml(path)
        for item in root.findall("object"):
            name = item.findtext("name", "").strip()
            name = SYNONYMS.get(name, name)
            if name in VOC_CLASSES:
                item.find("name").text = name
            else:
                root.remove(item)
        yield stem, None if root.find("object") is None else ElementTree.tostring(root)


def write(out: Path, split: str, annotations: dict[str, bytes], pictures: dict[str, Path]) -> None:
    """Write annotations, links to the pictures, and at last the list of both.

    Raises:
        DataError: Something else is there already; nothing is written then.
    """
    listed = out / "ImageSets/Main" / f"{split}.txt"
    ids = ("\n".join(annotations) + "\n").encode()
    files = {out / "Annotations" / f"{stem}.xml": xml for stem, xml in annotations.items()}
    links = {out / "JPEGImages" / f"{stem}.jpg": path for stem, path in pictures.items()}
    for path, content in {**files, listed: ids}.items():
        if path.exists() and path.read_bytes() != content:
            raise DataError(f"{path}: is there already, with other content; choose another --out")
    for link, picture in links.items():
        if os.path.lexists(link) and os.path.realpath(link) != str(picture):
            raise DataError(f"{link}: is there already, another picture; choose another --out")
    for folder in ("Annotations", "JPEGImages"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        path.write_bytes(content)
    for link, picture in links.items():
        if not os.path.lexists(link):
            link.symlink_to(picture)
    write_atomic(listed, ids)


def main(args: argparse.Namespace) -> None:
    if args.list and args.names is None:
        raise UsageError("--list needs --names, the class names its numbers stand for")
    if args.xml:
        cli.refuse(args, ["names"], "VOC XML has the names of its classes itself")
    skip = {line.split()[0] for path in args.skip for line in read_lines(path) if line}
    pictures: dict[str, Path] = {}
    for path in (p for folder in args.pictures for p in sorted(folder.rglob("*"))):
        if path.suffix.lower() not in JPEG:
            continue
        known = pictures.setdefault(path.stem, path)
        if os.path.realpath(path) != os.path.realpath(known):
            raise DataError(f"{path} and {known}: two pictures of one name")
    if not pictures:
        raise DataError(f"{args.pictures[0]}: no JPEG pictures here")
    # VOC 2012's copies of VOC 2007: some are for evaluation, see `read_ids`
    skip |= set(filter(is_copy_of_2007, pictures))
    if args.list:
        annotations = annotations_of_list(args.list, args.names, pictures, skip)
    else:
        annotations = annotations_of_folder(args.xml, pictures, skip)
    found: dict[str, bytes | None] = {}
    for stem, xml in annotations:
        if stem in found:
            raise DataError(f"{args.list}: two lines for pictures named {stem}")
        found[stem] = xml
    kept = {stem: xml for stem, xml in sorted(found.items()) if xml is not None}
    if not kept:
        raise DataError(f"none of {len(found)} annotated pictures has an object of a VOC class")
    write(
        args.out, args.split, kept, {stem: Path(os.path.realpath(pictures[stem])) for stem in kept}
    )
    without = f"{len(found) - len(kept)} more are without an object of a VOC class"
    if args.xml:
        alone = {path.stem for path in args.xml.glob("*.xml")} - pictures.keys() - skip
        without += f", {len(alone)} annotations without a JPEG picture" if alone else ""
    print(f"{args.out}: {len(kept)} pictures, split {args.split}; {without}")


if __name__ == "__main__":
    cli.run(main, arguments())
