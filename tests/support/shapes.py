"""Generated pictures of three classes, drawn shapes, in every format that is read."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import yaml

NAMES = ("circle", "square", "triangle")
SIZE = (72, 56)  # width, height
EXACT = [cv2.IMWRITE_JPEG_QUALITY, 98]
EXACT += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


def draw(rng, size=SIZE):
    """A picture [H, W, 3] BGR with two shapes, and their (class, (x1, y1, x2, y2))."""
    width, height = size
    picture = np.full((height, width, 3), rng.integers(20, 80), np.uint8)
    objects = []
    for half in (0, width // 2):
        label, side = int(rng.integers(3)), int(rng.integers(16, 24))
        x = half + int(rng.integers(2, width // 2 - side - 2))
        y = int(rng.integers(2, height - side - 2))
        colour = [(50, 50, 250), (50, 250, 50), (250, 120, 50)][label]
        if label == 0:
            # a circle of 2 r + 1 pixels
            side = side // 2 * 2 + 1
            cv2.circle(picture, (x + side // 2, y + side // 2), side // 2, colour, -1)
        elif label == 1:
            picture[y : y + side, x : x + side] = colour
        else:
            points = [(x, y + side - 1), (x + side - 1, y + side - 1), (x + side // 2, y)]
            cv2.fillPoly(picture, [np.array(points)], colour)
        objects.append((NAMES[label], (x, y, x + side, y + side)))
    return picture, objects


def drawn(counts=None):
    """(split, id, picture, objects) of a small data set."""
    rng = np.random.default_rng(0)
    for split, count in (counts or {"train": 12, "val": 4}).items():
        for number in range(count):
            yield split, f"{split}-{number:02}", *draw(rng)


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture, EXACT if path.suffix.lower()[:3] == ".jp" else [])


def write_voc(folder, counts=None, name="Shapes", suffix=".jpg"):
    """A VOCdevkit."""
    from support.devkits import annotation

    place = folder / name
    for split, number, picture, objects in drawn(counts):
        save(place / "JPEGImages" / f"{number}{suffix}", picture)
        rows = [(label, (x1 + 1, y1 + 1, x2, y2), False) for label, (x1, y1, x2, y2) in objects]
        for part in ("Annotations", "ImageSets/Main"):
            (place / part).mkdir(parents=True, exist_ok=True)
        xml = annotation(*rows, size=picture.shape[1::-1])
        (place / "Annotations" / f"{number}.xml").write_text(xml)
        with (place / "ImageSets/Main" / f"{split}.txt").open("a") as file:
            file.write(f"{number}\n")
    return folder


def yolo_rows(objects, size=SIZE):
    """Text of a label file."""
    rows = []
    for label, (x1, y1, x2, y2) in objects:
        centre = [(x1 + x2) / 2 / size[0], (y1 + y2) / 2 / size[1]]
        sides = [(x2 - x1) / size[0], (y2 - y1) / size[1]]
        rows.append(" ".join(map(str, [NAMES.index(label), *centre, *sides])) + "\n")
    return "".join(rows)


def write_yolo(folder, counts=None, **description):
    """A folder with a `data.yaml`."""
    for split, number, picture, objects in drawn(counts):
        save(folder / "images" / split / f"{number}.jpg", picture)
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / split / f"{number}.txt").write_text(yolo_rows(objects))
    description = {
        "names": list(NAMES),
        "train": "images/train",
        "val": "images/val",
        **description,
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(description))
    return folder


def write_coco(folder, counts=None):
    """A folder with `annotations` beside its pictures."""
    files: dict[str, dict] = {}
    for split, number, picture, objects in drawn(counts):
        save(folder / split / f"{number}.jpg", picture)
        # numbers of categories have gaps, and are in no order
        numbers = {"triangle": 7, "circle": 2, "square": 5}
        content = files.setdefault(
            split,
            {
                "images": [],
                "annotations": [],
                "categories": [{"id": i, "name": n} for n, i in numbers.items()],
            },
        )
        image = len(content["images"]) + 10
        size = {"width": picture.shape[1], "height": picture.shape[0]}
        content["images"].append({"id": image, "file_name": f"{number}.jpg", **size})
        for label, (x1, y1, x2, y2) in objects:
            box = [x1, y1, x2 - x1, y2 - y1]
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": image, "bbox": box,
                 "category_id": numbers[label], "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
    (folder / "annotations").mkdir()
    for split, content in files.items():
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content))
    return folder


WRITERS = {"voc": write_voc, "yolo": write_yolo, "coco": write_coco}


def listing(folder: Path):
    """Everything in a folder, with the time it was changed at."""
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}
