"""Convert annotations of other formats to the VOCdevkit layout. Only VOC's classes are kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from spikedet.data.formats.voc import VOC_CLASSES
from spikedet.data.formats.voc_xml import parse_xml
from spikedet.data.samples import Sample
from spikedet.data.sizes import fit_to_pictures, warn_of_tags
from spikedet.detection.boxes import COCO_NAMES, overlaps
from spikedet.errors import DataError, UsageError
from spikedet.files import read_lines, write_atomic
from spikedet.pictures import read_header

SAME, ANY = 0.45, 0.7  # IoU with a box of an earlier COCO file that makes a box a duplicate
Objects = list[tuple[str, list[int]]]


def xml_of_boxes(size: tuple[int, int], objects: Objects) -> bytes:
    """Make the VOC XML of a picture with these objects. `size` is (width, height)."""
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
    """Read the objects of VOC classes in one line of a box list.

    The boxes are in VOC's pixels, which count from 1 and include both edges.

    Raises:
        DataError: A box has a wrong form.
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
        name = COCO_NAMES.get(name, name)
        if name in VOC_CLASSES and x2 >= x1 and y2 >= y1:
            objects.append((name, [x1, y1, x2, y2]))
    return objects


def annotations_of_list(
    path: Path, names: Path, pictures: dict[str, Path], skip: set[str]
) -> Iterator[tuple[str, bytes | None]]:
    """Yield the stem and the XML of every picture in a box list; None without a VOC object.

    A list has no sizes, so its boxes are taken as boxes of the picture as a viewer shows it. A
    warning counts the pictures with a rotation tag.
    """
    classes: dict[float, str] = dict(enumerate(read_lines(names)))
    tagged = []
    for line in filter(None, read_lines(path)):
        stem = Path(line.split()[0]).stem
        if stem in skip:
            continue
        if stem not in pictures:
            raise DataError(f"{path}: {line.split()[0]}: no such picture in --pictures")
        header = read_header(pictures[stem])
        size = header.width, header.height
        objects = list_objects(line, classes, size)
        if objects and header.turn > 1:
            tagged.append(pictures[stem].name)
        yield stem, xml_of_boxes(size, objects) if objects else None
    if tagged:
        warn_of_tags(path.name, tagged)


def annotations_of_folder(
    folder: Path, pictures: dict[str, Path], skip: set[str]
) -> Iterator[tuple[str, bytes | None]]:
    """Yield the stem and the XML of every picture with VOC XML; None without a VOC object."""
    for stem in pictures.keys() - skip:
        path = folder / f"{stem}.xml"
        if not path.is_file():
            continue
        root = parse_xml(path)
        for item in root.findall("object"):
            tag = item.find("name")
            name = "" if tag is None else (tag.text or "").strip()
            name = COCO_NAMES.get(name, name)
            if tag is not None and name in VOC_CLASSES:
                tag.text = name
            else:
                root.remove(item)
        yield stem, None if root.find("object") is None else ElementTree.tostring(root)


def coco_objects(path: Path, least: float) -> dict[str, tuple[tuple[int, int], list]]:
    """Read the sizes of the pictures in a COCO file, and their objects of VOC classes, by stem.

    Args:
        path: The COCO file.
        least: Smallest score of a box. Boxes without a score are kept. Crowds are left out.

    Raises:
        DataError: The file is missing, is not a COCO file, or two pictures have the same name.
    """
    objects: dict[str, tuple[tuple[int, int], list]] = {}
    try:
        data = json.loads(path.read_bytes())
        names = {row["id"]: COCO_NAMES.get(row["name"], row["name"]) for row in data["categories"]}
        stems = {row["id"]: Path(row["file_name"]).stem for row in data["images"]}
        for row in data["images"]:
            if stems[row["id"]] in objects:
                raise DataError(f"{path}: two pictures named {stems[row['id']]}")
            size = int(row["width"]), int(row["height"])
            if min(size) < 1:
                raise ValueError
            objects[stems[row["id"]]] = (size, [])
        for row in data["annotations"]:
            name = names[row["category_id"]]
            x, y, width, height = map(float, row["bbox"])
            if not all(map(math.isfinite, (x, y, width, height))):
                raise ValueError
            counts = not row.get("iscrowd") and row.get("score", 1.0) >= least
            if counts and name in VOC_CLASSES:
                objects[stems[row["image_id"]]][1].append((name, (x, y, x + width, y + height)))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(
            f"{path}: not a COCO file; expected images (id, file_name, width, height), annotations "
            "(image_id, category_id, bbox) and categories (id, name)"
        ) from None
    return objects


def fitted_objects(
    path: Path, known: dict[str, tuple[tuple[int, int], list]], pictures: dict[str, Path]
) -> dict[str, Sample]:
    """Convert the objects of a COCO file to the pixels of the pictures, as for training.

    Args:
        path: The COCO file, for messages.
        known: Sizes and objects by stem, see `coco_objects`.
        pictures: Picture files by stem.

    Returns:
        A sample for each stem. Its labels are indices of `VOC_CLASSES`.

    Raises:
        DataError: A picture is unreadable, or has another shape than in the COCO file.
    """
    samples = []
    for stem, ((width, height), rows) in known.items():
        boxes = np.array([edges for _, edges in rows], np.float64).reshape(-1, 4)
        labels = np.array([VOC_CLASSES.index(name) for name, _ in rows], np.int64)
        difficult = np.zeros(len(rows), bool)
        samples.append(Sample(stem, pictures[stem], width, height, boxes, labels, difficult))
    return {s.id: s for s in fit_to_pictures(samples, path.name, path.absolute().parent)}


def annotations_of_coco(
    paths: list[Path], least: float, pictures: dict[str, Path], skip: set[str]
) -> Iterator[tuple[str, bytes | None]]:
    """Yield the stem and XML of every picture of the first COCO file; None without a VOC object."""
    contents = [coco_objects(path, least) for path in paths]
    stems = [stem for stem in contents[0] if stem not in skip]
    for stem in stems:
        if stem not in pictures:
            raise DataError(f"{paths[0]}: {stem}: no such picture in --pictures")
    fitted = [
        fitted_objects(path, {stem: known[stem] for stem in stems if stem in known}, pictures)
        for path, known in zip(paths, contents, strict=True)
    ]
    for stem in stems:
        size = fitted[0][stem].width, fitted[0][stem].height
        objects: Objects = []
        for sample in (each[stem] for each in fitted if stem in each):
            before = list(objects)
            boxes = np.array([box for _, box in before], np.float64).reshape(-1, 4)
            for label, (x1, y1, x2, y2) in zip(sample.labels, sample.boxes.tolist(), strict=True):
                name = VOC_CLASSES[label]
                box = [max(round(x1), 0) + 1, max(round(y1), 0) + 1]
                box += [min(round(x2), size[0]), min(round(y2), size[1])]
                most = np.array([SAME if other == name else ANY for other, _ in before])
                new = (overlaps(np.array(box, np.float64), boxes) < most).all()
                if new and box[2] >= box[0] and box[3] >= box[1]:
                    objects.append((name, box))
        yield stem, xml_of_boxes(size, objects) if objects else None


def write(out: Path, split: str, annotations: dict[str, bytes], pictures: dict[str, Path]) -> None:
    """Write the annotations, links to the pictures, and last the split file.

    Raises:
        UsageError: A file exists already with other content. Then nothing is written.
    """
    listed = out / "ImageSets/Main" / f"{split}.txt"
    ids = ("\n".join(annotations) + "\n").encode()
    files = {out / "Annotations" / f"{stem}.xml": xml for stem, xml in annotations.items()}
    links = {out / "JPEGImages" / f"{stem}.jpg": path for stem, path in pictures.items()}
    other = [listed] if listed.exists() and listed.read_bytes() != ids else []
    for path, content in files.items():
        # a killed run leaves the beginning of a file
        if path.exists() and not content.startswith(path.read_bytes()):
            other.append(path)
    if other:
        raise UsageError(f"{other[0]} exists already, with other content; choose another --out")
    for link, picture in links.items():
        if os.path.lexists(link) and os.path.realpath(link) != str(picture):
            raise UsageError(f"{link} exists already, as another picture; choose another --out")
    for folder in ("Annotations", "JPEGImages"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        path.write_bytes(content)
    for link, picture in links.items():
        if not os.path.lexists(link):
            link.symlink_to(picture)
    write_atomic(listed, ids)
